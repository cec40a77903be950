"""Of data at scale."""

from __future__ import annotations

from known_faults.fault import Fault, fault

DATASETS = "ssl_runner/datasets"

FAULTS: dict[int, list[Fault]] = {
    47: [
        fault(
            "blocks are shuffled by themselves and not mixed",
            "test_scale.py::test_each_epoch_mixes_other_blocks_and_within_them_in_another_order",
            f"{DATASETS}/reading.py",
            "window = torch.randperm(len(numbers), generator=generator) // MIXED",
            "window = torch.randperm(len(numbers), generator=generator)",
        ),
        fault(
            "the order of all samples is drawn whatever their blocks",
            "test_scale.py::test_blocks_are_mixed_a_few_at_a_time_and_no_sample_is_lost\n"
            "test_scale.py::test_a_row_group_is_read_once_while_its_rows_are_asked_for",
            f"{DATASETS}/reading.py",
            "    if block is None:\n",
            "    if True:\n",
        ),
        fault(
            "a sample is drawn twice where blocks are mixed",
            "test_scale.py::test_ranks_share_out_every_epoch_without_a_double_and_go_on_anywhere",
            f"{DATASETS}/reading.py",
            "    return order[window[of[order]].argsort(stable=True)]",
            "    return order[(window[of[order]].argsort(stable=True) // 2) * 2]",
        ),
        fault(
            "what is mapped is never let go",
            "test_scale.py::test_memory_is_flat_at_ten_times_the_data[memmap]\n"
            "test_scale.py::test_memory_is_flat_at_ten_times_the_data[text]",
            f"{DATASETS}/mapped.py",
            "if self._map is None or min(self._touched + touched, self._size) > KEPT:",
            "if self._map is None:",
        ),
        fault(
            "a row is taken to be in a page of 64 KB",
            "test_scale.py::test_rows_of_a_large_file_are_let_go_by_the_largest_page_around_each",
            f"{DATASETS}/mapped.py",
            "AROUND = 2 << 20",
            "AROUND = 64 << 10",
        ),
        fault(
            "a mapped file is opened anew for every fetch",
            "test_scale.py::test_rows_of_a_large_file_are_let_go_by_the_largest_page_around_each",
            f"{DATASETS}/mapped.py",
            "if self._map is None or min(self._touched + touched, self._size) > KEPT:",
            "if True:",
        ),
        fault(
            "row groups are kept for good",
            "test_scale.py::test_memory_is_flat_at_ten_times_the_data[parquet]\n"
            "test_scale.py::test_a_row_group_is_read_once_while_its_rows_are_asked_for",
            f"{DATASETS}/row_groups.py",
            "            while len(self._read) > MIXED:",
            "            while len(self._read) > 10**9:",
        ),
        fault(
            "few labels of a memory map are read into memory",
            "test_scale.py::test_few_labels_stay_in_their_file_and_nothing_is_written_to_it",
            f"{DATASETS}/mapped.py",
            "        some.x = self.x.part(keep)",
            "        some.x = self.x[keep]",
        ),
        fault(
            "the whole shard is fetched for each of its samples",
            "test_scale.py::test_workers_read_a_shard_of_the_web_by_the_piece",
            f"{DATASETS}/addresses.py",
            "return system.cat_file(inside, start=start, end=end)",
            "return system.cat_file(inside)[start:end]",
        ),
        fault(
            "a store that does not answer makes its samples broken ones",
            "test_scale.py::test_a_store_that_does_not_answer_stops_the_run_and_breaks_no_sample",
            f"{DATASETS}/addresses.py",
            "                raise RunError(f",
            "                raise BrokenSample(f",
        ),
        fault(
            "links of an archive are taken for files",
            "test_scale.py::test_nothing_leaves_a_hostile_archive",
            f"{DATASETS}/tar.py",
            "if not member.isreg() or member.issparse() or not stem or not extension:",
            "if not stem or not extension:",
        ),
        fault(
            "a header of negative size leads back to itself",
            "test_scale.py::test_headers_that_lie",
            f"{DATASETS}/tar.py",
            "if member.size < 0 or member.offset <= before:",
            "if member.offset < before:",
        ),
        fault(
            "an archive's index is kept though the archive is another",
            "test_scale.py::test_members_are_looked_up_once_and_again_when_the_archive_is_another",
            f"{DATASETS}/addresses.py",
            'return f"{os.path.abspath(path)} {found.st_size} {found.st_mtime_ns}"',
            "return os.path.abspath(path)",
        ),
        fault(
            "classes are ordered as words where they are numbers",
            "test_scale.py::test_pictures_by_class_in_shards",
            f"{DATASETS}/inputs.py",
            "key=lambda name: (int(name) if digits else 0, name)",
            "key=lambda name: name",
        ),
        fault(
            "a file of the wrong length counts as packed",
            "test_pack.py::test_spoiled_packs_are_told_by_their_file",
            f"{DATASETS}/packs.py",
            "        if size != packed.size:",
            "        if size < 0:",
        ),
        fault(
            "checksums are not looked at",
            "test_pack.py::test_spoiled_packs_are_told_by_their_file",
            f"{DATASETS}/packs.py",
            "if checksum(path) != packed.sha256:",
            "if not packed.sha256:",
        ),
        fault(
            "an index may name any file of the machine",
            "test_pack.py::test_an_index_of_a_stranger_leads_nowhere",
            f"{DATASETS}/packs.py",
            'pattern=r"^(pretrain|train|val|test)/[A-Za-z0-9_][A-Za-z0-9_.-]*$"',
            'pattern=r"."',
        ),
        fault(
            "a packing goes on behind what a killed one had written but not noted",
            "test_pack.py::test_stopped_anywhere_it_goes_on_to_the_same_bytes",
            "ssl_runner/pack.py",
            '            opened.truncate(note["bytes"])\n            opened.seek(note["bytes"])\n',
            "            opened.seek(0, os.SEEK_END)\n",
        ),
        fault(
            "a shard has the time at which it was packed in it",
            "test_pack.py::test_shards_give_the_samples_of_the_folder",
            "ssl_runner/pack.py",
            "                    member.size = len(inside)\n",
            "                    member.size = len(inside)\n                    member.mtime = os.stat(own).st_mtime\n",
        ),
        fault(
            "a packed folder is gone on with though its files are others",
            "test_pack.py::test_a_folder_is_gone_on_with_only_by_what_began_it",
            "ssl_runner/pack.py",
            'if request.is_file() and request.read_text(encoding="utf-8") != about:',
            "if False:",
        ),
        fault(
            "what can't be read is packed all the same",
            "test_pack.py::test_files_that_cannot_be_read_are_told_and_left_out",
            "ssl_runner/pack.py",
            "                _read(part, index)\n                content",
            "                content",
        ),
        fault(
            "an empty part of packed data is split off anew",
            "test_pack.py::test_parts_of_the_folder_stay_parts_and_an_empty_one_stays_empty",
            f"{DATASETS}/archives.py",
            "here_already = PARTS if pack is not None else",
            "here_already = () if pack is not None else",
        ),
    ],
}
