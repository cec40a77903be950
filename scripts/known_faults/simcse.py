"""Of SimCSE, of pretraining that goes on from a run, and of synonyms."""

from __future__ import annotations

from known_faults.fault import Fault, fault, ranks

SIMCSE, SYNONYMS = "ssl_runner/objectives/simcse.py", "ssl_runner/views/synonyms.py"

FAULTS: dict[int, list[Fault]] = {
    1: [
        fault(
            "SimCSE: other ranks' sentences are no negatives",
            ranks("simcse-ids"),
            SIMCSE,
            "every = gather(other)",
            "every = other",
            SIMCSE,
            " + rank() * len(h)",
            "",
        ),
    ],
    2: [
        fault("SimCSE: the positives are not offset by rank", ranks("simcse-ids"), SIMCSE, " + rank() * len(h)", ""),
    ],
    21: [
        fault(
            "SimCSE: the similarities are made in half precision",
            "test_simcse.py::test_in_half_precision_the_loss_is_made_in_fp32",
            SIMCSE,
            "enabled=False",
            "enabled=True",
        ),
        fault(
            "SimCSE: dot products and no cosines",
            "test_simcse.py::test_the_loss_is_the_papers",
            SIMCSE,
            "F.normalize(h.float(), dim=1), F.normalize(other.float(), dim=1)",
            "h.float(), other.float()",
        ),
        fault(
            "SimCSE: the loss is taken both ways",
            "test_simcse.py::test_it_is_taken_one_way_and_the_own_pass_gives_no_negatives",
            SIMCSE,
            "    return F.cross_entropy(logits, torch.arange(len(h), device=h.device) + rank() * len(h))",
            "    place = torch.arange(len(h), device=h.device) + rank() * len(h)\n"
            "    return (F.cross_entropy(logits, place) + F.cross_entropy(logits.T, place)) / 2",
        ),
        fault(
            "SimCSE: the own pass's sentences are among the negatives",
            "test_simcse.py::test_the_loss_is_the_papers",
            SIMCSE,
            "every = gather(other)",
            "every = torch.cat([gather(other), gather(h)])",
        ),
        fault(
            "SimCSE: both sides are one pass",
            "test_simcse.py::test_the_two_passes_are_the_head_of_the_backbone_each_with_its_own_dropout",
            SIMCSE,
            "across(h, other, self.temperature)",
            "across(h, h + 0 * other, self.temperature)",
        ),
    ],
    32: [
        fault(
            "synonyms: the beginning of a longer word is replaced",
            "test_synonyms.py::test_a_word_of_several_ids_is_left_as_it_is",
            SYNONYMS,
            "drawn & there & ~cut & (count > 0)",
            "drawn & there & (count > 0)",
        ),
        fault(
            "synonyms: padding is replaced",
            "test_synonyms.py::test_padding_special_ids_and_what_the_model_does_not_know_stay",
            SYNONYMS,
            "drawn & there & ~cut & (count > 0)",
            "drawn & ~cut & (count > 0)",
        ),
        fault(
            "synonyms: always the first one",
            "test_synonyms.py::test_each_synonym_is_as_likely_and_the_rate_is_kept",
            SYNONYMS,
            "(torch.rand(x.shape).to(x.device) * count).long().minimum(count - 1)",
            "0 * count",
        ),
        fault(
            "synonyms: the same places in all samples",
            "test_synonyms.py::test_each_synonym_is_as_likely_and_the_rate_is_kept",
            SYNONYMS,
            "drawn = torch.rand(x.shape).lt(self.rate).to(x.device)",
            "drawn = torch.rand(x.shape[1:]).lt(self.rate).to(x.device).expand_as(x)",
        ),
        fault(
            "synonyms: the words of a set are counted in decimal",
            "test_synonyms.py::test_synonyms_are_the_other_words_of_all_sets_of_a_word",
            SYNONYMS,
            "count = int(first[3], 16)",
            "count = int(first[3])",
        ),
        fault(
            "synonyms: an adjective's place is part of it",
            "test_synonyms.py::test_synonyms_are_the_other_words_of_all_sets_of_a_word",
            SYNONYMS,
            'word.partition("(")[0]',
            "word",
        ),
        fault(
            "synonyms: a piece inside a word counts as the word that it spells",
            "test_synonyms.py::test_words_are_told_by_how_each_tokenizer_writes_them",
            SYNONYMS,
            "        if begins and text.isascii()",
            "        if text.isascii()",
        ),
    ],
    40: [
        fault(
            "what went on from a run's weights gets them again when it is resumed",
            "test_cli.py::test_a_pretraining_that_went_on_from_a_run_is_resumed_without_it",
            "ssl_runner/stages.py",
            'config.get("from") is not None and not (folder / runs.CHECKPOINTS / runs.LAST).is_file()',
            'config.get("from") is not None',
        ),
    ],
    41: [
        fault(
            "a pretraining does not load the weights that it is to go on from",
            "test_cli.py::test_pretraining_goes_on_from_a_run_by_another_recipe",
            "ssl_runner/stages.py",
            'parts = build.assemble(source, config, starting_point(config, folder))\n    data, metrics = fit(parts, folder, monitor="-val',
            'parts = build.assemble(source, config)\n    data, metrics = fit(parts, folder, monitor="-val',
        ),
        fault(
            "the untrained baseline has the weights that the pretraining went on from",
            "test_cli.py::test_pretraining_goes_on_from_a_run_by_another_recipe",
            "ssl_runner/stages.py",
            "untrained, its_objective = build.backbone(config), None",
            'untrained, its_objective = starting_point(config, Path("nowhere")), None',
        ),
        fault(
            "a stranger's run names what a pretraining builds",
            "test_cli.py::test_a_strangers_run_is_not_built_to_go_on_from_it",
            "ssl_runner/cli.py",
            "    check_trust({key: origin.config.get(key) for key in (*parts, *handed_on)}, name, _trusted(args))\n",
            "",
        ),
    ],
    42: [
        fault(
            "a recipe changes the backbone of the run that it goes on from",
            "test_cli.py::test_pretraining_goes_on_from_a_run_by_another_recipe",
            "ssl_runner/compose.py",
            "        found += _taken_back(recipe.get(group) or {}, nodes[group], group)\n",
            "        pass\n",
        ),
        fault(
            "what is typed does not come over the run that a pretraining goes on from",
            "test_cli.py::test_what_is_typed_comes_over_what_a_pretraining_goes_on_from",
            "ssl_runner/cli.py",
            "*compose.not_restated(compose.kept(nodes, stated), rest), *rest]",
            "*rest, *compose.kept(nodes, stated)]",
        ),
    ],
}
