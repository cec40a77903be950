"""Of causal language modelling, of likelihood and of n-grams."""

from __future__ import annotations

from known_faults.fault import OBJECTIVES, Fault, fault

FAULTS: dict[int, list[Fault]] = {
    32: [
        # of promise 32, GPT part
        fault(
            "GPT's logits are those at the id's own place: nothing is shifted",
            "test_language.py::test_the_causal_loss_predicts_each_id_from_those_before_it_in_its_document",
            f"{OBJECTIVES}/clm.py",
            "logits = self.scores(self.tokens(ids, pad, part)[:, :-1])",
            "logits = self.scores(self.tokens(ids, pad, part)[:, 1:])",
        ),
        fault(
            "GPT predicts an id from those before the one before it: shifted twice",
            "test_language.py::test_the_causal_loss_predicts_each_id_from_those_before_it_in_its_document",
            f"{OBJECTIVES}/clm.py",
            "logits = self.scores(self.tokens(ids, pad, part)[:, :-1])\n"
            "        return Loss(next_id(logits, ids[:, 1:], ",
            "logits = self.scores(self.tokens(ids, pad, part)[:, :-1])\n        return Loss(next_id(logits.roll(1, 1), "
            "ids[:, 1:], ",
        ),
        fault(
            "GPT's -log p stands one place before the id that it is of",
            "test_likelihood.py::test_the_nats_of_each_id_are_those_given_its_document_so_far",
            f"{OBJECTIVES}/clm.py",
            "F.pad(losses, (1, 0))",
            "F.pad(losses, (0, 1))",
        ),
        fault(
            "the first id of a document is predicted from the document before it",
            "test_language.py::test_the_causal_loss_predicts_each_id_from_those_before_it_in_its_document",
            f"{OBJECTIVES}/clm.py",
            "        told[:, 1:] &= part[:, 1:] == part[:, :-1]\n",
            "        pass\n",
        ),
        fault(
            "a language model sees the documents before its own when it is scored",
            "test_likelihood.py::test_the_nats_of_each_id_are_those_given_its_document_so_far",
            f"{OBJECTIVES}/clm.py",
            "losses = surprise(self.scores(self.tokens(ids, pad, part)[:, :-1])",
            "losses = surprise(self.scores(self.tokens(ids, pad, None)[:, :-1])",
        ),
        fault(
            "a language model goes on from the documents before the last one too",
            "test_likelihood.py::test_what_follows_depends_on_the_last_document_alone",
            f"{OBJECTIVES}/clm.py",
            "tokens = self.tokens(ids, pad, parts_of(ids, self.separator))",
            "tokens = self.tokens(ids, pad, None)",
        ),
        fault(
            "padding in front predicts the first id",
            "test_likelihood.py::test_padding_in_front_predicts_nothing",
            f"{OBJECTIVES}/clm.py",
            "told[:, 1:] &= ~pad[:, 1:] & ~pad[:, :-1]",
            "told[:, 1:] &= ~pad[:, 1:]",
        ),
        fault(
            "what follows is told at the last place, padding or not",
            "test_likelihood.py::test_what_follows_the_last_id_ignores_padding_on_either_side[right]",
            f"{OBJECTIVES}/clm.py",
            "        if pad is not None:\n            last =",
            "        if pad is None:\n            last =",
        ),
        fault(
            "the loss of a language model counts padding",
            "test_language.py::test_the_causal_loss_predicts_each_id_from_those_before_it_in_its_document",
            f"{OBJECTIVES}/clm.py",
            "told[:, 1:] &= ~pad[:, 1:] & ~pad[:, :-1]",
            "pass",
        ),
        fault(
            "windows that overlap score the same ids twice",
            "test_likelihood.py::test_every_id_is_scored_once_with_half_a_sample_before_it",
            "ssl_runner/evaluators/likelihood.py",
            "        yield ids, half\n",
            "        yield ids, 0\n",
        ),
        fault(
            "bits per byte are bits per id",
            "test_likelihood.py::test_perplexity_is_by_id_and_bits_are_by_byte",
            "ssl_runner/evaluators/likelihood.py",
            'mean * measured["ids"] / measured[name] / math.log(2)',
            "mean / math.log(2)",
        ),
        fault(
            "ids that are not predicted count as certain",
            "test_likelihood.py::test_perplexity_is_by_id_and_bits_are_by_byte",
            "ssl_runner/evaluators/likelihood.py",
            "told.sum().double()",
            "torch.tensor(told.numel()).double()",
        ),
        fault(
            "an n-gram's lower orders count occurrences, not what precedes",
            "test_likelihood.py::test_an_n_gram_model_is_the_formula_of_the_paper",
            "ssl_runner/evaluators/ngram.py",
            "                grams[-1] = shorter, np.bincount(number[places[first] + 1], minlength=len(shorter))\n",
            "",
        ),
        fault(
            "an n-gram model gives back nothing of what it discounts",
            "test_likelihood.py::test_the_chances_of_all_symbols_sum_to_one_behind_any_context",
            "ssl_runner/evaluators/ngram.py",
            " + level.left[context] * p[places])",
            ")",
        ),
        fault(
            "an n-gram's context reaches into the sequence before it",
            "test_likelihood.py::test_no_context_reaches_into_another_sequence",
            "ssl_runner/evaluators/ngram.py",
            "np.flatnonzero((age >= k - 1) & (context >= 0))",
            "np.flatnonzero(context >= 0)",
        ),
        fault(  # of promise 21
            "a language model's -log p is in the precision of its scores",
            "test_likelihood.py::test_minus_log_p_is_in_fp32_whatever_the_scores_are_in",
            f"{OBJECTIVES}/clm.py",
            "logits.float().flatten(0, 1)",
            "logits.flatten(0, 1)",
        ),
    ],
}
