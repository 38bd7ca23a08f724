"""A recording in metres from its first frame on."""

import numpy as np
import pytest
from support import known_room as room
from support.streams import assert_true_up_to_the_unit, geometries, run, stamps, start

from qvggt_core.stream import DeferredReconstructor


def replayed(poses, odometry, **values):
    inner, network = start(poses, min_odometry_distance=1.0, **values)
    reconstructor = DeferredReconstructor(inner)
    frames = room.frames(poses)
    results = []
    for frame, pose, known in zip(frames, poses, odometry, strict=True):
        if known:
            reconstructor.sensors.add_odometry(frame.stamp_ns, pose[:3, 3])
        results += reconstructor.add(frame)
    return frames, [*results, *reconstructor.flush()], network


def test_each_frame_comes_once_in_order_and_in_metres():
    poses = room.straight(24)
    frames, results, _ = replayed(poses, [True] * 24)
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert {result.scale.source for result in results} == {"odometry"}
    assert_true_up_to_the_unit(geometries(results), poses, 1.0, tolerance=1e-4)
    for geometry, pose in zip(geometries(results), poses, strict=True):
        np.testing.assert_allclose(geometry.depth, room.depth_of(pose), rtol=1e-4)


def test_what_never_gets_a_scale_comes_out_as_it_is():
    poses = room.straight(16)
    frames, results, network = replayed(poses, [False] * 16)
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert {result.scale.metres_per_unit for result in results} == {None}
    assert_true_up_to_the_unit(geometries(results), poses, network.units[0])


def test_a_known_scale_is_not_waited_for():
    poses = room.straight(8)
    inner, _ = start(poses, metres_per_unit=2.0)
    reconstructor = DeferredReconstructor(inner)
    results = [r for frame in room.frames(poses)[:4] for r in reconstructor.add(frame)]
    assert len(geometries(results)) == 4


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("qvggt_core.stream.deferred._MAX_FRAMES", 6)
    poses = room.straight(16)
    inner, _ = start(poses)
    reconstructor = DeferredReconstructor(inner)
    given = [len(geometries(reconstructor.add(frame))) for frame in room.frames(poses)]
    assert sum(given[:7]) == 0
    assert sum(given) == 16


def test_a_segment_that_ends_without_a_scale_does_not_hold_up_the_next():
    poses = room.straight(20)
    inner, network = start(poses, min_odometry_distance=1.0, max_gap_s=1.0)
    reconstructor = DeferredReconstructor(inner)
    frames = room.frames(poses)
    late = [
        type(f)(f.stamp_ns + 5_000_000_000 * (i >= 8), f.image, f.camera, f.frame_id)
        for i, f in enumerate(frames)
    ]
    results = []
    for index, frame in enumerate(late):
        if index >= 8:
            reconstructor.sensors.add_odometry(frame.stamp_ns, poses[index][:3, 3])
        results += reconstructor.add(frame)
    results += reconstructor.flush()
    assert stamps(results) == [frame.stamp_ns for frame in late]
    scales = {r.segment: r.scale.metres_per_unit for r in results if r.frames}
    assert scales[0] is None
    assert scales[1] == pytest.approx(network.units[2], rel=1e-3)
    assert run(inner, []) == []


def test_each_place_has_the_scale_that_both_its_sides_show():
    """Odometry becomes 20 % longer on the way; the first window's scale is that of there."""
    poses = room.straight(60)
    metres = 1.0 + 0.2 * np.linspace(0.0, 1.0, 60)
    shown = np.cumsum(metres[:, None] * np.diff(poses[:, :3, 3], axis=0, prepend=0.0), axis=0)
    inner, network = start(poses, min_odometry_distance=1.0)
    reconstructor = DeferredReconstructor(inner)
    frames, results, first_known = room.frames(poses), [], None
    for frame, position in zip(frames, shown, strict=True):
        reconstructor.sensors.add_odometry(frame.stamp_ns, position)
        results += reconstructor.add(frame)
        first_known = first_known or inner._metric.scale.metres_per_unit
    results += reconstructor.flush()
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert abs(first_known / network.units[0] - metres[0]) > 0.015
    numbers = {frame.stamp_ns: number for number, frame in enumerate(frames)}
    for result in results:
        true = np.mean([metres[numbers[frame.view.stamp_ns]] for frame in result.frames])
        assert result.scale.metres_per_unit == pytest.approx(network.units[0] * true, rel=0.01)
    way = np.linalg.norm(geometries(results)[-1].map_from_camera[:3, 3])
    assert way == pytest.approx(np.linalg.norm(shown[-1] - shown[0]), rel=0.01)


def test_few_frames_wait_for_what_comes_further_on(monkeypatch):
    monkeypatch.setattr("qvggt_core.stream.deferred._MAX_FRAMES_AHEAD", 6)
    poses = room.straight(40)
    inner, _ = start(poses, min_odometry_distance=1.0)
    reconstructor = DeferredReconstructor(inner)
    waiting, became_metric = 0, False
    for frame, pose in zip(room.frames(poses), poses, strict=True):
        reconstructor.sensors.add_odometry(frame.stamp_ns, pose[:3, 3])
        given = len(geometries(reconstructor.add(frame)))
        waiting += 1 - given
        became_metric = became_metric or given > 0
        # Beside them, the window's own stride.
        assert not became_metric or waiting <= 6 + inner.parameters.window_stride
    assert became_metric
    assert len(geometries(reconstructor.flush())) == waiting
