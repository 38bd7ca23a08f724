"""Windows solved by matches, against a furnished room whose geometry is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.box_scene import HEIGHT, INTRINSICS, WIDTH, depth_of, pose

from qvggt_core.errors import CheckpointError
from qvggt_core.evaluate.depth import window_depth_errors
from qvggt_core.evaluate.relative_pose import relative_pose_errors
from qvggt_core.geometry.poses import inverse, rotation_angle
from qvggt_core.stream import poses_from_matches
from qvggt_core.stream.dense_triangulation import DenseDepth
from qvggt_core.stream.frame import View, WindowPrediction
from qvggt_core.stream.matched_poses import solve_window
from qvggt_core.stream.poses_from_matches import PosesFromMatches
from qvggt_core.stream.view_matches import ViewMatches

PATCH = 8
BOXES = [([2, -1, 0], [2.6, 0, 0.9]), ([3, 0.4, 0], [3.5, 1.2, 0.6]), ([4, -3, 0], [4.5, 3, 2.5])]
DRIVE = [pose(0.0, 0.0), pose(0.15, 0.2, -0.05), pose(0.3, 0.35, -0.1), pose(0.5, 0.45, -0.12)]
TURN = [pose(0.0, 0.0, yaw) for yaw in (0.0, 0.06, 0.13, 0.2)]


def middles():
    rows, columns = np.divmod(np.arange(HEIGHT // PATCH * (WIDTH // PATCH)), WIDTH // PATCH)
    return np.column_stack([columns, rows]) * PATCH + 0.5 * (PATCH - 1)


def at(depth, pixels):
    columns, rows = np.rint(pixels).astype(int).T
    return depth[rows.clip(0, HEIGHT - 1), columns.clip(0, WIDTH - 1)]


def true_matches(poses, depths, noise=0.3, outliers=0.1):
    """Where projection puts patches, with noise in pixels and a share of nonsense."""
    rng, own, count = np.random.default_rng(0), middles(), len(poses)
    places = np.tile(own, (count, count, 1, 1))
    is_found = np.zeros(places.shape[:3], bool)
    rays = np.column_stack([own, np.ones(len(own))]) @ np.linalg.inv(INTRINSICS).T
    for i in range(count):
        # Depth where the ray is, not at the pixel next to it.
        points = rays * at(depths[i], own)[:, None]
        for j in range(count):
            move = inverse(poses[j]) @ poses[i]
            there = points @ move[:3, :3].T + move[:3, 3]
            pixels = (there / there[:, 2:] @ INTRINSICS.T)[:, :2]
            inside = ((pixels > 0) & (pixels < [WIDTH - 1, HEIGHT - 1])).all(axis=1)
            seen = inside & (np.abs(at(depths[j], np.nan_to_num(pixels)) / there[:, 2] - 1) < 0.05)
            pixels = pixels + rng.normal(0, noise, pixels.shape)
            wrong = rng.random(len(own)) < outliers
            pixels[wrong] = rng.uniform(0, [WIDTH - 1, HEIGHT - 1], (wrong.sum(), 2))
            places[i, j], is_found[i, j] = np.nan_to_num(pixels), seen & (i != j)
    return ViewMatches(own, places, is_found)


def wavy(depth, size=0.3, seed=1):
    """Depth that is off as a network's is: by a smooth factor."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    wave = sum(np.sin(a * rows + b * columns + c) for a, b, c in rng.uniform(0, 2 * np.pi, (4, 3)))
    return (depth * np.exp(size * wave / wave.std())).astype(np.float32)


def scene(poses):
    """Return a prediction that has trivial poses and wrong depth, its matches, and true depth."""
    depths = np.stack([depth_of(each, BOXES, far=50.0) for each in poses])
    wrong = np.stack([wavy(depth, seed=seed) for seed, depth in enumerate(depths)])
    count = len(poses)
    predicted = np.tile(np.eye(4), (count, 1, 1))
    predicted[1:, :3, 3] = [0.01, 0.0, 0.02]
    prediction = WindowPrediction(
        predicted, np.tile(INTRINSICS, (count, 1, 1)), wrong, np.full_like(wrong, 2.0)
    )
    return prediction, true_matches(poses, depths), depths


def errors(solved, poses):
    return relative_pose_errors(solved.camera_from_world, inverse(np.stack(poses)))


def test_poses_come_from_matches_although_depth_and_predicted_poses_are_wrong():
    prediction, matches, _ = scene(DRIVE)
    solved = solve_window(prediction, matches, prediction.intrinsics)
    found, before = errors(solved, DRIVE), errors(prediction, DRIVE)
    assert np.median(before.rotation) > 3.0
    assert found.rotation.max() < 0.8
    assert found.translation.max() < 4.0, "degrees, of the directions between all pairs"


