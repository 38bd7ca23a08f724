"""Faults under a running reconstruction: its checkpoint, its folder, its subscriber, its camera.

The checkpoint is replaced, cut or removed, the folder of maps vanishes or is full, a subscriber
never reads, the worker's work raises, clocks jump, the camera is unplugged, swapped or resized,
memory runs out. After each every image is in one counter, and the next images get geometry.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from support.figures import Figures, main
from support.recordings import M, RoomNetwork, camera_info_message, header, image_message
from support.small_network import TINY, open_state

from qvggt_core.errors import QvggtError
from qvggt_core.model import checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import WindowPrediction
from qvggt_core.stream.load_network import LoadedNetwork, load_network
from qvggt_ros.drivers.live_session import LiveReconstruction
from qvggt_ros.publishing import Driver

IMAGES = 24
PERIOD_NS = 100_000_000
DONE = ("dropped", "published", "gated", "withheld")
CHOICES: dict[str, Any] = {
    "confirm": False,
    "refine": False,
    "keyframe_min_motion": 0.0,
    "window_size": 6,
    "window_stride": 2,
}


class FailingNetwork(RoomNetwork):
    """A room's network that raises what it is given to raise."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None

    def predict(self, tokens: Any, *rest: Any, **known: Any) -> WindowPrediction:
        """Raise, or predict."""
        if self.error is not None:
            raise self.error
        return super().predict([token % 40 for token in tokens], *rest, **known)


@dataclass
class Robot:
    """A camera, a live reconstruction, and what came out of it."""

    folder: Path
    checkpoint: Path | None = None
    hang_s: float = 0.0
    network: FailingNetwork = field(default_factory=FailingNetwork)
    poses: list[int] = field(default_factory=list)
    sent: int = 0
    stamp_ns: int = 1_700_000_000_000_000_000

    def __post_init__(self) -> None:
        """Load the network and begin."""
        chosen = {**CHOICES, "map_directory": str(self.folder / "maps")}
        if self.checkpoint is not None:
            chosen |= {"checkpoint": str(self.checkpoint), "image_width": 56}
        self.live = LiveReconstruction(Parameters(**chosen), Driver(M, self._emit), load=self._load)

    def _load(self, given: Parameters) -> LoadedNetwork:
        if self.checkpoint is not None:
            return load_network(given)
        return LoadedNetwork(self.network, given, {"file": "room"})

    def _emit(self, topic: str, message: object, stamp_ns: int) -> None:
        time.sleep(self.hang_s)
        if topic == "pose":
            self.poses.append(stamp_ns)

    def show(self, count: int = IMAGES, wait: bool = True, **changes: Any) -> int:
        """Show images; return how many got a pose."""
        before = len(self.poses)
        for _ in range(count):
            self.stamp_ns += PERIOD_NS
            head = header(0, changes.get("frame", "camera_optical_frame"), self.stamp_ns)
            picture = {name: value for name, value in changes.items() if name != "frame"}
            self.live.on_camera_info(camera_info_message(0, header=head), "")
            self.live.on_images({"": image_message(self.sent % 40, header=head, **picture)})
            self.sent += 1
            if wait:
                self.wait()
        return len(self.poses) - before

    def wait(self) -> None:
        """Wait until what came is done: calls go before images, so two of them."""
        for _ in range(2):
            self.live._worker.call(lambda: None).result(60.0)
            time.sleep(0.001)

    def end(self) -> None:
        """Hold the counters against what was sent."""
        self.live.pause()
        self.live.reset().result(60.0)
        values = {item.key: item.value for item in self.live.diagnostics().status[0].values}
        rejected = sum(
            int(value)
            for name, value in values.items()
            if name.startswith("rejected.") and not name.startswith("rejected.calibration")
        )
        done = sum(int(values[name]) for name in DONE)
        assert done + rejected == self.sent, (values, self.sent)
        assert self.live.close(30.0), "the worker's thread does not end"


def checkpoint_changed(robot: Callable[..., Robot], rng: random.Random) -> None:
    """The checkpoint's file is replaced, cut, filled anew or removed while it is in use."""
    with tempfile.TemporaryDirectory() as work:
        path, other = Path(work) / "a.safetensors", Path(work) / "b.safetensors"
        checkpoint.save_checkpoint(path, open_state(), TINY)
        checkpoint.save_checkpoint(other, open_state(), TINY)
        it = robot(checkpoint=path)
        assert it.show(12), "nothing comes out"
        change = rng.choice(("replaced", "cut", "zeros", "removed"))
        if change == "replaced":
            other.replace(path)
        elif change == "removed":
            path.unlink()
        else:
            # In place, as `cp` does it: where a file is mapped, its pages change under it.
            with path.open("r+b") as file:
                file.truncate(rng.randrange(1000))
                if change == "zeros":
                    file.truncate(path.stat().st_size + other.stat().st_size)
        assert it.show(12), f"nothing comes out after the checkpoint was {change}"
        assert not it.live._worker.failures, it.live._worker.last_failure
        it.end()


