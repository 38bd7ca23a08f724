"""A metric network for single images as a source of the map's scale."""

import numpy as np
import pytest
import torch
from support import known_room as room
from support.small_network import SINGLE_VIEW_STACK, STACK, open_state

from qvggt_core.errors import CheckpointError
from qvggt_core.model import VGGT
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Reconstructor
from qvggt_core.stream.frame import FrameGeometry, ScaleState, View
from qvggt_core.stream.metric_depth import (
    MetricDepth,
    MetricDepthNetwork,
    MetricDepthSchedule,
    map_unit,
)
from qvggt_core.stream.metric_scale import MetricScale

INTRINSICS = np.array([[150.0, 0.0, 21.0], [0.0, 150.0, 14.0], [0.0, 0.0, 1.0]])


def metric_network() -> tuple[MetricDepthNetwork, VGGT]:
    model = VGGT(SINGLE_VIEW_STACK)
    model.load_state_dict(open_state(SINGLE_VIEW_STACK))
    return MetricDepthNetwork(model), model.eval()


def test_metres_are_focal_length_over_300_times_the_output_and_the_sky_has_none() -> None:
    network, model = metric_network()
    image = np.random.default_rng(0).integers(0, 256, (28, 42, 3)).astype(np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None, None].float() / 255.0
    with torch.inference_mode():
        raw = model(pixels)
    found = network.depth(image, INTRINSICS)
    sky = raw.sky[0, 0].numpy() >= 0.3
    np.testing.assert_array_equal(found.sky, sky)
    np.testing.assert_array_equal(np.isnan(found.metres), sky)
    np.testing.assert_allclose(found.metres[~sky], 0.5 * raw.depth[0, 0].numpy()[~sky], rtol=1e-6)


def test_images_that_are_no_whole_patches_are_resized_with_their_focal_length() -> None:
    network, _ = metric_network()
    image = np.full((56, 84, 3), 120, np.uint8)
    odd = np.full((60, 90, 3), 120, np.uint8)
    larger = INTRINSICS.copy()
    larger[:2] *= 90 / 84
    found, wanted = network.depth(odd, larger), network.depth(image, INTRINSICS)
    assert found.metres.shape == (60, 90)
    assert np.nanmedian(found.metres) == pytest.approx(np.nanmedian(wanted.metres), rel=0.02)


def test_a_network_for_several_views_is_refused() -> None:
    with pytest.raises(CheckpointError, match="da3metric-large"):
        MetricDepthNetwork(VGGT(STACK))


def geometry(depth: np.ndarray) -> FrameGeometry:
    view = View(0, np.zeros((*depth.shape, 3), np.uint8), INTRINSICS)
    return FrameGeometry(np.eye(4), depth, np.ones_like(depth), view=view, intrinsics=INTRINSICS)


def test_the_unit_is_a_median_and_outliers_widen_the_spread_alone() -> None:
    rng = np.random.default_rng(1)
    depth = rng.uniform(1, 5, (28, 42)).astype(np.float32)
    metres = 2.5 * depth
    metres[rng.random(depth.shape) < 0.3] *= 10
    unit = map_unit(MetricDepth(metres, np.zeros(depth.shape, bool)), geometry(depth))
    assert unit.metres == pytest.approx(2.5, rel=1e-4)
    assert not unit.is_trusted
    metres = 2.5 * depth
    metres[rng.random(depth.shape) < 0.2] *= 10
    unit = map_unit(MetricDepth(metres, np.zeros(depth.shape, bool)), geometry(depth))
    assert unit.is_trusted


def test_a_view_that_is_nearly_all_sky_gives_no_unit() -> None:
    depth = np.ones((28, 42), np.float32)
    metres = np.full((28, 42), np.nan, np.float32)
    metres[0] = 1.0
    assert map_unit(MetricDepth(metres, np.isnan(metres)), geometry(depth)) is None


