"""Memory and loop search over half an hour of images that come again and again, all outputs on.

A flight through a rendered room goes forth and back; its images become messages, whose stamps lie
`--seconds` apart, and go through a live session with loop closure to all its topics. Memory may
grow until the store of keyframes is full (`--keyframes`), and is flat from then on. The time of
loops is the processor's for a keyframe, but for finding and comparing corners.

    python benchmarks/long_run.py DIRECTORY -o benchmarks/results/long_run.json

DIRECTORY has the renderings of benchmarks/loop_closure.py.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from loop_flights import CAMERA, HEIGHT, WIDTH, Rendered, rendered
from result_table import ResultTable

from qvggt_core.measure.rss import resident_mib
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Reconstructor, loop_finder
from qvggt_core.stream.keyframe_store import MAX_KEYFRAMES, KeyframeStore
from qvggt_core.stream.load_network import load_network
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.loop_finder import LoopFinder
from qvggt_ros.io import conversions
from qvggt_ros.io.messages import Messages, rosbags_messages
from qvggt_ros.publishing import Driver
from qvggt_ros.session import ReconstructionSession

_REPORTS = 30


class Timed:
    """Adds up the time of a function that is called by others."""

    def __init__(self, module: Any, name: str) -> None:
        """Take the place of a module's function."""
        self.seconds = 0.0
        self._work: Callable[..., Any] = getattr(module, name)
        setattr(module, name, self)

    def __call__(self, *given: Any) -> Any:
        """Do what the function does."""
        begin = time.thread_time()
        try:
            return self._work(*given)
        finally:
            self.seconds += time.thread_time() - begin


class TimedFinder(LoopFinder):
    """A loop finder that notes the seconds of each keyframe, without those of corners."""

    corners: list[Timed]
    seconds: list[float]

    def take(self, keyframe: Any) -> None:
        """Take a keyframe."""
        begin, before = time.thread_time(), sum(each.seconds for each in self.corners)
        super().take(keyframe)
        of_corners = sum(each.seconds for each in self.corners) - before
        self.seconds.append(time.thread_time() - begin - of_corners)


def finder_of(keyframes: int) -> TimedFinder:
    """Return a loop finder whose store is full with so many keyframes."""
    finder = TimedFinder(store=KeyframeStore(keyframes))
    finder.corners = [Timed(loop_finder, name) for name in ("corners_of", "compare")]
    finder.seconds = []
    return finder


def back_and_forth(flight: Rendered, count: int) -> Iterator[np.ndarray]:
    """Yield so many images of a flight that goes to its end, back, and again."""
    images = flight.images
    period = 2 * (len(images) - 1)
    for number in range(count):
        place = number % period
        yield images[min(place, period - place)]


def session_of(loops: LoopClosure) -> tuple[ReconstructionSession, Messages]:
    """Return a live session whose outputs are all wanted, and go nowhere."""
    loaded = load_network(Parameters(compute_dtype="float32", loop_closure=True))
    messages = rosbags_messages()
    reconstructor = Reconstructor(loaded.network, loaded.parameters, loops=loops)
    driver = Driver(messages, lambda topic, message, stamp: None, wanted=lambda topic: True)
    return ReconstructionSession(reconstructor, loaded.parameters, driver, live=True), messages


def fly(flight: Rendered, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a flight."""
    loops = LoopClosure()
    finder = loops.finder = finder_of(args.keyframes)
    session, messages = session_of(loops)
    memory, every = [], max(1, args.images // _REPORTS)
    begin = time.perf_counter()
    for number, image in enumerate(back_and_forth(flight, args.images)):
        head = conversions.header(messages, round(number * args.seconds * 1e9), "camera")
        session.on_camera_info(
            conversions.pinhole_info_message(messages, CAMERA.intrinsics, WIDTH, HEIGHT, head)
        )
        session.on_image(conversions.picture_message(messages, image, head))
        if number % every == every - 1:
            gc.collect()
            memory.append(resident_mib())
            print(
                number + 1,
                f"{memory[-1]:.0f} MiB",
                len(finder.store),
                len(finder.loops),
                flush=True,
            )
    half = np.array(memory[len(memory) // 2 :])
    slope = np.polyfit(np.arange(len(half)) * every, half, 1)[0] * 1000.0
    tail = np.array(finder.seconds[len(finder.seconds) // 2 :])
    return {
        "images": args.images,
        "minutes_of_stamps": args.images * args.seconds / 60.0,
        "images_per_second": args.images / (time.perf_counter() - begin),
        "keyframes_kept_at_most": args.keyframes,
        "keyframes_seen": len(finder.seconds),
        "keyframes_kept": len(finder.store),
        "loops_accepted": finder.accepted,
        "loops_kept": len(finder.loops),
        "segments": session.counters.segments,
        "resident_mib": memory,
        "second_half_mib_per_1000_images": float(slope),
        "search_and_graph_s_mean": float(tail.mean()),
        "search_and_graph_s_worst": float(tail.max()),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--seconds", type=float, default=1.2, help="between two stamps")
    parser.add_argument("--keyframes", type=int, default=MAX_KEYFRAMES, help="kept at most")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    table = ResultTable(args.output, keeps_others=False)
    table.add("room 30", fly(rendered(args.directory, "room", 30, 0, 220), args))


if __name__ == "__main__":
    main()
