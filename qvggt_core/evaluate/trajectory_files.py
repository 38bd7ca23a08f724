"""Trajectories in files: TUM, EuRoC and KITTI read, TUM written."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.poses import quaternion, transform
from qvggt_core.util.files import read_bounded_text
from qvggt_core.util.quoting import cut, short

_COLUMNS = {"tum": 8, "euroc": 8, "kitti": 12}
_MAX_BYTES = 1 << 30
_ORTHOGONAL = 1e-3
_MAX_STAMP = 1 << 62
_MOST_METRES = 1e12


def read_trajectory(path: Path, times: Path | None = None) -> Track:
    """Read a trajectory; its format is recognised by its content.

    - TUM: `seconds x y z qx qy qz qw`, separated by spaces.
    - EuRoC: `nanoseconds,x,y,z,qw,qx,qy,qz,...`, separated by commas (the `data.csv` of
      `state_groundtruth_estimate0`, and what OpenVINS and others write).
    - KITTI odometry: the 12 numbers of a 3x4 pose, row by row; stamps come from a file of
      seconds, one a line: `times`, or `times.txt` beside the poses.

    Lines that begin with `#` are comments.

    Args:
        path: the file.
        times: the stamps of a KITTI file.

    Returns:
        The poses in the order of time; of several at one time the first.

    Raises:
        EvaluationError: the file is missing, empty, of another format, or a line is no pose.
    """
    lines = _lines(path)
    form = _form(path, *lines[0])
    if form == "kitti":
        stamps = _read_times(path, times, len(lines))
        poses = [_kitti_pose(path, number, text) for number, text in lines]
        return Track(stamps, poses).in_order()
    track = Track()
    for number, text in lines:
        words = text.replace(",", " ").split()
        if len(words) < _COLUMNS[form]:
            raise EvaluationError(
                f"{path}, line {number}: {len(words)} numbers, a {form} pose has 8"
            )
        values = _numbers(path, number, words[1:8])
        if form == "euroc":
            values = values[[0, 1, 2, 4, 5, 6, 3]]
        if not values[3:].any():
            raise EvaluationError(f"{path}, line {number}: a quaternion of zeros is no rotation")
        rotation = Rotation.from_quat(values[3:]).as_matrix()
        track.add(_stamp(path, number, words[0], form == "euroc"), transform(rotation, values[:3]))
    return track.in_order()


def write_tum(path: Path, track: Track) -> None:
    """Write a trajectory in TUM's format: seconds x y z qx qy qz qw, stamps to the nanosecond."""
    lines = []
    for stamp, numbers in zip(track.stamps_ns, _tum_numbers(track), strict=True):
        seconds, nanoseconds = divmod(stamp, 1_000_000_000)
        lines.append(f"{seconds}.{nanoseconds:09d} {' '.join(numbers)}\n")
    path.write_text("".join(lines), encoding="ascii")


def as_written(track: Track) -> Track:
    """Return a trajectory as it reads back from the file that `write_tum` makes of it.

    The file has nine decimals: what is computed before it is written and after it is read is the
    same.
    """
    written = Track()
    for stamp, numbers in zip(track.stamps_ns, _tum_numbers(track), strict=True):
        values = np.array([float(number) for number in numbers])
        written.add(stamp, transform(Rotation.from_quat(values[3:]).as_matrix(), values[:3]))
    return written.in_order()


def _tum_numbers(track: Track) -> list[list[str]]:
    """Return x y z qx qy qz qw of each pose, as text."""
    if len(track) == 0:
        return []
    values = np.hstack([track.positions, quaternion(track.matrices[:, :3, :3])])
    return [[f"{value:.9f}" for value in row] for row in values]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return number and text of the lines that hold something."""
    try:
        text = read_bounded_text(path, _MAX_BYTES, "utf-8-sig")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot read the trajectory {path}: {error}") from error
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if lines and lines[0][1][0].isalpha():
        lines = lines[1:]  # column names without a comment sign
    if not lines:
        raise EvaluationError(f"{path} holds no pose")
    return lines


def _form(path: Path, number: int, text: str) -> str:
    form = "euroc" if "," in text else {8: "tum", 12: "kitti"}.get(len(text.split()), "")
    if not form or len(text.replace(",", " ").split()) < _COLUMNS[form]:
        raise EvaluationError(
            f"{path}, line {number}: {short(text)} is no pose; known are TUM (8 numbers), EuRoC "
            "(8 or more, separated by commas) and KITTI (12 numbers)"
        )
    return form


def _numbers(path: Path, number: int, words: list[str]) -> NDArray[np.float64]:
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise EvaluationError(f"{path}, line {number}: {cut(error)}") from error
    if not np.isfinite(values).all():
        raise EvaluationError(f"{path}, line {number}: {values.tolist()} is not finite")
    if np.abs(values).max() > _MOST_METRES:
        raise EvaluationError(
            f"{path}, line {number}: {values.tolist()} is no pose: nothing moves {_MOST_METRES:g} m"
        )
    return values


def _stamp(path: Path, number: int, word: str, nanoseconds: bool) -> int:
    """Return nanoseconds; decimals are kept exactly, a float of an epoch would lose them."""
    try:
        value = Decimal(word) * (1 if nanoseconds else 1_000_000_000)
        # What no 64-bit stamp holds is no time either, and an exponent must not fill the memory.
        if abs(value) < _MAX_STAMP:
            return int(value.to_integral_value())
    except (ArithmeticError, ValueError):
        pass
    raise EvaluationError(f"{path}, line {number}: {short(word)} is no time")


def _read_times(path: Path, times: Path | None, poses: int) -> list[int]:
    times = path.with_name("times.txt") if times is None else times
    if not times.exists():
        raise EvaluationError(
            f"{path} is in KITTI's format, which has no times, and there is no {times}: name the "
            "file of its times"
        )
    stamps = [
        _stamp(times, number, text.split()[0], nanoseconds=False) for number, text in _lines(times)
    ]
    if len(stamps) != poses:
        raise EvaluationError(f"{times} has {len(stamps)} times, but {path} has {poses} poses")
    return stamps


def _kitti_pose(path: Path, number: int, text: str) -> NDArray[np.float64]:
    words = text.split()
    if len(words) != 12:
        raise EvaluationError(f"{path}, line {number}: {len(words)} numbers, a KITTI pose has 12")
    pose = _numbers(path, number, words).reshape(3, 4)
    error = float(np.abs(pose[:, :3] @ pose[:, :3].T - np.eye(3)).max())
    if error > _ORTHOGONAL or np.linalg.det(pose[:, :3]) < 0.0:
        raise EvaluationError(
            f"{path}, line {number}: its 3x3 part is no rotation (off by {error:.2g})"
        )
    return transform(pose[:, :3], pose[:, 3])
