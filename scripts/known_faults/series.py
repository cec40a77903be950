"""Of time series: normalised by the training part, windows within their splits, padding and gaps left out."""

from __future__ import annotations

from known_faults.fault import OBJECTIVES, VIEWS, Fault, fault, ranks

SERIES, THEIRS = "test_series.py::", "test_series_objectives.py::"
STRETCHES = "ssl_runner/datasets/stretches.py"

FAULTS: dict[int, list[Fault]] = {
    35: [
        fault(
            "a series' means and deviations are those of all parts",
            SERIES + "test_means_and_deviations_are_those_of_the_train_part_alone",
            STRETCHES,
            '_moments([each.values for each in parts["pretrain"]], ',
            "_moments([each.values for each in every], ",
        ),
        fault(
            "missing values count as zeros in a series' mean",
            SERIES + "test_means_and_deviations_are_those_of_the_train_part_alone",
            STRETCHES,
            "mean, std = np.nanmean(row, 1), np.nanstd(row, 1)",
            "mean, std = np.nan_to_num(row).mean(1), np.nan_to_num(row).std(1)",
        ),
        fault(
            "the parts of a long table overlap by a few rows",
            SERIES + "test_one_long_table_is_divided_by_time_and_windows_stay_in_their_part",
            STRETCHES,
            "[[track.cut(start, end)] if",
            "[[track.cut(max(0, start - 3), end)] if",
        ),
        fault(
            "the samples of one subject, speaker or figure are dealt out to several parts",
            "test_data.py::test_no_group_is_divided",
            "ssl_runner/datasets/splits.py",
            "names, owner = np.unique(np.asarray(groups), return_inverse=True)",
            "names, owner = np.unique(np.arange(len(groups)), return_inverse=True)",
        ),
        fault(
            "what is to be forecast lies in the next part",
            SERIES + "test_no_two_parts_share_a_value_whatever_the_lengths",
            STRETCHES,
            "last = length - self._window - ahead",
            "last = length - self._window",
        ),
        fault(
            "a short recording is filled up with the next one",
            SERIES + "test_short_recordings_are_filled_up_and_say_so",
            STRETCHES,
            'view["x"].masked_fill_(view["pad"][:, None], 0.0)',
            'view["x"] = view["x"].clone()',
        ),
        fault(
            "windows run over the end of a recording",
            SERIES + "test_windows_never_hold_values_of_two_recordings",
            STRETCHES,
            "            for start in range(0, (last if ahead else max(last, 0)) + 1, self._stride):\n"
            "                end = min(start + self._window, length)",
            "            for start in range(0, length, self._stride):\n                end = start + self._window",
        ),
        fault(
            "recordings of one subject are in several parts",
            SERIES + "test_subjects_are_held_out_whole",
            STRETCHES,
            "    elif any(each.subject is not None for each in whole):",
            "    elif len(whole) < 0:",
        ),
        fault(
            "a run takes other columns for its channels",
            SERIES + "test_a_run_keeps_its_channels_and_the_size_of_its_samples",
            "ssl_runner/datasets/series.py",
            '{} if self._names is None else {"channels": self._names}',
            "{}",
        ),
        fault(
            "raw features of a series count padding",
            SERIES + "test_raw_features_leave_padding_out_and_keep_places_that_mean_something",
            STRETCHES,
            "    x = x.float() if pad is None else x.float()",
            "    x = x.float() if pad is None or True else x.float()",
        ),
        fault(
            "the watch file may name anything",
            SERIES + "test_the_watch_file_can_run_no_code",
            "ssl_runner/datasets/watch.py",
            'raise pickle.UnpicklingError(f"it names',
            'return super().find_class(module, name)\n        raise pickle.UnpicklingError(f"it names',
        ),
        fault(
            "all samples of a batch get the same noise",
            SERIES + "test_noise_and_scale_are_in_units_of_each_channel",
            f"{VIEWS}/series.py",
            "torch.randn(x.shape).to(x)",
            "torch.randn(x.shape[1:]).repeat(len(x), 1, 1).to(x)",
        ),
        fault(
            "padding stays what it was behind the normalisation",
            SERIES + "test_hidden_channels_are_missing_and_filled_in_behind_the_normalisation",
            f"{VIEWS}/series.py",
            'x = x.masked_fill(view["pad"]',
            'x.masked_fill(view["pad"]',
        ),
        fault(
            "a random window may lie in the padding",
            SERIES + "test_a_random_window_is_a_stretch_of_what_is_there",
            f"{VIEWS}/window.py",
            "room = ((~pad).sum(1) - self.size).clamp(min=0)",
            "room = (torch.ones_like(pad).sum(1) - self.size).clamp(min=0)",
        ),
        fault(
            "TS2Vec contrasts a moment with itself",
            THEIRS + "test_ts2vecs_loss_is_the_papers",
            f"{OBJECTIVES}/ts2vec.py",
            "known[:, None] & (place != place[:, None])",
            "known[:, None]",
        ),
        fault(
            "TS2Vec's crops are compared at other moments",
            THEIRS + "test_both_crops_see_the_same_moments",
            f"{OBJECTIVES}/ts2vec.py",
            "self.crop(tokens, pad, first + left, overlap + right)",
            "self.crop(tokens, pad, first, overlap + right)",
        ),
        fault(
            "TS2Vec pools padding",
            THEIRS + "test_ts2vec_leaves_padding_out",
            f"{OBJECTIVES}/ts2vec.py",
            "x.masked_fill(~valid[..., None], least)",
            "x.masked_fill(~valid[..., None], 0.0)",
        ),
        fault(
            "TS2Vec's rows are those of the first rank",
            ranks("ts2vec-series"),
            f"{OBJECTIVES}/ts2vec.py",
            "mine = torch.arange(n, device=a.device) + rank() * n",
            "mine = torch.arange(n, device=a.device)",
        ),
        fault(
            "TS2Vec's ranks crop as each of them draws",
            THEIRS + "test_ranks_that_draw_differently_crop_alike",
            f"{OBJECTIVES}/ts2vec.py",
            "        dist.broadcast(numbers, 0)\n",
            "",
        ),
        fault(
            "TS-TCC's summary sees what is to be told",
            THEIRS + "test_ts_tcc_sums_up_nothing_behind_the_moment",
            f"{OBJECTIVES}/ts_tcc.py",
            "later | ~present],",
            "later & ~present],",
        ),
        fault(
            "TS-TCC tells a view's own tokens",
            THEIRS + "test_ts_tcc_tells_the_other_views_tokens",
            f"{OBJECTIVES}/ts_tcc.py",
            "temporal_loss(told[1], behind[0], there[0]) + temporal_loss(told[0], behind[1], there[1])",
            "temporal_loss(told[0], behind[0], there[0]) + temporal_loss(told[1], behind[1], there[1])",
        ),
        fault(
            "TS-TCC takes padding for negatives",
            THEIRS + "test_ts_tccs_temporal_loss_is_the_papers",
            f"{OBJECTIVES}/ts_tcc.py",
            "        known[:, None],",
            "        torch.ones_like(known[:, None]),",
        ),
        fault(
            "a forecast is scored at values that are missing",
            THEIRS + "test_forecasts_are_scored_beside_the_baselines_in_units_of_the_training_part",
            f"{OBJECTIVES}/forecast.py",
            "off = (predicted - target)[known].double()",
            "off = (predicted - target.nan_to_num(0.0)).double()",
        ),
        fault(
            "forecasts are scored in the data's own units",
            THEIRS + "test_forecasts_are_scored_beside_the_baselines_in_units_of_the_training_part",
            f"{OBJECTIVES}/forecast.py",
            '(batch["target"].float() - self.mean) / self.std',
            'batch["target"].float()',
        ),
        fault(
            "dilated convolutions read padding",
            THEIRS + "test_the_embedding_is_the_largest_value_over_time_and_ignores_padding",
            "ssl_runner/backbones/dilated.py",
            "            if kept is not None:",
            "            if kept is None:",
        ),
        fault(
            "samples at the same distance count as lost",
            THEIRS + "test_auroc_and_average_precision_pair_by_pair",
            "ssl_runner/evaluators/anomaly.py",
            "place = ranks(distance)",
            "place = distance.argsort().argsort().double() + 1",
        ),
        fault(
            "a window of one sample begins elsewhere than in a batch",
            "test_series.py::test_a_window_of_one_is_that_of_a_batch",
            "ssl_runner/views/window.py",
            "start = int(self.starts(torch.tensor([length - self.size])))",
            "start = int(self.starts(torch.tensor([length - self.size - 1])))",
        ),
    ],
}
