"""Frames in, geometry out: a whole stream through a network that knows the room."""

import dataclasses
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from support import known_room as room
from support.plain_parameters import PLAIN
from support.streams import assert_true_up_to_the_unit, events, geometries, run, stamps, start

from qvggt_core.errors import ImageError
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL
from qvggt_core.stream import Frame, Reconstructor
from qvggt_core.stream.loop_closure import LoopClosure

SECOND = 1_000_000_000


@pytest.mark.parametrize("name", room.FLIGHTS)
@pytest.mark.parametrize(("size", "stride"), [(8, 4), (5, 1), (6, 5)])
def test_the_trajectory_comes_back_in_the_unit_of_the_first_window(name, size, stride):
    poses = room.FLIGHTS[name](22)
    reconstructor, network = start(poses, window_size=size, window_stride=stride)
    frames = room.frames(poses)
    results = run(reconstructor, frames)
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert_true_up_to_the_unit(geometries(results), poses, network.units[0])
    for geometry, pose in zip(geometries(results), poses, strict=True):
        depth = network.units[0] * geometry.depth
        np.testing.assert_allclose(depth, room.depth_of(pose), rtol=1e-5)
    assert events(results) == []
    assert {result.segment for result in results} == {0}
    assert max(result.window_size for result in results) == size


def test_noise_stays_within_bounds():
    poses = room.loop(41)
    reconstructor, network = start(poses, room.USUAL)
    found = geometries(run(reconstructor, room.frames(poses)))
    assert_true_up_to_the_unit(found, poses, network.units[0], tolerance=0.3)


def test_the_map_is_in_metres_when_the_unit_is_known():
    poses = room.straight(12)
    reconstructor, network = start(poses)
    unknown = run(reconstructor, room.frames(poses))
    assert {(r.scale.metres_per_unit, r.scale.source) for r in unknown} == {(None, "unknown")}
    metres = network.units[0]
    reconstructor, _ = start(poses, metres_per_unit=metres)
    results = run(reconstructor, room.frames(poses))
    assert_true_up_to_the_unit(geometries(results), poses, 1.0)
    np.testing.assert_allclose(geometries(results)[-1].depth, room.depth_of(poses[-1]), rtol=1e-5)
    assert {(r.scale.metres_per_unit, r.scale.source) for r in results} == {(metres, "parameter")}


def test_the_encoder_sees_every_view_once_and_the_cache_changes_nothing():
    poses = room.loop(20)
    frames = room.frames(poses)
    reconstructor, network = start(poses, room.USUAL, window_size=6, window_stride=2)
    cached = run(reconstructor, frames)
    assert sorted(network.encoded) == list(range(20))

    class Forgetful(room.KnowingNetwork):
        def encode(self, image):
            return image

        def predict(self, tokens, height, width, newest=None):
            return super().predict(
                [super(Forgetful, self).encode(t) for t in tokens], height, width, newest
            )

    forgetful = Forgetful(poses, room.USUAL)
    parameters = PLAIN.with_values(window_size=6, window_stride=2)
    uncached = run(Reconstructor(forgetful, parameters), frames)
    assert len(forgetful.encoded) > 2 * len(poses)
    for one, other in zip(geometries(cached), geometries(uncached), strict=True):
        np.testing.assert_array_equal(one.map_from_camera, other.map_from_camera)
        np.testing.assert_array_equal(one.depth, other.depth)


def test_views_are_encoded_as_they_come():
    poses = room.straight(4)
    reconstructor, network = start(poses, window_size=6, window_stride=4)
    for index, frame in enumerate(room.frames(poses)):
        assert network.windows == []
        reconstructor.add(frame)
        assert network.encoded == list(range(index + 1))
    assert network.windows == [[0, 1, 2, 3]]


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_view_whose_encoding_failed_is_encoded_with_the_next(failing):
    poses = room.straight(4)
    reconstructor, network = start(poses, window_size=6, window_stride=4)
    frames = room.frames(poses)
    results = []
    for index, frame in enumerate(frames):
        if index == failing:
            with (
                patch.object(network, "encode", side_effect=RuntimeError("no")),
                pytest.raises(RuntimeError, match="no"),
            ):
                reconstructor.add(frame)
        else:
            results += reconstructor.add(frame)
    results += reconstructor.flush()
    assert stamps(results) == [frame.stamp_ns for frame in frames]


def test_windows_overlap_and_run_every_stride():
    poses = room.straight(14)
    reconstructor, network = start(poses, window_size=6, window_stride=4)
    run(reconstructor, room.frames(poses))
    assert network.windows == [
        [0, 1, 2, 3],
        [2, 3, 4, 5, 6, 7],
        [6, 7, 8, 9, 10, 11],
        [8, 9, 10, 11, 12, 13],  # the end of the stream
    ]


