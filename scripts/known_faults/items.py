"""Of logs of users and items, and of ranking."""

from __future__ import annotations

from known_faults.fault import OBJECTIVES, Fault, fault

ITEMS, RANKING = "ssl_runner/datasets/interactions.py", "ssl_runner/evaluators/ranking.py"

FAULTS: dict[int, list[Fault]] = {
    34: [
        fault(
            "BERT4Rec's mask takes the place of the latest item at test",
            "test_items.py::test_bert4rec_asks_with_a_mask_behind_the_latest_items",
            f"{OBJECTIVES}/mlm.py",
            "torch.where(full, ids.roll(-1, 1), ids), torch.where(full, pad.roll(-1, 1), pad)",
            "ids, pad",
        ),
        fault(
            "a long history is cut off on the right",
            "test_items.py::test_the_last_item_is_for_test_and_the_one_before_for_validation",
            ITEMS,
            "= each[-length:]",
            "= each[:length]",
        ),
        fault(
            "no training sample has its last item alone hidden",
            "test_items.py::test_in_a_share_of_the_samples_the_last_item_alone_is_hidden_drawn_anew",
            ITEMS,
            "draws[:, None] < self.last",
            "draws[:, None] < 0",
        ),
        fault(
            "which samples have their last item alone hidden is the same in every epoch",
            "test_items.py::test_in_a_share_of_the_samples_the_last_item_alone_is_hidden_drawn_anew",
            ITEMS,
            "[draw / 2**63 for _, draw in keys]",
            "[place % 10 / 10 for place, _ in keys]",
        ),
        fault(
            "padding and mask are ranked",
            "test_items.py::test_ranks_are_those_among_all_items",
            RANKING,
            "may[:, list(self.special)] = False",
            "pass",
        ),
        fault(
            "an item that scores the same as others stands before them",
            "test_items.py::test_scores_that_are_all_the_same_find_nothing\ntest_items.py::test_ranks_are_those_among_all_items",
            RANKING,
            "return (may & (scores >= scores.gather(1, target[:, None]))).sum(1)",
            "return (may & (scores > scores.gather(1, target[:, None]))).sum(1) + 1",
        ),
        fault(
            "an item that the user had before is no candidate, even where it is the one to be found",
            "test_items.py::test_what_was_had_before_the_sample_begins_is_no_candidate_and_a_repeated_target_is",
            RANKING,
            "return may.scatter(1, target[:, None], True)",
            "return may",
        ),
        fault(
            "items that the user had are known by the part without the validation item alone",
            "test_items.py::test_ranks_are_those_among_all_items",
            RANKING,
            'past, learned = source.past("test"), source.past("pretrain")',
            'past, learned = [p[:-1] for p in source.past("test")], source.past("pretrain")',
        ),
        fault(
            "ranking_kept leaves out what the user had, as ranking does",
            "test_items.py::test_the_objectives_of_text_learn_what_comes_next[sasrec]",
            "conf/evaluators/ranking_kept.yaml",
            "seen: kept",
            "seen: removed",
        ),
        fault(
            "popularity is counted with what is tested on",
            "test_items.py::test_the_raw_input_is_ranked_by_popularity_and_by_what_followed_in_what_was_learned_from",
            RANKING,
            'past, learned = source.past("test"), source.past("pretrain")',
            'past, learned = source.past("test"), source.sequences',
        ),
        fault(
            "the validation item is learned from",
            "test_items.py::test_the_last_item_is_for_test_and_the_one_before_for_validation",
            ITEMS,
            '"pretrain": 2,',
            '"pretrain": 1,',
        ),
        fault(
            "sequences are in the order of the file",
            "test_items.py::test_a_table_is_read_in_the_order_of_time_and_equals_in_that_of_the_file",
            ITEMS,
            "np.lexsort((log.times[at], users[at]))",
            "np.argsort(users[at], kind='stable')",
        ),
        fault(
            "users and items with too few interactions are left out once, and not until there are none",
            "test_items.py::test_users_and_items_with_too_few_are_left_out_until_there_are_none",
            ITEMS,
            "        if (still == kept).all():\n            return kept\n        kept = still",
            "        return still",
        ),
        fault(
            "SASRec sees the items behind",
            "test_items.py::test_sasrec_sees_neither_padding_nor_what_comes_later",
            f"{OBJECTIVES}/clm.py",
            "self.backbone.patchify(ids)), pad, causal=True, part=part)",
            "self.backbone.patchify(ids)), pad, part=part)",
        ),
        fault(
            "SASRec sees padding",
            "test_items.py::test_sasrec_sees_neither_padding_nor_what_comes_later",
            f"{OBJECTIVES}/clm.py",
            "self.backbone.patchify(ids)), pad, causal=True, part=part)",
            "self.backbone.patchify(ids)), None, causal=True, part=part)",
        ),
    ],
}
