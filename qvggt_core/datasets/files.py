"""Reading the files that data sets are made of, with errors that name the file and the place."""

from __future__ import annotations

import bisect
import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import DatasetError, EvaluationError, ImageError
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory_files import read_trajectory
from qvggt_core.geometry.camera import Camera
from qvggt_core.util.quoting import cut, short

# Text files beyond this are not what they seem to be; CO3D's largest annotation is below 1 GiB.
_MAX_TEXT = 256 * 2**20
_MAX_JSON = 2 * 2**30
_MAX_SIDE = 16384
_SHOWN = 3
_CALIBRATION_SIZES = (4, 8, 9)
CALIBRATION_FILE = "calibration.txt"


def require_files(files: Iterable[Path], what: str) -> None:
    """Check that files are there.

    Args:
        files: files or directories.
        what: whose they are, for the message.

    Raises:
        DatasetError: some are not; the message counts them, names the first ones, and
            `missing` holds all.
    """
    missing = tuple(file for file in files if not file.exists())
    if not missing:
        return
    named = ", ".join(str(file) for file in missing[:_SHOWN])
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    raise DatasetError(
        f"{what} lacks {len(missing)} file(s): {named}{more}; download or unpack it again", missing
    )


def below(directory: Path, name: str) -> Path:
    """Return the file that an annotation names, which must lie in its directory.

    Raises:
        DatasetError: the name leads elsewhere.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DatasetError(f"an annotation names {short(name)}, which leads out of {directory}")
    return directory / name


def subdirectories(root: Path) -> list[Path]:
    """Return the directories in `root`, sorted, without hidden ones.

    Raises:
        DatasetError: there is no such directory.
    """
    if not root.is_dir():
        raise DatasetError(f"there is no directory {root}: give the one that holds the data set")
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def sequence_names(
    root: Path, dataset: str, marker: str, is_published: Callable[[str], bool]
) -> tuple[str, ...]:
    """Return the names of the sequences in a directory, or of the directory as one sequence.

    Args:
        root: directory that holds sequences, or is one.
        dataset: its name, for the error.
        marker: file or directory that a sequence holds.
        is_published: whether a directory of a name is a sequence without the marker too.

    Raises:
        DatasetError: there is none.
    """
    if (root / marker).exists():
        return (root.resolve().name,)
    names = tuple(
        path.name
        for path in subdirectories(root)
        if (path / marker).exists() or is_published(path.name)
    )
    if not names:
        raise DatasetError(
            f"{root} holds no {dataset} sequence: looked for {root}/<sequence>/{marker}"
        )
    return names


def read_text(path: Path) -> str:
    """Return a text file.

    Raises:
        DatasetError: it is missing, too large, or no text.
    """
    require_files([path], "the data set")
    if path.stat().st_size > _MAX_TEXT:
        raise DatasetError(f"{path} has {path.stat().st_size} bytes: too many for such a file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, gzipped if its name ends in "gz" (CO3D: .jgz).

    Raises:
        DatasetError: it is missing, truncated, too large, or no JSON.
    """
    require_files([path], "the data set")
    try:
        if path.suffix.endswith("gz"):
            with gzip.open(path) as file:
                data = file.read(_MAX_JSON + 1)
        else:
            with path.open("rb") as plain:
                data = plain.read(_MAX_JSON + 1)
        if len(data) > _MAX_JSON:
            raise DatasetError(f"{path} holds more than {_MAX_JSON // 2**30} GiB of JSON")
        return json.loads(data)
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(
            f"cannot read {path} ({path.stat().st_size} bytes): {error}; download it again"
        ) from error


