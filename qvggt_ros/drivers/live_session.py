"""A live reconstruction: the network, the session and the one thread that both run in."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qvggt_core.parameters import Parameters
from qvggt_core.stream import Reconstructor
from qvggt_core.stream.load_network import LoadedNetwork, load_network
from qvggt_core.stream.loaded_map import loops_of
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.network import Network
from qvggt_core.util.threads import check_room_for_thread
from qvggt_ros.counters import Status
from qvggt_ros.drivers.live_maps import LiveMaps
from qvggt_ros.drivers.thread_worker import Worker
from qvggt_ros.io import conversions
from qvggt_ros.publishing import Driver
from qvggt_ros.session import ReconstructionSession

logger = logging.getLogger(__name__)

_WARM_UP_VIEWS = 2
_RATE_WINDOW_S = 10.0
_SILENCE_S = 5.0
# Views that wait for their window get their geometry when no image has come for so long.
_FLUSH_AFTER_S = 2.0
_FAILURE_HOLDS_S = 10.0
_NO_GEOMETRY_S = 30.0
# Ages of images that no camera and no network explain: clocks differ.
_YOUNGEST_AGE_S, _OLDEST_AGE_S = -0.5, 60.0
_JOIN_S = 5.0


def diagnostics_name(node: str) -> str:
    """Return the name of the diagnostics' status; `node` is the node's full name."""
    return f"{node.strip('/')}: reconstruction"


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
        name: str = "qvggt/reconstruct",
        rectified: Collection[str] = (),
        load: Callable[[Parameters], LoadedNetwork] = load_network,
    ) -> None:
        """Load the network, let it run once, and wait for messages.

        Args:
            parameters: how to reconstruct.
            driver: where messages go; its functions are called from the worker's thread.
            name: full name of the node, for diagnostics.
            rectified: names of the cameras whose images are rectified already.
            load: loads the network that the parameters name.

        Raises:
            QvggtError: the network cannot be loaded, or a parameter is refused.
        """
        self._driver = driver
        self._name = name
        self._worker = Worker(on_idle=self._flush, idle_s=_FLUSH_AFTER_S)
        self._saving = ThreadPoolExecutor(1, "saving")
        self._publication_times: deque[tuple[float, int]] = deque(maxlen=256)
        self._newest_arrival = time.monotonic()
        self._images = 0
        self._progress = _Progress()
        self._conditions: frozenset[str] = frozenset()

        def start() -> tuple[LoadedNetwork, ReconstructionSession, LoopClosure]:
            loaded, loops = loops_of(load(parameters), in_background=True)
            _warm_up(loaded.network)
            if loaded.metric_depth is not None:
                loaded.metric_depth.is_awaited = True
            session = ReconstructionSession(
                Reconstructor(
                    loaded.network,
                    loaded.parameters,
                    loaded.metric_depth,
                    loops,
                ),
                loaded.parameters,
                driver,
                rectified=rectified,
                live=True,
            )
            return loaded, session, loops

        try:
            loaded, self._session, loops = self._worker.call(start).result()
        except Exception:
            self._worker.stop(_JOIN_S)
            raise
        except BaseException:  # Ctrl-C does not wait for the end of loading
            self._worker.stop(0.0)
            raise
        self.parameters = loaded.parameters
        self._changing = threading.Lock()
        self._maps = LiveMaps(loops, self._session, self.change_parameters)
        self.facts = loaded.facts

    def on_images(self, images: Mapping[str, Any]) -> None:
        """Take the newest Image or CompressedImage of each camera, by the cameras' names."""
        self._images += len(images)
        self._newest_arrival = time.monotonic()
        self._worker.offer(lambda: self._session.on_images(images), len(images))

    def on_camera_info(self, message: Any, camera: str) -> None:
        """Take a CameraInfo."""
        self._worker.put(lambda: self._session.on_camera_info(message, camera), "camera_info")

    def on_mask(self, message: Any, camera: str) -> None:
        """Take a mask, an Image of mono8."""
        self._worker.put(lambda: self._session.on_mask(message, camera), "mask")

    def on_odometry(self, message: Any) -> None:
        """Take an Odometry."""
        self._worker.put(lambda: self._session.on_odometry(message), "odometry")

    def on_fix(self, message: Any) -> None:
        """Take a NavSatFix."""
        self._worker.put(lambda: self._session.on_fix(message), "fix")

    def on_range(self, message: Any) -> None:
        """Take a Range."""
        self._worker.put(lambda: self._session.on_range(message), "range")

    def on_imu(self, message: Any) -> None:
        """Take an Imu."""
        self._worker.put(lambda: self._session.on_imu(message), "imu")

    def on_unreadable(self, reason: str, *, is_image: bool = False) -> None:
        """Count a message that could not even be read."""
        self._images += is_image
        self._worker.put(
            lambda: self._session.reject(reason, is_image=is_image), "unreadable", int(is_image)
        )

    def warn(self, text: str) -> None:
        """Take a warning for the diagnostics; it holds for a while."""
        self._worker.put(lambda: self._session.counters.warn(text), "warning")

    def pause(self) -> None:
        """Drop what waits; the next image begins a new map."""
        self._worker.forget()
        self._worker.call(lambda: self._session.reset("a pause"))
        self._worker.last_failure_s = -math.inf

    def reset(self) -> Future[None]:
        """Forget the map, the path and the views that wait."""
        self._worker.last_failure_s = -math.inf
        return self._worker.call(self._session.reset)

    def save_map(self) -> Future[tuple[Path, int]]:
        """Write the map as PLY; the future brings the file and its number of points."""
        return self._worker.call(self._session.save_map)

    def save_keyframes(self) -> Future[tuple[Path, int]]:
        """Save the map for `load_map`; the future brings its directory and number of keyframes."""
        check_room_for_thread()
        # The map is adjusted and written beside the stream, which goes on.
        return self._saving.submit(
            lambda: self._worker.call(lambda: self._maps.to_save()).result()()
        )

    def load_map(self, place: str) -> Future[str]:
        """Look for the camera in a saved map; see `LiveMaps.load`."""
        return self._worker.call(lambda: self._maps.load(place))

    def set_localization_only(self, only: bool) -> Future[str]:
        """Freeze the map, or let it grow; see `LiveMaps.set_localization_only`."""
        return self._worker.call(lambda: self._maps.set_localization_only(only))

    def change_parameters(self, **values: Any) -> Parameters:
        """Take new values of parameters that may change while running; return all parameters.

        Raises:
            ParameterError: a value is refused; all stays as it was.
        """
        with self._changing:
            self.parameters = self.parameters.with_values(**values)
        if values:
            # With what has changed by the time it is done: calls come in any order.
            self._worker.call(lambda: self._session.set_parameters(self.parameters))
        return self.parameters

    def diagnostics(self, waiting_for: str = "") -> Any:
        """Return diagnostic_msgs/DiagnosticArray of the state.

        Args:
            waiting_for: what is missing while no image comes.
        """
        status = self._session.status()
        level, text = self._state(status, waiting_for)
        values: dict[str, Any] = {
            **_flat(status.values),
            "images": self._images,
            "dropped": self._worker.dropped,
            **{f"pushed_out.{kind}": n for kind, n in self._worker.pushed_out.items()},
            "failures": self._worker.failures,
            "rate_hz": round(self._rate(status.values["published"]), 3),
            "model": self.facts.get("file", ""),
            "device": self.parameters.device,
            **_gpu_memory(self.parameters.device),
        }
        return conversions.diagnostics_message(
            self._driver.messages,
            diagnostics_name(self._name),
            level,
            text,
            {name: _text(value) for name, value in values.items()},
            self._driver.now_ns() if self._driver.now_ns is not None else time.time_ns(),
        )

    def why_little(self) -> tuple[str, bool]:
        """Return what was wrong with images ("" if nothing was), and whether any was taken."""
        worker, counters = self._worker, self._session.counters
        reasons = [counters.why_rejected()]
        if worker.failures:
            reasons.append(f"{worker.failures} failures, the last: {worker.last_failure}")
        lost = sum(counters.rejected.values()) + worker.failures
        return "; ".join(filter(None, reasons)), lost < counters.received

    @property
    def silence_s(self) -> float:
        """Seconds since the newest image, or since the network was ready."""
        return time.monotonic() - self._newest_arrival

    def _state(self, status: Status, waiting_for: str) -> tuple[str, str]:
        """Return level and text of the diagnostics: the gravest of what holds now."""
        worker = self._worker
        if time.monotonic() - worker.last_failure_s < _FAILURE_HOLDS_S:
            return "ERROR", f"{worker.failures} failures, the last: {worker.last_failure}"
        if self.silence_s > _SILENCE_S:
            since = f"no image for {self.silence_s:.0f} s" if self._images else "no image yet"
            return "WARN", f"{since}{': ' if waiting_for else ''}{waiting_for}"
        ages = self._session.counters.ages
        conditions = self._progress.conditions(
            status.values, ages[-1] if ages else None, dict(worker.pushed_out)
        )
        for condition in sorted(set(conditions) - self._conditions):
            logger.warning("%s", condition)
        self._conditions = frozenset(conditions)
        if not conditions:
            return status.level, status.message
        texts = [*conditions, *([status.message] if status.level != "OK" else [])]
        return "WARN", "; ".join(texts)

    def _flush(self) -> None:
        self._session.finish()

    def close(self, timeout_s: float = 1.0) -> bool:
        """Stop and release the network; return whether its thread ended within the time."""
        self._saving.shutdown(wait=False)
        ended = self._worker.stop(timeout_s)
        if ended:
            del self._session, self._maps
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


