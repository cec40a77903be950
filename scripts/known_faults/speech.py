"""Of wav2vec 2.0, HuBERT, CPC, APC, CTC, enhancement and their backbones."""

from __future__ import annotations

from known_faults.fault import OBJECTIVES, PARTS, VIEWS, Fault, fault

W, S = "test_wav2vec2.py::", "test_speech.py::"
WAV2VEC2, FRAMES = f"{OBJECTIVES}/wav2vec2.py", "ssl_runner/backbones/frames.py"

FAULTS: dict[int, list[Fault]] = {
    33: [
        fault(
            "a frame is among its own negatives",
            W + "test_negatives_are_the_samples_other_hidden_frames",
            WAV2VEC2,
            "    drawn = drawn + (drawn >= torch.arange(most, device=told.device)[:, None])\n",
            "",
        ),
        fault(
            "frames that are not hidden, and padding, are among the negatives",
            W + "test_negatives_are_the_samples_other_hidden_frames",
            WAV2VEC2,
            "    others = told.sum(1)[:, None, None] - 1\n",
            "    others = torch.full_like(told.sum(1), most)[:, None, None] - 1\n",
        ),
        fault(
            "negatives with the target's own codes count",
            W + "test_a_negative_with_the_targets_codes_counts_for_nothing",
            WAV2VEC2,
            'logits.masked_fill(same, float("-inf")).gather(2, drawn)',
            "logits.gather(2, drawn)",
        ),
        fault(
            "targets are of the frames that the mask has replaced",
            W + "test_targets_are_of_frames_as_they_are",
            WAV2VEC2,
            "quantised = self.quantiser(at(place, normed))",
            "quantised = self.quantiser(at(place, normed.masked_fill(mask[..., None], self.mask_token.mean())))",
        ),
        fault(
            "hidden frames are not hidden",
            W + "test_hidden_frames_are_hidden_from_the_context",
            WAV2VEC2,
            "        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)\n",
            "",
        ),
        fault(
            "the temperature stays as it is",
            W + "test_the_temperature_falls_with_each_update_and_a_resumed_one_goes_on",
            WAV2VEC2,
            "        self.quantiser.updates += 1\n",
            "        pass\n",
        ),
        fault(
            "the temperature falls with each batch, not with each update",
            W + "test_the_temperature_falls_with_each_update_and_a_resumed_one_goes_on",
            WAV2VEC2,
            "        normed = self.backbone.normalise(frames)\n        predicted",
            "        self.quantiser.updates += 1\n        normed = self.backbone.normalise(frames)\n        predicted",
        ),
        fault(
            "a resumed run starts from the first temperature",
            W + "test_the_temperature_falls_with_each_update_and_a_resumed_one_goes_on",
            f"{PARTS}/quantiser.py",
            'self.register_buffer("updates", torch.zeros((), dtype=torch.int64))',
            'self.register_buffer("updates", torch.zeros((), dtype=torch.int64), persistent=False)',
        ),
        fault(
            "the temperature falls for ever",
            W + "test_the_temperature_falls_with_each_update_and_a_resumed_one_goes_on",
            f"{PARTS}/quantiser.py",
            ".exp()).clamp(min=self.end)",
            ".exp())",
        ),
        fault(
            "perplexity is the mean of each frame's, not of the mean",
            W + "test_perplexity_is_e_to_the_entropy_of_the_mean_in_fp32",
            f"{PARTS}/quantiser.py",
            "    return torch.exp(-(mean * (mean + 1e-7).log()).sum(1))\n",
            "    each = torch.exp(-(chances * (chances + 1e-7).log()).sum(3)) * counted[..., None]\n"
            "    return each.sum((0, 1)) / counted.sum() + 0 * mean.sum()\n",
        ),
        fault(
            "perplexity is of half the digits",
            W + "test_the_softmax_is_in_fp32_under_autocast",
            f"{PARTS}/quantiser.py",
            "scores = self.score(x).float().unflatten",
            "scores = self.score(x).bfloat16().unflatten",
        ),
        fault(
            "perplexity counts frames that are not hidden",
            W + "test_loss_and_gradients_are_the_librarys[True]",
            WAV2VEC2,
            "used = perplexity(quantised.chances, told)",
            "used = perplexity(quantised.chances, torch.ones_like(told))",
        ),
        fault(
            "perplexity is each rank's own",
            W + "test_perplexity_is_of_all_ranks",
            f"{PARTS}/quantiser.py",
            "    total = all_reduce((chances.float() * counted[..., None, None]).sum((0, 1)))\n"
            "    mean = total / all_reduce(counted.sum().float()).clamp(min=1)\n",
            "    total = (chances.float() * counted[..., None, None]).sum((0, 1))\n"
            "    mean = total / counted.sum().float().clamp(min=1)\n",
        ),
        fault(
            "the loss is divided by all places, not by the hidden ones",
            W + "test_loss_and_gradients_are_the_librarys[True]",
            WAV2VEC2,
            "contrastive = masked_mean(logits.logsumexp(2) - logits[..., 0], told)",
            "contrastive = masked_mean((logits.logsumexp(2) - logits[..., 0]) * told, torch.ones_like(told))",
        ),
        fault(
            "lengths are of the input, not of what the convolutions leave",
            W + "test_lengths_are_those_behind_the_convolutions",
            FRAMES,
            "F.max_pool1d(pad[:, None].float(), reach, hop)[:, 0] > 0",
            "pad[:, ::hop][:, : (pad.shape[1] - reach) // hop + 1]",
        ),
        fault(
            "padding is hidden and told",
            W + "test_hidden_spans_lie_in_what_may_be_hidden",
            f"{PARTS}/masking.py",
            "    return (begun > over) & may\n",
            "    return begun > over\n",
        ),
        fault(
            "the same spans are hidden every time",
            W + "test_spans_are_drawn_anew",
            f"{PARTS}/masking.py",
            "    order, chance = torch.rand(batch, length).to(may.device), torch.rand(batch, 1).to(may.device)\n",
            "    fixed = torch.Generator().manual_seed(0)\n"
            "    order, chance = torch.rand(batch, length, generator=fixed), torch.rand(batch, 1, generator=fixed)\n",
        ),
        fault(
            "padding reaches frames through the positions",
            W + "test_padding_reaches_no_frame_with_layer_norms",
            FRAMES,
            "            tokens = tokens.masked_fill(pad[..., None], 0.0)\n        before",
            "            pass\n        before",
        ),
        fault(
            "positions of a causal backbone tell what follows",
            W + "test_a_causal_frame_knows_nothing_of_what_follows",
            FRAMES,
            "before = self.positions - 1 if causal else self.positions // 2",
            "before = self.positions // 2",
        ),
        fault(
            "the convolutions learn as fast as the rest",
            W + "test_the_convolutions_learn_ten_times_slower",
            WAV2VEC2,
            "lambda gradient: gradient * self.frame_gradient",
            "lambda gradient: gradient",
        ),
        fault(
            "the penalty is of normalised frames",
            W + "test_the_penalty_is_the_mean_square_of_frames_before_their_norm",
            WAV2VEC2,
            "square = masked_mean(frames.float()",
            "square = masked_mean(normed.float()",
        ),
        fault(
            "codes are drawn without noise",
            W + "test_noise_is_gumbels_and_evaluation_has_none",
            f"{PARTS}/quantiser.py",
            "soft = ((scores + gumbel(scores)) / self.temperature())",
            "soft = (scores / self.temperature())",
        ),
        fault(
            "HuBERT's clusters are made anew in a resumed run",
            S + "test_a_resumed_hubert_keeps_its_clusters_and_goes_on_filling",
            f"{OBJECTIVES}/hubert.py",
            "    objective._met = None\n",
            "    pass\n",
        ),
        fault(
            "padding is clustered",
            S + "test_no_padding_is_clustered",
            f"{OBJECTIVES}/hubert.py",
            "found = seen[there.bool()]",
            "found = seen.flatten(0, 1)",
        ),
        fault(
            "HuBERT's labels of a later round move with the backbone",
            S + "test_a_later_round_clusters_a_layer_of_the_backbone_as_it_was",
            f"{OBJECTIVES}/hubert.py",
            "copy.deepcopy(backbone).requires_grad_(False).eval()",
            "backbone",
        ),
        fault(
            "frames that are seen are told as well",
            S + "test_huberts_loss_is_as_written_out",
            f"{OBJECTIVES}/hubert.py",
            "        told = told & known\n",
            "        told = torch.ones_like(told) & known\n",
        ),
        fault(
            "CPC's context sees what it tells",
            S + "test_cpc_predicts_from_what_came_before[False]",
            f"{OBJECTIVES}/cpc.py",
            "self.backbone.encode(frames, pad, causal=True)",
            "self.backbone.encode(frames, pad)",
        ),
        fault(
            "padding is among CPC's negatives",
            S + "test_info_nce_is_as_written_out",
            f"{OBJECTIVES}/cpc.py",
            '    logits = logits.masked_fill(~counted, float("-inf"))\n',
            "",
        ),
        fault(
            "CPC tells the present frame",
            S + "test_info_nce_is_as_written_out",
            f"{OBJECTIVES}/cpc.py",
            "logits.diagonal(offset=k, dim1=1, dim2=2)",
            "logits[:, :, : frames.shape[1] - k].diagonal(dim1=1, dim2=2)",
        ),
        fault(
            "APC sees what it tells",
            S + "test_apc_sees_nothing_of_what_it_tells",
            f"{OBJECTIVES}/apc.py",
            ", pad, causal=True)",
            ", pad)",
        ),
        fault(
            "APC tells the next column, not the one so many further on",
            S + "test_apc_is_the_absolute_error_of_columns_further_on",
            f"{OBJECTIVES}/apc.py",
            "predicted, ahead, told = self.head(tokens[:, : -self.steps]), patches[:, self.steps :], "
            "real[:, self.steps :]",
            "last = patches.shape[1] - self.steps + 1\n"
            "        predicted, ahead, told = self.head(tokens[:, : -self.steps]), patches[:, 1:last], real[:, 1:last]",
        ),
        fault(
            "a target's letters count for the loss where there are none",
            S + "test_the_loss_is_minus_log_of_all_paths_chances",
            f"{OBJECTIVES}/ctc.py",
            "    count, ids = there.sum(1), target.clamp(min=0)\n",
            "    count, ids = torch.full_like(there.sum(1), target.shape[1]), target.clamp(min=0)\n",
        ),
        fault(
            "padding says something",
            S + "test_padding_says_nothing",
            f"{OBJECTIVES}/ctc.py",
            ".long() if pad is None else (~pad).sum(1)",
            ".long()",
        ),
        fault(
            "the beam search takes the likeliest path",
            S + "test_scores_are_of_so_many_beams",
            f"{PARTS}/ctc.py",
            "    return high if low == NEVER else high + math.log1p(math.exp(low - high))\n",
            "    return high\n",
        ),
        fault(
            "a letter said twice is one",
            S + "test_a_wide_beam_finds_the_likeliest_spelling",
            f"{PARTS}/ctc.py",
            "(blank if symbol == last else either) + scores[symbol]",
            "(NEVER if symbol == last else either) + scores[symbol]",
        ),
        fault(
            "blanks do not part letters",
            S + "test_paths_spell_without_repeats_and_blanks",
            f"{PARTS}/ctc.py",
            "    return tuple(s for s, before in zip(path, [BLANK, *path], strict=False) "
            "if s not in (before, BLANK))\n",
            "    path = [s for s in path if s != BLANK]\n"
            "    return tuple(s for s, before in zip(path, [BLANK, *path], strict=False) if s != before)\n",
        ),
        fault(
            "error rates are the mean of each text's",
            S + "test_error_rates_are_of_all_texts_together",
            "ssl_runner/evaluators/transcripts.py",
            "float(wrong.sum() / length.sum())",
            "float((wrong / length).mean())",
        ),
        fault(
            "noise is in padding",
            S + "test_noise_is_as_loud_as_asked_and_not_in_padding",
            f"{PARTS}/noise.py",
            "noise = torch.fft.irfft(shaped, x.shape[-1]) * real",
            "noise = torch.fft.irfft(shaped, x.shape[-1])",
        ),
        fault(
            "distortion is judged with the signals' scale",
            S + "test_si_sdr_is_as_written_out_and_knows_no_scale",
            f"{PARTS}/noise.py",
            "        kept = scale * wanted\n",
            "        kept = wanted + 0 * scale\n",
        ),
        fault(
            "the error rate is of the threshold with fewest errors",
            S + "test_the_equal_error_rate_is_that_of_the_best_threshold",
            "ssl_runner/evaluators/verification.py",
            "best = (refused * others - accepted * total).abs().argmin()",
            "best = (refused + accepted).argmin()",
        ),
        fault(
            "mu-law's steps are all as wide",
            S + "test_mu_law_is_the_formula",
            f"{VIEWS}/mu_law.py",
            "loud = torch.log1p(mu * x.abs()) / math.log1p(mu)",
            "loud = x.abs() + 0 * math.log1p(mu)",
        ),
    ],
}
