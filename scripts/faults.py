"""Puts known faults into a copy of the project, one at a time, and shows which test sees each.

    python scripts/faults.py                            all of them
    python scripts/faults.py 1 18                       those of promises 1 and 18
    python scripts/faults.py --jobs 4 --write docs/correctness.md

Each fault is a small replacement in one file or a few, and comes with the tests that must fail by it. They run in the
copy, in a process of their own that starts with torch already imported. A fault is caught when a test fails, not when
the code or the tests can no longer be imported. Exit status 1: a fault was survived, or its text was not found.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 400  # seconds for the tests of one fault
BROKEN = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "AttributeError")
"""Not what a fault should fail by: the replacement itself is wrong."""


@dataclass(frozen=True)
class Fault:
    """what: in words. edits: (file below ROOT, text found once, text in its place). tests: node ids below tests/."""

    what: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Promise:
    title: str
    faults: list[Fault]


def fault(what: str, tests: str, file: str, old: str, new: str, *more: str) -> Fault:
    """tests: node ids, a line each. more: file, old and new of further edits."""
    texts = [file, old, new, *more]
    edits = tuple((texts[n], texts[n + 1], texts[n + 2]) for n in range(0, len(texts), 3))
    return Fault(what, edits, tuple(line.strip() for line in tests.strip().splitlines()))


# -- the table ---------------------------------------------------------------------------------------------------

PARTS, OBJECTIVES, VIEWS = "ssl_runner/parts", "ssl_runner/objectives", "ssl_runner/views"


def ranks(case: str) -> str:
    """The contract's test of two processes against one, for one objective on one backbone."""
    return f"test_contract.py::test_two_ranks_learn_what_one_learns_from_the_joined_batch[{case}]"


def resumed(case: str) -> str:
    return f"test_contract.py::test_a_resumed_objective_goes_on_bit_identically[{case}]"


