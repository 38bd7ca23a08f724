"""Trajectories in files: TUM, EuRoC and KITTI read, TUM written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.poses import quaternion, transform
from qvggt_core.util.quoting import cut, short

_FACTORS = {"s": 1_000_000_000, "us": 1_000, "ns": 1}
_NAMES = {
    "timestamp": "time",
    "time": "time",
    "t": "time",
    "stamp": "time",
    "sec": "sec",
    "secs": "sec",
    "nsec": "nsec",
    "nsecs": "nsec",
    "nanosec": "nsec",
}
_MAX_BYTES = 1 << 30
_ORTHOGONAL = 1e-3
_MAX_STAMP = 1 << 62
# The moon is nearer; and a position so large is still known to a ten-thousandth of a millimetre.
_MOST_METRES = 1e9


def read_trajectory(path: Path, times: Path | None = None) -> Track:
    """Read a trajectory; its format is recognised by its content.

    - TUM: `seconds x y z qx qy qz qw`, separated by spaces or commas.
    - Any of these with a first line that names the columns (`#sec,nsec,x,y,z,qx,qy,qz,qw`): in the
      order of the names.
    - EuRoC: `nanoseconds,x,y,z,qw,qx,qy,qz,...`, separated by commas (the `data.csv` of
      `state_groundtruth_estimate0`, and what OpenVINS and others write).
    - KITTI odometry: the 12 numbers of a 3x4 pose, row by row; stamps come from a file of
      seconds, one a line: `times`, or `times.txt` beside the poses.

    Lines that begin with `#` are comments. Times of the size of microseconds or nanoseconds since
    1970 are taken for that.

    Args:
        path: the file.
        times: the stamps of a KITTI file.

    Returns:
        The poses in the order of time; of several at one time the first.

    Raises:
        EvaluationError: the file is missing, empty, of another format, or a line is no pose.
    """
    lines, header = _lines(path)
    columns = _columns(path, header, *lines[0])
    if columns is None:
        stamps = _read_times(path, times, len(lines))
        poses = [_kitti_pose(path, number, text) for number, text in lines]
        return Track(stamps, poses).in_order()
    track = Track()
    for number, text in lines:
        words = _words(text)
        if len(words) <= max(columns.indices):
            raise EvaluationError(
                f"{path}, line {number}: {len(words)} numbers, a pose needs "
                f"{max(columns.indices) + 1} here"
            )
        values = _numbers(path, number, [words[index] for index in columns.pose])
        norm = float(np.linalg.norm(values[3:]))
        if not 1e-6 < norm < 1e6:
            raise EvaluationError(
                f"{path}, line {number}: a quaternion of {values[3:].tolist()} is no rotation"
            )
        rotation = Rotation.from_quat(values[3:]).as_matrix()
        stamp = columns.stamp(path, number, words)
        track.add(stamp, transform(rotation, values[:3]))
    ordered = track.in_order()
    if len(lines) > 2 and len(ordered) < 0.5 * len(lines):
        raise EvaluationError(
            f"{path}: {len(lines)} lines have {len(ordered)} different times: were they written "
            "with too few digits?"
        )
    return ordered


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


@dataclass(frozen=True)
class _Columns:
    """Where a file of poses has what.

    Attributes:
        time: columns of the time: one, or seconds and nanoseconds.
        pose: columns of x, y, z and of the quaternion's x, y, z, w.
        unit: of one time column: "s", "ns", or empty where its size decides.
    """

    time: tuple[int, ...]
    pose: tuple[int, ...]
    unit: str = ""

    @property
    def indices(self) -> tuple[int, ...]:
        """All columns that are used."""
        return (*self.time, *self.pose)

    def stamp(self, path: Path, number: int, words: list[str]) -> int:
        """Return the nanoseconds of a line."""
        first = words[self.time[0]]
        if len(self.time) == 2:
            rest = _stamp(path, number, words[self.time[1]], 1)
            return _stamp(path, number, first, 1_000_000_000) + rest
        return _stamp(path, number, first, _FACTORS[self.unit or _unit(first)])


def _unit(word: str) -> str:
    """Return the unit of a time by its size: there are 1e9 s, 1e15 us and 1e18 ns since 1970."""
    try:
        size = abs(float(word))
    except ValueError:
        return "s"
    return "ns" if size > 1e17 else "us" if size > 1e14 else "s"


def _words(text: str) -> list[str]:
    return text.replace(",", " ").replace(";", " ").split()


def _lines(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Return number and text of the lines that hold something, and the line of column names."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise EvaluationError(f"{path} is larger than {_MAX_BYTES} bytes: no trajectory is")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"cannot read the trajectory {path}: {error}") from error
    lines: list[tuple[int, str]] = []
    header = ""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        is_first = not lines
        if line.startswith("#") or (is_first and line[:1].isalpha() and line[:3].lower() != "nan"):
            header = line if is_first else header
        elif line:
            lines.append((number, line))
    if not lines:
        raise EvaluationError(f"{path} holds no pose")
    return lines, header


def _columns(path: Path, header: str, number: int, text: str) -> _Columns | None:
    """Return the columns by their names, or by their number; None for KITTI's poses."""
    if (named := _named_columns(header)) is not None:
        return named
    words = _words(text)
    separated = "," in text or ";" in text
    if len(words) == 12 and not separated:
        return None
    # EuRoC's times are whole nanoseconds, and its quaternions have w first.
    if len(words) == 8 and (not separated or "." in words[0]):
        return _Columns((0,), (1, 2, 3, 4, 5, 6, 7))
    if len(words) >= 8 and separated:
        return _Columns((0,), (1, 2, 3, 5, 6, 7, 4), "ns")
    raise EvaluationError(
        f"{path}, line {number}: {text[:80]!r} is no pose; known are TUM (time x y z qx qy qz qw), "
        "EuRoC (nanoseconds,x,y,z,qw,qx,qy,qz,... separated by commas), KITTI (12 numbers), and "
        "any order that a first line names: time x y z qx qy qz qw"
    )


