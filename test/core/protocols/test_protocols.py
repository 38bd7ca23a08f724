"""The protocols: perfect answers get perfect marks, known errors get the marks that can be computed
by hand, and a scene that cannot be judged says why."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.oracle import Oracle

from qvggt_core.datasets import Co3d, PosedFrame, PosedScene
from qvggt_core.errors import CheckpointError, DatasetError, EvaluationError, ParameterError
from qvggt_core.evaluate.relative_pose import area_under_curve, relative_pose_errors
from qvggt_core.geometry.poses import transform
from qvggt_core.parameters import Parameters
from qvggt_core.protocols import (
    PROTOCOLS,
    SceneResults,
    SurfaceReconstruction,
    make_benchmark,
    run_scenes,
)
from qvggt_core.protocols.window import predict_window, sampled_depth
from qvggt_core.stream import Frame, Preprocessor
from qvggt_core.synthetic.dataset_layouts import CameraChoices, FlightChoices, write_layout
from qvggt_core.synthetic.lens import LensChoice

FRAMES = 12
PARAMETERS = Parameters(confirm=False, refine=False, keyframe_min_motion=0.0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Small data sets with depth, and one to stream."""
    root = tmp_path_factory.mktemp("sets")
    flights = FlightChoices(world="studio", frames=FRAMES, step=0.15)
    camera = CameraChoices(LensChoice(64, 48))
    return {
        layout: write_layout(root / layout, layout, flights, camera)
        for layout in ("co3d", "7scenes", "nrgbd", "tum", "euroc", "re10k")
    }


def opened(sets, layout, **choices):
    """A protocol, its data set and all scenes."""
    benchmark = make_benchmark(layout, **choices)
    root = sets[layout].path
    dataset = Co3d(root, min_images=2) if layout == "co3d" else benchmark.open(root)
    return benchmark, [dataset.load(name) for name in dataset.contents().scenes]


# Perfect answers, in a gauge of their own.


@pytest.mark.parametrize("layout", ["co3d", "re10k"])
def test_perfect_cameras_have_an_auc_of_100(sets, layout):
    benchmark, scenes = opened(sets, layout)
    oracle = Oracle(scenes)
    results = {scene.name: benchmark.judge(scene, oracle, PARAMETERS) for scene in scenes}
    summary = benchmark.summarise(results)
    assert {summary[f"auc_{t}"] for t in (30, 15, 5, 3)} == {100.0}
    assert all(len(result["rotation_deg"]) == 45 for result in results.values())


@pytest.mark.parametrize("layout", ["7scenes", "nrgbd"])
def test_a_perfect_reconstruction_has_an_accuracy_of_0(sets, layout):
    benchmark, scenes = opened(sets, layout, every=4)
    oracle = Oracle(scenes)
    results = {scene.name: benchmark.judge(scene, oracle, PARAMETERS) for scene in scenes}
    summary = benchmark.summarise(results)
    assert summary["accuracy_mean"] < 1e-5
    assert summary["completeness_mean"] < 1e-5
    assert summary["normal_consistency_mean"] > 0.9999
    for result in results.values():
        assert result["frames"] == [0, 4, 8]
        # The oracle's unit.
        assert result["scale"] == pytest.approx(0.4, rel=1e-4)
        assert result["icp_fitness"] == 1.0


@pytest.mark.parametrize("layout", ["tum", "euroc"])
def test_a_perfect_stream_has_no_trajectory_error(sets, layout):
    benchmark, scenes = opened(sets, layout)
    oracle = Oracle(scenes)
    for scene in scenes:
        result = benchmark.judge(scene, oracle, PARAMETERS)
        assert result["coverage"] == 1.0
        assert result["segments"] == 1
        assert result["path_length"] > 1.0
        assert result["ate_rmse"] < 1e-4
        assert result["scale"] == pytest.approx(0.4, rel=1e-3)


# Known errors, computed by hand.


