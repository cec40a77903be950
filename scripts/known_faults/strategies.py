"""Of strategies, number formats and averaged weights."""

from __future__ import annotations

from known_faults.fault import Fault, fault

S = "test_strategies.py::"

FAULTS: dict[int, list[Fault]] = {
    51: [
        fault(
            "a TPU's generator is never seeded",
            S + "test_draws_on_a_tpu_follow_the_seed_too",
            "ssl_runner/learner.py",
            "            xm.set_rng_state(seed, str(self.device))\n",
            "            xm.get_rng_state(str(self.device))\n",
        ),
        fault(
            "averaged weights never move",
            S + "test_kept_are_averaged_weights_that_forget_their_start",
            "ssl_runner/learner.py",
            "            self.average.update(self.objective, self.global_step)\n",
            "            pass\n",
        ),
        fault(
            "averaged weights remember their start as long as anything",
            S + "test_kept_are_averaged_weights_that_forget_their_start",
            "ssl_runner/learner.py",
            "decay = min(self.decay, (1 + steps) / (10 + steps))",
            "decay = self.decay",
        ),
        fault(
            "validation sees the last weights, not the averaged ones",
            S + "test_averaging_changes_nothing_of_the_training_and_is_what_validation_and_evaluators_see",
            "ssl_runner/learner.py",
            "        with self.averaged():\n            loss = self.objective(self.batch(samples, views))",
            "        with torch.no_grad():\n            loss = self.objective(self.batch(samples, views))",
        ),
        fault(
            "training goes on from the averaged weights behind each validation",
            S + "test_averaging_changes_nothing_of_the_training_and_is_what_validation_and_evaluators_see",
            "ssl_runner/learner.py",
            "            if last is not None:\n                _fill(self.objective, last)",
            "            if last is None:\n                pass",
        ),
        fault(
            "a tied weight is averaged under one of its names alone",
            S + "test_a_weight_of_two_names_is_averaged_under_both",
            "ssl_runner/checkpoint.py",
            "instead.get(value.data_ptr(), value)",
            "state.get('average.' + name.replace('.', AVERAGED), value)",
        ),
        fault(
            "a finetuning is tested with the last weights of its best epoch",
            S + "test_a_finetuning_is_tested_with_the_averaged_weights_of_its_best_epoch",
            "ssl_runner/stages.py",
            'load_state_dict(objective_weights(best["state_dict"]))',
            "load_state_dict({k[10:]: v for k, v in best['state_dict'].items() if k.startswith('objective.')})",
        ),
        fault(
            "statistics count a batch again when it is computed again",
            S + "test_statistics_count_a_batch_once_that_is_computed_twice_and_dropout_drops_the_same",
            "ssl_runner/parallel.py",
            "            buffer.data.copy_(value)  # past autograd, which need not know that nothing changed\n",
            "            pass\n",
        ),
        fault(
            "blocks of a stack keep everything for the backward pass",
            S + "test_a_block_that_forgets_keeps_no_more_than_its_input",
            "ssl_runner/parallel.py",
            "        if not torch.is_grad_enabled():",
            "        if torch.is_grad_enabled():",
        ),
        fault(
            "a teacher's weights are stored in bf16 too",
            S + "test_with_weights_in_bf16_it_learns_and_its_teachers_stay_fine[byol]",
            "ssl_runner/parallel.py",
            "if parameter.requires_grad and parameter.ndim > 1:",
            "if parameter.ndim > 1:",
        ),
        fault(
            "MoCo v2 claims that its micro-batches add up",
            S + "test_micro_batches_add_up_or_the_objective_says_why_not[moco_v2-encoder]",
            "ssl_runner/objectives/moco_v2.py",
            '    indivisible = "its queue takes in each micro-batch, which the next one meets there"\n',
            "",
        ),
        fault(
            "MAE claims that its micro-batches do not add up",
            S + "test_the_reason_why_micro_batches_do_not_add_up_is_true[mae]",
            "ssl_runner/objectives/mae.py",
            "    views = 1\n",
            '    views = 1\n    indivisible = "no reason"\n',
        ),
        fault(
            "a queue holds each rank's own keys, and DDP hides it no more",
            S + "test_on_two_ranks_it_learns_what_it_learns_on_one[moco_v2]",
            "ssl_runner/parts/queue.py",
            "every = gather(rows.detach()).to(self.rows.dtype)",
            "every = rows.detach().to(self.rows.dtype)",
        ),
        fault(
            "a checkpoint of a run in pieces holds rank 0's piece",
            S + "test_a_run_in_pieces_is_kept_whole_and_goes_on_in_one_process",
            "ssl_runner/strategies.py",
            "return state.full_tensor().cpu()",
            "return state.to_local().cpu()",
        ),
        fault(
            "the optimiser of a run that goes on in pieces begins anew",
            S + "test_a_run_of_one_process_goes_on_in_pieces",
            "ssl_runner/strategies.py",
            '            optimizer.load_state_dict({**state, "state": cut_states})\n',
            "            pass\n",
        ),
        fault(
            "DDP sends rank 0's buffers around at each forward pass",
            S + "test_gpus_get_the_strategy_that_is_asked_for",
            "ssl_runner/strategies.py",
            'DDPStrategy(broadcast_buffers=not device["sync_batchnorm"])',
            "DDPStrategy()",
        ),
        fault(
            "FSDP2 cuts over the processes of one node alone",
            S + "test_gpus_get_the_strategy_that_is_asked_for",
            "ssl_runner/strategies.py",
            "super().__init__(data_parallel_size=ranks,",
            "super().__init__(data_parallel_size=1,",
        ),
        fault(
            "weights that were trained in bf16 are kept in bf16",
            S + "test_weights_in_bf16_are_kept_in_fp32",
            "ssl_runner/stages.py",
            "parts.objective.float().load_state_dict(trained)",
            "parts.objective.load_state_dict(trained)",
        ),
        fault(
            "engine.checkpointing changes nothing",
            S + "test_a_way_to_train_takes_effect[engine.checkpointing=true]",
            "ssl_runner/stages.py",
            "        forget(objective)\n",
            "        pass\n",
        ),
        fault(
            "processes of torchrun write into folders of their own",
            S + "test_processes_that_were_started_together_must_be_told_their_folder",
            "ssl_runner/cli.py",
            "    if runs.started_together() and not any(",
            "    if False and not any(",
        ),
        fault(
            "a GPU without fp8 is asked for it",
            S + "test_fp8_is_for_hardware_that_has_it",
            "ssl_runner/devices.py",
            "< (8, 9)",
            "< (8, 0)",
        ),
        fault(
            "DeepSpeed is let through",
            "test_config.py::test_a_fault_is_said_with_its_path_and_the_nearest_name",
            "ssl_runner/config.py",
            '    if strategy == "deepspeed":',
            '    if strategy == "speed":',
        ),
    ],
}
