"""Cameras that are faster than the network, bursts, a network that fails: nothing gets lost or old.

A live reconstruction is fed from several threads, as drivers do. At the end of each stream every
image is in one counter, no geometry is older than the images that it waited for, and memory,
threads and descriptors are as before.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.figures import Figures, main
from support.hostile_messages import RandomNetwork
from support.recordings import M, camera_info_message, header, image_message

from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import WindowPrediction
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_ros.drivers.live_session import LiveReconstruction
from qvggt_ros.publishing import Driver

CAMERAS = ("front", "left", "back", "right")
PERIOD_NS = 1_000_000_000 // 60
SLOW_S = 0.02
IMAGES = 3000
"""Of each camera in a stream."""
COUNTERS = ("dropped", "published", "gated", "withheld")
OLDEST_S = 30.0
"""By the stream's clock, which runs faster than time: a window's views wait for its stride."""
MEMORY_MB = 120
"""By which memory may have grown over all streams, once the first has filled what is kept."""


class SlowNetwork(RandomNetwork):
    """Takes its time, and now and then fails; not when it is warmed up, which ends the start."""

    is_warm = False

    def predict(self, tokens: Sequence[int], *rest: Any) -> WindowPrediction:
        time.sleep(SLOW_S)
        if self._rng.random() < 0.1 and self.is_warm:
            raise RuntimeError("the network fails on purpose")
        self.is_warm = True
        return super().predict([token % 40 for token in tokens], *rest)


@dataclass
class Out:
    """What was published: how many messages, and the oldest one's place behind the newest image."""

    poses: int = 0
    newest_ns: int = 0
    oldest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def emit(self, topic: str, message: object, stamp_ns: int) -> None:
        """Take a message."""
        if topic == "pose":
            self.poses += 1
            self.oldest_s = max(self.oldest_s, (self.newest_ns - stamp_ns) * 1e-9)


def stream(figures: Figures, seed: int) -> None:
    """Feed one stream of four cameras, with bursts and pauses."""
    rng = random.Random(seed)
    parameters = Parameters(
        cameras=CAMERAS, confirm=False, refine=False, window_size=8, window_stride=4
    )
    out = Out()
    live = LiveReconstruction(
        parameters,
        Driver(M, out.emit),
        load=lambda given: LoadedNetwork(SlowNetwork(rng), given, {"file": "room"}),
    )
    info = threading.Thread(target=_calibrate, args=(live,))
    info.start()
    sent = 0
    for index in range(IMAGES // len(CAMERAS)):
        out.newest_ns = index * PERIOD_NS
        message = image_message(index % 40, header=header(0, stamp_ns=out.newest_ns))
        present = CAMERAS if rng.random() < 0.95 else CAMERAS[: rng.randint(1, 3)]
        live.on_images(dict.fromkeys(present, message))
        sent += len(present)
        if rng.random() < 0.95:
            time.sleep(rng.choice((0.0, 0.001, 0.002)))
        if rng.random() < 0.002:
            live.reset()
    info.join()
    _wait_for_the_worker(live)
    figures.run(f"stream {seed}", lambda: _check(live, out, sent))


def _calibrate(live: LiveReconstruction) -> None:
    for index in range(300):
        live.on_camera_info(camera_info_message(index), CAMERAS[index % 4])
        time.sleep(0.001)


def _wait_for_the_worker(live: LiveReconstruction) -> None:
    live.pause()
    live.reset().result(60)


def _check(live: LiveReconstruction, out: Out, sent: int) -> None:
    """Hold the counters against what was sent, and against what came out."""
    values = {item.key: item.value for item in live.diagnostics().status[0].values}
    assert live.close(30.0), "the worker's thread does not end"
    number = {name: int(values[name]) for name in (*COUNTERS, "images", "received")}
    rejected = sum(
        int(value)
        for name, value in values.items()
        if name.startswith("rejected.") and not name.startswith("rejected.calibration")
    )
    assert number["images"] == sent
    assert number["received"] + number["dropped"] == sent, (number, sent)
    assert sum(number[name] for name in COUNTERS) + rejected == sent, (number, rejected, sent)
    assert 0 < out.poses <= number["published"]
    assert out.oldest_s < OLDEST_S, f"a pose was {out.oldest_s:.2f} s behind the newest image"


class Resources:
    """Memory, threads and descriptors of this process, against those after the first stream."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None

    def round_of_cases(self, figures: Figures, seed: int) -> None:
        """Run a stream, and hold its remains against those of the first."""
        stream(figures, seed)
        gc.collect()
        status = Path("/proc/self/status").read_text()
        memory = int(status.split("VmRSS:")[1].split()[0]) / 1024
        now = memory, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
        if self._first is None:
            self._first = now
            return
        grown = now[0] - self._first[0]
        if grown > MEMORY_MB:
            figures.lose(f"after stream {seed}", f"memory grew by {grown:.0f} MB")
        if now[1:] != self._first[1:]:
            figures.lose(f"after stream {seed}", f"threads, descriptors: {self._first} -> {now}")


if __name__ == "__main__":
    main(__doc__, Resources().round_of_cases)