def line_of_cameras(count: int = 10) -> np.ndarray:
    """world_from_camera of cameras along x, all looking the same way."""
    return np.stack([transform(np.eye(3), np.array([float(i), 0, 0])) for i in range(count)])


def camera_scene(tmp_path_factory, poses) -> PosedScene:
    """Frames with distinct images and the given poses."""
    import cv2

    from qvggt_core.geometry.camera import Camera

    root = tmp_path_factory.mktemp("cameras")
    camera = Camera(64, 48, np.array([[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]]))
    rng = np.random.default_rng(0)
    frames = []
    for index, pose in enumerate(poses):
        file = root / f"{index}.png"
        cv2.imwrite(str(file), rng.integers(0, 256, (48, 64, 3)).astype(np.uint8))
        frames.append(PosedFrame(file, camera, pose, index))
    return PosedScene("line", tuple(frames))


def in_order(benchmark, scene) -> np.ndarray:
    """The drawn frames' numbers: the oracle answers in this order."""
    return np.array(benchmark.draw(scene))


def test_cameras_that_roll_more_and_more_about_the_line_between_them(tmp_path_factory):
    """Camera k is turned by 2.3 k degrees about the direction of motion: two that are g apart have
    a rotation error of 2.3 g degrees and none in direction. Of 45 pairs, 10 - g are g apart."""
    scene = camera_scene(tmp_path_factory, line_of_cameras())
    benchmark = make_benchmark("co3d")
    numbers = in_order(benchmark, scene)

    def roll(camera_from_world):
        turns = Rotation.from_rotvec(np.radians(2.3) * numbers[:, None] * [1.0, 0, 0]).as_matrix()
        rolled = camera_from_world.copy()
        rolled[:, :3] = turns @ camera_from_world[:, :3]
        return rolled

    result = benchmark.judge(scene, Oracle([scene], perturb=roll), PARAMETERS)
    pairs = {g: 10 - g for g in range(1, 10)}
    for threshold in (30, 15, 5, 3):
        shares = [
            sum(count for g, count in pairs.items() if 2.3 * g < limit) / 45
            for limit in range(1, threshold + 1)
        ]
        assert result[f"auc_{threshold}"] == pytest.approx(100 * np.mean(shares))
    measured = sorted(result["rotation_deg"])
    expected = sorted(2.3 * g for g, count in pairs.items() for _ in range(count))
    np.testing.assert_allclose(measured, expected, atol=1e-6)
    np.testing.assert_allclose(result["translation_deg"], 0.0, atol=1e-5)


def test_cameras_that_are_all_turned_alike(tmp_path_factory):
    """Every camera is turned by 10.5 degrees about its own vertical: relative rotations are as they
    were, all directions are off by 10.5: none of the limits 1...10 is met, all of 11...30 are."""
    scene = camera_scene(tmp_path_factory, line_of_cameras())
    turn = transform(Rotation.from_rotvec([0, np.radians(10.5), 0]).as_matrix(), np.zeros(3))
    benchmark = make_benchmark("re10k")
    oracle = Oracle([scene], perturb=lambda camera_from_world: turn @ camera_from_world)
    result = benchmark.judge(scene, oracle, PARAMETERS)
    np.testing.assert_allclose(result["rotation_deg"], 0.0, atol=1e-6)
    np.testing.assert_allclose(result["translation_deg"], 10.5, atol=1e-6)
    assert result["auc_30"] == pytest.approx(100 * 20 / 30)
    assert result["auc_15"] == pytest.approx(100 * 5 / 15)
    assert result["auc_5"] == result["auc_3"] == 0.0