class RoomDepth:
    """Metric depth of the known room, a tenth too long; the upper quarter counts as sky."""

    def __init__(self, poses: np.ndarray) -> None:
        self._poses = poses
        self.seen: list[int] = []
        self.run_s = 0.0

    def depth(self, image: np.ndarray, intrinsics: np.ndarray) -> MetricDepth:
        index = int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])
        self.seen.append(index)
        metres = 1.1 * room.depth_of(self._poses[index]).astype(np.float32)
        sky = np.zeros(metres.shape, bool)
        sky[: len(sky) // 4] = True
        return MetricDepth(np.where(sky, np.float32(np.nan), metres), sky)


def test_a_stream_without_odometry_comes_out_in_metres_and_its_sky_is_invalid() -> None:
    poses = room.straight(24)
    network, depths = room.KnowingNetwork(poses), RoomDepth(poses)
    parameters = Parameters(
        confirm=False,
        refine=False,
        image_width=room.WIDTH,
        scale_period_s=1.0,
        min_confidence_percentile=0.0,
    )
    reconstructor = Reconstructor(network, parameters, depths)
    results = [r for frame in room.frames(poses) for r in reconstructor.add(frame)]
    results += reconstructor.flush()
    assert {r.scale.source for r in results if r.frames} == {"metric depth"}
    assert results[0].scale.metres_per_unit == pytest.approx(1.1 * network.units[0], rel=1e-3)
    frames = [frame for result in results for frame in result.frames]
    last = frames[-1]
    valid = np.isfinite(last.depth)
    wanted = 1.1 * room.depth_of(poses[-1])
    np.testing.assert_allclose(last.depth[valid], wanted[valid], rtol=1e-3)
    # Three of the first window, then one of a window.
    first = [frame.view.image[0, 0, 1] for frame in results[0].frames]
    assert [seen in first for seen in depths.seen] == [True] * 3 + [False] * (len(depths.seen) - 3)
    assert np.diff(depths.seen[:3]).min() >= 1
    assert np.diff(depths.seen[2:]).min() >= 2
    assert len(depths.seen) >= 6
    for frame in frames:
        if frame.view.image[0, 0, 1] in depths.seen:
            assert np.isnan(frame.depth[: room.HEIGHT // 4]).all()


def asked(
    schedule: MetricDepthSchedule, seconds: np.ndarray, sigma: float = np.inf, available: int = 1
) -> list[float]:
    """Return when, of these seconds, an image is given to the network, once for each."""
    return [t for t in seconds for _ in range(schedule.due(round(t * 1e9), available, sigma))]


def test_images_come_twenty_times_as_often_until_the_scale_is_known() -> None:
    schedule = MetricDepthSchedule(period_s=5.0)
    times = asked(schedule, np.arange(0.0, 2.0, 0.05))
    np.testing.assert_allclose(np.diff(times), 0.25)
    later = asked(schedule, np.arange(2.0, 30.0, 0.05), sigma=0.01)
    np.testing.assert_allclose(np.diff(later), 5.0)


def test_images_that_give_no_scale_come_often_only_at_first() -> None:
    schedule = MetricDepthSchedule(period_s=5.0)
    times = asked(schedule, np.arange(0.0, 60.0, 0.25))
    np.testing.assert_allclose(np.diff(times), [0.25] * 23 + [5.0] * (len(times) - 24))


def test_a_scale_that_may_have_drifted_is_asked_for_five_times_as_often() -> None:
    schedule = MetricDepthSchedule(period_s=5.0)
    asked(schedule, np.array([0.0, 1.0]), sigma=0.005)
    times = asked(schedule, np.arange(5.0, 20.0, 0.5), sigma=0.02)
    np.testing.assert_allclose(np.diff(times), 1.0)


def test_a_network_that_takes_two_seconds_leaves_two_thirds_of_the_time_to_the_stream() -> None:
    schedule = MetricDepthSchedule(period_s=5.0, run_s=2.0)
    times = asked(schedule, np.arange(0.0, 60.0, 0.5), available=4)
    assert times[:3] == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(np.diff(times[2:]), 6.0)


def test_only_the_time_of_runs_that_a_stream_waits_for_counts() -> None:
    network, _ = metric_network()
    image = np.zeros((28, 42, 3), np.uint8)
    network.depth(image, INTRINSICS)
    assert network.run_s == 0.0
    network.is_awaited = True
    assert 0.0 < network.run_s < 60.0


def test_a_new_segment_is_asked_for_at_once_and_by_three_images() -> None:
    schedule = MetricDepthSchedule(period_s=5.0)
    assert asked(schedule, np.arange(0.0, 9.0, 0.25), available=4)[:4] == [0.0, 0.0, 0.0, 0.25]
    asked(schedule, np.array([10.0]), sigma=0.005)
    schedule.begin_map()
    assert schedule.due(round(60.1e9), 4) == 3
    assert schedule.due(round(60.2e9), 4) == 0
    # Time went back: a recording began anew.
    assert schedule.due(0, 4) == 1


def test_one_image_that_is_far_off_does_not_make_a_map_metric() -> None:
    scale = MetricScale()
    scale.observe_ratio(0, 6.0, 0.03, "metric depth")
    scale.observe_ratio(1, 2.0, 0.03, "metric depth")
    assert scale.scale.state is not ScaleState.METRIC
    assert "by metric depth" in (scale.observe_ratio(2, 2.01, 0.03, "metric depth") or "")
    assert scale.scale.metres_per_unit == pytest.approx(2.0, rel=0.02)


def test_distances_of_odometry_have_the_larger_weight() -> None:
    scale = MetricScale(min_distance=1.0)
    events = [scale.observe_ratio(stamp, 2.9, 0.03, "metric depth") for stamp in range(3)]
    assert "by metric depth" in (events[-1] or "")
    for index in range(1, 40):
        pose = np.eye(4)
        pose[0, 3] = 0.1 * index / 3.0
        scale.add_odometry(100_000_000 * index, np.array([0.1 * index, 0.0, 0.0]))
        scale.observe(100_000_000 * index, pose)
    assert scale.scale.source == "odometry"
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.01)
    scale.observe_ratio(4_000_000_000, 2.8, 0.03, "metric depth")
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.01)


def test_one_image_that_is_far_off_changes_nothing_and_many_do() -> None:
    scale = MetricScale()
    for stamp in range(3):
        scale.observe_ratio(stamp, 2.0, 0.03, "metric depth")
    assert scale.observe_ratio(3, 3.0, 0.03, "metric depth") is None
    assert scale.scale.metres_per_unit == pytest.approx(2.0, rel=0.02)
    events = [scale.observe_ratio(stamp, 3.0, 0.03, "metric depth") for stamp in range(4, 20)]
    assert any(event and "changed" in event for event in events)
    assert scale.scale.metres_per_unit == pytest.approx(3.0, rel=0.02)
