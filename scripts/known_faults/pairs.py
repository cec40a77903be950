"""Of pairs: two towers, what matches, finding partners."""

from __future__ import annotations

from known_faults.fault import OBJECTIVES, Fault, fault, ranks

DATASETS, EVALUATORS = "ssl_runner/datasets", "ssl_runner/evaluators"

FAULTS: dict[int, list[Fault]] = {
    1: [
        fault(
            "CLIP's rows of other ranks get no gradient",
            ranks("clip-towers"),
            f"{OBJECTIVES}/clip.py",
            "forth, back = scale * a @ gather(b).T, scale * b @ gather(a).T",
            "every = [x if len(gather(x.detach())) == len(x) else gather(x.detach()) for x in (a, b)]\n"
            "        forth, back = scale * a @ every[1].T, scale * b @ every[0].T",
        ),
        fault(
            "SigLIP asks about pairs of one rank alone",
            ranks("siglip-towers"),
            f"{OBJECTIVES}/siglip.py",
            "logits = scale * a @ gather(b).T + bias",
            "logits = scale * a @ b.T + bias",
            f"{OBJECTIVES}/siglip.py",
            "sign[mine, mine + rank() * len(a)] = 1.0",
            "sign[mine, mine] = 1.0",
        ),
    ],
    2: [
        fault(
            "every rank takes CLIP's first rows for its own",
            ranks("clip-towers"),
            f"{OBJECTIVES}/clip.py",
            "torch.arange(len(a), device=a.device) + rank() * len(a)",
            "torch.arange(len(a), device=a.device)",
        ),
        fault(
            "every rank takes SigLIP's first rows for its own",
            ranks("siglip-towers"),
            f"{OBJECTIVES}/siglip.py",
            "sign[mine, mine + rank() * len(a)] = 1.0",
            "sign[mine, mine] = 1.0",
        ),
    ],
    28: [
        fault(
            "the scale is not clamped",
            "test_clip.py::test_clips_scale_never_exceeds_a_hundred_and_is_learned",
            f"{OBJECTIVES}/clip.py",
            "        self.log_scale.clamp_(max=MOST)",
            "        return",
        ),
        fault(
            "what is compared with gets no gradient",
            "test_clip.py::test_gradients_are_those_of_the_loops",
            f"{OBJECTIVES}/clip.py",
            "forth, back = scale * a @ gather(b).T, scale * b @ gather(a).T",
            "forth, back = scale * a @ gather(b).detach().T, scale * b @ gather(a).detach().T",
        ),
        fault(
            "one direction alone",
            "test_clip.py::test_clip_is_the_mean_of_both_directions_cross_entropies",
            f"{OBJECTIVES}/clip.py",
            "return (F.cross_entropy(forth, mine) + F.cross_entropy(back, mine)) / 2",
            "return F.cross_entropy(forth, mine)",
        ),
        fault(
            "rows are not brought to unit length",
            "test_clip.py::test_both_inputs_come_into_one_space_as_unit_rows",
            "ssl_runner/parts/space.py",
            "return F.normalize(self.first_map(self.backbone(**view)).float(), dim=1)",
            "return self.first_map(self.backbone(**view)).float()",
        ),
        fault(
            "SigLIP is averaged over all pairs, which makes it weaker as batches grow",
            "test_clip.py::test_siglip_sums_over_second_inputs_and_averages_over_first",
            f"{OBJECTIVES}/siglip.py",
            "return -F.logsigmoid(sign * logits).sum() / len(a)",
            "return -F.logsigmoid(sign * logits).mean()",
        ),
        fault(
            "SigLIP's bias begins at 0",
            "test_clip.py::test_the_papers_starting_points",
            f"{OBJECTIVES}/siglip.py",
            "bias: float = -10.0,",
            "bias: float = 0.0,",
        ),
        fault(
            "the second tower is told the first one's padding",
            "test_clip.py::test_each_tower_is_told_padding_by_its_own_tokens_and_once",
            "ssl_runner/backbones/towers.py",
            "        return _embedded(self.second, x, pad)",
            "        return self.second(x, None if pad is None else self.first.padding(pad))",
        ),
    ],
    36: [
        fault(
            "what scores the same stands behind the partner",
            "test_pairs.py::test_the_place_of_the_best_partner_among_what_is_no_partner",
            f"{EVALUATORS}/retrieval.py",
            "((scores >= best) & ~partner)",
            "((scores > best) & ~partner)",
        ),
        fault(
            "a picture's other captions are in the way of the best one",
            "test_pairs.py::test_partners_are_found_among_distinct_pictures_and_captions",
            f"{EVALUATORS}/retrieval.py",
            "found.append(1 + ((scores >= best) & ~partner).sum(1))",
            "found.append((scores >= scores.masked_fill(~partner, float('inf')).amin(1, keepdim=True)).sum(1))",
        ),
        fault(
            "a picture with two captions is a candidate twice",
            "test_pairs.py::test_partners_are_found_among_distinct_pictures_and_captions",
            f"{EVALUATORS}/retrieval.py",
            "values, number = column.unique(return_inverse=True)",
            "values, number = column, torch.arange(len(column))",
        ),
        fault(
            "chance is told as if every query had one partner",
            "test_pairs.py::test_chance_is_what_random_orders_give",
            f"{EVALUATORS}/retrieval.py",
            "partners = torch.bincount(pairs[:, 0]).double()",
            "partners = torch.ones(int(pairs[:, 0].max()) + 1, dtype=torch.float64)",
        ),
        fault(
            "intervals over half as many queries",
            "test_pairs.py::test_intervals_hold_their_figures_and_narrow_with_more_queries",
            f"{EVALUATORS}/retrieval.py",
            "torch.randint(len(rank), (self.samples, len(rank)), generator=generator)",
            "torch.randint(len(rank), (self.samples, len(rank) // 2), generator=generator)",
        ),
    ],
    37: [
        fault(
            "pairs with a picture in common are in two parts",
            """test_pairs.py::test_pairs_with_an_input_in_common_are_linked
            test_pairs.py::test_no_item_is_in_two_parts_and_every_pair_is_in_one""",
            f"{DATASETS}/pairs.py",
            "parent[top(n)] = top(holder.setdefault(item, n))",
            "holder.setdefault(item, n)",
        ),
        fault(
            "the tokenizer learns from the test part's captions",
            "test_pairs.py::test_the_tokenizer_learns_from_the_train_part_alone_and_is_kept",
            f"{DATASETS}/columns.py",
            "texts = [items[n] for n in train]",
            "texts = list(items)",
        ),
    ],
    41: [
        fault(
            "links in an archive are followed",
            "test_pairs.py::test_nothing_leaves_an_archive_and_links_lead_nowhere",
            f"{DATASETS}/tar.py",
            "if not member.isreg() or member.issparse() or not stem",
            "if not stem",
        ),
        fault(
            "what is broken is left out without a word",
            "test_pairs.py::test_what_cannot_be_read_is_left_out_and_told",
            f"{DATASETS}/pairs.py",
            "usable = readable(found, on_broken)",
            "usable = torch.tensor([not isinstance(each, BrokenSample) for each in found])",
        ),
        fault(
            "a sound in an archive is read as the archive itself",
            "test_pairs.py::test_sounds_are_read_out_of_archives",
            "ssl_runner/datasets/columns.py",
            "        return None if file.size < 0 else content_of(file)",
            "        return open(file.path, 'rb').read()",
        ),
        fault(
            "a sound in an archive that is cut short is taken as far as it goes",
            "test_pairs.py::test_sounds_are_read_out_of_archives",
            "ssl_runner/datasets/audio.py",
            "                    _whole(riff)\n",
            "                    pass\n",
        ),
        fault(
            "what is held and broken is given all the same",
            "test_pairs.py::test_a_broken_member_is_left_out",
            "ssl_runner/datasets/pairs.py",
            "        rows = rows[self._usable[rows]]\n",
            "        self._usable\n",
        ),
    ],
}