class _Progress:
    """What comes out of the images that come in, from one diagnostics message to the next."""

    def __init__(self) -> None:
        self._values: Mapping[str, Any] = {}
        self._pushed_out: Mapping[str, int] = {}
        self._last_geometry_s = time.monotonic()

    def conditions(
        self, values: Mapping[str, Any], age: float | None, pushed_out: Mapping[str, int]
    ) -> list[str]:
        """Return what an operator should know of the messages since the last call.

        Args:
            values: the counters.
            age: of the newest image that a window began with, in seconds.
            pushed_out: messages per kind that too many newer ones replaced.
        """
        now, before = time.monotonic(), self._values
        grown = {
            name: values[name] - before.get(name, 0)
            for name in ("received", "published", "uncalibrated")
        }
        self._values = values
        found = [
            f"{kind}: {count - self._pushed_out.get(kind, 0)} messages came faster than they are "
            "taken, and the oldest were left out"
            for kind, count in pushed_out.items()
            if count > self._pushed_out.get(kind, 0)
        ]
        self._pushed_out = pushed_out
        if grown["published"] or not grown["received"]:
            self._last_geometry_s = now
        elif now - self._last_geometry_s > _NO_GEOMETRY_S:
            found.append(f"images come, but none has got its geometry for {_NO_GEOMETRY_S:.0f} s")
        if grown["uncalibrated"]:
            found.append(
                "no usable CameraInfo: depth and points are made with the focal length that the "
                "network estimates"
            )
        if age is not None and not _YOUNGEST_AGE_S < age < _OLDEST_AGE_S:
            way = "ahead of" if age < 0 else "behind"
            found.append(
                f"the images' stamps are {abs(age):.1f} s {way} this node's clock: synchronise "
                "the clocks, or set use_sim_time (and play with --clock)"
            )
        return found


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
