"""Another reference than a recording's own truth: a trajectory in TUM's format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from confirmation import Truth
from scipy.interpolate import interp1d
from scipy.spatial.transform import Rotation, Slerp

from qvggt_core.evaluate.trajectory import align_sim3
from qvggt_core.evaluate.trajectory_files import read_trajectory
from qvggt_core.geometry.poses import transform


def other_truth(path: Path, stamps_ns: Iterable[int], truth: Truth) -> Truth:
    """Return poses from a trajectory in any unit, such as COLMAP's.

    Args:
        path: of the trajectory.
        stamps_ns: of the images; between two poses they are interpolated.
        truth: gives the metres.
    """
    track = read_trajectory(path)
    stamps, poses = np.array(track.stamps_ns), np.stack(track.matrices)
    known = [(pose, truth.pose(at)) for at, pose in zip(stamps, poses, strict=True)]
    pairs = [(pose[:3, 3], true[:3, 3]) for pose, true in known if true is not None]
    scale = align_sim3(*(np.array(each) for each in zip(*pairs, strict=True)))[0]
    inside = [at for at in stamps_ns if stamps[0] <= at <= stamps[-1]]
    since, wanted = (stamps - stamps[0]) * 1e-9, (np.array(inside) - stamps[0]) * 1e-9
    turns = Slerp(since, Rotation.from_matrix(poses[:, :3, :3]))(wanted).as_matrix()
    places = scale * interp1d(since, poses[:, :3, 3], axis=0)(wanted)
    return Truth(
        {at: transform(turn, place) for at, turn, place in zip(inside, turns, places, strict=True)}
    )