PROMISES = {
    1: Promise(
        "The gradient of a gathered loss is summed over ranks",
        [
            fault(
                "the gather's backward keeps the gradient of this rank's loss alone",
                ranks("simclr-convolutions"),
                f"{PARTS}/gather.py",
                "        dist.all_reduce(total)\n        return total.chunk",
                "        return total.chunk",
            ),
            fault(
                "other ranks' rows are gathered without a gradient",
                ranks("dcl-convolutions"),
                f"{PARTS}/gather.py",
                "_Gather.apply(x.contiguous())",
                "_Gather.apply(x.detach().contiguous())",
            ),
            fault(
                "the backward of a sum over ranks is not a sum over ranks",
                ranks("barlow_twins-convolutions"),
                f"{PARTS}/gather.py",
                "        total = grads[0].clone()\n        dist.all_reduce(total)\n        return total\n",
                "        return grads[0].clone()\n",
            ),
            fault(
                "a loss over masked places is divided by the rank's own count",
                ranks("inpainting-convolutions"),
                f"{OBJECTIVES}/inpainting.py",
                "removed = all_reduce(hole.sum() * x.shape[1]) / world_size()",
                "removed = hole.sum() * x.shape[1]",
            ),
            fault(
                "all ranks train on the same part of the batch",
                "test_faults.py::test_two_ranks_through_the_runner_learn_what_one_does",
                "ssl_runner/data.py",
                "first = place * size + self.rank * self.per_rank",
                "first = place * size",
            ),
        ],
    ),
    2: Promise(
        "Labels and self-masks are offset by rank, and undistributed all of it works",
        [
            fault(
                "SimCLR looks for itself and its positive at the first rank's places",
                ranks("simclr-convolutions"),
                f"{OBJECTIVES}/simclr.py",
                "+ rank() * n  #",
                "+ 0 * n  #",
            ),
            fault(
                "MoCo v3's positives are the first rank's",
                ranks("moco_v3-convolutions"),
                f"{OBJECTIVES}/moco_v3.py",
                " + rank() * len(query)",
                "",
            ),
            fault(
                "NNCLR's positives are the first rank's",
                ranks("nnclr-convolutions"),
                f"{OBJECTIVES}/nnclr.py",
                " + rank() * len(near)",
                "",
            ),
            fault(
                "DCL leaves out the first rank's rows",
                ranks("dcl-convolutions"),
                f"{OBJECTIVES}/dcl.py",
                "rank() * n",
                "0 * n",
            ),
            fault(
                "SupCon leaves out the first rank's rows",
                ranks("supcon-convolutions"),
                f"{OBJECTIVES}/supcon.py",
                " + rank() * n",
                "",
            ),
            fault(
                "the triplet loss takes an own view for a negative on other ranks than the first",
                "test_faults.py::test_each_rank_knows_its_own_rows[triplet]",
                f"{OBJECTIVES}/triplet.py",
                "rank() * n",
                "0 * n",
            ),
            fault(
                "the world's size is asked for where there is none",
                "test_distributed.py::test_undistributed_collectives_are_the_identity",
                f"{PARTS}/gather.py",
                "return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1",
                "return dist.get_world_size()",
            ),
        ],
    ),
    3: Promise(
        "Batch statistics are synchronised; whether views pass together is fixed",
        [
            fault(
                "each rank normalises by its own mean",
                ranks("byol-convolutions"),
                f"{PARTS}/batchnorm.py",
                "all_reduce(torch.cat([x.sum(axes), held]))",
                "torch.cat([x.sum(axes), held]) * world_size()",
            ),
            fault(
                "each rank normalises by its own variance",
                ranks("barlow_twins-convolutions"),
                f"{PARTS}/batchnorm.py",
                "all_reduce(centred.square().sum(axes)) / count",
                "centred.square().sum(axes) / held",
            ),
            fault(
                "the running variance is the biased one",
                ranks("byol-convolutions"),
                f"{PARTS}/batchnorm.py",
                "var.detach() * count / (count - 1)",
                "var.detach()",
            ),
            fault(
                "the runner synchronises no BatchNorm",
                "test_faults.py::test_two_ranks_through_the_runner_learn_what_one_does",
                "ssl_runner/stages.py",
                "        synchronise(objective)\n",
                "        pass\n",
            ),
            fault(
                "SimCLR's two views share their statistics",
                "test_faults.py::test_two_views_pass_the_backbone_one_by_one",
                f"{OBJECTIVES}/simclr.py",
                'a, b = (self.projector(self.backbone(**view)) for view in batch["views"])',
                'joined = torch.cat([view["x"] for view in batch["views"]])\n'
                "        a, b = self.projector(self.backbone(joined)).chunk(2)",
            ),
            fault(
                "crops of one size pass the backbone one by one",
                "test_self_distillation.py::test_dino_joins_views_of_one_size_and_no_others",
                f"{PARTS}/multicrop.py",
                "key=lambda view: {name: t.shape for name, t in view.items()}",
                "key=lambda view: id(view)",
            ),
        ],
    ),
    4: Promise(
        "What is averaged over ranks is averaged over all of them, and what is gathered is gathered",
        [
            fault(
                "DINO's centre is each rank's own",
                ranks("dino-convolutions"),
                f"{PARTS}/distillation.py",
                "total = all_reduce(logits.float().sum(0))",
                "total = world_size() * logits.float().sum(0)",
            ),
            fault(
                "Sinkhorn-Knopp balances each rank's codes by themselves",
                ranks("swav-convolutions"),
                f"{PARTS}/sinkhorn.py",
                "    if world_size() == 1:\n        return mine\n",
                "    return mine\n",
            ),
            fault(
                "Barlow Twins' correlation is each rank's own",
                ranks("barlow_twins-convolutions"),
                f"{OBJECTIVES}/barlow_twins.py",
                "all_reduce(a.float().T @ b.float()) / (len(a) * world_size())",
                "a.float().T @ b.float() / len(a)",
            ),
            fault(
                "VICReg's statistics are each rank's own",
                ranks("vicreg-convolutions"),
                f"{OBJECTIVES}/vicreg.py",
                "(gather(self.expander(self.backbone(**view)).float()) for view",
                "(self.expander(self.backbone(**view)).float() for view",
            ),
            fault(
                "W-MSE whitens each rank's rows by themselves",
                ranks("w_mse-convolutions"),
                f"{OBJECTIVES}/w_mse.py",
                "(gather(self.projector(self.backbone(**view)).float()) for view",
                "(self.projector(self.backbone(**view)).float() for view",
            ),
            fault(
                "a queue gets the rank's own keys",
                ranks("moco_v2-convolutions"),
                f"{PARTS}/queue.py",
                "gather(rows.detach())",
                "rows.detach()",
            ),
            fault(
                "the memory bank gets the rank's own features",
                ranks("inst_disc-convolutions"),
                f"{OBJECTIVES}/inst_disc.py",
                "index = gather(index)",
                "gather = lambda rows: rows",
            ),
        ],
    ),
    5: Promise(
        "An incomplete batch is dropped in training alone, and no sample counts twice",
        [
            fault(
                "the last, incomplete batch of an epoch is trained on",
                "test_data.py::test_ranks_share_the_global_batches_of_one_process\n"
                "test_data.py::test_an_epoch_has_no_sample_twice_and_each_epoch_its_own_order",
                "ssl_runner/data.py",
                "per_epoch = self.samples // size",
                "per_epoch = -(-self.samples // size)",
            ),
            fault(
                "evaluation drops its last, smaller batch",
                "test_data.py::test_evaluation_sees_each_sample_at_most_once_and_alone_all_of_them",
                "ssl_runner/data.py",
                "for first in range(0, len(self.ids), self.per_rank):",
                "for first in range(0, len(self.ids) - self.per_rank + 1, self.per_rank):",
            ),
            fault(
                "ranks are evened out by samples that come twice",
                "test_data.py::test_evaluation_sees_each_sample_at_most_once_and_alone_all_of_them",
                "ssl_runner/data.py",
                "self.ids = range(rank, samples - samples % ranks, ranks)",
                "self.ids = [i % samples for i in range(rank, samples + -samples % ranks, ranks)]",
            ),
            fault(
                "a small last batch weighs as much as a full one",
                "test_faults.py::test_validation_weighs_a_smaller_last_batch_by_its_samples",
                "ssl_runner/learner.py",
                'weight=len(samples["index"])',
                "weight=1",
            ),
        ],
    ),
    6: Promise(
        "The global batch scales the learning rate once; accumulation is said to add no negatives",
        [
            fault(
                "the scaled rate is scaled again",
                "test_optim.py::test_learning_rate_is_scaled_once",
                "ssl_runner/optim/recipe.py",
                "published * global_batch / self.reference_batch",
                "published * (global_batch / self.reference_batch) ** 2",
            ),
            fault(
                "micro-batches are left out of the batch that scales",
                "test_learner.py::test_the_schedule_moves_by_optimiser_step",
                "ssl_runner/learner.py",
                "self.optim(self.objective, self.clock.global_batch)",
                "self.optim(self.objective, self.clock.global_batch // self.trainer.accumulate_grad_batches)",
            ),
            fault(
                "the number of ranks is multiplied in once more",
                "test_faults.py::test_two_ranks_through_the_runner_learn_what_one_does",
                "ssl_runner/learner.py",
                "self.optim(self.objective, self.clock.global_batch)",
                "self.optim(self.objective, self.clock.global_batch * self.trainer.world_size)",
            ),
            fault(
                "nothing is said about accumulation",
                "test_learner.py::test_the_schedule_moves_by_optimiser_step",
                "ssl_runner/stages.py",
                'if objective.contrasts and config["accumulate"] > 1:',
                "if False:",
            ),
            fault(
                "MoCo v3 does not tell that it contrasts within the batch",
                "test_faults.py::test_objectives_with_negatives_in_the_batch_say_so",
                f"{OBJECTIVES}/moco_v3.py",
                "    contrasts = True\n",
                "",
            ),
        ],
    ),
    7: Promise(
        "Random draws differ between ranks, workers, steps and samples",
        [
            fault(
                "ranks draw the same augmentations",
                "test_learner.py::test_draws_depend_on_rank_and_step_and_on_nothing_else",
                "ssl_runner/learner.py",
                'derive(self.seed, "step", self.global_rank, batch_idx)',
                'derive(self.seed, "step", 0, batch_idx)',
            ),
            fault(
                "every step draws the same augmentations",
                "test_learner.py::test_draws_depend_on_rank_and_step_and_on_nothing_else",
                "ssl_runner/learner.py",
                'derive(self.seed, "step", self.global_rank, batch_idx)',
                'derive(self.seed, "step", self.global_rank, 0)',
            ),
            fault(
                "a sample's crop is the same in every epoch",
                "test_data.py::test_draws_differ_from_epoch_to_epoch",
                "ssl_runner/data.py",
                'derive(self.seed, "draw", epoch, i)',
                'derive(self.seed, "draw", i)',
            ),
            fault(
                "samples come in the same order in every epoch",
                "test_data.py::test_an_epoch_has_no_sample_twice_and_each_epoch_its_own_order",
                "ssl_runner/data.py",
                'derive(self.seed, "order", epoch)',
                'derive(self.seed, "order")',
            ),
            fault(
                "a worker's crops come from its own generator",
                "test_datasets.py::test_a_sample_does_not_depend_on_its_batch_or_worker",
                "ssl_runner/datasets/reading.py",
                "            torch.default_generator.manual_seed(seed)\n",
                "",
            ),
            fault(
                "one draw decides for the whole batch",
                "test_views.py::test_probability",
                f"{VIEWS}/draws.py",
                "torch.rand(n).lt(p)",
                "torch.rand(1).expand(n).lt(p)",
            ),
            fault(
                "one strength is drawn for the whole batch",
                "test_views.py::test_rows_differ_and_seeds_decide",
                f"{VIEWS}/draws.py",
                "torch.rand(n).mul_(high - low)",
                "torch.rand(1).repeat(n).mul_(high - low)",
            ),
            fault(
                "one crop is drawn for the whole batch",
                "test_views.py::test_rows_differ_and_seeds_decide",
                f"{VIEWS}/crop.py",
                "return torch.where(fits.any(1, keepdim=True), drawn, central)",
                "return torch.where(fits.any(1, keepdim=True), drawn, central)[:1].expand(n, 4)",
            ),
        ],
    ),
    8: Promise(
        "Biases, norms and tokens neither decay nor are adapted by LARS, which decays first and survives zero norms",
        [
            fault(
                "biases and norms decay",
                "test_optim.py::test_each_exclusion",
                "ssl_runner/optim/rules.py",
                "if p.ndim <= 1 or n.rpartition",
                "if n.rpartition",
            ),
            fault(
                "a mask token decays",
                "test_optim.py::test_each_exclusion",
                "ssl_runner/optim/rules.py",
                '"mask_token", ',
                "",
            ),
            fault(
                "a distillation token decays",
                "test_faults.py::test_no_token_decays",
                "ssl_runner/optim/rules.py",
                ', "dist_token"',
                "",
            ),
            fault(
                "what a model says must not decay decays",
                "test_optim.py::test_each_exclusion",
                "ssl_runner/optim/rules.py",
                "if callable(listed):",
                "if False:",
            ),
            fault(
                "LARS adapts biases and norms",
                "test_optim.py::test_lars_is_the_papers_update",
                "ssl_runner/optim/recipe.py",
                '"adapt": g["kind"] == "decayed"',
                '"adapt": True',
            ),
            fault(
                "a weight of zeros never moves under LARS",
                "test_optim.py::test_lars_takes_zeros_and_a_learning_rate_of_zero",
                "ssl_runner/optim/lars.py",
                "torch.where((w > 0) & (d > 0), ratio, 1.0)",
                "torch.where(d > 0, ratio, 1.0)",
            ),
            fault(
                "a gradient of zeros makes LARS divide by zero",
                "test_optim.py::test_lars_takes_zeros_and_a_learning_rate_of_zero",
                "ssl_runner/optim/lars.py",
                "torch.where((w > 0) & (d > 0), ratio, 1.0)",
                "torch.where(w > 0, ratio, 1.0)",
            ),
            fault(
                "LARS adapts before it decays",
                "test_optim.py::test_lars_is_the_papers_update",
                "ssl_runner/optim/lars.py",
                "torch._foreach_norm(steps)",
                "torch._foreach_norm([p.grad for p in params])",
            ),
            fault(
                "`decay: all` leaves biases out all the same",
                "test_optim.py::test_decay_all_leaves_nothing_out",
                "ssl_runner/optim/rules.py",
                'set() if decay == "all" else _excluded(module)',
                "_excluded(module)",
            ),
            fault(
                "MoCo v2's recipe leaves biases out of decay",
                "test_faults.py::test_moco_v2_decays_everything_and_others_do_not",
                "conf/task/moco_v2_cifar10.yaml",
                ", decay: all",
                "",
            ),
        ],
    ),
    9: Promise(
        "Papers' own rules: Barlow Twins' biases, SimSiam's predictor, DINO's growing weight decay",
        [
            fault(
                "a rule's learning rate is not used",
                "test_optim.py::test_barlows_biases_and_norms_have_a_rate_of_their_own",
                "ssl_runner/optim/recipe.py",
                "stated.lr if stated else None",
                "None",
            ),
            fault(
                "a rule's learning rate is not scaled by the batch",
                "test_optim.py::test_barlows_biases_and_norms_have_a_rate_of_their_own",
                "ssl_runner/optim/recipe.py",
                "published = self.lr if lr is None else lr\n",
                "published = self.lr\n        if lr is not None:\n            return lr\n",
            ),
            fault(
                "SimSiam's predictor follows the schedule",
                "test_optim.py::test_simsiams_predictor_learns_at_a_constant_rate",
                "ssl_runner/optim/recipe.py",
                'group["base_lr"] * (factor if group["scheduled"] else 1.0)',
                'group["base_lr"] * factor',
            ),
            fault(
                "DINO's weight decay reaches what is excluded",
                "test_optim.py::test_dinos_weight_decay_grows_on_the_decayed_parameters_alone",
                "ssl_runner/optim/recipe.py",
                'decay if group["kind"] == "decayed" else 0.0\n\n',
                "decay\n\n",
            ),
            fault(
                "DINO's weight decay stays at its start",
                "test_optim.py::test_dinos_weight_decay_grows_on_the_decayed_parameters_alone",
                "ssl_runner/optim/recipe.py",
                "if self.weight_decay_end is None:",
                "if True:",
            ),
        ],
    ),
    10: Promise(
        "Schedules move by optimiser step, and are the same after a resume",
        [
            fault(
                "the learning rate moves by micro-batch",
                "test_learner.py::test_the_schedule_moves_by_optimiser_step",
                "ssl_runner/learner.py",
                "progress = self.progress(self.global_step)\n",
                "progress = self.progress(batch_idx)\n",
            ),
            fault(
                "the learning rate starts again with a resumed run",
                "test_resume.py::test_killed_and_resumed_it_ends_with_the_same_weights[plain-6]",
                "ssl_runner/learner.py",
                "progress = self.progress(self.global_step)\n",
                'self._seen = getattr(self, "_seen", -1) + 1\n        progress = self.progress(self._seen)\n',
            ),
        ],
    ),
    11: Promise(
        "What is frozen has no gradient when the optimiser steps, so that neither decay nor momentum moves it",
        [
            fault(
                "a frozen backbone goes on learning while finetuning",
                "test_objectives.py::test_a_frozen_backbone_keeps_its_weights_and_statistics",
                f"{OBJECTIVES}/supervised.py",
                "backbone.requires_grad_(False)",
                "pass",
            ),
            fault(
                "a frozen backbone's statistics go on moving",
                "test_objectives.py::test_a_frozen_backbone_keeps_its_weights_and_statistics",
                f"{OBJECTIVES}/supervised.py",
                "self.backbone.eval()",
                "pass",
            ),
            fault(
                "a rule that freezes does nothing",
                "test_optim.py::test_a_frozen_parameter_keeps_every_bit",
                "ssl_runner/optim/recipe.py",
                "                parameter.requires_grad_(False)\n",
                "                parameter.grad = None\n",
            ),
            fault(
                "LARS decays what has no gradient",
                "test_optim.py::test_lars_leaves_parameters_without_gradient_alone",
                "ssl_runner/optim/lars.py",
                'params = [p for p in group["params"] if p.grad is not None]',
                'params = group["params"]\n        for p in params:\n'
                "            p.grad = torch.zeros_like(p) if p.grad is None else p.grad",
            ),
        ],
    ),
    13: Promise(
        "A teacher is a deep copy, without gradients, unknown to the optimiser",
        [
            fault(
                "the teacher is the student itself",
                "test_parts.py::test_a_teacher_is_a_copy_that_moves_only_by_update",
                f"{PARTS}/teacher.py",
                "copy.deepcopy(online).requires_grad_(False)",
                "online",
            ),
            fault(
                "the teacher's parameters ask for gradients",
                "test_parts.py::test_a_teacher_has_no_gradient_and_no_trained_parameter",
                f"{PARTS}/teacher.py",
                "copy.deepcopy(online).requires_grad_(False)",
                "copy.deepcopy(online)",
            ),
            fault(
                "the optimiser takes parameters without gradients too",
                "test_optim.py::test_only_what_trains_each_once_and_no_empty_group",
                "ssl_runner/optim/recipe.py",
                "            if parameter.requires_grad:\n",
                "            if True:\n",
            ),
            fault(
                "a gradient passes the teacher",
                "test_parts.py::test_a_teacher_has_no_gradient_and_no_trained_parameter",
                f"{PARTS}/teacher.py",
                "    @torch.no_grad()\n    def forward",
                "    def forward",
            ),
        ],
    ),
    14: Promise(
        "A teacher moves once per real optimiser step",
        [
            fault(
                "it moves with every micro-batch",
                "test_learner.py::test_after_step_is_called_once_per_optimiser_step",
                "ssl_runner/learner.py",
                "        self._watch(loss, samples, batch_idx)\n",
                "        self._watch(loss, samples, batch_idx)\n"
                "        self.objective.after_step(self.progress(self.global_step + 1))\n",
                "ssl_runner/learner.py",
                "lambda *_: self.objective.after_step(self.progress(self.global_step + 1))",
                "lambda *_: None",
            ),
            fault(
                "it moves when a step was skipped for an overflow",
                "test_faults.py::test_a_skipped_overflow_moves_no_teacher",
                "ssl_runner/learner.py",
                "        accumulate = self.trainer.accumulate_grad_batches\n",
                "        accumulate = self.trainer.accumulate_grad_batches\n"
                "        if (batch_idx + 1) % accumulate == 0:\n"
                "            self.objective.after_step(self.progress(self.global_step))\n",
                "ssl_runner/learner.py",
                "lambda *_: self.objective.after_step(self.progress(self.global_step + 1))",
                "lambda *_: None",
            ),
            fault(
                "MoCo's key encoder moves in the forward pass as well",
                "test_faults.py::test_a_teacher_that_differs_from_its_student_moves_after_the_step_alone",
                f"{OBJECTIVES}/moco_v2.py",
                '        first, second = batch["views"]\n',
                '        first, second = batch["views"]\n        self.after_step(0.0)\n',
            ),
            fault(
                "BYOL's target never moves",
                "test_self_distillation.py::test_a_teacher_starts_as_a_copy_without_gradients_and_moves_only_after_the_step",
                f"{OBJECTIVES}/byol.py",
                "        self.target_backbone.update(self.backbone, progress)\n",
                "",
            ),
        ],
    ),
    15: Promise(
        "A teacher's momentum follows a cosine of the run's progress, and is averaged in fp32",
        [
            fault(
                "the momentum grows in a straight line",
                "test_parts.py::test_momentum_follows_half_a_cosine",
                f"{PARTS}/teacher.py",
                "(math.cos(math.pi * progress) + 1) / 2",
                "(1 - progress) ** 2",
            ),
            fault(
                "the momentum stays as it starts",
                "test_self_distillation.py::test_a_teacher_starts_as_a_copy_without_gradients_and_moves_only_after_the_step",
                f"{PARTS}/teacher.py",
                "momentum = cosine_momentum(self.start, self.end, progress)",
                "momentum = self.start",
            ),
            fault(
                "progress is that of the step before",
                "test_learner.py::test_after_step_is_called_once_per_optimiser_step",
                "ssl_runner/learner.py",
                "self.progress(self.global_step + 1)",
                "self.progress(self.global_step)",
            ),
            fault(
                "a bf16 teacher is averaged in bf16, product by product",
                "test_faults.py::test_a_low_precision_teacher_is_rounded_once",
                f"{PARTS}/teacher.py",
                "mine.copy_(torch.lerp(theirs.float(), mine.float(), momentum))",
                "mine.mul_(momentum).add_(theirs.to(mine.dtype) * (1 - momentum))",
            ),
        ],
    ),
    16: Promise(
        "A teacher's BatchNorm statistics are averaged, and its counters copied",
        [
            fault(
                "counters are averaged",
                "test_parts.py::test_a_teacher_is_a_copy_that_moves_only_by_update",
                f"{PARTS}/teacher.py",
                "if mine.is_floating_point():",
                "if True:",
            ),
            fault(
                "statistics are copied",
                "test_faults.py::test_a_teachers_statistics_are_averaged_as_its_weights_are",
                f"{PARTS}/teacher.py",
                "if mine.is_floating_point():",
                "if isinstance(mine, nn.Parameter):",
            ),
            fault(
                "statistics stay as they were",
                "test_faults.py::test_a_teachers_statistics_are_averaged_as_its_weights_are",
                f"{PARTS}/teacher.py",
                "slow = [*self.copy.parameters(), *self.copy.buffers()]\n"
                "        fast = [*online.parameters(), *online.buffers()]",
                "slow = [*self.copy.parameters()]\n        fast = [*online.parameters()]",
            ),
        ],
    ),
    17: Promise(
        "A teacher drops nothing, and uses its batch's own statistics in training",
        [
            fault(
                "the teacher has dropout",
                "test_self_distillation.py::test_dino_teacher_drops_nothing_but_uses_the_batchs_statistics",
                f"{PARTS}/teacher.py",
                "mode and isinstance(module, _BatchNorm)",
                "mode",
            ),
            fault(
                "the teacher uses its running statistics in training",
                "test_self_distillation.py::test_dino_teacher_drops_nothing_but_uses_the_batchs_statistics",
                f"{PARTS}/teacher.py",
                "mode and isinstance(module, _BatchNorm)",
                "False",
            ),
        ],
    ),
    18: Promise(
        "A queue starts with unit rows, is read before it is put to, wraps whole and rests in validation",
        [
            fault(
                "its first rows have any length",
                "test_parts.py::test_a_queue_holds_unit_rows_from_the_start",
                f"{PARTS}/queue.py",
                "F.normalize(torch.randn(size, dim), dim=1)",
                "torch.randn(size, dim)",
            ),
            fault(
                "MoCo meets its own keys: they are put in first",
                "test_contrastive.py::test_a_queue_is_read_before_it_gets_the_batch",
                f"{OBJECTIVES}/moco_v2.py",
                "        older = self.queue.rows.float().clone()",
                "        self.queue.put(self.key(second))\n        older = self.queue.rows.float().clone()",
            ),
            fault(
                "a symmetric loss puts keys in between its halves",
                "test_contrastive.py::test_a_queue_is_read_before_it_gets_the_batch",
                f"{OBJECTIVES}/moco_v2.py",
                "losses.append(info_nce(self.query(seen), keys[-1], older, self.temperature))\n"
                "        for each in keys:\n            self.queue.put(each)\n",
                "losses.append(info_nce(self.query(seen), keys[-1], older, self.temperature))\n"
                "            self.queue.put(keys[-1])\n            older = self.queue.rows.float().clone()\n",
            ),
            fault(
                "the end of a batch that runs over the ring's end is lost",
                "test_parts.py::test_a_queue_keeps_the_last_rows_in_a_ring",
                f"{PARTS}/queue.py",
                "        where = (self.place",
                "        every = every[: size - int(self.place)]\n        where = (self.place",
            ),
            fault(
                "of a batch longer than the ring the first rows stay",
                "test_parts.py::test_a_queue_keeps_the_last_rows_in_a_ring",
                f"{PARTS}/queue.py",
                "self.rows[where[-size:]] = every[-size:]",
                "self.rows[where[:size]] = every[:size]",
            ),
            fault(
                "validation puts its keys in",
                "test_parts.py::test_a_queue_is_frozen_in_evaluation_and_is_saved",
                f"{PARTS}/queue.py",
                "        if not self.training:\n            return\n",
                "",
            ),
            fault(
                "validation writes to the memory bank",
                "test_contrastive.py::test_evaluation_writes_nothing",
                f"{OBJECTIVES}/inst_disc.py",
                "        if self.training:\n            self._remember",
                "        if True:\n            self._remember",
            ),
        ],
    ),
    19: Promise(
        "A nearest neighbour is never of the batch itself, and no gradient passes it",
        [
            fault(
                "NNCLR puts its embeddings in before it looks for neighbours",
                "test_contrastive.py::test_a_queue_is_read_before_it_gets_the_batch",
                f"{OBJECTIVES}/nnclr.py",
                "        near1, near2 =",
                "        self.queue.put(F.normalize(z1.detach().float(), dim=1))\n        near1, near2 =",
            ),
            fault(
                "a neighbour may be the sample's other view",
                "test_contrastive.py::test_nnclr_pairs_a_views_neighbour_with_the_other_views_prediction",
                f"{OBJECTIVES}/nnclr.py",
                "nearest(z1, self.queue.rows)",
                "nearest(z1, torch.cat([self.queue.rows, F.normalize(z2.float(), dim=1)]))",
            ),
            fault(
                "a gradient passes the neighbour",
                "test_contrastive.py::test_nnclr_learns_through_predictions_and_not_through_neighbours",
                f"{OBJECTIVES}/nnclr.py",
                "@torch.no_grad()\ndef nearest",
                "def nearest",
                f"{OBJECTIVES}/nnclr.py",
                "return rows[similarity.argmax(1)]",
                "return rows[similarity.argmax(1)] + (z - z.detach())",
            ),
        ],
    ),
    20: Promise(
        "Queues, places, centres and banks are buffers that a checkpoint holds",
        [
            fault(
                "a queue's rows are not saved",
                resumed("moco_v2-convolutions"),
                f"{PARTS}/queue.py",
                "F.normalize(torch.randn(size, dim), dim=1))",
                "F.normalize(torch.randn(size, dim), dim=1), persistent=False)",
            ),
            fault(
                "a queue's place is not saved",
                resumed("nnclr-convolutions"),
                f"{PARTS}/queue.py",
                '"place", torch.zeros((), dtype=torch.int64))',
                '"place", torch.zeros((), dtype=torch.int64), persistent=False)',
            ),
            fault(
                "DINO's centre is not saved",
                resumed("dino-convolutions"),
                f"{OBJECTIVES}/dino.py",
                '"centre", torch.zeros(prototypes))',
                '"centre", torch.zeros(prototypes), persistent=False)',
            ),
            fault(
                "the progress that DINO's schedules need is not saved",
                resumed("dino-convolutions"),
                f"{OBJECTIVES}/dino.py",
                '"progress", torch.zeros(()))',
                '"progress", torch.zeros(()), persistent=False)',
            ),
            fault(
                "how full SwAV's queues are is not saved",
                resumed("swav-convolutions"),
                f"{OBJECTIVES}/swav.py",
                '"stored", torch.zeros((), dtype=torch.int64))',
                '"stored", torch.zeros((), dtype=torch.int64), persistent=False)',
            ),
            fault(
                "DeepCluster's bank is not saved",
                "test_faults.py::test_all_that_changes_is_in_the_checkpoint",
                f"{OBJECTIVES}/deepcluster_v2.py",
                '"bank", torch.zeros(large, samples, dim))',
                '"bank", torch.zeros(large, samples, dim), persistent=False)',
            ),
            fault(
                "how far DeepCluster is in its epoch is no buffer",
                "test_faults.py::test_all_that_changes_is_in_the_checkpoint",
                f"{OBJECTIVES}/deepcluster_v2.py",
                'self.register_buffer("met", torch.zeros((), dtype=torch.int64))',
                "self.met = torch.zeros((), dtype=torch.int64)",
            ),
            fault(
                "what colours were seen so far is not saved",
                resumed("colourisation-convolutions"),
                f"{OBJECTIVES}/colourisation.py",
                '"seen", torch.zeros(len(self.bins)))',
                '"seen", torch.zeros(len(self.bins)), persistent=False)',
            ),
            fault(
                "the memory bank is not saved",
                resumed("inst_disc-convolutions"),
                f"{OBJECTIVES}/inst_disc.py",
                "F.normalize(torch.randn(samples, dim), dim=1))",
                "F.normalize(torch.randn(samples, dim), dim=1), persistent=False)",
            ),
        ],
    ),
    21: Promise(
        "Contrastive sums are in fp32, without the row itself and with its positive",
        [
            fault(
                "SimCLR's similarities are in bf16 under autocast",
                "test_objectives.py::test_nt_xent_stays_in_fp32_under_autocast",
                f"{OBJECTIVES}/simclr.py",
                "torch.autocast(a.device.type, enabled=False)",
                "torch.autocast(a.device.type, enabled=torch.is_autocast_enabled('cpu'))",
            ),
            fault(
                "MoCo's similarities are in bf16 under autocast",
                "test_contrastive.py::test_losses_stay_in_fp32_under_autocast",
                f"{OBJECTIVES}/moco_v2.py",
                "torch.autocast(query.device.type, enabled=False)",
                "torch.autocast(query.device.type, enabled=torch.is_autocast_enabled('cpu'))",
            ),
            fault(
                "SwAV's scores are in bf16 under autocast",
                "test_decorrelating_and_clustering.py::test_swav_stays_in_fp32_under_autocast",
                f"{PARTS}/prototypes.py",
                "return z.float() @ prototypes.float().T",
                "return (z @ prototypes.to(z.dtype).T).float()",
            ),
            fault(
                "a row is its own negative",
                "test_objectives.py::test_nt_xent_is_equation_1",
                f"{OBJECTIVES}/simclr.py",
                '    logits = logits.scatter(1, itself[:, None], float("-inf"))\n',
                "",
            ),
            fault(
                "the positive is left out of SimCLR's sum",
                "test_objectives.py::test_nt_xent_is_equation_1",
                f"{OBJECTIVES}/simclr.py",
                "return F.cross_entropy(logits, positive)",
                "right = logits.gather(1, positive[:, None])\n"
                '    return (logits.scatter(1, positive[:, None], float("-inf")).logsumexp(1) - right[:, 0]).mean()',
            ),
            fault(
                "the positive is in DCL's sum",
                "test_contrastive.py::test_dcl_leaves_the_positive_out_of_the_sum",
                f"{OBJECTIVES}/dcl.py",
                "torch.cat([mine, mine + total], dim=1)",
                "torch.cat([mine[:n], mine[n:] + total])",
            ),
            fault(
                "MoCo's sum lacks the positive",
                "test_contrastive.py::test_moco_v2_is_equation_1",
                f"{OBJECTIVES}/moco_v2.py",
                "return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))",
                "return (logits[:, 1:].logsumexp(1) - logits[:, 0]).mean()",
            ),
            fault(
                "a sample is a positive of its own class to itself",
                "test_contrastive.py::test_supcon_is_equation_2",
                f"{OBJECTIVES}/supcon.py",
                "(label.repeat(2)[:, None] == classes).scatter(1, itself, False)",
                "label.repeat(2)[:, None] == classes",
            ),
        ],
    ),
    22: Promise(
        "BYOL and SimSiam: no gradient through the target alone, a predictor on the online side alone",
        [
            fault(
                "BYOL's loss passes a gradient to its target",
                "test_self_distillation.py::test_byol_regression_has_no_gradient_to_its_target",
                f"{OBJECTIVES}/byol.py",
                "target.detach().float()",
                "target.float()",
            ),
            fault(
                "BYOL's target has a predictor",
                "test_self_distillation.py::test_byol_predicts_each_view_from_the_other",
                f"{OBJECTIVES}/byol.py",
                "return self.target_projector(self.target_backbone(**view))",
                "return self.predictor(self.target_projector(self.target_backbone(**view)))",
            ),
            fault(
                "BYOL predicts a view from itself",
                "test_self_distillation.py::test_byol_predicts_each_view_from_the_other",
                f"{OBJECTIVES}/byol.py",
                "regression(self.online(a), self.target(b)) + regression(self.online(b), self.target(a))",
                "regression(self.online(a), self.target(a)) + regression(self.online(b), self.target(b))",
            ),
            fault(
                "SimSiam's targets get gradients",
                "test_self_distillation.py::test_simsiam_is_equation_4_with_gradients_through_predictions_only",
                f"{OBJECTIVES}/simsiam.py",
                "z.detach().float()",
                "z.float()",
            ),
            fault(
                "SimSiam's targets pass the predictor too",
                "test_self_distillation.py::test_simsiam_is_equation_4_with_gradients_through_predictions_only",
                f"{OBJECTIVES}/simsiam.py",
                "(distance(pa, zb) + distance(pb, za)) / 2",
                "(distance(pa, pb) + distance(pb, pa)) / 2",
            ),
        ],
    ),
    23: Promise(
        "VICReg: epsilon within the root, N - 1 of the global batch, variance halved, covariance over the width",
        [
            fault(
                "epsilon stands outside the root",
                "test_decorrelating_and_clustering.py::test_collapsed_embeddings_have_finite_gradients",
                f"{OBJECTIVES}/vicreg.py",
                "(z.square().sum(0) / max(len(z) - 1, 1) + 1e-4).sqrt()",
                "(z.square().sum(0) / max(len(z) - 1, 1)).sqrt() + 1e-4",
            ),
            fault(
                "the variance is divided by N",
                "test_decorrelating_and_clustering.py::test_vicreg_terms_are_equations_1_to_4",
                f"{OBJECTIVES}/vicreg.py",
                "(z.square().sum(0) / max(len(z) - 1, 1) + 1e-4)",
                "(z.square().sum(0) / len(z) + 1e-4)",
            ),
            fault(
                "the covariance is divided by N",
                "test_decorrelating_and_clustering.py::test_vicreg_terms_are_equations_1_to_4",
                f"{OBJECTIVES}/vicreg.py",
                "z.T @ z / max(len(z) - 1, 1)",
                "z.T @ z / len(z)",
            ),
            fault(
                "the variance terms are added, not averaged",
                "test_decorrelating_and_clustering.py::test_vicreg_weighs_its_terms_as_the_authors_do",
                f"{OBJECTIVES}/vicreg.py",
                "(variance_loss(a) + variance_loss(b)) / 2",
                "variance_loss(a) + variance_loss(b)",
            ),
            fault(
                "covariances are averaged over their number",
                "test_decorrelating_and_clustering.py::test_vicreg_terms_are_equations_1_to_4",
                f"{OBJECTIVES}/vicreg.py",
                "(c.square().sum() - c.diagonal().square().sum()) / z.shape[1]",
                "(c.square().sum() - c.diagonal().square().sum()) / z.shape[1] ** 2",
            ),
        ],
    ),
    24: Promise(
        "Barlow Twins: a norm without parameters, divided by the global batch",
        [
            fault(
                "the last norm has a scale and a shift",
                "test_decorrelating_and_clustering.py::test_barlow_twins_ends_in_a_norm_without_parameters",
                f"{PARTS}/heads.py",
                "affine=not last",
                "affine=True",
            ),
            fault(
                "the sum over ranks is divided by one rank's batch",
                ranks("barlow_twins-convolutions"),
                f"{OBJECTIVES}/barlow_twins.py",
                "/ (len(a) * world_size())",
                "/ len(a)",
            ),
            fault(
                "the diagonal counts among what is redundant",
                "test_decorrelating_and_clustering.py::test_barlow_is_equations_1_and_2",
                f"{OBJECTIVES}/barlow_twins.py",
                "c.square().sum() - diagonal.square().sum()",
                "c.square().sum()",
            ),
        ],
    ),
    25: Promise(
        "SwAV: unit prototypes, codes of the large crops without gradients, a full queue, prototypes frozen at first",
        [
            fault(
                "prototypes are not normalised after a step",
                "test_decorrelating_and_clustering.py::test_prototypes_have_unit_length_from_the_start_and_after_each_step",
                f"{OBJECTIVES}/swav.py",
                "        self.prototypes.copy_(F.normalize(self.prototypes.float(), dim=1))\n",
                "",
            ),
            fault(
                "small crops get codes too",
                "test_decorrelating_and_clustering.py::test_swav_is_its_equations_with_codes_from_the_large_crops",
                f"{OBJECTIVES}/swav.py",
                "codes = self.codes(scores[: self.large])",
                "codes = self.codes(scores)",
            ),
            fault(
                "codes get gradients",
                "test_decorrelating_and_clustering.py::test_codes_get_no_gradient",
                f"{OBJECTIVES}/swav.py",
                "    @torch.no_grad()\n    def codes",
                "    def codes",
                f"{OBJECTIVES}/swav.py",
                "self.balanced(each.detach())",
                "self.balanced(each)",
                f"{OBJECTIVES}/swav.py",
                "-(code.detach() * log)",
                "-(code * log)",
                f"{PARTS}/sinkhorn.py",
                "@torch.no_grad()\ndef sinkhorn",
                "def sinkhorn",
            ),
            fault(
                "the queue is used before it is full",
                "test_decorrelating_and_clustering.py"
                "::test_the_queue_is_used_once_full_and_started_and_read_before_it_is_put_to",
                f"{OBJECTIVES}/swav.py",
                "(self.stored >= len(self.rings()[0].rows)) & ",
                "",
            ),
            fault(
                "the queue is put to before it is read",
                "test_decorrelating_and_clustering.py"
                "::test_the_queue_is_used_once_full_and_started_and_read_before_it_is_put_to",
                f"{OBJECTIVES}/swav.py",
                "        codes = self.codes(scores[: self.large])\n        self.put(embedded)\n",
                "        self.put(embedded)\n        codes = self.codes(scores[: self.large])\n",
            ),
            fault(
                "prototypes learn from the first step on",
                "test_decorrelating_and_clustering.py::test_prototypes_stay_until_they_are_released_whatever_decays_them",
                f"{OBJECTIVES}/swav.py",
                "(self.prototypes - still) * (self.progress >= self.frozen)",
                "(self.prototypes - still)",
            ),
        ],
    ),
    26: Promise(
        "DINO: not the same view, a centre that moves after its use, a warmed temperature, a fixed gain",
        [
            fault(
                "a view is compared with itself",
                "test_self_distillation.py::test_dino_is_equation_3_over_pairs_of_different_views",
                f"{PARTS}/distillation.py",
                "        if n != m\n",
                "",
            ),
            fault(
                "the centre moves before its use",
                "test_self_distillation.py::test_dino_centre_is_equation_4_and_moves_after_its_use",
                f"{OBJECTIVES}/dino.py",
                "        targets = self.targets(teacher)\n",
                "        move_centre(self.centre, torch.cat(teacher), self.centre_momentum)\n"
                "        targets = self.targets(teacher)\n",
            ),
            fault(
                "the centre moves in validation",
                "test_self_distillation.py::test_dino_centre_is_equation_4_and_moves_after_its_use",
                f"{OBJECTIVES}/dino.py",
                "        if self.training:\n",
                "        if True:\n",
            ),
            fault(
                "the teacher's temperature is at its end at once",
                "test_self_distillation.py::test_dino_teacher_temperature_rises_and_then_stays",
                f"{PARTS}/distillation.py",
                "(progress.float() / max(warmup, 1e-8)).clamp(max=1)",
                "1.0",
            ),
            fault(
                "the last layer's gain learns",
                "test_self_distillation.py::test_dino_head_gives_cosines_with_prototypes_whose_length_cannot_matter",
                f"{PARTS}/distillation.py",
                "F.linear(z, F.normalize(weight, dim=1))",
                "F.linear(z, weight)",
            ),
            fault(
                "the last layer learns from the first step on",
                "test_self_distillation.py::test_dino_last_layer_is_still_at_first_and_learns_later",
                f"{PARTS}/distillation.py",
                "still + (weight - still) * learns",
                "weight",
            ),
        ],
    ),
    27: Promise(
        "MoCo v3: the loss is times twice the temperature",
        [
            fault(
                "it is not",
                "test_contrastive.py::test_moco_v3_is_algorithm_1_times_two_tau",
                f"{OBJECTIVES}/moco_v3.py",
                "F.cross_entropy(logits, positive) * 2 * temperature",
                "F.cross_entropy(logits, positive)",
            ),
        ],
    ),
    29: Promise(
        "Views are those of the papers: interpolation, blur, solarisation, colour",
        [
            fault(
                "a crop is reduced without antialiasing",
                "test_views.py::test_resized_crop",
                f"{VIEWS}/crop.py",
                "step.reciprocal().clamp_(max=1)",
                "torch.ones_like(step)",
            ),
            fault(
                "bicubic has another constant (a = -3/4)",
                "test_views.py::test_resized_crop",
                f"{VIEWS}/crop.py",
                ".mul_(e.neg_().add_(1)).mul_(0.5)",
                ".mul_(e.neg_().add_(1)).mul_(0.75)",
            ),
            fault(
                "a resize is not antialiased",
                "test_views.py::test_resize",
                f"{VIEWS}/crop.py",
                "align_corners=False, antialias=True)",
                "align_corners=False)",
            ),
            fault(
                "sigma is the kernel's radius",
                "test_views.py::test_blur",
                f"{VIEWS}/filters.py",
                "-0.5 * (t / sigma[:, None]) ** 2",
                "-0.5 * (3 * t / sigma[:, None]) ** 2",
            ),
            fault(
                "the threshold of 128 is applied to values up to 1",
                "test_views.py::test_solarize_threshold_is_128_of_uint8",
                f"{VIEWS}/colour.py",
                "threshold: Share = 0.5, p",
                "threshold: float = 128.0, p",
            ),
            fault(
                "solarisation inverts what is above the threshold only",
                "test_views.py::test_grey_solarise_and_flips",
                f"{VIEWS}/colour.py",
                "torch.where(x >= self.threshold",
                "torch.where(x > self.threshold",
            ),
            fault(
                "the steps of the colour jitter have one order",
                "test_views.py::test_jitter_is_its_steps_in_some_order_and_every_order_is_as_likely",
                f"{VIEWS}/colour.py",
                "order = torch.rand(len(active), n).argsort(0)",
                "order = torch.arange(len(active))[:, None].repeat(1, n)",
            ),
            fault(
                "bytes are not scaled",
                "test_views.py::test_configs_give_views",
                "ssl_runner/types.py",
                "x.to(torch.float32).mul_(1 / 255)",
                "x.to(torch.float32)",
            ),
        ],
    ),
    30: Promise(
        "MAE: another mask for each sample, an encoder that sees what is visible, positions before, loss on the hidden",
        [
            fault(
                "all samples of a batch have one mask",
                "test_parts.py::test_masks_differ_from_sample_to_sample",
                f"{PARTS}/masking.py",
                "order = torch.rand(batch, length).argsort(1)",
                "order = torch.rand(1, length).argsort(1).repeat(batch, 1)",
            ),
            fault(
                "the encoder sees hidden patches, as zeros",
                "test_masked_and_generative.py::test_mae_sees_visible_patches_only_and_puts_them_back",
                f"{OBJECTIVES}/mae.py",
                "tokens = shown(self.backbone.embed(patches), mask)",
                "tokens = self.backbone.embed(patches.masked_fill(mask[..., None], 0.0))",
                f"{OBJECTIVES}/mae.py",
                "restore(visible, mask, self.decoder.mask_token)",
                "visible",
            ),
            fault(
                "positions are those after masking",
                "test_masked_and_generative.py::test_mae_sees_visible_patches_only_and_puts_them_back",
                f"{OBJECTIVES}/mae.py",
                "tokens = shown(self.backbone.embed(patches), mask)",
                "tokens = shown(self.backbone.stem.project(patches), mask)\n"
                "        tokens = tokens + self.backbone.stem.pos_embed[:, : tokens.shape[1]]",
            ),
            fault(
                "visible tokens are put back in front",
                "test_masked_and_generative.py::test_mae_restores_each_token_to_its_place",
                f"{OBJECTIVES}/mae.py",
                "restore(visible, mask, self.decoder.mask_token)",
                "restore(visible, mask.sort(1).values, self.decoder.mask_token)",
            ),
            fault(
                "visible patches count in the loss",
                "test_masked_and_generative.py::test_a_reconstruction_counts_the_hidden_patches_only",
                f"{OBJECTIVES}/mae.py",
                ".square().mean(2), mask)",
                ".square().mean(2), torch.ones_like(mask))",
            ),
            fault(
                "targets are normalised over the whole image",
                "test_masked_and_generative.py::test_a_patch_is_normalised_by_itself",
                f"{PARTS}/patches.py",
                "var, mean = torch.var_mean(patches, dim=2, keepdim=True, correction=0)",
                "var, mean = torch.var_mean(patches, dim=(1, 2), keepdim=True, correction=0)",
            ),
            fault(
                "a flat patch is divided by zero",
                "test_masked_and_generative.py::test_a_patch_is_normalised_by_itself",
                f"{PARTS}/patches.py",
                "return (patches - mean) / (var + 1e-6).sqrt()",
                "return (patches - mean) / var.sqrt()",
            ),
            fault(
                "the target is not the view that was encoded",
                "test_masked_and_generative.py::test_mae_averages_over_hidden_patches_of_its_own_input",
                f"{OBJECTIVES}/mae.py",
                "target = normalised(patches) if self.normalise else patches",
                "target = (normalised(patches) if self.normalise else patches).flip(0)",
            ),
            fault(
                "evaluation embeds a part of the patches",
                "test_backbones.py::test_steps_make_up_the_embedding",
                "ssl_runner/backbones/encoder.py",
                "tokens = self.encode(self.embed(self.patchify(x)), pad)",
                "tokens = self.encode(self.embed(self.patchify(x))[:, ::2], pad)",
            ),
        ],
    ),
    31: Promise(
        "I-JEPA: the context holds no target",
        [
            fault(
                "it does",
                "test_masked_and_generative.py::test_the_context_is_never_empty_and_holds_no_target",
                f"{OBJECTIVES}/ijepa.py",
                " & ~targets[empty].any(1)",
                "",
            ),
            fault(
                "the teacher sees no more than the context",
                "test_masked_and_generative.py::test_ijepa_teacher_sees_all_gets_no_gradient_and_moves_after_the_step",
                f"{OBJECTIVES}/ijepa.py",
                "        tokens = self.backbone.encode(self.backbone.embed(patches))\n",
                "        kept = torch.arange(patches.shape[1])[None, :, None] < patches.shape[1] // 2\n"
                "        tokens = self.backbone.encode(self.backbone.embed(patches) * kept)\n",
            ),
        ],
    ),
    36: Promise(
        "kNN: unit features of undisturbed samples at rest, votes of exp(s / 0.07), settings on record",
        [
            fault(
                "the bank is not normalised",
                "test_evaluators.py::test_knn_is_the_papers_loop",
                "ssl_runner/evaluators/knn.py",
                "F.normalize(query.float(), dim=1), F.normalize(bank.float(), dim=1)",
                "F.normalize(query.float(), dim=1), bank.float()",
            ),
            fault(
                "votes are not sharpened",
                "test_evaluators.py::test_knn_weight_outvotes_number",
                "ssl_runner/evaluators/knn.py",
                "(similarity / temperature).softmax(1)",
                "similarity.softmax(1)",
            ),
            fault(
                "every neighbour has one vote",
                "test_evaluators.py::test_knn_weight_outvotes_number",
                "ssl_runner/evaluators/knn.py",
                "(similarity / temperature).softmax(1)",
                "torch.ones_like(similarity) / k",
            ),
            fault(
                "the backbone embeds in training mode",
                "test_faults.py::test_evaluators_get_a_backbone_at_rest",
                "ssl_runner/stages.py",
                "backbone.eval().requires_grad_(False)",
                "backbone.requires_grad_(False)",
            ),
            fault(
                "features are of random views",
                "test_faults.py::test_features_are_of_the_plain_view",
                "ssl_runner/data.py",
                "embed(self.views.plain(samples))",
                "embed(self.views(samples)[0])",
            ),
            fault(
                "k and the temperature are not on record",
                "test_faults.py::test_the_settings_of_knn_are_on_record",
                "conf/evaluators/knn.yaml",
                "  k: 20\n",
                "",
            ),
        ],
    ),
    37: Promise(
        "The linear probe: a backbone at rest, and no choice by the test part",
        [
            fault(
                "the penalty is chosen on the test part",
                "test_evaluators.py::test_linear_choice_rests_on_validation_never_on_test",
                "ssl_runner/evaluators/linear.py",
                'features(embed, data, "val")',
                'features(embed, data, "test")',
            ),
            fault(
                "the test part is looked at first",
                "test_evaluators.py::test_linear_asks_for_the_test_part_once_and_last",
                "ssl_runner/evaluators/linear.py",
                '        train, val = features(embed, data, "train"), features(embed, data, "val")\n',
                '        features(embed, data, "test")\n'
                '        train, val = features(embed, data, "train"), features(embed, data, "val")\n',
            ),
            fault(
                "features are standardised by the few labelled samples",
                "test_evaluators.py::test_few_labels_bind_training_and_selection",
                "ssl_runner/evaluators/linear.py",
                "val_x, val_label = self._few(val, draw)",
                "val_x, val_label = val",
            ),
            fault(
                "gradients reach the features",
                "test_faults.py::test_evaluators_get_a_backbone_at_rest",
                "ssl_runner/stages.py",
                "backbone.eval().requires_grad_(False)",
                "backbone.eval()",
            ),
        ],
    ),
    38: Promise(
        "The few labelled samples are fixed lists of ids",
        [
            fault(
                "they are drawn anew each time",
                "test_data.py::test_few_label_lists_are_pinned",
                "ssl_runner/datasets/splits.py",
                "np.random.RandomState(20260101 + draw)",
                "np.random.RandomState()",
            ),
            fault(
                "every draw is the same",
                "test_data.py::test_few_label_lists_are_pinned",
                "ssl_runner/datasets/splits.py",
                "np.random.RandomState(20260101 + draw)",
                "np.random.RandomState(20260101)",
            ),
        ],
    ),
    40: Promise(
        "A resumed run ends with the same bits, wherever it was stopped",
        [
            fault(
                "it begins the epoch again",
                "test_resume.py::test_killed_and_resumed_it_ends_with_the_same_weights[plain-6]",
                "ssl_runner/data.py",
                'self.start = state_dict["batches"]',
                "self.start = 0",
            ),
            fault(
                "random draws go on from wherever the generator is",
                "test_resume.py::test_killed_and_resumed_it_ends_with_the_same_weights[plain-6]",
                "ssl_runner/learner.py",
                '        torch.manual_seed(derive(self.seed, "step", self.global_rank, batch_idx))\n',
                "",
            ),
            fault(
                "validation's draws reach training",
                "test_learner.py::test_validation_and_logging_leave_training_as_it_is",
                "ssl_runner/learner.py",
                '        torch.manual_seed(derive(self.seed, "step", self.global_rank, batch_idx))\n',
                "",
            ),
            fault(
                "a checkpoint is saved in the middle of an accumulated step",
                "test_resume.py::test_killed_and_resumed_it_ends_with_the_same_weights[accumulated-6]",
                "ssl_runner/callbacks.py",
                "        if (batch_idx + 1) % trainer.accumulate_grad_batches:\n",
                "        if False:\n",
            ),
            fault(
                "the best score is forgotten",
                "test_faults.py::test_a_resumed_run_remembers_its_best",
                "ssl_runner/callbacks.py",
                '        self.best = state_dict["best"]\n',
                "        pass\n",
            ),
            fault(
                "a resumed run is a new one to Weights & Biases",
                "test_faults.py::test_a_resumed_run_keeps_its_id_with_weights_and_biases",
                "ssl_runner/loggers.py",
                "if not stored.is_file():",
                "if True:",
            ),
        ],
    ),
    41: Promise(
        "Loading is strict and prints a receipt; the end is saved; files are replaced whole",
        [
            fault(
                "what is missing in the file stays random",
                "test_runs.py::test_a_backbone_that_does_not_fit_is_an_error_with_a_receipt",
                "ssl_runner/checkpoint.py",
                "if receipt.missing or receipt.unexpected or receipt.misshapen:",
                "if receipt.unexpected or receipt.misshapen:",
                "ssl_runner/checkpoint.py",
                "backbone.load_state_dict(state)",
                "backbone.load_state_dict(state, strict=False)",
            ),
            fault(
                "what the backbone has no place for is dropped in silence",
                "test_runs.py::test_a_backbone_that_does_not_fit_is_an_error_with_a_receipt",
                "ssl_runner/checkpoint.py",
                "if receipt.missing or receipt.unexpected or receipt.misshapen:",
                "if receipt.missing or receipt.misshapen:",
                "ssl_runner/checkpoint.py",
                "backbone.load_state_dict(state)",
                "backbone.load_state_dict(state, strict=False)",
            ),
            fault(
                "the receipt counts what did not match",
                "test_runs.py::test_a_backbone_comes_back_with_a_receipt",
                "ssl_runner/checkpoint.py",
                "filled = sum(n for k, n in parameters.items() if k in set(matched))",
                "filled = len(matched)",
            ),
            fault(
                "finetuning starts from an untrained backbone",
                "test_cli.py::test_finetuning_starts_from_the_pretrained_weights",
                "ssl_runner/checkpoint.py",
                "    backbone.load_state_dict(state)\n",
                "",
            ),
            fault(
                "the end is not saved unless the interval meets it",
                "test_faults.py::test_the_end_is_saved_whatever_the_interval",
                "ssl_runner/callbacks.py",
                " or batch_idx + 1 == trainer.num_training_batches:",
                ":",
            ),
            fault(
                "a checkpoint is written over the last one",
                "test_runs.py::test_a_failed_save_leaves_the_old_checkpoint_whole",
                "ssl_runner/checkpoint.py",
                '        with open(temporary, "wb") as file:\n            torch.save',
                '        with open(path, "wb") as file:\n            torch.save',
            ),
        ],
    ),
    42: Promise(
        "Unknown keys are refused, and every known one takes effect",
        [
            fault(
                "an unknown top-level key is ignored",
                "test_config.py::test_all_faults_are_said_at_once",
                "ssl_runner/config.py",
                '            yield key, "no such key" +',
                '            continue\n            yield key, "no such key" +',
            ),
            fault(
                "an unknown argument is ignored",
                "test_config.py::test_all_faults_are_said_at_once",
                "ssl_runner/config.py",
                '            yield here, f"{name} takes no such argument{hint}"\n',
                "            pass\n",
            ),
            fault(
                "values are not judged",
                "test_config.py::test_all_faults_are_said_at_once",
                "ssl_runner/config.py",
                "        except ValidationError as error:\n",
                "        except ValidationError as error:\n            return\n",
            ),
            fault(
                "clipping is accepted and not done",
                "test_faults.py::test_a_top_level_key_takes_effect",
                "ssl_runner/stages.py",
                'gradient_clip_val=config["clip"]',
                "gradient_clip_val=None",
            ),
            fault(
                "accumulation is accepted and not done",
                "test_faults.py::test_a_top_level_key_takes_effect\n"
                "test_learner.py::test_after_step_is_called_once_per_optimiser_step",
                "ssl_runner/stages.py",
                'accumulate_grad_batches=config["accumulate"]',
                "accumulate_grad_batches=1",
            ),
            fault(
                "SwAV takes iterations of Sinkhorn-Knopp and does three",
                "test_faults.py::test_every_argument_of_an_objective_takes_effect[swav-iterations]",
                f"{OBJECTIVES}/swav.py",
                "iterations=self.iterations",
                "iterations=3",
            ),
            fault(
                "MoCo v2 takes the end of its momentum and keeps the beginning",
                "test_faults.py::test_every_argument_of_an_objective_takes_effect[moco_v2-end_momentum]",
                f"{OBJECTIVES}/moco_v2.py",
                "Teacher(backbone, momentum, end_momentum)",
                "Teacher(backbone, momentum, momentum)",
                f"{OBJECTIVES}/moco_v2.py",
                "Teacher(self.projector, momentum, end_momentum)",
                "Teacher(self.projector, momentum, momentum)",
            ),
            fault(
                "DINO takes a share of training to freeze its last layer and does not",
                "test_faults.py::test_every_argument_of_an_objective_takes_effect[dino-frozen]",
                f"{OBJECTIVES}/dino.py",
                "learns = self.progress >= self.frozen",
                "learns = self.progress >= 0",
            ),
        ],
    ),
    43: Promise(
        "A loss that is not finite stops the run, keeps the last good checkpoint and names batch and term",
        [
            fault(
                "the run goes on",
                "test_learner.py::test_a_non_finite_term_is_named_with_its_batch_and_never_saved",
                "ssl_runner/learner.py",
                "        if self._bad is None:\n",
                "        if True:\n",
            ),
            fault(
                "the loss alone is watched, not its terms",
                "test_learner.py::test_a_non_finite_term_is_named_with_its_batch_and_never_saved",
                "ssl_runner/learner.py",
                'terms = {"loss": loss.value, **loss.log}',
                'terms = {"loss": loss.value}',
            ),
            fault(
                "another batch is named",
                "test_learner.py::test_a_non_finite_term_is_named_with_its_batch_and_never_saved",
                "ssl_runner/learner.py",
                "torch.full_like(rows[:1], batch_idx)",
                "torch.full_like(rows[:1], 0)",
            ),
            fault(
                "the broken weights are saved",
                "test_faults.py::test_weights_behind_a_broken_loss_are_not_saved",
                "ssl_runner/callbacks.py",
                "        learner.check_finite()\n",
                "",
            ),
        ],
    ),
}

