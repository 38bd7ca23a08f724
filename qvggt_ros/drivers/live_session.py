"""A live reconstruction: the network, the session and the one thread that both run in."""

from __future__ import annotations

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from qvggt_core.parameters import Parameters
from qvggt_core.stream import Reconstructor
from qvggt_core.stream.load_network import LoadedNetwork, load_network
from qvggt_core.stream.network import Network
from qvggt_ros.counters import RECENT_S
from qvggt_ros.drivers.thread_worker import Worker
from qvggt_ros.io import conversions
from qvggt_ros.publishing import Driver
from qvggt_ros.session import ReconstructionSession

logger = logging.getLogger(__name__)

DIAGNOSTICS_NAME = "qvggt: reconstruction"

_WARM_UP_VIEWS = 2
_RATE_WINDOW_S = 10.0
_SILENCE_S = 5.0


class LiveReconstruction:
    """What a live driver (a ROS node, a DDS participant) feeds with messages.

    All methods return at once but `close`; what they cause happens in the worker's thread, from
    which the functions of the driver are called too.

    Attributes:
        parameters: the effective ones, with what was left to choose filled in.
        facts: names and values about the network, for diagnostics and logs.
    """

    def __init__(
        self,
        parameters: Parameters,
        driver: Driver,
        *,
        rectified: bool = False,
        load: Callable[[Parameters], LoadedNetwork] = load_network,
    ) -> None:
        """Load the network, let it run once, and wait for messages.

        Args:
            parameters: how to reconstruct.
            driver: where messages go; its functions are called from the worker's thread.
            rectified: whether the images are rectified already.
            load: loads the network that the parameters name.

        Raises:
            QvggtError: the network cannot be loaded, or a parameter is refused.
        """
        self._driver = driver
        self._worker = Worker()
        self._publication_times: deque[tuple[float, int]] = deque(maxlen=256)
        self._newest_arrival = time.monotonic()
        self._images = 0

        def start() -> tuple[LoadedNetwork, ReconstructionSession]:
            loaded = load(parameters)
            _warm_up(loaded.network)
            session = ReconstructionSession(
                Reconstructor(loaded.network, loaded.parameters, loaded.metric_depth),
                loaded.parameters,
                driver,
                rectified=rectified,
                live=True,
            )
            return loaded, session

        try:
            loaded, self._session = self._worker.call(start).result()
        except BaseException:
            self._worker.stop(0.0)
            raise
        self.parameters = loaded.parameters
        self.facts = loaded.facts

    def on_images(self, images: Mapping[str, Any]) -> None:
        """Take the newest Image or CompressedImage of each camera, by the cameras' names."""
        self._images += len(images)
        self._newest_arrival = time.monotonic()
        self._worker.offer(lambda: self._session.on_images(images))

    def on_camera_info(self, message: Any, camera: str) -> None:
        """Take a CameraInfo."""
        self._worker.put(lambda: self._session.on_camera_info(message, camera))

    def on_odometry(self, message: Any) -> None:
        """Take an Odometry."""
        self._worker.put(lambda: self._session.on_odometry(message))

    def on_unreadable(self, reason: str, *, is_image: bool = False) -> None:
        """Count a message that could not even be read."""
        self._images += is_image
        self._worker.put(lambda: self._session.reject(reason, is_image=is_image))

    def pause(self) -> None:
        """Drop what waits; the next image begins a new map."""
        self._worker.forget()
        self._worker.call(lambda: self._session.reset("a pause"))

    def reset(self) -> Future[None]:
        """Forget the map, the path and the views that wait."""
        return self._worker.call(self._session.reset)

    def save_map(self) -> Future[tuple[Path, int]]:
        """Write the map as PLY; the future brings the file and its number of points."""
        return self._worker.call(self._session.save_map)

    def set_parameters(self, parameters: Parameters) -> None:
        """Take parameters that differ from the former in what may change while running."""
        self.parameters = parameters
        self._worker.call(lambda: self._session.set_parameters(parameters))

    def diagnostics(self, waiting_for: str = "") -> Any:
        """Return diagnostic_msgs/DiagnosticArray of the state.

        Args:
            waiting_for: what is missing while no image comes.
        """
        status = self._session.status()
        level, text = status.level, status.message
        silence = time.monotonic() - self._newest_arrival
        if silence > _SILENCE_S:
            level = "WARN"
            since = f"no image for {silence:.0f} s" if self._images else "no image yet"
            text = f"{since}{': ' if waiting_for else ''}{waiting_for}"
        if time.monotonic() - self._worker.failed_at < RECENT_S:
            level = "ERROR"
            text = f"{self._worker.failures} failures, the last: {self._worker.last_failure}"
        values: dict[str, Any] = {
            **_flat(status.values),
            "images": self._images,
            "dropped": self._worker.dropped,
            "failures": self._worker.failures,
            "rate_hz": round(self._rate(status.values["published"]), 3),
            "model": self.facts.get("file", ""),
            "device": self.parameters.device,
            **_gpu_memory(self.parameters.device),
        }
        return conversions.diagnostics_message(
            self._driver.messages,
            DIAGNOSTICS_NAME,
            level,
            text,
            {name: _text(value) for name, value in values.items()},
            self._driver.now_ns() if self._driver.now_ns is not None else time.time_ns(),
        )

    def close(self, timeout_s: float = 1.0) -> bool:
        """Stop and release the network; return whether its thread ended within the time."""
        ended = self._worker.stop(timeout_s)
        if ended:
            del self._session
            gc.collect()
            _release_gpu_memory(self.parameters.device)
        return ended

    def _rate(self, published: int) -> float:
        """Return the frames with geometry per second, over the last ten seconds."""
        now = time.monotonic()
        times = self._publication_times
        times.append((now, published))
        while len(times) > 2 and now - times[0][0] > _RATE_WINDOW_S:
            times.popleft()
        seconds = now - times[0][0]
        return (published - times[0][1]) / seconds if seconds > 0 else 0.0


def _warm_up(network: Network) -> None:
    """Let the network run once: first runs choose algorithms and fill caches."""
    width, patch = network.image_width, network.patch_size
    height = max(1, round(0.75 * width / patch)) * patch
    tokens = [network.encode(np.zeros((height, width, 3), np.uint8))] * _WARM_UP_VIEWS
    network.predict(tokens, height, width)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _gpu_memory(device: str) -> dict[str, float]:
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 1e6}


def _release_gpu_memory(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