def test_a_camera_that_hovers_gets_all_its_geometry_and_keeps_its_keyframes():
    poses = np.concatenate([room.straight(8), np.repeat(room.straight(9)[8:], 30, axis=0)])
    reconstructor, network = start(poses, keyframe_min_motion=0.02, window_stride=4)
    frames = room.frames(poses, pictures=True)
    results = run(reconstructor, frames)
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert sorted(network.encoded) == list(range(len(frames)))
    assert reconstructor.losses.gated == 0
    keyframes = [i for i, geometry in enumerate(geometries(results)) if geometry.is_keyframe]
    assert 4 <= len(keyframes) <= 9
    # However long the hover, the window holds the four views that were last worth keeping.
    for window in network.windows[4:]:
        assert window[:4] == keyframes[-4:]
        assert len(window) <= 8
    assert_true_up_to_the_unit(geometries(results), poses, network.units[0])


def test_one_frame_is_enough():
    poses = room.straight(1)
    reconstructor, network = start(poses)
    results = run(reconstructor, room.frames(poses))
    assert len(geometries(results)) == 1
    np.testing.assert_allclose(geometries(results)[0].map_from_camera, FLU_FROM_OPTICAL, atol=1e-12)
    assert results[0].window_size == 1
    assert set(results[0].seconds) == {"encode", "network", "align"}
    assert reconstructor.flush() == ()
    assert len(network.windows) == 1


def test_nothing_comes_of_nothing():
    reconstructor, _ = start(room.straight(1))
    assert reconstructor.flush() == ()


def interrupted(change, message, count=10, at=6, **values):
    """Change the stream from a frame on; hold that a segment begins there and nothing is lost."""
    poses = room.straight(count)
    frames = room.frames(poses)
    frames = frames[:at] + [change(frame) for frame in frames[at:]]
    reconstructor, network = start(poses, **values)
    results = run(reconstructor, frames)
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    segments = [result.segment for result in results for _ in result.frames]
    assert segments == [0] * at + [1] * (count - at)
    (event,) = events(results)
    assert "segment 1 begins" in event
    assert message in event
    assert event in next(result for result in results if result.segment == 1).events
    # The second segment has its own origin and unit.
    unit = network.units[next(i for i, window in enumerate(network.windows) if at in window)]
    second = [g for result in results if result.segment == 1 for g in result.frames]
    assert_true_up_to_the_unit(second, poses[at:], unit)


def test_a_gap_begins_a_segment():
    interrupted(
        lambda f: dataclasses.replace(f, stamp_ns=f.stamp_ns + 3 * SECOND),
        "no frame came for 3.100 s",
        max_gap_s=2.0,
    )


def test_a_step_back_in_time_begins_a_segment():
    interrupted(
        lambda f: dataclasses.replace(f, stamp_ns=f.stamp_ns - SECOND // 2),
        "time went back by 0.400 s",
    )


def test_another_camera_begins_a_segment():
    interrupted(lambda f: dataclasses.replace(f, frame_id="right"), "from 'camera' to 'right'")


def test_another_image_size_begins_a_segment():
    def larger(frame):
        image = np.kron(frame.image, np.ones((2, 2, 1), np.uint8))
        k = np.diag([2, 2, 1]) @ room.INTRINSICS
        return dataclasses.replace(frame, image=image, camera=Camera(224, 168, k))

    interrupted(larger, "from 112x84 to 224x168")


def test_a_short_gap_does_not():
    poses = room.straight(10)
    reconstructor, _ = start(poses, max_gap_s=2.0)
    assert {r.segment for r in run(reconstructor, room.frames(poses, period_s=1.9))} == {0}


def test_a_second_frame_of_one_stamp_is_left_out_and_reported():
    poses = room.straight(6)
    frames = room.frames(poses)
    twin = dataclasses.replace(frames[3], stamp_ns=frames[2].stamp_ns)
    reconstructor, _ = start(poses)
    results = run(reconstructor, [*frames[:3], twin, *frames[4:]])
    assert stamps(results) == [frame.stamp_ns for frame in frames[:3] + frames[4:]]
    assert [str(frames[2].stamp_ns) in event for event in events(results)] == [True]
    # At the very end nothing else could carry the news.
    last = reconstructor.add(frames[-1]) + reconstructor.flush()
    assert (geometries(last), len(events(last))) == ([], 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["whole", "broken", "fails"]))))
def test_every_frame_ends_in_one_counter(course):
    poses = room.straight(7)
    whole = room.frames(poses)
    reconstructor, network = start(poses)
    results, refused = [], 0
    for index, kind in course:
        frame, failing = whole[index], patch.object(network, "predict", side_effect=MemoryError)
        if kind == "broken":
            frame = dataclasses.replace(frame, image=np.zeros((0, 0, 3), np.uint8))
        with failing if kind == "fails" else nullcontext():
            try:
                results += reconstructor.add(frame)
            except ImageError:
                refused += 1
            except MemoryError:
                pass  # its views wait on, or are counted
    results += reconstructor.flush()
    reconstructor.reset()
    published = len(geometries(results))
    assert published + reconstructor.losses.gated + reconstructor.losses.withheld + refused == len(
        course
    )