def _named_columns(header: str) -> _Columns | None:
    """Return the columns that a line names, as `#timestamp [ns],p_RS_R_x [m],...,q_RS_w []`."""
    separator = "," if "," in header else ";" if ";" in header else None
    names = [name.strip() for name in header.lstrip("#").strip().split(separator)]
    found: dict[str, int] = {}
    unit = ""
    for index, name in enumerate(names):
        bare = re.sub(r"[\[(].*", "", name).strip().lower()
        key = _NAMES.get(bare) or _pose_name(bare)
        if key and key not in found:
            found[key] = index
        if key == "time" and "[ns]" in name.lower():
            unit = "ns"
    pose = [found.get(key, -1) for key in ("x", "y", "z", "qx", "qy", "qz", "qw")]
    time = [found[key] for key in ("sec", "nsec") if key in found]
    if len(time) < 2:
        time = [found["time"]] if "time" in found else []
    if not time or min(pose) < 0:
        return None
    return _Columns(tuple(time), tuple(pose), unit)


def _pose_name(name: str) -> str:
    """Return x, y, z, qx, qy, qz or qw for a column of a position or a quaternion."""
    match = re.fullmatch(
        r"(?:(p|t|q|pos|position|orientation|rotation|quat)\w*?[_.]?)?([xyzw])", name
    )
    if match is None:
        return ""
    is_rotation = (match[1] or "")[:1] in ("q", "o", "r")
    return f"q{match[2]}" if is_rotation else match[2] if match[2] != "w" else ""


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


def _stamp(path: Path, number: int, word: str, factor: int) -> int:
    """Return nanoseconds; decimals are kept exactly, a float of an epoch would lose them."""
    try:
        value = Decimal(word) * factor
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
        _stamp(times, number, text.split()[0], _FACTORS["s"]) for number, text in _lines(times)[0]
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
