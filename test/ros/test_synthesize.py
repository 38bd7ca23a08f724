"""Synthetic recordings: what is in them, that it is true, and the same bytes for the same seed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from qvggt_core.errors import OutputError, ParameterError
from qvggt_core.geometry.poses import inverse, transform, unproject
from qvggt_core.synthetic.flight import fly
from qvggt_core.synthetic.lens import LensChoice
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_ros.drivers import synthesize as synthetic_bag
from qvggt_ros.drivers.synthesize import BagOptions, ImageFlaws, SyntheticBag
from qvggt_ros.drivers.synthesize import write_bag as write_with_options
from qvggt_ros.io.recording import open_recording

SMALL = {
    "world": "studio",
    "flight": "survey",
    "seed": 1,
    "frames": 3,
    "lens": LensChoice(64, 48),
}


def write_bag(path: Path, *, overwrite: bool = False, **options: Any) -> SyntheticBag:
    return write_with_options(path, BagOptions(**options), overwrite=overwrite)


def _read(path: Path) -> dict[str, list]:
    messages: dict[str, list] = {}
    with AnyReader([path]) as reader:
        for connection, stamp, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            messages.setdefault(connection.topic, []).append((stamp, message))
    return messages


def _stamp(message) -> int:  # type: ignore[no-untyped-def]
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def _matrix(pose) -> np.ndarray:  # type: ignore[no-untyped-def]
    q, p = pose.orientation, pose.position
    rotation = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    return transform(rotation, np.array([p.x, p.y, p.z]))


def _image(message, dtype: type, channels: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    return message.data.view(dtype).reshape(message.height, message.width, channels)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    bag = write_bag(tmp_path_factory.mktemp("bags") / "bag", **SMALL)
    assert bag.frames == 3
    return _read(bag.path)


def test_every_frame_has_everything_at_its_stamp(recording: dict[str, list]) -> None:
    assert {topic: len(messages) for topic, messages in recording.items()} == {
        "/camera/image_raw": 3,
        "/camera/camera_info": 3,
        "/camera/depth": 3,
        "/ground_truth/pose": 3,
        "/odom": 3,
        "/tf": 3,
        "/tf_static": 1,
    }
    stamps = [stamp for stamp, _ in recording["/camera/image_raw"]]
    assert np.diff(stamps).tolist() == [100_000_000] * 2
    for topic in ("/camera/image_raw", "/camera/camera_info", "/camera/depth", "/odom"):
        assert [_stamp(message) for _, message in recording[topic]] == stamps


def test_poses_are_the_flights(recording: dict[str, list]) -> None:
    expected = fly(make_world("studio", 0), "survey", 3, seed=1, step=0.08)
    poses = [_matrix(message.pose) for _, message in recording["/ground_truth/pose"]]
    np.testing.assert_allclose(poses, expected, atol=1e-9)


def test_depth_and_pose_agree_between_frames(recording: dict[str, list]) -> None:
    poses = [_matrix(message.pose) for _, message in recording["/ground_truth/pose"]]
    depth = [_image(m, np.float32, 1)[..., 0] for _, m in recording["/camera/depth"]]
    k = recording["/camera/camera_info"][0][1].k.reshape(3, 3)
    last_from_first = inverse(poses[-1]) @ poses[0]
    points = unproject(depth[0], k).reshape(-1, 3) @ last_from_first[:3, :3].T
    points += last_from_first[:3, 3]
    u = np.rint(points[:, 0] / points[:, 2] * k[0, 0] + k[0, 2]).astype(int)
    v = np.rint(points[:, 1] / points[:, 2] * k[1, 1] + k[1, 2]).astype(int)
    inside = (u >= 0) & (u < 64) & (v >= 0) & (v < 48)
    ratio = depth[-1][v[inside], u[inside]] / points[inside, 2]
    assert inside.mean() > 0.6
    assert np.mean(np.abs(ratio - 1) < 0.03) > 0.85


def test_odometry_starts_at_zero_drifts_a_little_and_is_in_the_tree(
    recording: dict[str, list],
) -> None:
    odometry = [_matrix(message.pose.pose) for _, message in recording["/odom"]]
    np.testing.assert_allclose(odometry[0], np.eye(4), atol=1e-12)
    fixed = recording["/tf_static"][0][1].transforms[0]
    assert (fixed.header.frame_id, fixed.child_frame_id) == ("base_link", "camera_optical_frame")
    moving = recording["/tf"][-1][1].transforms[0]
    assert (moving.header.frame_id, moving.child_frame_id) == ("odom", "base_link")
    truth = [_matrix(message.pose) for _, message in recording["/ground_truth/pose"]]
    q, t = fixed.transform.rotation, fixed.transform.translation
    base_from_camera = transform(
        Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix(), np.array([t.x, t.y, t.z])
    )
    true_motion = base_from_camera @ inverse(truth[0]) @ truth[-1] @ inverse(base_from_camera)
    drift = np.linalg.norm(true_motion[:3, 3] - odometry[-1][:3, 3])
    assert 0 < drift < 0.05 * np.linalg.norm(true_motion[:3, 3]) + 0.01


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_equal_seeds_give_equal_messages(tmp_path: Path, storage: str) -> None:
    def digest(name: str, seed: int) -> str:
        path = write_bag(tmp_path / name, **{**SMALL, "seed": seed}, storage=storage).path
        with AnyReader([path]) as reader:
            content = [(c.topic, stamp, bytes(data)) for c, stamp, data in reader.messages()]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    assert digest("a", 1) == digest("b", 1)
    assert digest("c", 3) != digest("a2", 1)


def test_mcap_files_are_equal_byte_for_byte(tmp_path: Path) -> None:
    files = [
        next(write_bag(tmp_path / name, **SMALL).path.glob("*.mcap")).read_bytes()
        for name in ("x/bag", "y/bag")
    ]
    assert files[0] == files[1]


def test_compressed_images_hold_the_same_pixels(tmp_path: Path, recording: dict[str, list]) -> None:
    messages = _read(write_bag(tmp_path / "bag", **SMALL, compressed=True).path)
    _, picture = messages["/camera/image_raw/compressed"][0]
    pixels = cv2.imdecode(picture.data, cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(pixels, _image(recording["/camera/image_raw"][0][1], np.uint8, 3))


def test_a_distorted_picture_undistorts_to_the_plain_one(tmp_path: Path) -> None:
    still = {**SMALL, "lens": LensChoice(160, 120), "frames": 1}
    clean = ImageFlaws(noise=0.0, exposure=0.0)
    plain = _read(write_bag(tmp_path / "plain", **still, flaws=clean).path)
    bent = _read(write_bag(tmp_path / "bent", **still, flaws=replace(clean, distortion=True)).path)
    _, info = bent["/camera/camera_info"][0]
    assert np.abs(info.d).max() > 0.1
    pixels = _image(bent["/camera/image_raw"][0][1], np.uint8, 3)
    straight = cv2.undistort(pixels, info.k.reshape(3, 3), info.d).astype(int)
    expected = _image(plain["/camera/image_raw"][0][1], np.uint8, 3).astype(int)
    middle = np.s_[15:-15, 20:-20]
    untouched = np.abs(pixels.astype(int) - expected)[middle].mean()
    assert np.abs(straight - expected)[middle].mean() < 0.4 * untouched


def test_what_exists_is_only_replaced_when_asked(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", **SMALL).path
    with pytest.raises(OutputError, match="exists"):
        write_bag(path, **SMALL)
    write_bag(path, **SMALL, overwrite=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    with pytest.raises(OutputError, match="no synthetic recording"):
        write_bag(tmp_path / "precious", **SMALL, overwrite=True)
    assert (tmp_path / "precious" / "file").read_text() == "keep"


def test_a_recording_of_the_user_and_files_beside_ours_are_never_replaced(tmp_path: Path) -> None:
    ours = write_bag(tmp_path / "bag", **SMALL).path
    (ours / "notes.txt").write_text("keep")
    with pytest.raises(OutputError, match="left alone"):
        write_bag(ours, **SMALL, overwrite=True)
    assert (ours / "notes.txt").read_text() == "keep"
    (ours / "notes.txt").unlink()
    text = (ours / "metadata.yaml").read_text()
    (ours / "metadata.yaml").write_text(text.replace("qvggt: synthetic", "robot: 7"))
    with pytest.raises(OutputError, match="no synthetic recording"):
        write_bag(ours, **SMALL, overwrite=True)
    assert len(_read(ours)["/camera/image_raw"]) == 3


@pytest.mark.parametrize("name", ["flight#2", "run?1", "50%20speed"])
def test_names_that_mean_something_in_addresses_are_names(name: str, tmp_path: Path) -> None:
    path = write_bag(tmp_path / name, **SMALL, storage="sqlite3").path
    with open_recording(path) as recording:
        assert recording.count("/camera/image_raw") == 3
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_killed_run_stands_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "bag"
    # The process ends without any clean-up, as by SIGKILL, when the second image is due.
    program = (
        "import os, sys; from pathlib import Path; from qvggt_ros.drivers import synthesize as s; "
        "from qvggt_core.synthetic.lens import LensChoice; "
        "picture = s.Lens.picture; count = iter(range(2)); "
        "s.Lens.picture = lambda *a: picture(*a) if next(count, None) == 0 else os._exit(9); "
        f"s.write_bag(Path(sys.argv[1]), s.BagOptions(**{SMALL!r}))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert not path.exists()
    write_bag(path, **SMALL)
    assert len(_read(path)["/camera/image_raw"]) == 3


def test_a_failed_run_keeps_what_was_there_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bag(tmp_path / "bag", **SMALL).path
    before = next(path.glob("*.mcap")).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(synthetic_bag, "expose", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bag(path, **SMALL, overwrite=True)
    assert next(path.glob("*.mcap")).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bag"]


def test_a_longer_exposure_blurs_what_moves_and_nothing_else(tmp_path: Path) -> None:
    fast, clean = {**SMALL, "step": 0.3}, ImageFlaws(noise=0.0, exposure=0.0)
    sharp = _read(write_bag(tmp_path / "sharp", **fast, flaws=replace(clean, shutter=0.0)).path)
    blurred = _read(write_bag(tmp_path / "blurred", **fast, flaws=replace(clean, shutter=0.8)).path)
    pictures = [_image(bag["/camera/image_raw"][1][1], np.uint8, 3) for bag in (sharp, blurred)]
    detail = [cv2.Laplacian(picture, cv2.CV_64F).std() for picture in pictures]
    assert detail[1] < 0.7 * detail[0]
    for topic in ("/camera/depth", "/ground_truth/pose", "/odom"):
        assert repr(sharp[topic]) == repr(blurred[topic])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"storage": "zip"}, "zip"),
        ({"lens": LensChoice(2, 48)}, "2x48"),
        ({"rate_hz": 0.0}, "0.0 Hz"),
        ({"lens": LensChoice(64, 48, 200.0)}, "200"),
        ({"flaws": ImageFlaws(shutter=1.5)}, "shutter of 1.5"),
        ({"world": "moon"}, "moon"),
        ({"flight": "loop"}, "loop"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(tmp_path: Path, change: dict, says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        write_bag(tmp_path / "bag", **{**SMALL, **change})
    assert not (tmp_path / "bag").exists()


def test_a_player_offers_static_transforms_to_late_listeners(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", **SMALL)
    with AnyReader([bag.path]) as reader:
        offered = {
            c.topic: [qos.durability.name for qos in c.ext.offered_qos_profiles]  # type: ignore[union-attr]
            for c in reader.connections
        }
    assert offered["/tf_static"] == ["TRANSIENT_LOCAL"]
    assert offered["/tf"] == []
