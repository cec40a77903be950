"""Of clips: frames by time, one draw for a whole clip, tubes, what is asked of motion and order."""

from __future__ import annotations

from known_faults.fault import OBJECTIVES, PARTS, VIEWS, Fault, fault

FAULTS: dict[int, list[Fault]] = {
    46: [
        fault(
            "tubes are drawn anew at each time",
            "test_clips.py::test_tubes_hide_the_same_places_at_all_times",
            f"{PARTS}/masking.py",
            "    return random_mask(batch, math.prod(places), ratio, device).repeat(1, steps)",
            "    return torch.cat([random_mask(batch, math.prod(places), ratio, device) for _ in range(steps)], 1)",
        ),
        fault(
            "tubes lie along the last axis",
            "test_clips.py::test_mae_on_tubes_sees_whole_tubes_alone",
            f"{PARTS}/masking.py",
            "    return random_mask(batch, math.prod(places), ratio, device).repeat(1, steps)",
            "    return random_mask(batch, math.prod(places), ratio, device).repeat_interleave(steps, 1)",
        ),
        fault(
            "MAE ignores the kind of mask",
            "test_clips.py::test_mae_on_tubes_sees_whole_tubes_alone",
            f"{OBJECTIVES}/mae.py",
            'tubed(backbone, length) if mask == "tubes" else None',
            "None",
        ),
        fault(
            "the middle of a clip is its beginning",
            "test_video.py::test_a_stretch_of_time",
            f"{VIEWS}/clips.py",
            "torch.full((count,), room // 2)",
            "torch.full((count,), 0)",
        ),
        fault(
            "all clips of a batch begin at the same time",
            "test_video.py::test_a_stretch_of_time",
            f"{VIEWS}/clips.py",
            "torch.randint(room + 1, (count,))",
            "torch.randint(room + 1, (1,)).expand(count)",
        ),
        fault(
            "a frame is seen one moment too long",
            "test_video.py::test_frames_are_taken_by_time_whatever_the_rate",
            "ssl_runner/datasets/video.py",
            "begin + made / fps < frame.time - SLACK",
            "begin + made / fps < frame.time + SLACK",
        ),
        fault(
            "a clip always begins with the file",
            "test_video.py::test_where_a_clip_begins_is_drawn",
            "ssl_runner/datasets/video.py",
            "where = torch.rand((), dtype=torch.float64).item()",
            "where = 0.0",
        ),
        fault(
            "lists of other files are opened as videos",
            "test_video.py::test_what_is_no_video_is_broken",
            "ssl_runner/datasets/video.py",
            'FORMATS = "avi,gif,matroska,mov"',
            'FORMATS = "avi,gif,matroska,mov,concat"',
        ),
        fault(
            "a phone's video lies on its side",
            "test_video.py::test_a_phones_video_is_upright",
            "ssl_runner/datasets/video.py",
            "round(frame.rotation / 90) % 4",
            "round(-frame.rotation / 90) % 4",
        ),
        fault(
            "the frames of a clip get hues of their own",
            "test_video.py::test_all_frames_of_a_clip_are_treated_alike",
            f"{VIEWS}/colour.py",
            "turn.add_(shift.view(-1, *[1] * (turn.ndim - 1)))",
            "turn.add_(torch.linspace(0, 0.4, turn.shape[1]).view(1, -1, *[1] * (turn.ndim - 2)))",
        ),
        fault(
            "frames are sorted as words",
            "test_video.py::test_a_clip_is_frames_that_differ_in_their_number",
            "ssl_runner/datasets/wesnoth.py",
            "append((int(numbered[2]), path))",
            "append((numbered[2], path))",
        ),
        fault(
            "UCF101's validation part shares groups with training",
            "test_video.py::test_ucf101_by_its_lists",
            "ssl_runner/datasets/ucf101.py",
            "[file for file in train if group(file) not in HELD]",
            "train",
        ),
        fault(
            "the clips whose order is asked for touch",
            "test_clips.py::test_clips_are_cut_from_their_share_of_time_and_do_not_touch",
            f"{OBJECTIVES}/clip_order.py",
            "size = max(2, share * 3 // 4)",
            "size = share",
        ),
        fault(
            "the answer is the inverse of the order",
            "test_clips.py::test_the_order_of_clips_is_learned",
            f"{OBJECTIVES}/clip_order.py",
            "return choice_loss(self.scores(shuffled(pieces, self.orders[order])), order)",
            "return choice_loss(self.scores(shuffled(pieces, self.orders[order.roll(1)])), order)",
        ),
        fault(
            "motion goes the wrong way",
            "test_clips.py::test_a_block_moves_as_it_was_moved",
            f"{OBJECTIVES}/motion.py",
            "[xy * yt - yy * xt, xy * xt - xx * yt]",
            "[yy * xt - xy * yt, xx * yt - xy * xt]",
        ),
        fault(
            "retrieval counts equals for itself",
            "test_clips.py::test_recall_counts_equals_against_itself",
            "ssl_runner/evaluators/recall.py",
            "(similarity >= best) & ~same",
            "(similarity > best) & ~same",
        ),
        fault(
            "the raw baseline sees no motion",
            "test_video.py::test_the_raw_baseline_is_the_mean_frame_and_the_mean_change",
            "ssl_runner/datasets/clips.py",
            "x.diff(dim=2).abs().mean(2)",
            "x.diff(dim=2).mean(2)",
        ),
    ],
}