ABSENT = {
    12: "A probe trained alongside: evaluators run on features of the finished backbone.",
    28: "CLIP's clamped scale and both directions.",
    32: "BERT's 80/10/10, whole words, GPT's shift over documents. What is there for patches is under 30.",
    33: "wav2vec 2.0's negatives, temperature and lengths.",
    34: "BERT4Rec and SASRec.",
    35: "Splits and windows of series.",
    39: "Rank metrics.",
}

# -- running -----------------------------------------------------------------------------------------------------


def copied(folder: Path) -> None:
    """The project as it is in this checkout, importable from `folder`."""
    for name in ("ssl_runner", "conf", "tests", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, folder / path.name)
    (folder / "ssl_runner" / "conf").symlink_to("../conf")


def misplaced(folder: Path, one: Fault) -> list[str]:
    """What is wrong with the texts to replace: each must be there exactly once."""
    counts = [(file, old, (folder / file).read_text().count(old)) for file, old, _ in one.edits]
    return [f"{one.what}: {file} has {n} times, not once, {old!r}" for file, old, n in counts if n != 1]


@contextlib.contextmanager
def faulty(folder: Path, one: Fault) -> Iterator[None]:
    """Within it the copy has the fault."""
    before = {file: (folder / file).read_text() for file, _, _ in one.edits}
    texts = dict(before)
    for file, old, new in one.edits:
        texts[file] = texts[file].replace(old, new)
    try:
        for file, text in texts.items():
            (folder / file).write_text(text)
        yield
    finally:
        for file, text in before.items():
            (folder / file).write_text(text)


