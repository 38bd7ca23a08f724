"""The floor plan, held against boxes on a floor whose every edge is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import box_scene as scene

from qvggt_core.occupancy import height_voxels
from qvggt_core.occupancy.grid import FREE, OCCUPIED, UNKNOWN, OccupancyGrid
from qvggt_core.occupancy.height_voxels import Band, DepthView, HeightVoxels
from qvggt_core.occupancy.mapper import OccupancyMapper
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import KeyframeCorrections, LoopStatus, Scale, ScaleState, Up

PARAMETERS = Parameters(occupancy_grid=True)
BOX = ((2.0, -0.5, 0.0), (2.6, 0.5, 0.6))
SHELF = ((2.0, -0.5, 0.5), (2.6, 0.5, 0.8))
LAMP = ((1.5, -0.5, 1.8), (2.5, 0.5, 2.0))
SILL = ((2.0, -0.5, 0.0), (2.6, 0.5, 0.05))


def mapped(boxes, poses=None, parameters=PARAMETERS, mapper=None, **fields) -> OccupancyMapper:
    mapper = mapper or OccupancyMapper(parameters)
    for index, pose in enumerate(poses or [scene.pose(0, 0)] * 4):
        mapper.add(scene.reconstruction(scene.frame(index, pose, boxes), **fields))
    return mapper


def at(grid: OccupancyGrid, x: float, y: float) -> int:
    column, row = np.floor((np.array([x, y]) - grid.origin[:2]) / grid.resolution).astype(int)
    return int(grid.cells[row, column])


def plan(*arguments, **fields) -> OccupancyGrid:
    grid = mapped(*arguments, **fields).grid()
    assert grid is not None
    return grid


def test_what_stands_in_the_way_is_occupied_before_it_free_behind_it_unknown():
    grid = plan([BOX])
    for y in (-0.42, 0.0, 0.42):
        assert at(grid, 2.02, y) == OCCUPIED, "the front of the box"
        assert at(grid, 1.5, y) == FREE
    # From 1 m up, a box of 0.6 m at 2 to 2.6 m hides the floor up to 6.5 m.
    assert at(grid, 3.5, 0.0) == UNKNOWN
    assert at(grid, 3.5, 1.5) == FREE, "beside the box the floor is seen"
    assert at(grid, -0.5, 0.0) == UNKNOWN, "behind the camera"


def test_only_the_band_over_the_ground_counts():
    assert at(plan([SHELF]), 2.02, 0.0) == OCCUPIED, "a shelf at 0.5 m"
    assert at(plan([SILL]), 2.5, 0.0) == FREE, "5 cm are no obstacle"
    assert at(plan([LAMP]), 2.0, 0.0) == FREE, "what hangs at 1.8 m is passed below"
    low = Parameters(occupancy_grid=True, grid_min_height=0.03)
    assert at(plan([SILL], parameters=low), 2.02, 0.0) == OCCUPIED


def test_the_ground_is_the_origin_s_z_and_cells_are_whole_numbers_from_zero():
    grid = plan([BOX])
    assert grid.origin[2] == pytest.approx(-scene.CAMERA_HEIGHT, abs=0.01)
    cells = grid.origin[:2] / grid.resolution
    np.testing.assert_allclose(cells, np.rint(cells), atol=1e-9)
    assert set(np.unique(grid.cells)) <= {-1, 0, 100}


def test_what_is_gone_is_cleared_and_what_comes_is_marked():
    mapper = mapped([BOX])
    mapped([], [scene.pose(0, 0)] * 8, mapper=mapper)
    grid = mapper.grid()
    assert at(grid, 2.02, 0.0) == FREE
    mapped([BOX], mapper=mapper)
    assert at(mapper.grid(), 2.02, 0.0) == OCCUPIED


def test_depth_beyond_the_range_clears_and_does_not_mark():
    near = Parameters(occupancy_grid=True, grid_max_range=2.0)
    far = ((3.0, -3.0, 0.0), (3.2, 3.0, 3.0))
    grid = plan([far], parameters=near)
    assert at(grid, 1.5, 0.0) == FREE
    assert (grid.cells != OCCUPIED).all()


def test_a_depth_without_values_changes_nothing():
    mapper = mapped([BOX])
    before = mapper.grid().cells.copy()
    empty = scene.frame(9, scene.pose(0, 0), [])
    empty = replace(empty, depth=np.full_like(empty.depth, np.nan))
    mapper.add(scene.reconstruction(empty))
    np.testing.assert_array_equal(mapper.grid().cells, before)


def test_a_floor_that_rises_by_a_tilted_map_is_no_obstacle():
    tilt = np.radians(3.0)
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]]
    mapper = OccupancyMapper(PARAMETERS)
    for index in range(4):
        geometry = scene.frame(index, scene.pose(0, 0), [])
        mapper.add(scene.reconstruction(geometry.moved(turn)))
    # At 4.5 m the floor is 0.24 m higher than below the camera.
    assert (mapper.grid().cells != OCCUPIED).all()
    assert at(mapper.grid(), 4.5, 0.0) == FREE


def test_the_floor_between_walls_and_furniture_is_found_to_a_centimetre():
    # A step of 4 cm along the wall belongs to the layer that is fullest, and is not the floor.
    walls = [((3.0, -9.0, 0.0), (3.1, 9.0, 3.0)), ((-9.0, 1.5, 0.0), (9.0, 1.6, 3.0)), BOX]
    walls += [((1.0, 0.7, 0.0), (3.0, 1.5, 0.04))]
    for pitch in (0.1, 0.3, 0.5):
        grid = plan(walls, [scene.pose(0, 0, pitch=pitch)] * 4)
        assert grid.origin[2] == pytest.approx(-scene.CAMERA_HEIGHT, abs=0.01), pitch


def test_a_camera_that_sees_no_floor_needs_its_height():
    wall = ((2.0, -9.0, 0.0), (2.1, 9.0, 9.0))
    up = [scene.pose(0, 0, pitch=-0.6)] * 4
    mapper = mapped([wall], up)
    assert mapper.grid() is None
    assert "camera_height" in mapper.missing
    known = Parameters(occupancy_grid=True, camera_height=1.0, grid_max_height=2.5)
    assert at(plan([wall], up, parameters=known), 2.02, 0.0) == OCCUPIED


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scale": Scale()}, "not in metres"),
        ({"scale": Scale(None, "odometry", state=ScaleState.ESTIMATING)}, "not in metres"),
        ({"scale": Scale(1.0, "odometry", state=ScaleState.STALE)}, "stale"),
        ({"up": Up()}, "which way is up"),
    ],
)
def test_without_metres_or_a_vertical_there_is_no_plan_and_a_reason(fields, reason):
    mapper = mapped([BOX], **fields)
    assert mapper.grid() is None
    assert reason in mapper.missing
    assert mapped([BOX], mapper=mapper).missing == ""
    mapped([], mapper=mapper, **fields)
    assert at(mapper.grid(), 2.02, 0.0) == OCCUPIED, "what is not fit changes nothing"


def test_a_lost_camera_marks_nothing():
    mapper = OccupancyMapper(PARAMETERS)
    lost = scene.frame(0, scene.pose(0, 0), [BOX], is_lost=True)
    mapper.add(scene.reconstruction(lost))
    assert mapper.grid() is None


# Bounded


def test_the_window_goes_on_with_the_camera_and_forgets_what_is_farthest(monkeypatch):
    monkeypatch.setattr(height_voxels, "MAX_SIDE", 256)
    mapper = mapped([BOX])
    way = [scene.pose(0.5 * step, 0) for step in range(60)]
    mapped([BOX], way, mapper=mapper)
    grid = mapper.grid()
    assert max(grid.cells.shape) <= 256
    right = grid.origin[0] + grid.cells.shape[1] * grid.resolution
    assert grid.origin[0] > 10.0, "the box at 2 m is forgotten"
    assert right > 34.0
    assert at(grid, 31.0, 0.0) == FREE
    mapped([BOX], [scene.pose(0.5 * step, 0) for step in range(60, -1, -1)], mapper=mapper)
    assert at(mapper.grid(), 2.02, 0.0) == OCCUPIED, "and is seen again"
    assert max(mapper.grid().cells.shape) <= 256


def test_growing_keeps_what_was_seen():
    voxels = HeightVoxels(Band(0.05, 0.1, 1.5, 5.0))
    ground = np.array([0.0, 0.0, 1.0, 1.0])
    ahead, left = scene.pose(0, 0), scene.pose(0, 0, yaw=2.0)
    voxels.add(DepthView(scene.depth_of(ahead, [BOX]), scene.INTRINSICS, ahead, ground))
    before = voxels.grid()
    voxels.add(DepthView(scene.depth_of(left, [BOX]), scene.INTRINSICS, left, ground))
    after = voxels.grid()
    assert after.cells.size > before.cells.size
    column, row = np.rint((before.origin - after.origin)[:2] / after.resolution).astype(int)
    height, width = before.cells.shape
    own = after.cells[row : row + height, column : column + width]
    known = before.cells != UNKNOWN
    np.testing.assert_array_equal(own[known], before.cells[known])


# Loops


def test_when_a_loop_moves_the_map_the_plan_moves_with_it():
    mapper = OccupancyMapper(PARAMETERS)
    none = LoopStatus()
    poses = [scene.pose(0, 0)] * 20
    for index, pose in enumerate(poses):
        mapper.add(scene.reconstruction(scene.frame(index, pose, [BOX]), loops=none))
    shift = np.eye(4)
    shift[:3, 3] = [0.0, 1.5, 0.0]
    stamps = np.array([10**9, 10**9 + 19 * scene.PERIOD_NS])
    corrections = KeyframeCorrections(
        stamps, np.zeros(2, int), np.zeros(2, int), np.stack([shift] * 2)
    )
    for index in range(20, 26):
        geometry = scene.frame(index, scene.pose(0, 0), [BOX]).moved(shift)
        mapper.add(
            scene.reconstruction(
                geometry,
                loops=none,
                corrections=corrections if index == 20 else None,
                map_from_odometry=shift,
                odometry_segment=0,
            )
        )
    grid = mapper.grid()
    assert at(grid, 2.02, 1.5) == OCCUPIED
    assert at(grid, 2.02, 0.5) != OCCUPIED, "where the box was before the correction"


def test_a_correction_of_the_scale_moves_the_box_and_leaves_its_height():
    mapper = OccupancyMapper(PARAMETERS)
    none = LoopStatus()
    for index in range(8):
        geometry = scene.frame(index, scene.pose(0, 0), [BOX]).scaled(0.8)
        mapper.add(scene.reconstruction(geometry, loops=none))
    grow = np.diag([1.25, 1.25, 1.25, 1.0])
    stamps = np.array([10**9, 10**9 + 7 * scene.PERIOD_NS])
    corrections = KeyframeCorrections(
        stamps, np.zeros(2, int), np.zeros(2, int), np.stack([grow] * 2)
    )
    for index in range(8, 14):
        geometry = scene.frame(index, scene.pose(0, 0), [BOX])
        mapper.add(
            scene.reconstruction(
                geometry, loops=none, corrections=corrections if index == 8 else None
            )
        )
    grid = mapper.grid()
    assert at(grid, 2.02, 0.0) == OCCUPIED
    assert at(grid, 1.62, 0.0) == FREE, "where it was at four fifths"
