"""Of text as data."""

from __future__ import annotations

from known_faults.fault import Fault, fault

FAULTS: dict[int, list[Fault]] = {
    32: [
        # promise 32
        fault(
            "held-out text is scored a document at a time, not packed as in training",
            "test_text.py::test_what_a_pretext_is_made_of",
            "ssl_runner/datasets/text.py",
            "        return self._unlabelled(name)\n\n    def _unlabelled",
            "        return self.split(name)\n\n    def _unlabelled",
        ),
        fault(
            "a piece without the mark of a space goes on with no word",
            "test_text.py::test_units_are_the_words_of_the_pretokenizer",
            "ssl_runner/datasets/tokenizer.py",
            "goes_on = (np.diff(word, prepend=-1) == 0) & ~self._begins[ids]",
            "goes_on = np.zeros(len(ids), bool)",
        ),
        fault(
            "a tokenizer without words of its own makes one of a whole text",
            "test_text.py::test_special_ids_are_of_no_word",
            "ssl_runner/datasets/tokenizer.py",
            " & ~self._begins[ids]",
            "",
        ),
        fault(
            "special ids are hidden as words",
            "test_text.py::test_special_ids_are_of_no_word",
            "ssl_runner/datasets/text.py",
            "        self.in_words[[*tokenizer.special, tokenizer.separator, tokenizer.pad]] = False\n",
            "",
        ),
        fault(
            "a word that a packed sample begins with the end of has no number",
            "test_text.py::test_units_of_bytes_in_packed_samples",
            "ssl_runner/datasets/text.py",
            "    begins[:, 0] = True  # what it went on with is in another sample\n",
            "",
        ),
        fault(
            "padding reaches one id into a sample's document",
            "test_text.py::test_a_sample_is_a_document_cut_off_or_padded",
            "ssl_runner/datasets/text.py",
            "        there = place < stop\n",
            "        there = place < stop - 1\n",
        ),
        fault(
            "ids that go on with a word are others",
            "test_text.py::test_packed_samples_hold_every_id_once_in_order",
            "ssl_runner/datasets/text.py",
            "torch.where(marked < 0, ~marked, marked)",
            "marked.abs()",
        ),
        fault(
            "a word's tag is at its last id's follower",
            "test_text.py::test_parts_of_speech",
            "ssl_runner/datasets/text.py",
            "tag[encoded.first[known]] =",
            "tag[encoded.first[known] - 1] =",
        ),
        fault(
            "tags of a long document's later pieces are at other words",
            "test_text.py::test_parts_of_speech",
            "ssl_runner/datasets/text.py",
            "[tags[place] for place in inside]",
            "list(item.tags[: len(inside)])",
        ),
        fault(
            "few labels with the tags of other samples",
            "test_text.py::test_few_labels_keep_their_tags",
            "ssl_runner/datasets/text.py",
            "self.tag[place].long()",
            "self.tag[index[:, None] * self.length + torch.arange(self.length)].long()",
        ),
        # what figures of likelihood divide by
        fault(
            "the ends of documents are no bytes",
            "test_text.py::test_what_a_pretext_is_made_of",
            "ssl_runner/datasets/text.py",
            "len(piece.text.encode()) + piece.ended",
            "len(piece.text.encode())",
        ),
        fault(
            "characters are counted for bytes",
            "test_text.py::test_a_pretext_of_characters_of_many_bytes",
            "ssl_runner/datasets/text.py",
            "len(piece.text.encode()) + piece.ended",
            "len(piece.text) + piece.ended",
        ),
        fault(
            "the test part says which words have symbols",
            "test_text.py::test_the_text_can_be_had_back_from_symbols",
            "ssl_runner/datasets/text.py",
            'self._texts("train") for line',
            'self._texts("test") for line',
        ),
        fault(
            "the end of a spelled word is not told",
            "test_text.py::test_the_text_can_be_had_back_from_symbols",
            "ssl_runner/datasets/text.py",
            "[*word.encode(), END_OF_WORD]",
            "[*word.encode()]",
        ),
    ],
}
