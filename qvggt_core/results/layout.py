"""Names of the files in a result directory, and how such a directory is recognised."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from qvggt_core.util.directories import OutputKind
from qvggt_core.util.yaml_text import read_yaml

BAG = "bag"
PICTURES = "pictures"
METRICS_FILE = "metrics.json"
RUN_FILE = "run.json"
PARAMETERS_FILE = "effective_params.yaml"
SAMPLES_FILE = "frames.npz"
ERRORS_FILE = "errors.csv"
DEPTH_ERRORS_FILE = "depth_errors.csv"
REPORT_FILE = "report.html"
TRAJECTORY_FILE = "trajectory.tum"
POINTS_FILE = "points.ply"

RUN_FORMAT = 1
"""Of run.json; it has no stable form otherwise."""

PICTURE_FILES = ("frames.png", "path.png", "cloud_behind.png", "cloud_above.png")

_FILES = {
    METRICS_FILE,
    RUN_FILE,
    PARAMETERS_FILE,
    SAMPLES_FILE,
    ERRORS_FILE,
    DEPTH_ERRORS_FILE,
    REPORT_FILE,
}
_SEGMENT_FILE = re.compile(r"(trajectory(_[1-9]\d*)?\.tum|points(_[1-9]\d*)?\.ply)")
_BAG_FILE = re.compile(r"bag(_\d+)?\.(mcap|db3)(-wal|-shm|-journal)?")
_MAX_MARKER_BYTES = 1 << 27


def segment_file(name: str, segment: int) -> str:
    """Return the name of a file of one segment: `points.ply`, `points_1.ply`, ..."""
    stem, _, suffix = name.rpartition(".")
    return name if segment == 0 else f"{stem}_{segment}.{suffix}"


def _entries(directory: Path) -> list[Path]:
    """Return what has a name of ours in a directory."""
    found = [
        Path(path.name)
        for path in directory.iterdir()
        if path.name in _FILES or _SEGMENT_FILE.fullmatch(path.name)
    ]
    found += [Path(PICTURES) / name for name in PICTURE_FILES]
    found += [Path(BAG) / name for name in bag_files(directory / BAG)]
    found += [Path(name) for name in (PICTURES, BAG)]
    return [path for path in found if (directory / path).exists()]


def bag_files(bag: Path) -> list[str]:
    """Return the names of the files that make a recording: its metadata's, and our writer's."""
    if not bag.is_dir():
        return []
    listed: set[str] = set()
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        metadata = read_yaml(bag / "metadata.yaml")
        listed = {str(n) for n in metadata["rosbag2_bagfile_information"]["relative_file_paths"]}
    return sorted(
        path.name
        for path in bag.iterdir()
        if path.is_file()
        and (path.name == "metadata.yaml" or path.name in listed or _BAG_FILE.fullmatch(path.name))
    )


def _is_marked(directory: Path) -> bool:
    metrics = _read_object(directory / METRICS_FILE)
    if metrics.get("format") == "qvggt-metrics":
        return True
    run = _read_object(directory / RUN_FILE)
    return run.get("format") == RUN_FORMAT and "recording" in run


def _read_object(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_MARKER_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


RESULT = OutputKind("result of a reconstruction", _entries, _is_marked)
"""What `qvggt replay` and `qvggt collect` make."""