def test_noisy_cameras_against_another_way_to_compute_the_same(tmp_path_factory):
    """Angles by SciPy's quaternions and by arc cosines, the curve by a histogram, pair by pair."""
    rng = np.random.default_rng(5)
    turns = Rotation.from_rotvec(rng.normal(0, 0.6, (14, 3))).as_matrix()
    poses = [transform(r, c) for r, c in zip(turns, rng.normal(0, 1, (14, 3)), strict=True)]
    scene = camera_scene(tmp_path_factory, poses)
    benchmark = make_benchmark("co3d")
    noise = np.stack(
        [
            transform(
                Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix(), rng.normal(0, 0.1, 3)
            )
            for _ in range(10)
        ]
    )
    oracle = Oracle([scene], perturb=lambda camera_from_world: noise @ camera_from_world)
    result = benchmark.judge(scene, oracle, PARAMETERS)

    chosen = result["frames"]
    true = [np.linalg.inv(poses[i]) for i in chosen]
    tokens = [oracle.encode(scene.frames[i].image()) for i in chosen]
    estimated = oracle.predict(tokens, 48, 64).camera_from_world
    worst = []
    for i in range(10):
        for j in range(i + 1, 10):
            mine = estimated[i] @ np.linalg.inv(estimated[j])
            its = true[i] @ np.linalg.inv(true[j])
            turn = Rotation.from_matrix(mine[:3, :3]) * Rotation.from_matrix(its[:3, :3]).inv()
            cosine = mine[:3, 3] @ its[:3, 3]
            cosine /= np.linalg.norm(mine[:3, 3]) * np.linalg.norm(its[:3, 3])
            worst.append(max(np.degrees(turn.magnitude()), np.degrees(np.arccos(abs(cosine)))))
    for threshold in (30, 15, 5, 3):
        counts, _ = np.histogram(worst, bins=np.arange(threshold + 1))
        area = np.mean(np.cumsum(counts) / 45)
        assert result[f"auc_{threshold}"] == pytest.approx(100 * area)
    assert 20 < result["auc_30"] < 90, "a case in which right and wrong differ"


def test_the_world_frame_and_the_unit_do_not_matter(tmp_path_factory):
    scene = camera_scene(tmp_path_factory, line_of_cameras())
    motion = transform(Rotation.from_rotvec([1.0, 2.0, 3.0]).as_matrix(), np.array([5.0, 6, 7]))
    oracle = Oracle([scene], perturb=lambda camera_from_world: camera_from_world @ motion)
    assert make_benchmark("co3d").judge(scene, oracle, PARAMETERS)["auc_3"] == 100.0


def test_opposite_directions_count_as_the_same_when_folded():
    truth = line_of_cameras(2)
    estimate = truth.copy()
    estimate[1, 0, 3] *= -1
    assert relative_pose_errors(estimate, truth).translation == pytest.approx([180.0])
    assert relative_pose_errors(estimate, truth, fold_direction=True).translation == pytest.approx(
        [0.0], abs=1e-6
    )
    estimate[1, 0, 3] = 0.0
    assert relative_pose_errors(estimate, truth, fold_direction=True).translation == [90.0]


def test_a_groups_auc_is_over_its_pairs_and_groups_weigh_the_same():
    """Two sequences of one category, with errors of 0.5 and 40; one of another, with 0.5."""
    benchmark = make_benchmark("co3d")

    def result(error, count):
        return {"rotation_deg": [error] * count, "translation_deg": [0.0] * count}

    results = {
        "apple/1": result(0.5, 45),
        "apple/2": result(40.0, 45),
        "bench/1": result(0.5, 45),
    }
    assert benchmark.summarise(results)["auc_30"] == pytest.approx((50 + 100) / 2)
    assert benchmark.summarise(results)["rotation"] == 0.5
    # RealEstate10K's clips have no categories: all pairs count alike.
    clips = {name.replace("/", "_"): value for name, value in results.items()}
    assert benchmark.summarise(clips)["auc_30"] == pytest.approx(200 / 3)


def wall(shape=(2, 48, 64)) -> np.ndarray:
    """Points of views of a wall with a step, 2 and 3 m away, in the first camera."""
    columns, rows = np.meshgrid(np.arange(shape[2]), np.arange(shape[1]))
    depth = np.where(columns < 40, 2.0, 3.0)
    points = np.stack([(columns - 32) / 50 * depth, (rows - 24) / 50 * depth, depth], axis=-1)
    return np.broadcast_to(points, (*shape, 3)).copy()