def test_lengths_between_views_are_in_proportion():
    prediction, matches, _ = scene(DRIVE)
    solved = solve_window(prediction, matches, prediction.intrinsics)
    mine = inverse(solved.camera_from_world)[:, :3, 3]
    true = np.stack(DRIVE)[:, :3, 3]
    ratio = np.linalg.norm(np.diff(mine, axis=0), axis=1) / np.linalg.norm(
        np.diff(true, axis=0), axis=1
    )
    assert ratio.std() / ratio.mean() < 0.06
    assert 0.6 < ratio.mean() < 1.6, "the unit stays about the network's"


def test_depth_agrees_with_the_matches():
    prediction, matches, depths = scene(DRIVE)
    solved = solve_window(prediction, matches, prediction.intrinsics)
    before = window_depth_errors(prediction.depth, depths).abs_rel
    after = window_depth_errors(solved.depth, depths).abs_rel
    assert before > 0.2
    assert after < 0.5 * before


@pytest.mark.parametrize("off", [0.8, 1.25])
def test_a_focal_length_that_is_predicted_wrong_comes_out_right(off):
    prediction, matches, _ = scene(DRIVE)
    wrong = prediction.intrinsics.copy()
    wrong[:, [0, 1], [0, 1]] *= off
    solved = solve_window(prediction, matches, wrong, log_focal_sigma=0.1)
    assert abs(np.log(solved.intrinsics[0, 0, 0] / INTRINSICS[0, 0])) < 0.5 * abs(np.log(off))
    assert errors(solved, DRIVE).rotation.max() < 1.0
    left = solve_window(prediction, matches, wrong)
    assert np.array_equal(left.intrinsics, wrong), "a focal length that is known stays"
    assert errors(left, DRIVE).rotation.max() > errors(solved, DRIVE).rotation.max()


def test_a_camera_that_only_turns_does_not_move():
    prediction, matches, depths = scene(TURN)
    solved = solve_window(prediction, matches, prediction.intrinsics)
    true = inverse(np.stack(TURN)) @ TURN[0]
    apart = solved.camera_from_world[:, :3, :3] @ true[:, :3, :3].transpose(0, 2, 1)
    assert np.degrees(rotation_angle(apart)).max() < 0.5
    centres = inverse(solved.camera_from_world)[:, :3, 3]
    assert np.linalg.norm(centres, axis=1).max() < 0.01 * np.nanmedian(depths)


def test_older_views_without_depth_have_poses_all_the_same():
    prediction, matches, depths = scene(DRIVE)
    newest = replace(prediction, depth=prediction.depth[2:], confidence=prediction.confidence[2:])
    solved = solve_window(newest, matches, prediction.intrinsics)
    assert solved.depth.shape == (2, HEIGHT, WIDTH)
    assert errors(solved, DRIVE).rotation.max() < 0.8
    assert window_depth_errors(solved.depth, depths[2:]).abs_rel < 0.15


def test_a_view_that_matches_nothing_stays_where_the_camera_head_puts_it():
    prediction, matches, _ = scene(DRIVE)
    is_found = matches.is_found.copy()
    is_found[3], is_found[:, 3] = False, False
    solved = solve_window(prediction, replace(matches, is_found=is_found), prediction.intrinsics)
    assert np.allclose(solved.camera_from_world[3], prediction.camera_from_world[3])
    assert np.array_equal(solved.depth[3], prediction.depth[3], equal_nan=True)
    assert errors(solved, DRIVE).rotation.reshape(-1)[0] < 0.8


@pytest.mark.parametrize("count", [1, 2])
def test_without_any_match_the_prediction_stands(count):
    prediction, matches, _ = scene(DRIVE[:count])
    nothing = replace(matches, is_found=np.zeros_like(matches.is_found))
    solved = solve_window(prediction, nothing, prediction.intrinsics)
    assert np.allclose(solved.camera_from_world, prediction.camera_from_world)
    assert np.array_equal(solved.depth, prediction.depth, equal_nan=True)


class Exact:
    """A network that finds matches."""

    image_width, patch_size, finds_matches = WIDTH, PATCH, True

    def encode(self, image):
        return image

    def predict(self, tokens, height, width, newest=None, cameras=None):
        raise AssertionError("not asked for")


def without_matches(prediction, **changes):
    """Return a prediction whose patches are all alike."""
    count, patches = len(prediction.intrinsics), len(middles())
    alike = np.zeros((count, count, patches, patches), np.float32)
    return replace(prediction, similarity=alike, **changes)


def views(**fields):
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return [View(i, blank, **fields) for i in range(4)]


