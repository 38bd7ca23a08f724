"""Known cameras as input: interpolated odometry, its gauge, and depth in its metres."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from support.small_network import STACK, open_state

from qvggt_core.errors import CheckpointError
from qvggt_core.evaluate.trajectory import align_sim3
from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.model import VGGT
from qvggt_core.model.camera_encoder import normalise_cameras
from qvggt_core.stream import TorchNetwork
from qvggt_core.stream.conditioning import (
    Conditioning,
    KnownCameras,
    OdometryPoses,
    similarity_scale,
)
from qvggt_core.stream.frame import View

SECOND = 1_000_000_000
INTRINSICS = np.array([[40.0, 0.0, 21.0], [0.0, 40.0, 14.0], [0.0, 0.0, 1.0]])


def pose(x: float, degrees: float = 0.0) -> np.ndarray:
    rotation = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    return transform(rotation, np.array([x, 0.0, 0.0]))


def view(stamp_ns: int, calibrated: bool = True, source: str = "") -> View:
    image = np.random.default_rng(stamp_ns % 97).integers(0, 256, (28, 42, 3)).astype(np.uint8)
    return View(stamp_ns, image, INTRINSICS if calibrated else None, source=source)


# --- odometry at the images' stamps -------------------------------------------------------


def test_a_pose_between_samples_is_on_the_way_between_them() -> None:
    odometry = OdometryPoses()
    odometry.add(0, pose(0.0, 0.0))
    odometry.add(SECOND // 5, pose(0.4, 20.0))
    found = odometry.at(SECOND // 20)
    np.testing.assert_allclose(found, pose(0.1, 5.0), atol=1e-12)


def test_odometry_that_is_a_little_late_is_extrapolated_and_no_further() -> None:
    odometry = OdometryPoses()
    odometry.add(0, pose(0.0, 0.0))
    odometry.add(SECOND // 10, pose(0.1, 10.0))
    np.testing.assert_allclose(odometry.at(SECOND // 5), pose(0.2, 20.0), atol=1e-12)
    assert odometry.at(SECOND // 5 + 1) is None


@pytest.mark.parametrize("stamp", [-1, SECOND])
def test_before_the_first_sample_and_in_a_gap_nothing_is_known(stamp) -> None:
    odometry = OdometryPoses()
    odometry.add(0, pose(0.0))
    odometry.add(2 * SECOND, pose(1.0))
    assert odometry.at(stamp) is None


def test_time_that_goes_back_begins_anew() -> None:
    odometry = OdometryPoses()
    for stamp in (0, SECOND // 10, 5):
        odometry.add(stamp, pose(1.0))
    assert odometry.at(SECOND // 20) is None


# --- which windows are conditioned --------------------------------------------------------


def test_a_window_without_calibration_or_odometry_runs_without_and_the_reason_is_given() -> None:
    conditioning = Conditioning("odometry")
    assert conditioning.cameras([view(0, calibrated=False)]) is None
    assert "CameraInfo" in conditioning.shortfall
    assert conditioning.cameras([view(0)]) is None
    assert "no odometry at 0 ns" in conditioning.shortfall
    conditioning.add_odometry(0, pose(0.3))
    known = conditioning.cameras([view(0)])
    assert conditioning.shortfall == ""
    np.testing.assert_allclose(known.camera_from_world[0], inverse(pose(0.3)))


def test_nothing_is_conditioned_where_nothing_is_wanted() -> None:
    assert Conditioning("none").cameras([view(0)]) is None
    assert Conditioning("intrinsics").cameras([view(0)]).camera_from_world is None


# --- the gauge ----------------------------------------------------------------------------


def test_the_first_camera_becomes_the_world_and_the_median_distance_the_unit() -> None:
    given = inverse(np.stack([pose(1.0, 30.0), pose(3.0, 10.0), pose(7.0, -20.0)]))
    gauge = normalise_cameras(torch.from_numpy(given))
    np.testing.assert_allclose(gauge.camera_from_world[0], np.eye(4)[:3], atol=1e-12)
    assert float(gauge.unit) == pytest.approx(2.0)
    bottom = np.tile([0.0, 0.0, 0.0, 1.0], (3, 1, 1))
    placed = np.concatenate([gauge.camera_from_world.numpy(), bottom], axis=1)
    between = placed[2] @ inverse(placed[1])
    wanted = given[2] @ inverse(given[1])
    np.testing.assert_allclose(between[:3, :3], wanted[:3, :3], atol=1e-12)
    np.testing.assert_allclose(2.0 * between[:3, 3], wanted[:3, 3], atol=1e-12)


def test_cameras_that_hardly_move_are_not_blown_up() -> None:
    gauge = normalise_cameras(torch.from_numpy(inverse(np.stack([pose(0.0), pose(0.01)]))))
    assert float(gauge.unit) == pytest.approx(0.1)


def test_the_scale_is_umeyamas() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    scale, _, _ = align_sim3(source, target)
    assert similarity_scale(source, target) == pytest.approx(scale)
    assert np.isnan(similarity_scale(np.ones((3, 3)), target[:3]))


# --- through the network ------------------------------------------------------------------


def stack_network() -> TorchNetwork:
    model = VGGT(STACK)
    model.load_state_dict(open_state(STACK))
    return TorchNetwork(model.eval())


def test_known_poses_come_back_and_depth_is_in_their_metres() -> None:
    network = stack_network()
    tokens = [network.encode(view(stamp).image) for stamp in range(3)]
    known = KnownCameras(
        np.stack([INTRINSICS] * 3), inverse(np.stack([pose(0.0), pose(1.0, 5.0), pose(2.0)]))
    )
    far = KnownCameras(known.intrinsics, known.camera_from_world.copy())
    far.camera_from_world[:, :3, 3] *= 10.0
    found, tenfold = (network.predict(tokens, 28, 42, None, each) for each in (known, far))
    np.testing.assert_array_equal(found.camera_from_world, known.camera_from_world)
    np.testing.assert_array_equal(found.intrinsics, known.intrinsics)
    assert found.metres_per_unit == 1.0
    # The network sees the same window: what is ten times as far apart is ten times as far away.
    np.testing.assert_allclose(tenfold.depth, 10.0 * found.depth, rtol=1e-4)
    plain = network.predict(tokens, 28, 42)
    assert plain.metres_per_unit is None


def test_the_depth_does_not_depend_on_odometrys_world() -> None:
    network = stack_network()
    tokens = [network.encode(view(stamp).image) for stamp in range(3)]
    poses = np.stack([pose(0.0), pose(1.0, 5.0), pose(2.0, 8.0)])
    moved = transform(Rotation.from_euler("xyz", [0.3, 1.0, -2.0]).as_matrix(), np.ones(3)) @ poses
    intrinsics = np.stack([INTRINSICS] * 3)
    here, there = (
        network.predict(tokens, 28, 42, None, KnownCameras(intrinsics, inverse(each))).depth
        for each in (poses, moved)
    )
    np.testing.assert_allclose(here, there, rtol=1e-4)


def test_with_intrinsics_alone_the_poses_are_the_networks() -> None:
    network = stack_network()
    tokens = [network.encode(view(stamp).image) for stamp in range(3)]
    found = network.predict(tokens, 28, 42, None, KnownCameras(np.stack([INTRINSICS] * 3)))
    assert found.metres_per_unit is None
    np.testing.assert_array_equal(found.intrinsics[0], INTRINSICS)


def test_a_network_without_a_camera_encoder_says_so() -> None:
    from dataclasses import replace

    config = replace(STACK, camera_encoder=False)
    network = TorchNetwork(VGGT(config).initialise().eval())
    tokens = [network.encode(view(stamp).image) for stamp in range(2)]
    with pytest.raises(CheckpointError, match="no camera encoder"):
        network.predict(tokens, 28, 42, None, KnownCameras(np.stack([INTRINSICS] * 2)))