def test_scale_shift_and_a_small_motion_are_aligned_away():
    truth = wall()
    truth[1] += [0.3, 0.1, 0.0]
    turn = Rotation.from_rotvec([0.002, -0.003, 0.001]).as_matrix()
    estimate = (truth @ turn.T + [0.004, 0.002, 0.2]) / 3.7
    result = make_benchmark("7scenes").compare(estimate, truth, np.ones(truth.shape[:3], bool))
    assert result["accuracy_mean"] < 2e-3
    assert result["completeness_mean"] < 2e-3


def test_an_offset_beyond_the_alignments_reach_stays():
    """In one of three views, the wall stands half a metre too far away. The medians are those of
    the other views, ICP pairs nothing over 0.1 m, so a third of the points is 0.5 m off."""
    truth = np.concatenate([wall((1, 48, 64))] * 3)
    truth[:, ..., 2] = 2.0
    truth[0, ..., 0] -= 0.013
    truth[2, ..., 0] += 0.013
    estimate = truth.copy()
    estimate[1, ..., 2] += 0.5
    benchmark = make_benchmark("7scenes")
    result = benchmark.compare(estimate, truth, np.ones(truth.shape[:3], bool))
    # What moves the median distance from the middle changes the scale by a few per mille.
    assert result["accuracy_mean"] == pytest.approx(0.5 / 3, abs=0.01)
    assert result["accuracy_median"] < 0.02
    assert result["icp_fitness"] == pytest.approx(2 / 3, abs=0.01)


def test_only_the_middle_of_the_images_is_compared():
    """224 of CUT3R's 384 rows are 28 of 48, as many columns."""
    truth = wall()
    valid = np.ones(truth.shape[:3], bool)
    assert make_benchmark("nrgbd").compare(truth, truth, valid)["points"] == 2 * 28 * 28
    estimate = truth.copy()
    middle = np.s_[:, 24 - 14 : 24 + 14, 32 - 14 : 32 + 14]
    outside = np.ones(valid.shape, bool)
    outside[middle] = False
    estimate[outside] += np.random.default_rng(0).normal(0, 1e-3, (outside.sum(), 3))
    assert make_benchmark("nrgbd").compare(estimate, truth, valid)["accuracy_mean"] < 1e-3


# Which frames.


def test_a_draw_depends_on_seed_and_name_alone(sets):
    benchmark, (scene, other) = opened(sets, "co3d")
    drawn = benchmark.draw(scene)
    assert drawn == benchmark.draw(scene)
    assert len(set(drawn)) == 10
    assert drawn != benchmark.draw(other)
    assert drawn != replace(benchmark, seed=1).draw(scene)
    # Published results name this draw; a change of it would change them.
    assert scene.name == "studio/1_1"
    assert drawn == [8, 3, 9, 0, 4, 11, 5, 6, 1, 10]


def test_keyframes_of_both_data_sets(sets):
    _, (scene, *_) = opened(sets, "nrgbd")
    long = PosedScene("long", scene.frames * 84)
    assert len(long.frames) == 1008
    assert make_benchmark("7scenes").keyframes(long) == [0, 200, 400, 600, 800, 1000]
    assert make_benchmark("nrgbd").keyframes(long) == [0, 500, 1000]
    # CUT3R's rule for short sequences of NRGBD: half of them apart.
    assert make_benchmark("nrgbd").keyframes(scene) == [0, 6]
    assert make_benchmark("7scenes").keyframes(scene) == [0]
    unknown = PosedScene("gap", (replace(scene.frames[0], world_from_camera=None), *scene.frames))
    assert make_benchmark("nrgbd", every=2).keyframes(unknown) == [2, 4, 6, 8, 10, 12]


