"""Of sentence embeddings, of their score, and of texts by name."""

from __future__ import annotations

from known_faults.fault import Fault, fault

FAULTS: dict[int, list[Fault]] = {
    32: [
        # 5: what reaches a metric
        fault(
            "a sentence is compared with itself and not with the pair's other",
            "test_similarity.py::test_a_pair_is_as_alike_as_the_cosine_of_its_embeddings",
            "ssl_runner/evaluators/similarity.py",
            'samples["inputs"][1:]',
            'samples["inputs"][:1]',
        ),
        # 34 (pessimistic ties) in spirit: equals share a rank
        fault(
            "pairs of equal score get ranks of their own, in the order of the file",
            "test_similarity.py::test_rank_correlation_is_as_scipy_has_it",
            "ssl_runner/evaluators/similarity.py",
            "    _, which, count = x.unique(return_inverse=True, return_counts=True)\n"
            "    last = count.cumsum(0).double()\n"
            "    return (last - (count - 1) / 2)[which]",
            "    return x.argsort(stable=True).argsort().double() + 1",
        ),
        # 36: features are undisturbed, of evaluation's transform, on both sides
        fault(
            "the second sentence is taken without the end of every view",
            "test_similarity.py::test_both_sentences_are_seen_as_evaluation_sees_samples",
            "ssl_runner/evaluators/similarity.py",
            'data.views.plain({**samples, "inputs": samples["inputs"][1:]})',
            'samples["inputs"][1]',
        ),
        # 39: the whole test part at once
        fault(
            "the figure is that of the last batch",
            "test_similarity.py::test_the_order_of_a_test_part_is_of_all_of_it",
            "ssl_runner/evaluators/similarity.py",
            "found, gold = torch.cat(cosines), torch.cat(scores)",
            "found, gold = cosines[-1], scores[-1]",
        ),
        # 17: dropout per recipe; SimCSE has nothing else
        fault(
            "the encoder's dropout is the same in both passes",
            "test_similarity.py::test_two_copies_of_the_same_ids_meet_other_dropout",
            "ssl_runner/backbones/encoder.py",
            "        x = self.dropout(x)\n",
            "        torch.manual_seed(0)\n        x = self.dropout(x)\n",
            "ssl_runner/backbones/encoder.py",
            "        tokens = self.dropout(tokens)\n",
            "        torch.manual_seed(0)\n        tokens = self.dropout(tokens)\n",
        ),
        # 21: exclude self, keep the positive
        fault(
            "a sentence's own embedding is among its negatives",
            "test_similarity.py::test_simclrs_loss_is_simcses_with_the_own_sides_sentences_among_the_negatives",
            "ssl_runner/objectives/simclr.py",
            'logits = logits.scatter(1, itself[:, None], float("-inf"))',
            "logits = logits + 0 * itself[:, None]",
        ),
        # 32: document boundaries, special ids, padding
        fault(
            "an id moves into another document",
            "test_similarity.py::test_ids_move_within_reach_and_document_and_the_rest_stays",
            "ssl_runner/views/words.py",
            "key = key + part * (self.reach + 1)",
            "key = key + 0 * part",
        ),
        fault(
            "padding is shuffled among the ids",
            "test_similarity.py::test_ids_move_within_reach_and_document_and_the_rest_stays",
            "ssl_runner/views/words.py",
            "            moves &= ~pad\n",
            "            moves |= pad\n",
        ),
        fault(
            "an id moves one place further than it may",
            "test_similarity.py::test_ids_move_within_reach_and_document_and_the_rest_stays",
            "ssl_runner/views/words.py",
            "torch.rand(x.shape).to(x.device) * (self.reach + 1)",
            "torch.rand(x.shape).to(x.device) * (self.reach + 2)",
        ),
        # None: labels
        fault(
            "a secret label of the Hub, -1, counts as the last class",
            "test_text_sets.py::test_numbered_classes_have_their_names_and_secret_labels_are_none",
            "ssl_runner/datasets/hub.py",
            "names[label] if label >= 0 else None",
            "names[label]",
        ),
        fault(
            "a neutral snippet counts as positive",
            "test_text_sets.py::test_vader",
            "ssl_runner/datasets/vader.py",
            '"positive" if rating > 0',
            '"positive" if rating >= 0',
        ),
        fault(
            "headers, which give the class away, stay in an e-mail",
            "test_text_sets.py::test_spam_assassin",
            "ssl_runner/datasets/spam_assassin.py",
            "text if headers else body(text)",
            "text",
        ),
        fault(
            "a data set that changed is taken from the cache",
            "test_text_sets.py::test_a_changed_folder_is_read_anew_and_a_known_one_is_not",
            "ssl_runner/datasets/hub.py",
            'f"{self.how} {self._hash}"',
            'f"{self.how}"',
        ),
        # 42: a wrong request fails
        fault(
            "a tokenizer is trained on the pairs, whose ids mean nothing to the run",
            "test_text_sets.py::test_pairs_train_no_tokenizer",
            "ssl_runner/datasets/text_pairs.py",
            'if tokenizer in tokenizers.KINDS and tokenizer != "bytes":',
            "if False:",
        ),
        fault(
            "a pair without a score is scored",
            "test_text_sets.py::test_broken_pairs_are_told",
            "ssl_runner/datasets/text_pairs.py",
            "if not math.isfinite(value):",
            "if value == math.inf:",
        ),
    ],
}
