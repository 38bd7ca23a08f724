"""How a live reconstruction keeps up with a camera: rate, latency, jitter, loss, processor, memory.

Images of a recording are offered at the pace of a camera, forwards and backwards in turn, to what
the ROS node and `qvggt live` are made around. Middleware is not in it: messages are not sent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle, islice, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np

from qvggt_core.errors import BenchmarkError
from qvggt_core.parameters import Parameters
from qvggt_core.stream import TorchNetwork
from qvggt_core.stream.load_network import LoadedNetwork, device_of, load_network
from qvggt_ros.drivers.live_session import LiveReconstruction
from qvggt_ros.io.conversions import header
from qvggt_ros.io.messages import rosbags_messages
from qvggt_ros.io.recording import open_recording
from qvggt_ros.io.topics import choose_topics
from qvggt_ros.publishing import Driver

_LEAST_IMAGES = 8
_LEAST_PUBLISHED = 3
_CLOSE_TIMEOUT_S = 120.0
"""The window that runs at the end is waited for: a process must not end in the middle of it."""


@dataclass(frozen=True)
class CameraMessages:
    """Messages of one camera, read into memory before time is taken.

    Attributes:
        images: in the order of the recording.
        info: CameraInfo, or None.
    """

    images: tuple[Any, ...]
    info: Any | None


@dataclass(frozen=True)
class LiveTiming:
    """What was measured; times in milliseconds.

    Attributes:
        offered: images that the camera sent.
        published: images whose pose came out.
        missed: fraction of the offered images that were replaced by a newer one.
        rate_hz: published poses per second.
        interval_ms_p95: 95th percentile of the time between two publications of a pose.
        latency_ms: mean time from an image's stamp to its pose.
        latency_ms_p95: its 95th percentile.
        image_age_ms: median time from the stamp of a window's newest image to its encoding.
        jitter_ms: mean deviation of the interval between publications from its mean.
        jitter_ms_p95: its 95th percentile.
        processors: processor time over wall time, in cores.
        memory_mib: peak resident memory of the process, this network loaded.
        gpu_memory_mib: the most that was allocated on the GPU; 0 where the network runs elsewhere.
    """

    offered: int
    published: int
    missed: float
    rate_hz: float
    interval_ms_p95: float
    latency_ms: float
    latency_ms_p95: float
    image_age_ms: float
    jitter_ms: float
    jitter_ms_p95: float
    processors: float
    memory_mib: float
    gpu_memory_mib: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the numbers, rounded to what they are worth."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


class _NotedStarts:
    """A network that notes when it begins with the newest image of a window."""

    def __init__(self, network: TorchNetwork) -> None:
        self.network = network
        self.starts_ns: list[int] = []
        self._encoding_ns: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def encode(self, image: Any) -> Any:
        self._encoding_ns = time.time_ns()
        return self.network.encode(image)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        began, self._encoding_ns = self._encoding_ns, None
        self.starts_ns.append(began or time.time_ns())
        return self.network.predict(*arguments, **options)


def read_camera(bag: Path, image_topic: str | None = None, most: int = 200) -> CameraMessages:
    """Return the first images of a recording and its CameraInfo.

    Raises:
        BenchmarkError: there are too few images.
        RecordingError: the recording cannot be read, or has no camera or several.
    """
    with open_recording(bag) as recording:
        topics = choose_topics(recording, image_topic)
        messages = islice(recording.messages([topics.image]), most)
        images = tuple(recording.deserialize(data, kind) for _, kind, _, data in messages)
        info = recording.first(topics.camera_info) if topics.camera_info else None
    if len(images) < _LEAST_IMAGES:
        raise BenchmarkError(f"{bag} has {len(images)} images: give at least {_LEAST_IMAGES}")
    return CameraMessages(images, info)


def measure_live(
    camera: CameraMessages,
    parameters: Parameters,
    rate_hz: float,
    seconds: float,
    load: Callable[[Parameters], LoadedNetwork] = load_network,
) -> LiveTiming:
    """Return how a network with some parameters keeps up with a camera.

    Args:
        camera: what it shows.
        parameters: with the network's file.
        rate_hz: of the camera.
        seconds: for which it runs, after the network is loaded and has run once.
        load: loads the network.

    Raises:
        BenchmarkError: nothing, or next to nothing, was published in that time.
        QvggtError: the network cannot be loaded, or a parameter is refused.
    """
    import torch

    from qvggt_core.measure.rss import peak_mib, reset_peak

    devices = {torch.device("cpu"), torch.device(device_of(parameters.device))}
    published: list[tuple[int, int]] = []

    def emit(topic: str, message: Any, stamp_ns: int) -> None:
        if topic == "pose":
            published.append((stamp_ns, time.time_ns()))

    starts_ns: list[int] = []

    def load_noted(given: Parameters) -> LoadedNetwork:
        loaded = load(given)
        noted = _NotedStarts(loaded.network)
        noted.starts_ns = starts_ns
        return replace(loaded, network=cast(TorchNetwork, noted))

    for device in devices:
        reset_peak(device)
    live = LiveReconstruction(
        parameters, Driver(rosbags_messages(), emit, now_ns=time.time_ns), load=load_noted
    )
    try:
        if camera.info is not None:
            live.on_camera_info(camera.info, "")
        processor, wall = time.process_time(), time.monotonic()
        offered = _offer(live, camera.images, 1.0 / rate_hz, wall + seconds)
        processors = (time.process_time() - processor) / (time.monotonic() - wall)
        memory = {device.type: peak_mib(device) for device in devices}
        if len(published) < _LEAST_PUBLISHED:
            raise BenchmarkError(_too_few(len(published), offered, *live.why_little()))
    finally:
        live.close(_CLOSE_TIMEOUT_S)
    timing = _timing(published, starts_ns, offered, processors, memory["cpu"])
    return replace(timing, gpu_memory_mib=memory.get("cuda", 0.0))


def _offer(live: LiveReconstruction, images: Sequence[Any], period_s: float, end: float) -> int:
    """Offer images at a steady pace until `end` (monotonic seconds); return how many."""
    # Forwards and backwards, so that the camera never jumps.
    order = cycle(chain(images, images[-2:0:-1]))
    due = time.monotonic()
    for offered, image in enumerate(order):
        time.sleep(max(0.0, due - time.monotonic()))
        if time.monotonic() >= end:
            return offered
        now_ns = time.time_ns()
        stamped = header(rosbags_messages(), now_ns, image.header.frame_id)
        live.on_images({"": replace(image, header=stamped)})
        due += period_s
    raise AssertionError("the images never end")


def _too_few(published: int, offered: int, wrong: str, any_taken: bool) -> str:
    """Return why there is nothing to measure: more time helps only where images are taken."""
    came = f"{published} of {offered} images came out"
    longer = "measure for longer (--seconds)" if any_taken or not wrong else ""
    return f"{came}: {'; or '.join(filter(None, (wrong, longer)))}"


def _timing(
    published: Sequence[tuple[int, int]],
    starts_ns: Sequence[int],
    offered: int,
    processors: float,
    memory: float,
) -> LiveTiming:
    stamps, times = np.array(published, dtype=np.int64).T / 1e6
    latencies = times - stamps
    intervals = np.diff(times)
    deviations = np.abs(intervals - intervals.mean())
    return LiveTiming(
        offered=offered,
        published=len(published),
        missed=1.0 - len(published) / offered,
        rate_hz=1e3 * len(intervals) / float(times[-1] - times[0]),
        interval_ms_p95=float(np.percentile(intervals, 95)),
        latency_ms=float(latencies.mean()),
        latency_ms_p95=float(np.percentile(latencies, 95)),
        image_age_ms=float(np.median(_image_ages(published, starts_ns))) / 1e6,
        jitter_ms=float(deviations.mean()),
        jitter_ms_p95=float(np.percentile(deviations, 95)),
        processors=processors,
        memory_mib=memory,
    )


def _image_ages(published: Sequence[tuple[int, int]], starts_ns: Sequence[int]) -> list[int]:
    """Return how old each window's newest image was at the network's start, in nanoseconds.

    Poses of a window come out after its run and before the next one; runs without any are none.
    """
    ages = []
    for start, next_start in pairwise([*starts_ns, math.inf]):
        stamps = [stamp for stamp, time_ns in published if start <= time_ns < next_start]
        if stamps:
            ages.append(int(start) - max(stamps))
    return ages