def test_choices_are_checked():
    assert PROTOCOLS == ("co3d", "re10k", "7scenes", "nrgbd", "tum", "euroc")
    with pytest.raises(ParameterError, match="there is no protocol 'kitti'; known: co3d"):
        make_benchmark("kitti")
    with pytest.raises(ParameterError, match="the protocol tum has no choice 'frames'"):
        make_benchmark("tum", frames=10)
    with pytest.raises(ParameterError, match=r"1 frame\(s\) make no pair"):
        make_benchmark("co3d", frames=1)
    with pytest.raises(ParameterError, match="no points 'mesh'; known: depth, head"):
        make_benchmark("nrgbd", points="mesh")
    for layout in ("7scenes", "tum"):
        with pytest.raises(ParameterError, match="must be at least 1"):
            make_benchmark(layout, every=0)


# What the network sees.


def test_views_of_different_heights_get_white_rows(tmp_path_factory):
    import cv2

    from qvggt_core.geometry.camera import Camera

    root = tmp_path_factory.mktemp("heights")
    frames = []
    for index, height in enumerate((48, 32)):
        file = root / f"{index}.png"
        cv2.imwrite(str(file), np.full((height, 64, 3), 50 + index, np.uint8))
        camera = Camera(64, height, np.array([[50.0, 0, 32], [0, 50.0, height / 2], [0, 0, 1]]))
        frames.append(PosedFrame(file, camera, np.eye(4), index))

    class Seeing(Oracle):
        def encode(self, image):
            return image

        def predict(self, tokens, height, width, newest=None):
            self.seen = np.stack(tokens)
            oracle = Oracle.predict(self, list(self._known), height, width)
            return replace(oracle, depth=np.ones((2, height, width), np.float32))

    network = Seeing([PosedScene("one", (frames[0],))] * 2)
    network._known = dict.fromkeys((b"a", b"b"), next(iter(network._known.values())))
    window = predict_window(network, frames)
    assert network.seen.shape == (2, 48, 64, 3)
    assert (network.seen[1, :8] == 255).all()
    assert (network.seen[1, 8:40] == 51).all()
    assert (network.seen[1, 40:] == 255).all()
    assert window.views[1].intrinsics[1, 2] == pytest.approx(16 + 8)
    # Depth of the padded rows is that of nothing.
    depth = sampled_depth(np.ones((32, 64), np.float32), frames[1].camera, window.views[1])
    assert np.isnan(depth[:8]).all()
    assert np.isfinite(depth[8:40]).all()


def test_poses_from_matches_are_judged_where_they_are_asked_for(sets):
    _, (scene, *_) = opened(sets, "tum")
    frames = list(scene.frames[:2])

    class Matching(Oracle):
        patch_size, finds_matches = 8, True

        def predict(self, tokens, height, width):
            oracle = super().predict(tokens, height, width)
            patches = height // 8 * (width // 8)
            return replace(
                oracle,
                intrinsics=oracle.intrinsics * [[1.5, 1, 1], [1, 1.5, 1], [1, 1, 1]],
                similarity=np.zeros((2, 2, patches, patches), np.float32),
            )

    network = Matching([scene])
    assert not predict_window(network, frames).prediction.is_solved
    window = predict_window(network, frames, "matches")
    assert window.prediction.is_solved
    # The data set's calibration is not for the network.
    known = window.views[0].intrinsics[0, 0]
    assert np.allclose(window.prediction.intrinsics[:, 0, 0], 1.5 * known)
    with pytest.raises(CheckpointError, match="finds no matches"):
        predict_window(Oracle([scene]), frames, "matches")


def test_sampled_depth_takes_the_pixel_that_a_view_shows(sets):
    _, (scene, *_) = opened(sets, "tum")
    frame = scene.frames[0]
    columns = np.broadcast_to(np.arange(64, dtype=np.float32), (48, 64))
    view = Preprocessor(32, 8).view(Frame(0, frame.image(), frame.camera))
    # At half the size, the middle of a view's pixel lies between two: 0 and 1, 2 and 3, ...
    sampled = sampled_depth(columns, frame.camera, view)
    assert sampled.shape == (24, 32)
    np.testing.assert_allclose(sampled[0], np.arange(32) * 2 + 0.5, atol=0.51)


