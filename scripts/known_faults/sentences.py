"""Of pairs of segments and of span corruption."""

from __future__ import annotations

from known_faults.fault import OBJECTIVES, PARTS, Fault, fault, ranks

FAULTS: dict[int, list[Fault]] = {
    32: [
        fault(
            "a sample is cut in two across a document's end",
            "test_sentences.py::test_a_sample_is_cut_within_a_document_and_between_words",
            f"{PARTS}/segments.py",
            "        may[:, 1:] &= (part[:, 1:] == part[:, :-1]) & (ids[:, 1:] != separator)\n",
            "        may[:, 1:] &= ids[:, 1:] != separator\n",
        ),
        fault(
            "a cut goes through a word",
            """test_sentences.py::test_words_stay_whole
            test_sentences.py::test_a_sample_is_cut_within_a_document_and_between_words""",
            f"{PARTS}/segments.py",
            "(unit[:, 1:] != unit[:, :-1]) | (unit[:, 1:] < 0)",
            "torch.ones_like(unit[:, 1:], dtype=torch.bool)",
        ),
        fault(
            "the segment that is put in may come from a document's start, or from two documents",
            "test_sentences.py::test_half_of_the_samples_end_with_another_ones_words",
            f"{OBJECTIVES}/nsp.py",
            "cut, told = drawn(may & its_may)",
            "cut, told = drawn(may)",
        ),
        fault(
            "the ranks' samples take their other segments from the first rank's",
            ranks("nsp-ids"),
            f"{OBJECTIVES}/nsp.py",
            "(gather(own), rank() * len(own))",
            "(gather(own), 0)",
        ),
        fault(
            "the segment that is put in keeps the sample's own padding",
            "test_sentences.py::test_half_of_the_samples_end_with_another_ones_words",
            f"{OBJECTIVES}/nsp.py",
            "torch.where(changed, its_pad, pad)",
            "pad",
        ),
        fault(
            "a verdict is learned of samples that have no pair",
            "test_sentences.py::test_the_loss_of_pairs_is_that_of_the_hidden_ids_and_of_the_verdict",
            f"{OBJECTIVES}/nsp.py",
            "verdict(scores, pairs.true, pairs.told)",
            "verdict(scores, pairs.true, torch.ones_like(pairs.told))",
        ),
        fault(
            "the verdict is about other documents too",
            "test_sentences.py::test_the_loss_of_pairs_is_that_of_the_hidden_ids_and_of_the_verdict",
            f"{OBJECTIVES}/nsp.py",
            "scores = self.scores(tokens, pairs.inside)",
            "scores = self.scores(tokens, ~pairs.pad)",
        ),
        fault(
            "segments are not told apart",
            """test_sentences.py::test_the_loss_of_pairs_is_that_of_the_hidden_ids_and_of_the_verdict
            test_sentences.py::test_a_single_text_is_embedded_as_a_first_segment""",
            f"{OBJECTIVES}/nsp.py",
            "tokens = tokens + pairs.second[..., None] * self.second",
            "tokens = tokens + 0 * self.second",
        ),
        fault(
            "a document's separator changes places with its segments, and gives the order away",
            "test_sentences.py::test_the_two_stretches_of_a_document_change_places",
            f"{OBJECTIVES}/sop.py",
            "            pair = pair & (ids != self.separator)\n",
            "            pair = pair & True\n",
        ),
        fault(
            "segments that changed places keep their old embeddings",
            "test_sentences.py::test_the_two_stretches_of_a_document_change_places",
            f"{OBJECTIVES}/sop.py",
            "second = torch.where(true[:, None], pair & behind, second)",
            "second = pair & behind",
        ),
        fault(
            "T5's decoder reads the id that it is to tell",
            """test_sentences.py::test_the_loss_of_spans_is_that_of_each_id_given_those_before_it
            test_sentences.py::test_the_decoder_reads_and_sees_nothing_that_comes_later""",
            f"{OBJECTIVES}/span_corruption.py",
            "target.roll(1, 1), (~text.told).roll(1, 1)",
            "target, ~text.told",
        ),
        fault(
            "T5's decoder sees what comes later",
            "test_sentences.py::test_the_decoder_reads_and_sees_nothing_that_comes_later",
            f"{PARTS}/seq2seq.py",
            "visible(tokens, pad, True, None)",
            "visible(tokens, pad, False, None)",
        ),
        fault(
            "T5's sentinels are all the same in the input",
            "test_sentences.py::test_the_loss_of_spans_is_that_of_each_id_given_those_before_it",
            f"{OBJECTIVES}/span_corruption.py",
            "F.embedding(text.number.clamp(min=0), self.mask_token)",
            "F.embedding(text.number.clamp(min=0, max=0), self.mask_token)",
        ),
        fault(
            "padding in a hidden stretch is told",
            """test_sentences.py::test_padding_is_not_told
            test_sentences.py::test_padding_changes_nothing_and_a_sample_of_it_stays_finite""",
            f"{OBJECTIVES}/span_corruption.py",
            "scatter(1, at, ~pad.gather(1, gone))",
            "scatter(1, at, True)",
        ),
        fault(
            "T5's decoder reads the encoder's padding",
            "test_sentences.py::test_padding_changes_nothing_and_a_sample_of_it_stays_finite",
            f"{PARTS}/seq2seq.py",
            "reads = (~unread | unread.all(1, keepdim=True))[:, None, None]",
            "reads = torch.ones_like(unread)[:, None, None]",
        ),
        fault(
            "T5's encoder sees other documents",
            "test_sentences.py::test_no_document_sees_another_in_the_encoder",
            f"{OBJECTIVES}/span_corruption.py",
            "part=None if part is None else part.gather(1, text.place)",
            "part=None",
        ),
        fault(
            "stretches merge, so that samples differ in how many they have",
            "test_sentences.py::test_every_sample_has_so_many_hidden_ids_in_so_many_stretches",
            f"{OBJECTIVES}/span_corruption.py",
            "edges = F.pad(F.pad(between, (1, 0)), (0, 1), value=count)",
            "edges = F.pad(F.pad(between - 1, (1, 0)), (0, 1), value=count)",
        ),
        fault(
            "divisions are not equally likely",
            "test_sentences.py::test_every_division_is_as_likely",
            f"{OBJECTIVES}/span_corruption.py",
            "torch.rand(batch, count - 1).argsort(1)[:, : pieces - 1]",
            "(torch.rand(batch, count - 1) * torch.arange(1, count)).argsort(1)[:, : pieces - 1]",
        ),
    ],
}
