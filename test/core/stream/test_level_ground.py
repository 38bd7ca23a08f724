"""The ground that a camera goes over at one height: by many views, never by one strip of floor."""

import numpy as np
import pytest
from support import known_room as room

from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import FrameGeometry, PlacedView, ScaleState, View
from qvggt_core.stream.level_ground import GroundSearch
from qvggt_core.stream.metric_map import MetricMap
from qvggt_core.stream.window import Entry

UNIT = 2.5
ABOVE = 0.9
"""Metres from the floor to the camera."""


def circle(count=60, bobbing=0.0):
    """A drive in circles of 2 m, looking ahead and a little down."""
    angle = 0.12 * np.arange(count)
    height = room.LOW[2] + ABOVE + bobbing * np.sin(angle)
    places = np.stack([2 * np.cos(angle), 2 * np.sin(angle), height], axis=1)
    turns = np.stack([angle + 2.2, 0 * angle + 0.15, 0 * angle], axis=1)
    return room.flight(places, turns)


def bent(depth, share=0.08):
    """Depth that is too large by some per cent at the lower edge and right at the horizon."""
    rows = np.linspace(-1.0, 1.0, depth.shape[0])[:, None].clip(0.0)
    return depth * (1.0 + share * rows)


def with_table(pose, depth, top=-1.1):
    """Depth with a table of 3 m by 2 m beside the middle of the room."""
    rows, columns = np.mgrid[: room.HEIGHT, : room.WIDTH]
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    rays = pixels @ np.linalg.inv(room.INTRINSICS).T @ pose[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        there = (top - pose[2, 3]) / rays[..., 2]
        x, y = (pose[:2, 3] + there[..., None] * rays[..., :2]).transpose(2, 0, 1)
    return np.where((there > 0) & (abs(x - 2.5) < 1.5) & (abs(y) < 1), there, depth)


def frame(pose, stamp, depth):
    """A view as it is in a map whose unit is 2.5 m."""
    placed = pose.copy()
    placed[:3, 3] /= UNIT
    image = np.zeros((room.HEIGHT, room.WIDTH, 3), np.uint8)
    depth = (depth / UNIT).astype(np.float32)
    return FrameGeometry(
        placed,
        depth,
        np.ones_like(depth),
        view=View(stamp, image, room.INTRINSICS),
        intrinsics=room.INTRINSICS,
    )


def search(poses, depths, keeps_height=True):
    found = GroundSearch()
    found.keeps_height = keeps_height
    for index, (pose, depth) in enumerate(zip(poses, depths, strict=True)):
        found.observe(frame(pose, index, depth))
    return found


def plane_of_one_view(pose, depth):
    """The camera's height, in metres, over the plane through what one view shows of the floor."""
    rows, columns = np.mgrid[: room.HEIGHT, : room.WIDTH]
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    points = (pixels @ np.linalg.inv(room.INTRINSICS).T * depth[..., None]) @ pose[:3, :3].T
    is_floor = points[..., 2] < -0.95 * ABOVE
    columns = np.column_stack([points[is_floor][:, :2], np.ones(is_floor.sum())])
    slope_x, slope_y, drop = np.linalg.lstsq(columns, points[is_floor][:, 2], rcond=None)[0]
    return -drop / np.sqrt(1 + slope_x**2 + slope_y**2)


def test_views_from_places_apart_give_the_height_and_the_vertical():
    poses = circle()
    ground = search(poses, [room.depth_of(pose) for pose in poses]).ground
    assert ground.height == pytest.approx(ABOVE / UNIT, rel=0.01)
    assert np.degrees(np.arccos(ground.up[2])) < 0.3


def test_depth_that_is_bent_makes_the_plane_of_one_view_wrong_but_not_that_of_many():
    poses = circle()
    depths = [bent(room.depth_of(pose)) for pose in poses]
    alone = np.array([plane_of_one_view(p, d) for p, d in zip(poses, depths, strict=True)])
    ground = search(poses, depths).ground
    off = abs(np.log(ground.height * UNIT / ABOVE))
    assert np.median(abs(np.log(alone / ABOVE))) > 0.05
    assert off < 0.06


def test_a_metric_state_by_the_camera_s_height_is_as_right_as_it_says():
    metric = MetricMap(Parameters(camera_height=ABOVE), None, lambda event: None)
    rng = np.random.default_rng(0)
    for index, pose in enumerate(circle()):
        noise = np.exp(rng.normal(0.0, 0.02) + rng.normal(0.0, 0.02, (room.HEIGHT, room.WIDTH)))
        new = frame(pose, index * 100_000_000, bent(room.depth_of(pose), 0.05) * noise)
        placed = PlacedView(new.map_from_camera, new.depth, new.confidence)
        metric.observe(new.view, placed)
        metric.place([Entry(new.view, True)], (new,), "", None)
        if metric.scale.state is ScaleState.METRIC:
            off = abs(np.log(metric.scale.metres_per_unit / UNIT))
            assert off < 3 * metric.scale.sigma
    assert metric.scale.state is ScaleState.METRIC
    assert metric.scale.metres_per_unit == pytest.approx(UNIT, rel=0.05)


def test_a_table_is_not_the_ground():
    poses = circle()
    found = search(poses, [with_table(pose, room.depth_of(pose)) for pose in poses])
    ground = found.ground
    assert ground is None or ground.height == pytest.approx(ABOVE / UNIT, rel=0.02)


def test_a_camera_that_does_not_keep_its_height_has_none():
    poses = circle(bobbing=0.3)
    depths = [room.depth_of(pose) for pose in poses]
    found = search(poses, depths)
    assert found.ground is None
    assert "height above the ground changes" in found.problem
    # The vertical is known all the same.
    ground = search(poses, depths, keeps_height=False).ground
    assert np.degrees(np.arccos(ground.up[2])) < 0.5


def test_one_place_is_not_enough():
    poses = np.repeat(circle(1), 40, axis=0)
    found = search(poses, [room.depth_of(pose) for pose in poses])
    assert found.ground is None
    assert "from enough places" in found.problem


def note_at_rest(depth):
    """What an operator reads after forty images of a camera that has not moved."""
    metric = MetricMap(Parameters(camera_height=ABOVE), None, lambda event: None)
    for index in range(40):
        seen = frame(circle(1)[0], index, depth)
        metric.observe(seen.view, seen)
        metric.place([Entry(seen.view, True)], (seen,), "", None)
    metric.observe(seen.view, seen)
    assert metric.scale.metres_per_unit is None
    return metric.scale.note


def test_a_camera_at_rest_has_no_scale_and_an_operator_reads_why():
    note = note_at_rest(room.depth_of(circle(1)[0]))
    assert "1 of 5" in note
    assert "the camera has to move, at rest its height gives no scale" in note


def test_where_the_ground_is_out_of_view_an_operator_reads_so():
    assert "no image has shown the ground yet" in note_at_rest(
        np.full((room.HEIGHT, room.WIDTH), np.nan)
    )


def test_a_wall_is_no_ground():
    poses = circle()
    found = search(poses, [np.full((room.HEIGHT, room.WIDTH), 2.0)] * len(poses))
    assert found.ground is None
    assert search(poses, [np.full((room.HEIGHT, room.WIDTH), np.nan)] * len(poses)).ground is None


@pytest.mark.parametrize("focal", [0.0, np.nan, 1e-320])
def test_a_lens_that_is_none_shows_no_ground(focal):
    found = GroundSearch()
    intrinsics = np.array([[focal, 0.0, 20.0], [0.0, focal, 15.0], [0.0, 0.0, 1.0]])
    new = frame(circle(1)[0], 0, np.full((room.HEIGHT, room.WIDTH), 2.0))
    assert not found.observe(FrameGeometry(**{**vars(new), "intrinsics": intrinsics}))