# What cannot be judged says why.


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        (line_of_cameras(4), "scene line has 4 frames with a pose, 10 are drawn"),
        ([np.eye(4)] * 12, "none of the 45 pairs has a baseline"),
    ],
)
def test_scenes_without_pairs(tmp_path_factory, poses, message):
    scene = camera_scene(tmp_path_factory, poses)
    with pytest.raises(EvaluationError, match=message):
        make_benchmark("co3d").judge(scene, Oracle([scene]), PARAMETERS)


def test_predictions_that_are_not_finite(tmp_path_factory):
    scene = camera_scene(tmp_path_factory, line_of_cameras())

    def broken(camera_from_world):
        camera_from_world[3:5] = np.nan
        return camera_from_world

    with pytest.raises(EvaluationError, match="2 of 10 predicted cameras are not finite"):
        make_benchmark("co3d").judge(scene, Oracle([scene], perturb=broken), PARAMETERS)


def test_degenerate_pose_errors_say_what_is_wrong():
    poses = line_of_cameras(3)
    with pytest.raises(EvaluationError, match=r"1 camera\(s\) make no pair"):
        relative_pose_errors(poses[:1], poses[:1])
    with pytest.raises(EvaluationError, match=r"shapes \(3, 4, 4\) and \(2, 4, 4\)"):
        relative_pose_errors(poses, poses[:2])
    broken = poses.copy()
    broken[1, 0, 0] = np.nan
    with pytest.raises(
        EvaluationError, match="1 of 3 true poses are not finite, the first is numb"
    ):
        relative_pose_errors(poses, broken)
    with pytest.raises(EvaluationError, match="1 of 2 pose errors are not finite"):
        area_under_curve(np.array([1.0, np.nan]), 30)
    with pytest.raises(EvaluationError, match="a threshold of 0 degrees"):
        area_under_curve(np.array([1.0]), 0)
    still = np.stack([np.eye(4)] * 3)
    assert len(relative_pose_errors(still, still).rotation) == 0
    with pytest.raises(EvaluationError, match="at least one pair"):
        area_under_curve(relative_pose_errors(still, still).worst, 30)


def test_reconstruction_without_truth_or_points(sets):
    benchmark, (scene, *_) = opened(sets, "nrgbd")
    oracle = Oracle([scene])
    nothing = PosedScene(
        "dark",
        tuple(
            replace(frame, read_depth=lambda: np.full((48, 64), np.nan, np.float32))
            for frame in scene.frames
        ),
    )
    with pytest.raises(EvaluationError, match="scene dark: the true depth is invalid in all 2"):
        benchmark.judge(nothing, oracle, PARAMETERS)
    lost = PosedScene("lost", tuple(replace(f, world_from_camera=None) for f in scene.frames))
    with pytest.raises(EvaluationError, match="scene lost: none of the keyframes of its 12 frames"):
        benchmark.judge(lost, oracle, PARAMETERS)
    with pytest.raises(EvaluationError, match="it has no point head"):
        make_benchmark("nrgbd", points="head").judge(scene, oracle, PARAMETERS)


def test_the_point_heads_points_are_taken_when_asked_for(sets):
    _, (scene, *_) = opened(sets, "nrgbd")
    benchmark = make_benchmark("nrgbd", points="head")
    oracle = Oracle([scene])

    class WithPoints:
        image_width, patch_size, encode = oracle.image_width, oracle.patch_size, oracle.encode

        def predict(self, tokens, height, width, newest=None):
            prediction = oracle.predict(tokens, height, width)
            by_depth = SurfaceReconstruction._estimate(
                replace(benchmark, points="depth"), _window(prediction)
            )
            # Depth that would give a bad mark, were it used.
            return replace(prediction, depth=prediction.depth**2, world_points=by_depth)

    assert benchmark.judge(scene, WithPoints(), PARAMETERS)["accuracy_mean"] < 1e-5


