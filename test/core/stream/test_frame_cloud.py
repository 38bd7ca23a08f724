"""Which pixels are left out of clouds: those on steps of depth, not those of a slanted plane."""

import numpy as np
import pytest

from qvggt_core.stream.frame_cloud import on_depth_edge

FOCAL, ROWS, COLUMNS = 100.0, 60, 80
SHARE = 0.1


def rays():
    rows, columns = np.mgrid[:ROWS, :COLUMNS].astype(np.float64)
    x, y = (columns - COLUMNS / 2) / FOCAL, (rows - ROWS / 2) / FOCAL
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def plane_depth(normal, distance):
    """Depth (H, W) where the rays meet the points p with normal @ p = distance, NaN elsewhere."""
    with np.errstate(divide="ignore"):
        depth = distance / (rays() @ np.asarray(normal))
    return np.where((depth > 0) & (depth < 50), depth, np.nan).astype(np.float32)


@pytest.mark.parametrize(
    "normal",
    [(0.0, 1.0, -0.02), (0.0, 1.0, 0.05), (1.0, 0.0, 0.02), (0.7, 0.7, -0.03), (-0.9, 0.4, 0.05)],
)
def test_a_plane_at_a_grazing_angle_is_no_edge(normal):
    depth = plane_depth(normal, 1.0)
    with np.errstate(invalid="ignore"):
        steps = np.abs(np.diff(depth, axis=0)) / np.minimum(depth[1:], depth[:-1])
        across = np.abs(np.diff(depth, axis=1)) / np.minimum(depth[:, 1:], depth[:, :-1])
    steep = (steps > SHARE).sum() + (across > SHARE).sum()
    assert steep > 50
    # Beside the horizon, fewer pixels than show a plane may lie in a row.
    assert on_depth_edge(depth, SHARE).sum() < 0.1 * steep


@pytest.mark.parametrize("between", [(), (1.5,), (1.3, 1.7), (1.2, 1.25, 1.8)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_step_is_an_edge_also_where_a_network_smears_it(between, axis):
    depth = np.full((ROWS, COLUMNS), 1.0, np.float32)
    lines = depth if axis == 0 else depth.T
    lines[30 + len(between) :] = 2.0
    for index, value in enumerate(between):
        lines[30 + index] = value
    edge = on_depth_edge(depth, SHARE)
    edge = edge if axis == 0 else edge.T
    assert edge[30 : 30 + len(between)].all()
    assert not edge[:28].any()
    assert not edge[33 + len(between) :].any()


def test_a_step_between_two_slanted_planes_is_an_edge():
    floor, table = plane_depth((0.0, 1.0, 0.0), 1.0), plane_depth((0.0, 1.0, 0.0), 0.4)
    depth = np.where(np.arange(ROWS)[:, None] < 50, floor, table)
    edge = on_depth_edge(depth, SHARE)
    assert edge[49:51].all()
    assert not edge[45:48].any()
    assert not edge[53:].any()


def test_a_hole_is_no_edge_and_small_images_have_edges_too():
    depth = np.full((4, 5), 1.0, np.float32)
    depth[1, 1] = np.nan
    assert not on_depth_edge(depth, SHARE).any()
    assert on_depth_edge(np.array([[1.0, 2.0]], np.float32), SHARE).all()
    assert on_depth_edge(np.array([[1.0], [2.0]], np.float32), SHARE).all()
