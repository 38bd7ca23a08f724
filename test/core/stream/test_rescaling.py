"""Results that get a better scale later: the way is longer or shorter, and has no jumps."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.stream.frame import FrameGeometry, Reconstruction, Scale, Up, View
from qvggt_core.stream.gravity import levelling
from qvggt_core.stream.rescaling import Rescaling

WINDOW = 4
KNOWN, BETTER = (2.0, 2.2, 2.1), (2.4, 2.0, 2.3)


def geometry(position):
    pose = np.eye(4)
    pose[:3, 3] = position
    view = View(0, np.zeros((2, 2, 3), np.uint8))
    depth = np.ones((2, 2), np.float32)
    return FrameGeometry(pose, depth, depth, covariance=np.eye(6), view=view, intrinsics=np.eye(3))


def placed(steps, scales):
    """Windows of a path in units of the map, whose scale changes from window to window."""
    way = np.cumsum(np.repeat(scales, WINDOW)[:, None] * steps, axis=0)
    return [
        Reconstruction(
            0,
            tuple(geometry(where) for where in way[index * WINDOW :][:WINDOW]),
            Scale(scale),
            position_sigma=0.1,
        )
        for index, scale in enumerate(scales)
    ]


@pytest.fixture
def steps():
    return np.random.default_rng(0).normal(0, 0.3, (WINDOW * len(KNOWN), 3))


def test_the_path_is_that_of_the_better_scales(steps):
    rescaling = Rescaling()
    given, wanted = placed(steps, KNOWN), placed(steps, BETTER)
    for one, other, scale in zip(given, wanted, BETTER, strict=True):
        found = rescaling.apply(one, Scale(scale))
        factor = scale / one.scale.metres_per_unit
        assert found.scale == Scale(scale)
        assert found.position_sigma == pytest.approx(0.1 * factor)
        for mine, true in zip(found.frames, other.frames, strict=True):
            np.testing.assert_allclose(mine.map_from_camera, true.map_from_camera, atol=1e-12)
            np.testing.assert_allclose(mine.depth, factor, rtol=1e-6)
            np.testing.assert_allclose(np.diag(mine.covariance)[:3], factor**2)


def test_a_map_that_is_turned_upright_on_the_way_stays_in_one_piece(steps):
    direction = Rotation.from_euler("xy", [0.1, -0.2]).apply([0.0, 0.0, 1.0])
    up = Up(direction, "imu", 0.01)
    turn = levelling(direction)
    rescaling = Rescaling()
    given, wanted = placed(steps, KNOWN), placed(steps, BETTER)
    for index, (one, other) in enumerate(zip(given, wanted, strict=True)):
        if index > 0:
            one = replace(one, up=up, frames=tuple(frame.turned(turn) for frame in one.frames))
            other = replace(other, frames=tuple(frame.turned(turn) for frame in other.frames))
        found = rescaling.apply(one, Scale(BETTER[index]))
        for mine, true in zip(found.frames, other.frames, strict=True):
            np.testing.assert_allclose(mine.map_from_camera, true.map_from_camera, atol=1e-12)


def test_without_metres_nothing_changes(steps):
    (result, *_) = placed(steps, KNOWN)
    unknown = replace(result, scale=Scale())
    assert Rescaling().apply(unknown, Scale(2.0)) is unknown
    assert Rescaling().apply(result, Scale()) is result
