"""Trajectory errors against evo, which is run as a tool on the same files."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.packages import needs

from qvggt_core.evaluate.association import associate
from qvggt_core.evaluate.drift import pairs_apart, progress, relative_errors
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory import absolute_errors
from qvggt_core.evaluate.trajectory_files import read_trajectory, write_tum
from qvggt_core.geometry.poses import transform

FLAGS = {
    "none": (),
    "origin": ("--align_origin",),
    "scale": ("-s",),
    "se3": ("-a",),
    "sim3": ("-a", "-s"),
}
RELATIONS = {"translation": "trans_part", "rotation": "angle_deg"}
START_NS = 1_700_000_000_000_000_000


def wandering(count, seed):
    """A smooth path with turns in all three axes, at 10 Hz."""
    rng = np.random.default_rng(seed)
    pose, poses = np.eye(4), []
    for _ in range(count):
        turn = Rotation.from_rotvec(0.08 * rng.normal(size=3)).as_matrix()
        pose = pose @ transform(turn, np.array([0.03, 0.0, 0.12]) + 0.02 * rng.normal(size=3))
        poses.append(pose)
    return poses


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """Files and tracks of a truth, and of an estimate in another unit and world with errors.

    The estimate's stamps are up to 6 ms off, and a fifth of its poses is missing.
    """
    needs("evo")
    folder = tmp_path_factory.mktemp("evo")
    rng = np.random.default_rng(5)
    truth, estimate = Track(), Track()
    gauge = transform(Rotation.from_rotvec([0.3, -1.2, 0.8]).as_matrix(), np.array([3.0, -2, 9]))
    for index, pose in enumerate(wandering(80, 2)):
        stamp = START_NS + index * 100_000_000
        truth.add(stamp, pose)
        noise = transform(
            Rotation.from_rotvec(0.02 * rng.normal(size=3)).as_matrix(), 0.03 * rng.normal(size=3)
        )
        seen = gauge @ pose @ noise
        seen[:3, 3] *= 0.4 + 0.001 * index
        if index % 5 != 3:
            estimate.add(stamp + int(rng.integers(-6_000_000, 6_000_000)), seen)
    write_tum(folder / "truth.tum", truth)
    write_tum(folder / "estimate.tum", estimate)
    # What evo reads is what we read: nine decimals.
    return folder, read_trajectory(folder / "truth.tum"), read_trajectory(folder / "estimate.tum")


def evo(command, folder, *flags):
    """Return the statistics and the errors that evo finds."""
    result = folder / f"{command}{'_'.join(flags)}.zip"
    subprocess.run(
        [
            *(Path(sys.executable).with_name(command), "tum", "truth.tum", "estimate.tum"),
            *(*flags, "--save_results", result, "--no_warnings", "--silent"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=120,
    )
    with ZipFile(result) as archive:
        return np.load(BytesIO(archive.read("error_array.npy")))


def matched(tracks):
    _, truth, estimate = tracks
    found = associate(estimate, truth)
    return estimate.at(found.own).matrices, truth.at(found.truth).matrices, truth.at(found.truth)


@pytest.mark.parametrize(
    ("alignment", "part"),
    [
        *((alignment, "translation") for alignment in FLAGS),
        ("none", "rotation"),
        ("sim3", "rotation"),
    ],
)
def test_absolute_errors_are_those_of_evo(tracks, alignment, part):
    expected = evo("evo_ape", tracks[0], "-r", RELATIONS[part], *FLAGS[alignment])
    estimate, truth, _ = matched(tracks)
    found = getattr(absolute_errors(estimate, truth, alignment), part)
    assert expected.shape == (64,)
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("span", "delta", "consecutive", "part", "alignment"),
    [
        ("frames", 1, False, "translation", "sim3"),
        ("frames", 7, False, "rotation", "none"),
        ("frames", 7, True, "translation", "scale"),
        ("distance", 1.0, False, "translation", "sim3"),
        ("distance", 1.0, False, "rotation", "se3"),
        ("distance", 0.7, True, "translation", "none"),
    ],
)
def test_relative_errors_are_those_of_evo(tracks, span, delta, consecutive, part, alignment):
    flags = ["-r", RELATIONS[part], "-d", str(delta), "-u", {"frames": "f", "distance": "m"}[span]]
    flags += [*FLAGS[alignment], "--pairs_from_reference"]
    flags += [] if consecutive else ["--all_pairs"]
    expected = evo("evo_rpe", tracks[0], *flags)
    estimate, truth, track = matched(tracks)
    way = progress(span, track.positions, track.seconds)
    tolerance = 0.0 if span == "frames" else 0.1
    pairs = pairs_apart(way, delta, tolerance=tolerance, consecutive=consecutive)
    aligned = absolute_errors(estimate, truth, alignment).aligned
    found = getattr(relative_errors(aligned, truth, pairs), part)
    assert len(expected) > 5
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_pairs_by_time_are_pairs_by_frames_at_an_even_rate(tracks):
    """evo has no pairs by time; at 10 Hz half a second is five frames."""
    truth = tracks[1]
    by_time = pairs_apart(progress("time", truth.positions, truth.seconds), 0.5)
    by_frames = pairs_apart(progress("frames", truth.positions, truth.seconds), 5, tolerance=0.0)
    assert np.array_equal(by_time, by_frames)
