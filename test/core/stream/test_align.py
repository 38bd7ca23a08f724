"""Windows with gauges of their own come back as one trajectory."""

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from support import known_room as room

from qvggt_core.errors import AlignmentError
from qvggt_core.geometry.poses import inverse, rotation_angle, transform, unproject
from qvggt_core.stream import Anchor, Similarity, align, valid_depth

SIZE, STRIDE = 8, 4


def reconstruct(poses, noise, seed, size=SIZE, stride=STRIDE):
    """Chain windows of known poses; return map_from_camera of all views in metres."""
    rng = np.random.default_rng(seed)
    depths = [room.depth_of(pose) for pose in poses]
    placed, anchors, unit = {}, {}, 0.0
    for start in range(0, len(poses) - size + 1, stride):
        views = range(start, start + size)
        window = room.cut_window(poses[views], [depths[i] for i in views], rng, noise)
        unit = unit or window.metres_per_unit
        prediction = window.prediction
        depth = np.stack(
            [
                valid_depth(d, c, 20)
                for d, c in zip(prediction.depth, prediction.confidence, strict=True)
            ]
        )
        shared = [k for k, i in enumerate(views) if i in anchors]
        if shared:
            alignment = align(
                [anchors[views[k]] for k in shared],
                prediction.camera_from_world[shared],
                depth[shared],
                prediction.confidence[shared],
                1.5,
            )
            assert alignment.overlap == len(shared) == size - stride
            map_from_window = alignment.map_from_window
        else:
            map_from_window = Similarity(1.0, np.eye(3), np.zeros(3))
        for k, i in enumerate(views):
            pose = map_from_window.pose(inverse(prediction.camera_from_world[k]))
            anchors[i] = Anchor(pose, np.float32(map_from_window.scale) * depth[k])
            placed.setdefault(i, pose)
    poses = np.stack([placed[i] for i in sorted(placed)])
    poses[:, :3, 3] *= unit
    return poses


def errors(estimated, true):
    """Return angles in degrees and distances in metres, the first camera laid on the truth."""
    estimated, true = inverse(estimated[0]) @ estimated, inverse(true[0]) @ true
    angles = rotation_angle(np.swapaxes(estimated[:, :3, :3], -1, -2) @ true[:, :3, :3])
    return np.degrees(angles), np.linalg.norm(estimated[:, :3, 3] - true[:, :3, 3], axis=1)


@pytest.mark.parametrize("name", room.FLIGHTS)
def test_exact_windows_come_back_exactly(name):
    poses = room.FLIGHTS[name](40)
    angles, distances = errors(reconstruct(poses, room.Noise(), seed=0), poses)
    assert angles.max() < 1e-9
    assert distances.max() < 1e-5  # float32 depth, 10 m of flight


@pytest.mark.parametrize(
    ("name", "max_angle", "max_distance"),
    # Nine windows with 0.2 degrees, 1 cm, 1 % of scale and 20 % wrong pixels. Distances: of a
    # straight flight of 10 m, of a loop of 12.6 m, and of two cameras that do not leave the spot.
    [
        ("straight", 2.0, 0.35),
        ("pure_rotation", 2.0, 0.1),
        ("hover", 2.0, 0.1),
        ("loop", 2.0, 0.22),
    ],
)
def test_noisy_windows_stay_within_bounds(name, max_angle, max_distance):
    poses = room.FLIGHTS[name](40)
    for seed in range(5):
        angles, distances = errors(reconstruct(poses, room.USUAL, seed), poses)
        assert angles.max() < max_angle
        assert distances.max() < max_distance


@pytest.mark.parametrize("name", room.FLIGHTS)
def test_a_view_with_a_wrong_pose_does_not_turn_the_map(name):
    poses = room.FLIGHTS[name](40)
    # The second view of every window: one of the four by which it is aligned.
    noise = room.Noise(
        angle=0.2, centre=0.01, view_scale=0.01, pixel=0.03, outliers=0.2, wrong_pose=1
    )
    angles, distances = errors(reconstruct(poses, noise, seed=3), poses)
    good = np.arange(40) != 1  # the first window's wrong view was published
    assert angles[good].max() < 2.5
    assert distances[good].max() < 0.35


def test_one_shared_view_is_enough():
    poses = room.straight(20)
    angles, distances = errors(reconstruct(poses, room.Noise(), 1, size=2, stride=1), poses)
    assert angles.max() < 1e-9
    assert distances.max() < 1e-5


def shared_views(noise, count=4, seed=5, name="loop"):
    """Return two windows of the same views: as anchors in the first's gauge, and the second."""
    rng = np.random.default_rng(seed)
    poses = room.FLIGHTS[name](40)[:count]
    depths = [room.depth_of(pose) for pose in poses]
    first = room.cut_window(poses, depths, rng, noise).prediction
    second = room.cut_window(poses, depths, rng, noise).prediction
    anchors = [
        Anchor(inverse(pose), valid_depth(depth, confidence, 20))
        for pose, depth, confidence in zip(
            first.camera_from_world, first.depth, first.confidence, strict=True
        )
    ]
    return anchors, second


