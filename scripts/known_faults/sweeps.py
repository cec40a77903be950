"""Of sweeps, searches and the online score."""

from __future__ import annotations

from known_faults.fault import Fault, fault

FAULTS: dict[int, list[Fault]] = {
    48: [
        fault(
            "what is done is run again",
            "test_sweeps.py::test_a_failure_is_written_down_and_the_same_command_runs_only_what_is_missing",
            "ssl_runner/sweeps.py",
            "        left = [job for job in jobs if not (job.folder / runs.METRICS).is_file()]\n",
            "        left = list(jobs)\n",
        ),
        fault(
            "a failure is not written down",
            "test_sweeps.py::test_a_failure_is_written_down_and_the_same_command_runs_only_what_is_missing",
            "ssl_runner/jobs.py",
            '            failed(folder, "failed", text, 2 if isinstance(error, RequestError) else 1)\n',
            "            del text\n",
        ),
        fault(
            "the launcher names the folder too",
            "test_sweeps.py::test_a_sweeps_folder_depends_on_what_is_run_and_on_nothing_else",
            "ssl_runner/sweeps.py",
            'OF_SWEEP = ("launcher", "hparams_search")',
            'OF_SWEEP = ("hparams_search",)',
        ),
        fault(
            "a folder of another sweep is taken",
            "test_sweeps.py::test_a_sweeps_folder_depends_on_what_is_run_and_on_nothing_else",
            "ssl_runner/sweeps.py",
            'if before is not None and before.get("digest") != job.about["digest"]:',
            "if False:",
        ),
        fault(
            "two processes run one job",
            "test_sweeps.py::test_a_job_of_another_process_is_waited_for_and_not_run_twice",
            "ssl_runner/jobs.py",
            "            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
            "            pass\n",
        ),
        fault(
            "what a job has forked keeps its lock",
            "test_sweeps.py::test_a_lock_ends_with_its_process",
            "ssl_runner/jobs.py",
            "fcntl.lockf(handle,",
            "fcntl.flock(handle,",
        ),
        fault(
            "jobs outlive a sweep that is killed",
            "test_sweeps.py::test_a_process_ends_with_the_one_that_waits_for_it",
            "ssl_runner/launchers.py",
            "        os.kill(os.getpid(), signal.SIGTERM)\n",
            "",
        ),
        fault(
            "a search proposes all its trials at once",
            "test_sweeps.py::test_as_many_jobs_as_asked_run_at_a_time_and_each_is_drawn_when_there_is_room",
            "ssl_runner/launchers.py",
            "left, drawing = iter(items),",
            "left, drawing = iter(list(items)),",
        ),
        fault(
            "a batch job is queued again before it has saved",
            "test_sweeps.py::test_a_batch_job_whose_time_is_up_saves_and_is_queued_again",
            "ssl_runner/launchers.py",
            "        self.stop()\n        self.wait()\n        return submitit",
            "        return submitit",
        ),
        fault(
            "a trial that was cut off is left behind",
            "test_sweeps.py::test_a_search_that_is_killed_twice_tries_what_it_would_have_tried",
            "ssl_runner/search.py",
            "        for frozen in study.get_trials(states=(state.RUNNING,)):\n            yield optuna.Trial(study, frozen._trial_id)\n",
            "",
        ),
        fault(
            "proposals start over in a resumed search",
            "test_sweeps.py::test_a_search_that_is_killed_twice_tries_what_it_would_have_tried",
            "ssl_runner/search.py",
            'self._sampler(derive(self.seed, "trial", number) % 2**32)',
            "self._sampler(self.seed)",
        ),
        fault(
            "a failed trial is not counted",
            "test_sweeps.py::test_a_failed_trial_is_recorded_and_counted",
            "ssl_runner/search.py",
            "if each != state.WAITING)",
            "if each not in (state.WAITING, state.FAIL))",
        ),
        fault(
            "a grid tries a combination again",
            "test_sweeps.py::test_a_grid_tries_all_its_combinations_once_in_order",
            "ssl_runner/search.py",
            "skip_if_exists=True",
            "skip_if_exists=False",
        ),
        fault(
            "a search is not checked before it runs",
            "test_sweeps.py::test_a_search_is_checked_before_anything_runs",
            "ssl_runner/search.py",
            "            if name not in known and not (head in of_test_part(config) and tail):\n",
            "            if False:\n",
        ),
        fault(
            "nothing is said of choosing by the test part",
            "test_sweeps.py::test_choosing_by_the_test_part_is_said_to_be_what_it_is",
            "ssl_runner/sweeps.py",
            "        if dishonest:\n",
            "        if False:\n",
        ),
        fault(
            "no trial is pruned",
            "test_sweeps.py::test_a_trial_that_is_worse_than_the_others_is_pruned",
            "ssl_runner/search.py",
            "                prune = self.trial.should_prune()\n",
            "",
        ),
        fault(
            "the online score is of the test part",
            "test_sweeps.py::test_an_online_score_disturbs_nothing_and_is_of_the_validation_part",
            "ssl_runner/online.py",
            'data, "val")',
            'data, "test")  # type: ignore[arg-type]',
        ),
        fault(
            "the online score is of the last weights, not the averaged ones",
            "test_sweeps.py::test_an_online_score_disturbs_nothing_and_is_of_the_validation_part",
            "ssl_runner/online.py",
            "with learner.averaged(), torch",
            "with torch",
        ),
        fault(
            "compare does not say how a job failed",
            "test_compare.py::test_a_sweeps_failures_are_told_and_a_search_is_ordered_by_its_figure",
            "ssl_runner/compare.py",
            "        if self.failure is not None:\n",
            "        if False:\n",
        ),
    ],
}