@contextlib.contextmanager
def only(folder: Path, tests: tuple[str, ...]) -> Iterator[None]:
    """Within it the copy has the objectives that the contract is asked about alone, since its ranks train all."""
    cases = [re.search(r"test_contract.*\[(\w+)-", test) for test in tests]
    wanted = {found[1] for found in cases if found}
    aside = [p for p in (folder / "conf/objective").glob("*.yaml") if wanted and p.stem not in wanted]
    for path in aside:
        path.rename(path.with_suffix(".aside"))
    try:
        yield
    finally:
        for path in aside:
            path.with_suffix(".aside").rename(path)


def run(folder: Path, tests: tuple[str, ...], seconds: int, *options: str) -> tuple[int, str]:
    """pytest's exit code (or minus a signal) and what it printed. In a fork, which need not import torch again."""
    log = folder / "log.txt"
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.alarm(seconds)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        code = 3
        try:
            code = int(_pytest(tests, options))
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a killed test has left behind
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def _pytest(tests: tuple[str, ...], options: tuple[str, ...]) -> int:
    import pytest
    import torch

    # ranks are forks as well
    torch.multiprocessing.spawn = partial(torch.multiprocessing.start_processes, start_method="fork")
    nodes = [f"tests/{test}" for test in tests]
    return pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", *options, *nodes])


