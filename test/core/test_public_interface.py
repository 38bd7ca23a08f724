"""The ten lines of Python in the README: a folder of images in, poses, depth and points out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import known_room as room
from support.plain_parameters import PLAIN

import qvggt_core as qvggt
from qvggt_core.geometry.cloud import read_ply
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import LoadedNetwork

ROOT = Path(__file__).parents[2]
FRAMES = 9
POSES = room.straight(FRAMES)


@pytest.fixture
def reconstruction() -> qvggt.Reconstruction:
    """Images of the room, through a network that has its exact geometry."""
    network = room.KnowingNetwork(POSES, room.Noise())
    found = qvggt.Reconstruction(LoadedNetwork(network, PLAIN, {}))
    for frame in room.frames(POSES):
        found.add(frame.image, room.CAMERA)
    found.finish()
    return found


def test_poses_depth_and_points_are_those_of_the_room(
    reconstruction: qvggt.Reconstruction, tmp_path: Path
) -> None:
    expected = FLU_FROM_OPTICAL @ inverse(POSES[0]) @ POSES
    unit = np.linalg.norm(expected[-1, :3, 3]) / np.linalg.norm(reconstruction.poses[-1, :3, 3])
    np.testing.assert_allclose(unit * reconstruction.poses[:, :3, 3], expected[:, :3, 3], atol=1e-4)
    np.testing.assert_allclose(reconstruction.poses[:, :3, :3], expected[:, :3, :3], atol=1e-4)
    truth = np.stack([room.depth_of(pose) for pose in POSES])
    known = np.isfinite(reconstruction.depth)
    assert known.mean() > 0.5
    np.testing.assert_allclose(unit * reconstruction.depth[known], truth[known], rtol=1e-3)
    assert reconstruction.images.tolist() == list(range(FRAMES))
    assert reconstruction.intrinsics.shape == (FRAMES, 3, 3)
    reconstruction.points.write(tmp_path / "points.ply")
    assert len(read_ply(tmp_path / "points.ply")) == len(reconstruction.points) > 100


def test_wrong_images_are_explained_and_cost_nothing_else(
    reconstruction: qvggt.Reconstruction,
) -> None:
    with pytest.raises(qvggt.QvggtError, match="finished"):
        reconstruction.add(np.zeros((84, 112, 3), np.uint8))
    network = LoadedNetwork(room.KnowingNetwork(POSES, room.Noise()), Parameters(), {})
    fresh = qvggt.Reconstruction(network)
    for image in (
        np.zeros((84, 112), np.uint8),
        np.zeros((84, 112, 3)),
        np.zeros((0, 3, 3), np.uint8),
    ):
        with pytest.raises(qvggt.QvggtError, match="RGB"):
            fresh.add(image)
    fresh.finish()
    assert fresh.poses.shape == (0, 4, 4)
    assert len(fresh.depth) == len(fresh.points) == 0


def test_the_lines_of_the_readme_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index, pose in enumerate(POSES[:3]):
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.jpg"), room.image_of(pose)[..., ::-1])
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## In Python")[1]
    (lines,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    lines += "\nprint(poses.shape, depth.shape)"
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\((\d), 4, 4\) \(\1, \d+, \d+\)\n", done.stdout)
    assert (tmp_path / "points.ply").stat().st_size > 1000


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, qvggt_core; print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        qvggt.nothing  # noqa: B018
