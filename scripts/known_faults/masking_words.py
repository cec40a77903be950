"""Of masked language modelling and of tagging."""

from __future__ import annotations

from known_faults.fault import OBJECTIVES, PARTS, Fault, fault

FAULTS: dict[int, list[Fault]] = {
    32: [
        fault(
            "nine in ten of the hidden ids become the mask",
            "test_language.py::test_eight_in_ten_become_the_mask_one_another_id_and_one_stays",
            f"{OBJECTIVES}/mlm.py",
            "mask_share: Share = 0.8,",
            "mask_share: Share = 0.9,",
        ),
        fault(
            "none is replaced by another id",
            "test_language.py::test_eight_in_ten_become_the_mask_one_another_id_and_one_stays",
            f"{PARTS}/hiding.py",
            "        after = torch.where((kind >= self.mask_share) & (kind < self.mask_share + self.random_share), "
            "other, after)\n",
            "",
        ),
        fault(
            "ids that are not hidden are in the loss",
            "test_language.py::test_the_masked_loss_is_the_mean_of_minus_log_p_at_the_told_places",
            f"{PARTS}/ids.py",
            "return masked_mean(losses.view(told.shape), told)",
            "return losses.mean()",
        ),
        fault(
            "special ids are hidden, and drawn",
            """test_language.py::test_eight_in_ten_become_the_mask_one_another_id_and_one_stays
            test_language.py::test_what_is_shown_of_ids""",
            f"{PARTS}/hiding.py",
            "hidden = {*special, mask} | ({separator} if separator is not None else set())",
            "hidden: set[int] = set()",
        ),
        fault(
            "padding is hidden",
            """test_masking_words.py::test_padding_is_not_hidden_whatever_id_it_has
            test_language.py::test_so_many_are_told_of_each_sample_and_only_such_as_may_be""",
            f"{PARTS}/hiding.py",
            "may if pad is None else may & ~pad",
            "may",
        ),
        fault(
            "the same ids of a sample are hidden every time",
            """test_language.py::test_what_is_hidden_is_drawn_anew
            test_masking_words.py::test_the_share_of_ids_told_is_about_the_ratio_and_every_word_has_its_turn""",
            f"{PARTS}/hiding.py",
            "    score = torch.rand(batch, length)\n",
            "    score = torch.rand(batch, length, generator=torch.Generator().manual_seed(0))\n",
        ),
        fault(
            "parts of words are hidden",
            """test_masking_words.py::test_words_are_told_whole_and_as_many_as_fit
            test_masking_words.py::test_the_objective_hides_whole_words_in_training_and_in_what_it_shows""",
            f"{PARTS}/hiding.py",
            "        told = told & (end <= wanted)\n",
            "",
        ),
        fault(
            "words are asked for and ids are hidden one by one",
            "test_masking_words.py::test_the_objective_hides_whole_words_in_training_and_in_what_it_shows",
            f"{PARTS}/hiding.py",
            "self.span, unit if self.whole else None)",
            "self.span, None)",
        ),
        fault(
            "words that are longer than may be hidden keep their place in the order",
            "test_masking_words.py::test_words_are_told_whole_and_as_many_as_fit",
            f"{PARTS}/hiding.py",
            ".masked_fill(size > wanted, 1.5)",
            "",
        ),
        fault(
            "each rank divides by its own count of hidden ids",
            "test_contract.py::test_two_ranks_learn_what_one_learns_from_the_joined_batch[mlm-ids]",
            f"{PARTS}/patches.py",
            "    if world_size() > 1:\n        dist.all_reduce(count)",
            "    if False:\n        dist.all_reduce(count)",
        ),
        fault(
            "the mask of what follows is put over the last id",
            "test_masking_words.py::test_what_follows_is_told_by_a_mask_behind_the_last_id",
            f"{OBJECTIVES}/mlm.py",
            "end = torch.where(pad, 0, at + 1).amax(1, keepdim=True)",
            "end = torch.where(pad, 0, at).amax(1, keepdim=True)",
        ),
        fault(
            "the mask of what follows counts as padding",
            "test_masking_words.py::test_what_follows_is_told_by_a_mask_behind_the_last_id",
            f"{OBJECTIVES}/mlm.py",
            "pad.scatter(1, place, False)",
            "pad",
        ),
        fault(
            "the tagging penalty is chosen on the test part",
            "test_tagging.py::test_the_penalty_is_chosen_on_the_validation_part",
            "ssl_runner/evaluators/tagging.py",
            'labelled(embed, data, "val", self.tokens)',
            'labelled(embed, data, "test", self.tokens)',
        ),
        fault(
            "a tag meets the features of the place before",
            "test_tagging.py::test_each_tag_meets_the_features_of_its_own_place",
            "ssl_runner/evaluators/tagging.py",
            "embed.tokens(view)[rows.to(data.device), places.to(data.device)]",
            "embed.tokens(view)[rows.to(data.device), places.to(data.device) - 1]",
        ),
        fault(
            "a word is its first id alone in the baseline of tagging",
            """test_tagging.py::test_a_word_is_its_ids_to_the_end_of_its_unit_or_to_the_next_tag
            test_tagging.py::test_the_baseline_is_each_words_most_frequent_tag""",
            "ssl_runner/evaluators/tagging.py",
            "yield tuple(row[start:end]), tag[start]",
            "yield (row[start],), tag[start]",
        ),
    ],
}
