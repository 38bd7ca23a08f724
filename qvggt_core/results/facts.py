"""The facts beside a reconstruction: metrics.json before a comparison, and run.json."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from qvggt_kernels import native

from qvggt_core.results import schema
from qvggt_core.results.builder import ResultBuilder
from qvggt_core.util.thinning import ThinnedStream

_VERSIONS_OF = ("qvggt_ros", "numpy", "torch", "opencv-python-headless", "rosbags")
_SERIES_KEPT = 1000


def metrics_of(
    built: ResultBuilder,
    recording: schema.RecordingFacts,
    counts: Mapping[str, Any],
    *,
    images: int,
    delays: Sequence[int] = (),
    events: Sequence[str] = (),
    warnings: Sequence[str] = (),
    model: Mapping[str, Any] | None = None,
) -> schema.Metrics:
    """Return what metrics.json holds before it is compared: nothing depends on the machine.

    Args:
        built: the reconstruction.
        recording: what was reconstructed.
        counts: the counted fields of `schema.Result`: what the session counted.
        images: images that there were to reconstruct.
        delays: per frame, the images that came after it and before its geometry.
        events: what happened on the way.
        warnings: what an operator should know.
        model: facts about the network.
    """
    tracks = built.tracks
    published = counts["published"]
    steps = [step for track in tracks.values() for step in np.diff(track.seconds)]
    return schema.Metrics(
        recording=recording,
        result=schema.Result(
            **{name: value for name, value in counts.items() if name in schema.Result.model_fields},
            segment_frames=[len(track) for track in tracks.values()],
            path_lengths=[track.length for track in tracks.values()],
            duration_s=sum(float(track.seconds[-1]) for track in tracks.values()),
            map_points=[len(built.cloud(segment)) for segment in tracks],
        ),
        coverage=schema.Coverage(
            frames=published / max(images, 1),
            dropped=max(images - published, 0),
            depth=built.valid_depth / max(published, 1),
            largest_gap_s=float(max(steps, default=0.0)),
            delay_images_median=float(np.median(delays)) if delays else None,
            delay_images_maximum=max(delays, default=None),
        ),
        confirmation=schema.ConfirmationFacts(**counts) if counts.get("verdicts") else None,
        events=list(events),
        warnings=list(warnings),
        model=dict(model or {}),
    )


class Series:
    """Latency and memory over the images, thinned evenly to a bounded length."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._latency: ThinnedStream[tuple[int, float]] = ThinnedStream(_SERIES_KEPT)
        self._memory: ThinnedStream[tuple[int, float]] = ThinnedStream(_SERIES_KEPT)

    @property
    def values(self) -> dict[str, list[tuple[int, float]]]:
        """Pairs of image number and value, per name of the series."""
        return {"latency_s": self._latency.kept, "memory_mb": self._memory.kept}

    def add_latency(self, image: int, seconds: float) -> None:
        """Take the latency of a frame whose geometry came after so many images."""
        self._latency.add((image, seconds))

    def add_memory(self, image: int) -> None:
        """Take the memory that the process has now."""
        self._memory.add((image, _resident_mb()))


def _resident_mb() -> float:
    """Return the process's memory now, in MB; its peak where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory_mb()
    return pages * resource.getpagesize() / 1e6


def peak_memory_mb() -> float:
    """Return the most memory that the process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, 95th percentile and maximum of some times; empty without any."""
    if not len(seconds):
        return {}
    values = np.array(seconds)
    return {
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on, and whether the C++ kernels took part."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "C++ kernels": native.status(),
    }
    for name in _VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