def test_a_broken_image_costs_itself_only():
    poses = room.straight(8)
    frames = room.frames(poses)
    broken = Frame(frames[4].stamp_ns, np.zeros((0, 0, 3), np.uint8), None, "camera")
    reconstructor, _ = start(poses)
    results = [r for frame in frames[:4] for r in reconstructor.add(frame)]
    with pytest.raises(ImageError):
        reconstructor.add(broken)
    results += run(reconstructor, frames[5:])
    assert stamps(results) == [frame.stamp_ns for frame in frames[:4] + frames[5:]]
    assert {result.segment for result in results} == {0}


def test_a_window_that_is_refused_is_tried_again_with_the_next_frame():
    poses = room.straight(17)
    reconstructor, network = start(poses)
    network.spoil = {2: "depth"}
    results = run(reconstructor, room.frames(poses))
    # The third window publishes nothing; one frame later its views come with the next.
    assert [window[-1] for window in network.windows[:4]] == [3, 7, 11, 12]
    assert stamps(results) == [frame.stamp_ns for frame in room.frames(poses)]
    assert {result.segment for result in results} == {0}
    assert len(results[2].frames) == 5
    (event,) = events(results)
    assert "disagree on its scale by a factor of 3.00" in event
    assert_true_up_to_the_unit(geometries(results), poses, network.units[0])


def test_two_refused_windows_in_a_row_begin_a_segment_and_lose_nothing():
    poses = room.straight(20)
    reconstructor, network = start(poses)
    network.spoil = {2: "depth", 3: "depth"}
    results = run(reconstructor, room.frames(poses))
    assert stamps(results) == [frame.stamp_ns for frame in room.frames(poses)]
    assert [result.segment for result in results] == [0, 0, 1, 1, 1]
    refused, begins = events(results)
    assert "tries again" in refused
    assert "segment 1 begins" in begins
    second = [g for result in results if result.segment == 1 for g in result.frames]
    # The new map begins at the first view that had no geometry yet.
    assert second[0].view.stamp_ns == room.frames(poses)[8].stamp_ns
    assert_true_up_to_the_unit(second, poses[8:], network.units[3])


def test_a_refused_window_at_the_end_of_the_stream_begins_a_segment():
    poses = room.straight(10)
    reconstructor, network = start(poses)
    network.spoil = {2: "depth"}
    results = run(reconstructor, room.frames(poses))
    assert stamps(results) == [frame.stamp_ns for frame in room.frames(poses)]
    assert [result.segment for result in results] == [0, 0, 1]


def test_a_window_of_one_view_gives_every_frame_a_map_of_its_own():
    poses = room.straight(4)
    reconstructor, _ = start(poses, window_size=1, window_stride=1)
    results = run(reconstructor, room.frames(poses))
    assert [(r.segment, len(r.frames)) for r in results] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert all("shares no view" in event for event in events(results))


def test_poses_that_are_not_finite_are_left_out_and_reported():
    poses = room.straight(16)
    reconstructor, network = start(poses)
    network.spoil = {1: "poses"}
    results = run(reconstructor, room.frames(poses))
    assert all(np.isfinite(geometry.map_from_camera).all() for geometry in geometries(results))
    assert "not finite" in events(results)[0]
    # Their views were still in the window when the network came back to its senses.
    assert stamps(results) == [frame.stamp_ns for frame in room.frames(poses)]


def test_reset_forgets_the_map_and_what_waits():
    poses = room.straight(12)
    frames = room.frames(poses)
    reconstructor, network = start(poses)
    before = [r for frame in frames[:6] for r in reconstructor.add(frame)]
    reconstructor.reset()
    after = run(reconstructor, frames[6:])
    assert stamps(before) == [frame.stamp_ns for frame in frames[:4]]
    assert stamps(after) == [frame.stamp_ns for frame in frames[6:]]
    assert {result.segment for result in after} == {0}
    assert "reset on request" in events(after)[0]
    assert_true_up_to_the_unit(geometries(after), poses[6:], network.units[1])


def test_known_intrinsics_are_used_unless_switched_off():
    poses = room.straight(4)
    other = np.diag([1.25, 1.25, 1.0]) @ room.INTRINSICS
    frames = [
        dataclasses.replace(frame, camera=Camera(room.WIDTH, room.HEIGHT, other))
        for frame in room.frames(poses)
    ]
    for use, expected in ((True, other), (False, room.INTRINSICS)):
        reconstructor, _ = start(poses, use_camera_intrinsics=use)
        for geometry in geometries(run(reconstructor, frames)):
            np.testing.assert_allclose(geometry.intrinsics, expected)
    reconstructor, _ = start(poses)
    uncalibrated = [dataclasses.replace(frame, camera=None) for frame in frames]
    for geometry in geometries(run(reconstructor, uncalibrated)):
        np.testing.assert_allclose(geometry.intrinsics, room.INTRINSICS)