def read_table(path: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """Return the fields of a text table, line by line, without comments (#) and empty lines.

    Args:
        path: the file.
        columns: least number of fields a line must have.
        separator: between fields; None means any space.

    Raises:
        DatasetError: the file cannot be read, or a line has too few fields; it is named.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) < columns:
            raise DatasetError(
                f"{path}, line {number}: {len(fields)} fields where {columns} are expected: "
                f"{line[:80]!r}"
            )
        rows.append(fields)
    return rows


def numbers(fields: Iterable[str], where: str) -> NDArray[np.float64]:
    """Return fields as numbers; NaN and infinity pass, text does not.

    Raises:
        DatasetError: a field is no number; `where` is named.
    """
    try:
        return np.array([float(field) for field in fields])
    except ValueError as error:
        raise DatasetError(f"{where}: {cut(error)}") from None


def read_pose(path: Path) -> NDArray[np.float64]:
    """Return the (4, 4) rigid transform that a text file holds.

    Raises:
        DatasetError: the file does not hold 16 numbers, or they are no rigid transform.
    """
    values = numbers(read_text(path).split(), str(path))
    if values.size != 16:
        raise DatasetError(f"{path} holds {values.size} numbers, not the 16 of a 4x4 pose")
    return rigid(values.reshape(4, 4), str(path))


def read_truth(path: Path) -> Track:
    """Return the poses of a trajectory file, in the order of time.

    Raises:
        DatasetError: it is missing, empty, or a line is no pose; it is named.
    """
    require_files([path], "the data set")
    try:
        return read_trajectory(path)
    except EvaluationError as error:
        raise DatasetError(str(error)) from error


def rigid(matrix: NDArray, where: str) -> NDArray[np.float64]:
    """Return a (4, 4) transform whose rotation is made exact.

    Data sets write few digits, and some fused rotations are off by a percent of a degree.

    Raises:
        DatasetError: the matrix is not finite, or no rotation is within 0.01 of it.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise DatasetError(f"{where}: the pose is not finite: {matrix.tolist()}")
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    rotation = u @ vt
    if np.abs(rotation - matrix[:3, :3]).max() > 0.01 or np.linalg.det(rotation) < 0:
        raise DatasetError(f"{where}: {matrix[:3, :3].tolist()} is no rotation matrix")
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation, matrix[:3, 3]
    return result


def stamp_ns(text: str, where: str) -> int:
    """Return seconds, written as a decimal number, in nanoseconds, without rounding twice.

    Raises:
        DatasetError: it is no number; `where` is named.
    """
    try:
        return int((Decimal(text) * 10**9).to_integral_value())
    except (InvalidOperation, ValueError, OverflowError):
        raise DatasetError(f"{where}: {short(text)} is no time in seconds") from None


def nearest(stamps: Sequence[int], wanted: int, tolerance_ns: int) -> int | None:
    """Return the index of the sorted stamp that is nearest to `wanted`, if it is near enough."""
    after = bisect.bisect_left(stamps, wanted)
    candidates = [i for i in (after - 1, after) if 0 <= i < len(stamps)]
    index = min(candidates, key=lambda i: abs(stamps[i] - wanted), default=None)
    return None if index is None or abs(stamps[index] - wanted) > tolerance_ns else index


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image file as (H, W, 3) uint8 RGB, as it is stored; grey becomes three equal.

    Raises:
        DatasetError: it is missing or cannot be decoded.
    """
    # An orientation tag would turn the pixels away from their calibration.
    image = _decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)


def read_png16(path: Path) -> NDArray[np.uint16]:
    """Return a one-channel 16-bit PNG, (H, W).

    Raises:
        DatasetError: it is missing, cannot be decoded, or is of another kind.
    """
    image = _decoded(path, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint16 or image.ndim != 2:
        raise DatasetError(
            f"{path} holds {image.dtype} values of shape {image.shape}, not one channel of uint16"
        )
    return np.asarray(image, dtype=np.uint16)


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file from its header.

    Raises:
        DatasetError: it is missing or no image.
    """
    from PIL import Image, UnidentifiedImageError

    require_files([path], "the data set")
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"cannot read {path}: {error}; download it again") from error


def read_calibration(root: Path, directory: Path) -> list[list[float]] | None:
    """Return the lines of numbers in `calibration.txt`, of a scene or of all; None without one.

    The file is ours: it names the camera that took images that lie in a data set's layout but were
    not taken by the data set's camera. Each line is `fx fy cx cy [k1 k2 p1 p2 [k3]]`.

    Raises:
        DatasetError: a line has another number of numbers.
    """
    for path in (directory / CALIBRATION_FILE, root / CALIBRATION_FILE):
        if not path.exists():
            continue
        lines = [numbers(fields, str(path)).tolist() for fields in read_table(path, 4)]
        if not lines or any(len(line) not in _CALIBRATION_SIZES for line in lines):
            raise DatasetError(f"{path}: lines must be fx fy cx cy [k1 k2 p1 p2 [k3]]")
        return lines
    return None


def calibrated(values: list[float], width: int, height: int, where: str) -> Camera:
    """Return the camera of `fx fy cx cy [k1 k2 p1 p2 [k3]]`.

    Raises:
        DatasetError: the numbers are no camera's; `where` is named.
    """
    fx, fy, cx, cy = values[:4]
    coefficients = tuple(values[4:])
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    try:
        return Camera(width, height, matrix, "plumb_bob" if coefficients else "", coefficients)
    except ImageError as error:
        raise DatasetError(f"{where}: {error}") from error


def metric_depth(
    values: NDArray[np.uint16], units_per_metre: float, limit: float = np.inf
) -> NDArray[np.float32]:
    """Return 16-bit depth in metres, (H, W) float32, NaN where it is 0, 65535 or beyond a limit."""
    depth = values.astype(np.float32) / np.float32(units_per_metre)
    invalid = (values == 0) | (values == 65535) | (depth > limit)
    return np.where(invalid, np.float32(np.nan), depth).astype(np.float32)


def _decoded(path: Path, flags: int) -> NDArray:
    require_files([path], "the data set")
    try:
        image = cv2.imdecode(np.fromfile(path, dtype=np.uint8), flags)
    except (OSError, cv2.error) as error:
        raise DatasetError(f"cannot read {path}: {error}; download it again") from error
    if image is None:
        raise DatasetError(
            f"{path} ({path.stat().st_size} bytes) cannot be decoded: download it again"
        )
    if max(image.shape[:2]) > _MAX_SIDE:
        raise DatasetError(f"{path} has {image.shape[1]}x{image.shape[0]} pixels: too many")
    return np.asarray(image)