def seen(code: int, text: str) -> tuple[str, str]:
    """(the test that caught the fault, why it failed), or ("", what happened instead)."""
    failed = re.search(r"^FAILED tests/(\S+?(?:\[.*?\])?)(?: - (.*))?$", text, re.MULTILINE)
    if code == 0:
        return "", "SURVIVED"
    if code != 1 or not failed:
        return "", f"pytest ended with {code}: {' '.join(text.splitlines()[-2:])}"
    reason = failed[2] or ""
    if reason.startswith(BROKEN):
        return "", f"the fault breaks the code: {reason}"
    return failed[1], reason


def machine() -> str:
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("promises", nargs="*", type=int, help="numbers; all, if none is given")
    parser.add_argument("--write", type=Path, help="write the page of what was shown; takes all promises")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--match", default="", help="only faults whose words hold this text")
    options = parser.parse_args()
    chosen = {n: p for n, p in PROMISES.items() if not options.promises or n in options.promises}
    if options.write and len(chosen) < len(PROMISES):
        parser.error("--write needs all promises")
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    sys.dont_write_bytecode = True
    preload()
    caught: dict[Fault, str] = {}
    with tempfile.TemporaryDirectory(prefix="faults_") as temporary:
        folder = Path(temporary) / "whole"
        copied(folder)
        faults = [(n, f) for n, promise in chosen.items() for f in promise.faults if options.match in f.what]
        stale = [text for _, f in faults for text in misplaced(folder, f)]
        if stale:
            print("\n".join(stale))
            return 1
        tests = tuple(dict.fromkeys(test for _, f in faults for test in f.tests))
        code, text = run(folder, tests, len(tests) * TIMEOUT)
        if code != 0:
            print(text[-6000:])
            print("the tests do not pass as the project is; nothing was put in")
            return 1
        print(f"{len(faults)} faults, {len(tests)} tests, which pass as the project is", flush=True)
        with ProcessPoolExecutor(options.jobs, get_context("fork"), prepare, (folder,)) as pool:
            results = pool.map(attempt, [each for _, each in faults])
            for (number, each), (test, why) in zip(faults, results, strict=True):
                print(f"{number:3} | {each.what} | {test or why.upper()}", flush=True)
                if test:
                    caught[each] = test
    print(f"{len(caught)} of {len(faults)} caught")
    if len(caught) < len(faults):
        return 1
    if options.write:
        options.write.parent.mkdir(exist_ok=True)
        options.write.write_text(page(caught))
    return 0