def _window(prediction):
    from qvggt_core.protocols.window import PredictedWindow

    return PredictedWindow(prediction, (), 0.0)


def test_trajectories_without_truth_or_motion(sets):
    benchmark, (scene, *_) = opened(sets, "tum")
    oracle = Oracle([scene])
    lost = PosedScene(
        "lost",
        (scene.frames[0], *(replace(f, world_from_camera=None) for f in scene.frames[1:])),
    )
    with pytest.raises(EvaluationError, match="scene lost: 1 of 12 images have a true pose"):
        benchmark.judge(lost, oracle, PARAMETERS)
    pose = scene.frames[0].world_from_camera
    still = PosedScene("still", tuple(replace(f, world_from_camera=pose) for f in scene.frames))
    with pytest.raises(EvaluationError, match="all 12 true positions are the same"):
        benchmark.judge(still, oracle, PARAMETERS)


# The runner.


class Counting:
    """A protocol that counts what it judges."""

    columns = ()

    def __init__(self):
        self.judged = []

    def judge(self, scene, network, parameters):
        self.judged.append(scene)
        if scene == "bad":
            raise RuntimeError("the file bites")
        return {"scene": scene, "seconds": 0.0}


class Names:
    """A data set whose scenes are their names."""

    def load(self, name):
        if name == "gone":
            raise DatasetError("gone lacks 1 file(s): x.png", ("x.png",))
        return name


def run(directory, names, benchmark=None, identity=None, **options):
    return run_scenes(
        benchmark or Counting(),
        Names(),
        names,
        None,
        PARAMETERS,
        SceneResults(directory, identity or {"model": "m"}),
        **options,
    )


def test_a_run_goes_on_where_it_stopped(tmp_path):
    seen = []
    first = run(tmp_path, ("a/1", "a/2", "a/3"), stop=lambda: len(seen) == 3, progress=_into(seen))
    assert first.interrupted
    assert list(first.results) == ["a/1", "a/2"]
    counting = Counting()
    second = run(tmp_path, ("a/1", "a/2", "a/3"), counting)
    assert counting.judged == ["a/3"]
    assert list(second.results) == ["a/1", "a/2", "a/3"]
    assert not second.interrupted


def _into(seen):
    return lambda done, total: seen.append((done, total))


def test_a_broken_scene_leaves_the_others_and_is_judged_again(tmp_path):
    result = run(tmp_path, ("a", "bad", "gone", "b"))
    assert list(result.results) == ["a", "b"]
    assert result.failures == {
        "bad": "RuntimeError: the file bites",
        "gone": "gone lacks 1 file(s): x.png",
    }
    assert result.missing == ["x.png"]
    counting = Counting()
    run(tmp_path, ("a", "bad", "gone", "b"), counting)
    assert counting.judged == ["bad"]


def test_a_damaged_result_is_made_again(tmp_path):
    run(tmp_path, ("a",))
    (tmp_path / "a.json").write_text('{"scene": "a", ')
    counting = Counting()
    run(tmp_path, ("a",), counting)
    assert counting.judged == ["a"]
    assert json.loads((tmp_path / "a.json").read_text())["scene"] == "a"


def test_results_of_another_network_are_not_mixed_in(tmp_path):
    run(tmp_path, ("a",))
    with pytest.raises(EvaluationError, match="model: 'm' there, 'n' now"):
        run(tmp_path, ("a",), identity={"model": "n"})


def test_names_of_scenes_stay_inside_the_directory(tmp_path):
    run(tmp_path / "out", ("../../etc/passwd", "chess/seq-01"))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "..%2F..%2Fetc%2Fpasswd.json",
        "chess%2Fseq-01.json",
        "run.json",
    ]
