"""Of recordings: what is read of them, what is heard as padding, who is in which part."""

from __future__ import annotations

from known_faults.fault import VIEWS, Fault, fault

DATA = "ssl_runner/datasets"

FAULTS: dict[int, list[Fault]] = {
    7: [
        fault(
            "all samples get the same gain",
            "test_audio_views.py::test_gain_is_in_decibels_and_drawn_for_each_sample",
            f"{VIEWS}/audio.py",
            "x * per_sample(10 ** (uniform(len(x), *self.db) / 20), x)",
            "x * float(10 ** (uniform(1, *self.db) / 20))",
        ),
        fault(
            "all samples get the same crop of time",
            "test_audio_views.py::test_a_crop_stretches_time_and_frequency",
            f"{VIEWS}/audio.py",
            "left = uniform(n, 0, 1) * (self.canvas - width)",
            "left = uniform(1, 0, 1) * (self.canvas - width)",
        ),
        fault(
            "all samples are masked at the same place",
            "test_audio_views.py::test_samples_are_disturbed_each_in_its_own_way_and_by_the_seed[time]",
            f"{VIEWS}/audio.py",
            "return torch.where(hidden.view(shape).to(x.device)",
            "return torch.where(hidden[:1].expand(n, -1).reshape(shape).to(x.device)",
        ),
    ],
    29: [
        fault(
            "another recording is mixed in by its logarithm",
            "test_audio_views.py::test_mixing_in_the_log_domain_adds_power",
            f"{VIEWS}/audio.py",
            "return torch.logaddexp(x + torch.log1p(-share), other + share.log())",
            "return x * (1 - share) + other * share",
        ),
        fault(
            "padding counts for the power that noise is measured by",
            "test_audio_views.py::test_noise_lies_as_many_decibels_below_what_is_heard_as_asked",
            f"{VIEWS}/audio.py",
            "/ (there.sum((1, 2)) * x.shape[1]).clamp(min=1)",
            "/ x[0].numel()",
        ),
        fault(
            "a room makes louder",
            "test_audio_views.py::test_a_room_changes_no_power_and_no_padding",
            f"{VIEWS}/audio.py",
            "wet * (before / after.clamp(min=QUIET)).sqrt()",
            "wet",
        ),
        fault(
            "a room decays by 30 dB where 60 are asked for",
            "test_audio_views.py::test_a_rooms_response_decays_by_60_db_in_the_time_drawn",
            f"{VIEWS}/audio.py",
            "10 ** (-3 * time / decay[:, None])",
            "10 ** (-1.5 * time / decay[:, None])",
        ),
    ],
    45: [  # Recordings: read whole or not at all, at one rate; padding left out; no voice or prompt in two parts
        fault(
            "a file that is cut short is read as far as it goes",
            "test_audio.py::test_a_damaged_file_is_a_broken_sample",
            f"{DATA}/audio.py",
            "                _whole(file)\n",
            "                pass\n",
        ),
        fault(
            "values that are no numbers are let through",
            "test_audio.py::test_a_damaged_file_is_a_broken_sample",
            f"{DATA}/audio.py",
            "if not x.isfinite().all():",
            "if False:",
        ),
        fault(
            "frequencies above the new rate's half are folded back",
            "test_audio.py::test_no_frequency_is_folded_back",
            f"{DATA}/audio.py",
            "place = torch.arange(-half, half + 1, dtype=torch.float64)\n",
            "place = torch.arange(-half, half + 1, dtype=torch.float64) * 3\n",
        ),
        fault(
            "a stretch of a long file begins at the file's own rate, not at the one asked for",
            "test_audio.py::test_a_stretch_at_another_rate_is_that_of_the_whole",
            f"{DATA}/audio.py",
            "begin = first * down // up",
            "begin = first",
        ),
        fault(
            "channels after the first are dropped",
            "test_audio.py::test_channels_are_averaged",
            f"{DATA}/audio.py",
            "torch.from_numpy(values).mean(1)[None]",
            "torch.from_numpy(values)[:, 0][None]",
        ),
        fault(
            "a long file always begins at its beginning",
            "test_audio.py::test_a_stretch_of_a_long_recording_is_drawn_and_the_same_for_the_same_key",
            f"{DATA}/recordings.py",
            "return int(torch.randint(spare + 1, ())) if spare else 0",
            "return 0",
        ),
        fault(
            "a recording's text is told though a part of it is not heard",
            "test_audio.py::test_a_recording_too_long_for_its_text_is_left_out",
            f"{DATA}/recordings.py",
            "if self.target is not None and (length",
            "if self.target is None and (length",
        ),
        fault(
            "the end of a text is told as blanks",
            "test_audio.py::test_transcripts_become_ids",
            f"{DATA}/recordings.py",
            "padding_value=-1)",
            "padding_value=0)",
        ),
        fault(
            "the baseline's statistics count padding",
            "test_audio.py::test_the_raw_baseline_is_mean_and_deviation_of_mel_bands_without_padding",
            f"{DATA}/recordings.py",
            'there = ~view["pad"][:, None] if "pad" in view else torch.ones_like(x[:, :1], dtype=torch.bool)',
            "there = torch.ones_like(x[:, :1], dtype=torch.bool)",
        ),
        fault(
            "letters are divided by clip, so that a voice is in two parts",
            "test_audio.py::test_klettres_keeps_voices_apart",
            f"{DATA}/klettres.py",
            "parts = {part: (mask & (label >= 0)).nonzero()[:, 0] for part, mask in of.items()}",
            "parts = dict(zip(held, stratified(label, (0.1, 0.3, 0.6)), strict=True))",
        ),
        fault(
            "prompts are divided by clip, so that one is in two parts",
            "test_audio.py::test_asterisk",
            f"{DATA}/asterisk.py",
            "hold_out(every, SHARES, None, [prompt for _, prompt in prompts])",
            "hold_out(every, SHARES, None, None)",
        ),
        fault(
            "folders that stay together are divided",
            "test_audio.py::test_folders_stay_together",
            f"{DATA}/audio_folder.py",
            "    if groups is None or not shares:\n",
            "    if True:\n",
        ),
        fault(
            "a frame counts as heard if any of it is",
            "test_audio_views.py::test_a_frame_is_padding_if_its_centre_is",
            f"{VIEWS}/audio.py",
            "centres = torch.arange(mel.shape[-1], device=x.device) * self.hop",
            "centres = torch.arange(mel.shape[-1], device=x.device) * self.hop - self.width // 2",
        ),
        fault(
            "bands of Slaney's scale have the height of HTK's",
            "test_audio_views.py::test_the_filters_are_triangles_on_the_mel_scale[slaney]",
            f"{VIEWS}/audio.py",
            'if scale == "slaney" else bank).float()',
            'if scale == "" else bank).float()',
        ),
        fault(
            "the logarithm is of amplitude, not of power",
            "test_audio_views.py::test_a_log_mel_spectrogram_is_the_slow_one[htk]",
            f"{VIEWS}/audio.py",
            "power = bins.real.square() + bins.imag.square()",
            "power = bins.abs()",
        ),
        fault(
            "a spectrogram is computed in half precision",
            "test_audio_views.py::test_a_spectrogram_of_silence_is_finite_and_of_bf16_that_of_fp32",
            f"{VIEWS}/audio.py",
            "        with torch.autocast(x.device.type, enabled=False):\n            signals",
            "        with torch.autocast(x.device.type, enabled=True, dtype=torch.bfloat16):\n            signals",
        ),
        fault(
            "padding counts for mean and deviation",
            "test_audio_views.py::test_standardising_leaves_padding_out",
            f"{VIEWS}/audio.py",
            "count = there.expand_as(x).sum(axes, keepdim=True).clamp(min=1)",
            "count = torch.ones_like(x).sum(axes, keepdim=True)",
        ),
        fault(
            "time is stretched and its padding is not",
            "test_audio_views.py::test_a_crop_of_a_wider_canvas_has_the_mean_around_and_its_padding_goes_along",
            f"{VIEWS}/audio.py",
            'view["pad"] = view["pad"].gather(1, source.clamp(0, frames - 1)) | outside',
            'view["pad"] = view["pad"] | outside',
        ),
    ],
}