def folder_vanished(robot: Callable[..., Robot], rng: random.Random) -> None:
    """The folder of maps is no folder any more: an error, and later a map again."""
    it = robot()
    it.show(12)
    maps = it.folder / "maps"
    it.live.save_map().result(60.0)
    shutil.rmtree(maps)
    maps.write_text("in the way")
    refused = it.live.save_map().exception(60.0)
    assert isinstance(refused, QvggtError | OSError), "a map was written into a file's place"
    assert str(refused)
    maps.unlink()
    it.show(4)
    file, points = it.live.save_map().result(60.0)
    assert file.exists()
    assert points
    it.end()


def subscriber_hangs(robot: Callable[..., Robot], rng: random.Random) -> None:
    """A subscriber that holds up each message: images are dropped, none waits for long."""
    it = robot(hang_s=0.01)
    it.show(200, wait=False)
    it.hang_s = 0.0
    it.wait()
    assert it.show(12), "nothing comes out after the subscriber was gone"
    it.end()


def work_raises(robot: Callable[..., Robot], rng: random.Random) -> None:
    """The network raises for a while, whatever it is."""
    it = robot()
    it.show(6)
    errors = (RuntimeError("x"), MemoryError(), KeyError("y"), ValueError(), OSError(5, "I/O"))
    it.network.error = rng.choice(errors)
    it.show(rng.randint(1, 12))
    it.network.error = None
    assert it.show(12), "nothing comes out after the network failed"
    it.end()


def clock_jumps(robot: Callable[..., Robot], rng: random.Random) -> None:
    """Time jumps to and fro, by microseconds and by years."""
    it = robot()
    for _ in range(6):
        jump = rng.choice((1e-6, 0.05, 0.5, 3.0, 3600.0, 1e8)) * rng.choice((-1, 1))
        it.stamp_ns = max(PERIOD_NS, it.stamp_ns + round(jump * 1e9))
        it.show(rng.randint(1, 8))
    assert it.show(12), "nothing comes out when time is steady again"
    it.end()


def camera_changes(robot: Callable[..., Robot], rng: random.Random) -> None:
    """The camera is unplugged, another one is plugged in, its size and encoding change."""
    it = robot()
    usual = image_message(0)
    for _ in range(5):
        kind = rng.randrange(4)
        if kind == 0:
            it.stamp_ns += 60 * 10**9
            it.show(4)
        elif kind == 1:
            it.show(4, frame=rng.choice(("other", "", "/camera_optical_frame")))
        elif kind == 2:
            half = usual.data.reshape(usual.height, -1)[::2].reshape(-1).copy()
            it.show(4, height=usual.height // 2, data=half)
        else:
            it.show(4, encoding=rng.choice(("bgr8", "mono8", "nv12", "none")))
    assert it.show(12), "nothing comes out when the camera is back"
    it.end()


def memory_is_short(robot: Callable[..., Robot], rng: random.Random) -> None:
    """There is memory for few views only, for a while: all images get their geometry."""
    it = robot()
    it.show(8)
    room, predict = rng.randint(3, 5), it.network.predict

    def starved(tokens: Any, *rest: Any, **known: Any) -> WindowPrediction:
        if len(tokens) > room:
            raise MemoryError
        return predict(tokens, *rest, **known)

    it.network.predict = starved  # type: ignore[method-assign]
    assert it.show(12) >= 10, "images got no geometry although a smaller window had room"
    it.network.predict = predict  # type: ignore[method-assign]
    it.show(12)
    assert not it.live._worker.failures, it.live._worker.last_failure
    it.end()


FAULTS = (
    *(checkpoint_changed, folder_vanished, subscriber_hangs, work_raises, clock_jumps),
    *(camera_changes, memory_is_short),
)


def one_case(figures: Figures, seed: int) -> None:
    """Run one fault, another one with each seed."""
    fault = FAULTS[seed % len(FAULTS)]
    rng = random.Random(f"{fault.__name__} {seed}")

    def case() -> None:
        with tempfile.TemporaryDirectory() as work:
            fault(partial(Robot, Path(work)), rng)

    figures.run(f"{fault.__name__} {seed}", case)


if __name__ == "__main__":
    logging.disable()
    main(__doc__, one_case)