def test_pixels_of_low_confidence_have_no_depth():
    poses = room.straight(8)
    reconstructor, _ = start(poses, room.USUAL, min_confidence_percentile=25.0)
    for geometry in geometries(run(reconstructor, room.frames(poses))):
        invalid = np.isnan(geometry.depth)
        assert invalid.mean() == pytest.approx(0.25, abs=0.01)
        assert geometry.confidence[invalid].max() <= geometry.confidence[~invalid].min()
        assert geometry.depth.dtype == np.float32


def test_memory_is_bounded_by_the_window():
    poses = np.tile(room.loop(40), (5, 1, 1))
    reconstructor, _ = start(poses, window_size=4, window_stride=2)
    for frame in room.frames(poses):
        reconstructor.add(frame)
        assert len(reconstructor._window.entries) <= 4


# A rig


def rig_frames(poses, turn):
    """Return the poses of two cameras on one body, in turn, and their frames in pairs."""
    both = np.stack([pose for pair in zip(poses, poses @ turn, strict=True) for pose in pair])
    frames = room.frames(both, period_s=0.05)
    named = [
        dataclasses.replace(frame, frame_id=name, source=name)
        for frame, name in zip(frames, ["front", "side"] * len(poses), strict=True)
    ]
    return both, list(zip(named[::2], named[1::2], strict=True))


def test_the_cameras_of_a_rig_see_one_window_and_lie_in_one_map():
    poses = room.straight(10)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", 30, degrees=True).as_matrix()
    both, pairs = rig_frames(poses, turn)
    network = room.KnowingNetwork(both, room.Noise())
    parameters = PLAIN.with_values(cameras=["front", "side"], window_size=8, window_stride=4)
    reconstructor = Reconstructor(network, parameters)
    results = [r for pair in pairs for r in reconstructor.add(*pair)]
    results += reconstructor.flush()
    found = geometries(results)
    assert [geometry.view.source for geometry in found] == ["front", "side"] * 10
    assert {result.segment for result in results} == {0}
    assert max(result.window_size for result in results) == 8
    assert_true_up_to_the_unit(found, both, network.units[0])


def test_a_rig_that_loses_a_camera_begins_a_new_map():
    poses = room.straight(6)
    reconstructor, _ = start(poses)
    _, pairs = rig_frames(poses, np.eye(4))
    done = [*reconstructor.add(*pairs[0]), *reconstructor.add(pairs[1][0])]
    done += reconstructor.flush()
    assert "the camera changed from 'front', 'side' to 'front'" in " ".join(events(done))


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (8, 1), (5, 4)])
@pytest.mark.parametrize("scale_views", [1, 2, 0])
def test_depth_is_asked_for_new_views_and_for_those_that_give_the_scale(size, stride, scale_views):
    poses = room.FLIGHTS["loop"](20)
    asked = []

    class Asked(room.KnowingNetwork):
        def predict(self, tokens, height, width, newest=None):
            asked.append((list(tokens), newest))
            return super().predict(tokens, height, width, newest)

    values = {"window_size": size, "window_stride": stride, "scale_views": scale_views}
    network = Asked(poses)
    parameters = PLAIN.with_values(**values)
    frames = room.frames(poses)
    results = run(Reconstructor(network, parameters), frames)
    # Each frame gets its depth once, and the windows fit whatever number gives their scale.
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert_true_up_to_the_unit(geometries(results), poses, network.units[0])
    placed = 0
    for tokens, newest in asked:
        new = [token for token in tokens if token >= placed]
        overlap = len(tokens) - len(new)
        assert newest == len(new) + min(overlap, scale_views or overlap)
        placed = tokens[-1] + 1


def test_loops_are_solved_at_gaps_and_with_all_keyframes_at_the_end_whatever_waits():
    class Asked(LoopClosure):
        def settle(self, *, is_last=False):
            asked.append(is_last)
            return super().settle(is_last=is_last)

    asked, poses = [], room.straight(10)
    frames = room.frames(poses)
    for index in range(6, 10):
        frames[index] = dataclasses.replace(
            frames[index], stamp_ns=frames[index].stamp_ns + 9 * SECOND
        )
    reconstructor, _ = start(poses, loops=Asked(), loop_closure=True, max_gap_s=2.0)
    for frame in frames:
        reconstructor.add(frame)
    assert asked == [False]
    reconstructor.reset("something to report")
    assert events(reconstructor.flush())
    assert asked == [False, True]