def test_agrees_with_a_similarity_fitted_to_the_full_clouds():
    anchors, second = shared_views(room.Noise(angle=0.1, centre=0.005, pixel=0.02))
    found = align(anchors, second.camera_from_world, second.depth, second.confidence, 1.5)

    def cloud(pose, depth):
        points = unproject(depth, room.INTRINSICS)[::6, ::6].reshape(-1, 3)
        return points @ pose[:3, :3].T + pose[:3, 3]

    target = np.concatenate([cloud(anchor.map_from_camera, anchor.depth) for anchor in anchors])
    source = np.concatenate(
        [cloud(inverse(p), d) for p, d in zip(second.camera_from_world, second.depth, strict=True)]
    )
    seen = np.isfinite(target).all(axis=1)
    target, source = target[seen], source[seen]

    def residual(x):
        moved = np.exp(x[0]) * Rotation.from_rotvec(x[1:4]).apply(source) + x[4:7]
        return np.linalg.norm(moved - target, axis=1)

    similarity = found.map_from_window
    start = np.concatenate(
        [
            [np.log(similarity.scale)],
            Rotation.from_matrix(similarity.rotation).as_rotvec(),
            similarity.translation,
        ]
    )
    fitted = least_squares(residual, start, loss="soft_l1", f_scale=0.02).x
    between = Rotation.from_rotvec(fitted[1:4]).as_matrix().T @ similarity.rotation
    assert np.exp(fitted[0]) == pytest.approx(similarity.scale, rel=0.01)
    assert np.degrees(rotation_angle(between)) < 0.3
    # Compared where the cameras are: far from there, angles pass for translations.
    centre = inverse(second.camera_from_world[0])[:3, 3]
    by_fit = np.exp(fitted[0]) * Rotation.from_rotvec(fitted[1:4]).apply(centre) + fitted[4:7]
    by_us = similarity.scale * similarity.rotation @ centre + similarity.translation
    depth = np.nanmedian(anchors[0].depth)
    assert np.linalg.norm(by_fit - by_us) < 0.01 * depth


def test_scale_survives_forty_percent_of_wrong_pixels():
    anchors, second = shared_views(room.Noise(pixel=0.03, outliers=0.4))
    exact_anchors, exact = shared_views(room.Noise())
    found = align(anchors, second.camera_from_world, second.depth, second.confidence, 1.5)
    truth = align(exact_anchors, exact.camera_from_world, exact.depth, exact.confidence, 1.5)
    ratio = np.nanmedian(anchors[0].depth / second.depth[0])
    assert found.map_from_window.scale == pytest.approx(ratio, rel=0.02)
    assert truth.scale_spread == pytest.approx(1.0, abs=1e-5)


def test_views_that_disagree_on_the_scale_are_refused_with_numbers():
    anchors, second = shared_views(room.Noise())
    second.depth[2] *= 1.8
    with pytest.raises(AlignmentError, match=r"factor of 1\.80 \(max_scale_spread is 1\.5\)"):
        align(anchors, second.camera_from_world, second.depth, second.confidence, 1.5)
    second.depth[2] /= 1.4
    found = align(anchors, second.camera_from_world, second.depth, second.confidence, 1.5)
    assert found.scale_spread == pytest.approx(1.8 / 1.4, rel=1e-4)


def test_views_without_common_depth_are_refused():
    anchors, second = shared_views(room.Noise(), count=2)
    for anchor in anchors:
        anchor.depth[:, room.WIDTH // 2 :] = np.nan
    second.depth[..., : room.WIDTH // 2] = np.nan
    with pytest.raises(AlignmentError, match="none of the 2 views"):
        align(anchors, second.camera_from_world, second.depth, second.confidence, 1.5)


def test_no_shared_view_and_poses_that_are_not_finite_are_refused():
    anchors, second = shared_views(room.Noise())
    with pytest.raises(AlignmentError, match="no view"):
        align([], second.camera_from_world[:0], second.depth[:0], second.confidence[:0], 1.5)
    second.camera_from_world[1, 0, 3] = np.nan
    with pytest.raises(AlignmentError, match="not finite"):
        align(anchors, second.camera_from_world, second.depth, second.confidence, 1.5)


def test_similarity_keeps_poses_rigid():
    turn = Rotation.from_euler("xyz", [0.3, -0.2, 0.9]).as_matrix()
    moved = Similarity(3.0, turn, np.array([1.0, 2.0, 3.0])).pose(transform(turn, [1, 0, 0]))
    np.testing.assert_allclose(moved[:3, :3], turn @ turn)
    np.testing.assert_allclose(moved[:3, 3], 3 * turn[:, 0] + [1, 2, 3])
    np.testing.assert_array_equal(moved[3], [0, 0, 0, 1])


def test_valid_depth_drops_the_least_sure_pixels_and_what_is_no_depth():
    depth = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
    confidence = depth[::-1, ::-1].copy()
    depth[0, :3] = [np.nan, 0, -1]
    valid = valid_depth(depth, confidence, 30)
    # Seven pixels are left, and 30 % of them lie below the percentile.
    expected = depth.copy()
    expected[0, :3] = np.nan
    expected[1, 3:] = np.nan
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(valid_depth(depth, np.ones_like(depth), 90)[1], depth[1])
    assert np.isnan(valid_depth(np.full((2, 2), np.inf, np.float32), np.ones((2, 2)), 20)).all()
