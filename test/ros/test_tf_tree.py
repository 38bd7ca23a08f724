"""The TF tree of a recording: what one bad, repeated or doubled transform does to the others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.recordings import M, header, stamp_of, write_recording

from qvggt_core.errors import RecordingError
from qvggt_core.geometry.poses import transform
from qvggt_ros.io.recording import open_recording
from qvggt_ros.io.tf_tree import TransformTree

FRAMES = 6
MOUNT = transform(Rotation.from_euler("zyx", [0.3, 0.2, 0.1]).as_matrix(), np.array([0.8, 0, 0.1]))


def moved(index):
    rotation = Rotation.from_euler("z", 0.1 * index).as_matrix()
    return transform(rotation, np.array([0.5 * index, 0.1, 0.0]))


def entry(topic, index, parent, child, pose, numbers=None):
    quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
    place = [*pose[:3, 3].tolist(), *quaternion] if numbers is None else numbers
    message = M.TransformStamped(
        header=header(index, parent),
        child_frame_id=child,
        transform=M.Transform(
            translation=M.Vector3(**dict(zip("xyz", place[:3], strict=True))),
            rotation=M.Quaternion(**dict(zip("xyzw", place[3:], strict=True))),
        ),
    )
    return (topic, "TFMessage", stamp_of(index), M.TFMessage(transforms=[message]))


def robot(slash="", mount_topic="/tf_static"):
    """A robot whose base moves in odom, with a camera on it."""
    entries = [entry("/tf", i, f"{slash}odom", f"{slash}base", moved(i)) for i in range(FRAMES)]
    times = range(FRAMES) if mount_topic == "/tf" else [0]
    entries += [entry(mount_topic, i, f"{slash}base", f"{slash}camera", MOUNT) for i in times]
    return entries


def tree_of(entries, tmp_path):
    entries = sorted(entries, key=lambda each: each[2])
    with open_recording(write_recording(tmp_path / "in", entries)) as recording:
        return TransformTree.read(recording)


def assert_whole(tree, parent="odom"):
    stamps = [stamp_of(index) for index in range(FRAMES)]
    track = tree.track(parent, "camera", stamps)
    expected = np.stack([moved(index) @ MOUNT for index in range(FRAMES)])
    np.testing.assert_allclose(track.matrices, expected, atol=1e-9)
    fixed = tree.fixed("base", "camera")
    assert fixed is not None
    np.testing.assert_allclose(fixed, MOUNT, atol=1e-9)


@pytest.mark.parametrize("slash", ["", "/"])
def test_slashes_before_names_mean_nothing(slash, tmp_path):
    assert_whole(tree_of(robot(slash), tmp_path))


@pytest.mark.parametrize("topic", ["/tf", "/tf_static"])
@pytest.mark.parametrize(
    "numbers",
    [
        [np.nan] * 7,
        [0.0] * 7,
        [0.0, 0, 0, 1e-300, 0, 0, 0],
        [np.inf, 0, 0, 0, 0, 0, 1],
    ],
)
def test_a_transform_that_is_none_is_left_out_with_one_warning(numbers, topic, tmp_path):
    bad = [entry(topic, i, "base", "wheel", MOUNT, numbers) for i in range(3)]
    tree = tree_of([*robot(), *bad], tmp_path)
    assert_whole(tree)
    (warning,) = tree.warnings
    assert "'wheel' in 'base'" in warning
    assert "3 times" in warning


def test_a_bad_moment_of_a_good_transform_is_bridged(tmp_path):
    entries = robot()
    entries[2] = entry("/tf", 2, "odom", "base", MOUNT, [np.nan] * 7)
    tree = tree_of(entries, tmp_path)
    (found,) = tree.track("odom", "camera", [stamp_of(2)]).poses
    assert np.abs(found - moved(2) @ MOUNT).max() < 0.01


def test_a_mounting_that_is_repeated_on_tf_is_fixed(tmp_path):
    assert_whole(tree_of(robot(mount_topic="/tf"), tmp_path))


def test_what_moves_is_not_fixed(tmp_path):
    tree = tree_of(robot(), tmp_path)
    assert tree.fixed("odom", "camera") is None


def test_a_frame_with_two_parents_is_below_both(tmp_path):
    """As of a robot with odometry and a motion capture that send in turns."""
    world = transform(Rotation.from_euler("z", 1.0).as_matrix(), np.array([3.0, 2.0, 1.0]))
    capture = [entry("/tf", i, "world", "base", world @ moved(i)) for i in range(FRAMES)]
    tree = tree_of([*robot(), *capture], tmp_path)
    assert_whole(tree)
    stamps = [stamp_of(index) for index in range(FRAMES)]
    track = tree.track("world", "camera", stamps)
    expected = np.stack([world @ moved(index) @ MOUNT for index in range(FRAMES)])
    np.testing.assert_allclose(track.matrices, expected, atol=1e-9)


def test_of_thousands_of_frames_an_error_names_some():
    tree = TransformTree()
    for index in range(3000):
        tree.add(f"a{index}", f"b{index}", 0, np.eye(4), static=True)
    with pytest.raises(RecordingError, match=r" and 5980 more$") as caught:
        tree.track("a0", "b1", [0])
    assert len(str(caught.value)) < 500
