"""A result directory of a small reconstruction: a wall before the camera, at half of the truth."""

from pathlib import Path

import numpy as np

from qvggt_core.parameters import Parameters
from qvggt_core.results import layout, schema
from qvggt_core.results.builder import ResultBuilder
from qvggt_core.results.facts import metrics_of
from qvggt_core.results.result import Result, write_reconstruction
from qvggt_core.stream.frame import FrameGeometry, Reconstruction, View

FRAMES = 12
STAMPS_NS = [1_000_000_000 + 100_000_000 * index for index in range(FRAMES)]


def position(index: int) -> np.ndarray:
    return np.array([0.12 * index, 0.8 * np.sin(0.12 * index), 0.02 * index**1.5])


def geometry(index: int) -> FrameGeometry:
    """A wall before the camera, at half of the true positions."""
    half = pose(index)
    half[:3, 3] *= 0.5
    return FrameGeometry(
        half,
        np.full((9, 12), 2.0, np.float32),
        np.full((9, 12), 3.0, np.float32),
        view=View(STAMPS_NS[index], np.full((9, 12, 3), 10 * index, np.uint8)),
        intrinsics=np.array([[10.0, 0.0, 6.0], [0.0, 10.0, 4.5], [0.0, 0.0, 1.0]]),
    )


def pose(index: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = position(index)
    return matrix


def write_result(directory: Path) -> Path:
    """Write a result whose map is the truth by half; return its directory."""
    built = ResultBuilder(Parameters())
    built.add(Reconstruction(0, tuple(geometry(index) for index in range(FRAMES))))
    counts = dict.fromkeys(
        ("received", "decoded", "uncalibrated", "windows", "published", "keyframes", "gated"),
        FRAMES,
    )
    counts |= {"rejected": {}, "segments": 1, "metres_per_unit": None, "scale_source": "unknown"}
    metrics = metrics_of(
        built,
        schema.RecordingFacts(
            name="flight", image_topic="/image", camera_info_topic=None, reference_topics=[]
        ),
        {**counts, "unit": "units", "interrupted": False},
        images=FRAMES,
    )
    directory.mkdir()
    write_reconstruction(directory, built, Parameters())
    run = {"format": layout.RUN_FORMAT, "recording": "flight", "timings": {"latency_s": {}}}
    Result.of(built, metrics, run).write_facts(directory)
    return directory