mine = Path()  # the copy that this process puts faults into


def prepare(whole: Path) -> None:
    global mine
    mine = whole.with_name(str(os.getpid()))
    shutil.copytree(whole, mine, symlinks=True)


def attempt(one: Fault) -> tuple[str, str]:
    with faulty(mine, one), only(mine, one.tests):
        return seen(*run(mine, one.tests, TIMEOUT, "-x"))


def preload() -> None:
    """What the tests import, but for the project itself: every fork then has it."""
    for name in ("torch", "pytest", "hypothesis", "hydra", "pydantic", "yaml", "safetensors.torch", "timm"):
        __import__(name)
    for name in ("torchvision.transforms.v2", "torchmetrics.functional.classification", "pytorch_lightning"):
        __import__(name)


# -- the page ----------------------------------------------------------------------------------------------------


def page(caught: dict[Fault, str]) -> str:
    """docs/correctness.md, from what a run has shown."""
    lines = [
        "# What is promised, and which test holds it",
        "",
        "Each promise below answers a fault that other implementations had or that a paper's successors found. For",
        "each, faults were put into a copy of the project, one at a time, and a test failed. The page is written by",
        "",
        "    python scripts/faults.py --write docs/correctness.md",
        "",
        f"and shows its run of {date.today()} on {machine()}: {len(caught)} faults, all caught.",
        "Numbers that are left out, and the list at the end, are of what is not in the project yet.",
        "",
    ]
    for number, promise in PROMISES.items():
        lines += [f"## {number}. {promise.title}", "", "| fault put in | in | caught by |", "|---|---|---|"]
        for each in promise.faults:
            files = ", ".join(dict.fromkeys(f"`{file.removeprefix('ssl_runner/')}`" for file, _, _ in each.edits))
            test = re.sub(r"\[.*\]$", "", caught[each]).replace("::", "`, `")
            lines.append(f"| {each.what} | {files} | `{test}` |")
        lines.append("")
    lines += ["## Not in the project yet", "", *(f"- {number}. {text}" for number, text in ABSENT.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