@pytest.mark.parametrize(("own_first", "wanted"), [(True, 70.0), (False, 60.0)])
def test_calibrated_cameras_are_taken_as_they_are_if_that_is_wanted(own_first, wanted):
    prediction, _, _ = scene(DRIVE)
    known = np.array([[70.0, 0, 47.0], [0, 70.0, 35.0], [0, 0, 1]])
    solving = PosesFromMatches(Exact(), use_camera_intrinsics=own_first)
    solved = solving.solved(without_matches(prediction), views(intrinsics=known))
    assert np.allclose(solved.intrinsics[:, 0, 0], wanted)
    assert solved.similarity is None, "what is large and asked for once is not kept"


def test_focal_lengths_of_one_camera_become_one():
    prediction, _, _ = scene(DRIVE)
    intrinsics = prediction.intrinsics.copy()
    intrinsics[:, 0, 0] = [40.0, 90.0, 40.0, 90.0]
    seen = views()
    seen[3] = replace(seen[3], source="rear")
    solved = PosesFromMatches(Exact()).solved(
        without_matches(prediction, intrinsics=intrinsics), seen
    )
    mean = (40.0 * 90.0 * 40.0) ** (1 / 3)
    assert np.allclose(solved.intrinsics[:, 0, 0], [mean, mean, mean, 90.0])
    assert np.allclose(solved.intrinsics[:, 1, 1], 60.0)


@pytest.mark.parametrize(
    ("changes", "is_solved_for"),
    [
        ({}, True),
        ({"intrinsics": INTRINSICS}, False),
        ({"source": "rear"}, False),
        ({"count": 2}, False),
    ],
    ids=["one camera", "a calibrated view", "two cameras", "two views"],
)
def test_the_focal_length_of_a_single_camera_is_solved_for(changes, is_solved_for, monkeypatch):
    count = changes.pop("count", 4)
    prediction, _, _ = scene(DRIVE[:count])
    seen = views()[:count]
    seen[-1] = replace(seen[-1], **changes)
    asked = []

    def solving(prediction, matches, intrinsics, log_focal_sigma=0.0):
        asked.append(log_focal_sigma > 0.0)
        return solve_window(prediction, matches, intrinsics, log_focal_sigma)

    monkeypatch.setattr(poses_from_matches, "solve_window", solving)
    PosesFromMatches(Exact()).solved(without_matches(prediction), seen)
    assert asked == [is_solved_for]


def test_depth_of_views_that_others_hardly_show_stays_the_networks(monkeypatch):
    prediction, _, _ = scene(DRIVE)

    def found(images, camera_from_world, intrinsics, depth):
        agrees = np.zeros(depth.shape, bool)
        for view, share in enumerate((0.9, 0.6, 0.4, 0.0)):
            agrees[view, :, : int(share * WIDTH)] = True
        sigma = np.full_like(depth, 0.24)
        return DenseDepth(7.0 * depth, sigma, agrees & np.isfinite(depth))

    monkeypatch.setattr(poses_from_matches, "triangulate_depth", found)
    solved = PosesFromMatches(Exact()).solved(without_matches(prediction), views())
    factor = np.nanmedian(solved.depth / prediction.depth, axis=(1, 2))
    assert np.allclose(factor, [7.0, 7.0, 1.0, 1.0])
    assert np.allclose(solved.confidence[:2], 1.0 + 1.0 / 0.26), "with 0.1 that pixels share"
    assert np.array_equal(solved.confidence[2:], prediction.confidence[2:])


def test_confidence_is_known_where_depth_is_not():
    prediction, _, _ = scene(DRIVE)
    seen = [replace(view, intrinsics=INTRINSICS) for view in views()]
    solved = PosesFromMatches(Exact()).solved(without_matches(prediction), seen)
    assert np.isnan(solved.depth).any()
    assert np.isfinite(solved.confidence).all()
    assert (solved.confidence >= 1.0).all()


@pytest.mark.parametrize("fault", ["poses", "focal"])
def test_a_faulty_prediction_is_left_to_those_who_report_it(fault):
    prediction, _, _ = scene(DRIVE)
    if fault == "poses":
        bad = replace(prediction, camera_from_world=np.full((4, 4, 4), np.nan))
    else:
        bad = replace(prediction, intrinsics=np.full((4, 3, 3), np.nan))
    assert PosesFromMatches(Exact()).solved(bad, views()) is bad


def test_a_network_that_finds_no_matches_is_refused():
    class Other:
        image_width, patch_size = WIDTH, PATCH
        encode = predict = None

    class Untrained(Exact):
        finds_matches = False

    with pytest.raises(CheckpointError, match="Other finds no matches"):
        PosesFromMatches(Other())
    with pytest.raises(CheckpointError, match="Untrained finds no matches"):
        PosesFromMatches(Untrained())
