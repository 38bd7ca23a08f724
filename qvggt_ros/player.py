"""Plays a recording to the graph in real time, as if it were happening now."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvggt_core.errors import ParameterError
from qvggt_ros.conversions import move_stamps
from qvggt_ros.dds import Participant
from qvggt_ros.recording import OWN_NAMESPACE, Recording, open_recording

_LISTENERS_S = 1.0
_SLICE_S = 0.05
_DEPTH = 10
_LATCHED = "/tf_static"


def play(
    bag: Path,
    participant: Participant,
    *,
    rate: float = 1.0,
    keep_stamps: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Publish a recording's topics, but for a former reconstruction's; return their number.

    Args:
        bag: rosbag2 directory, or a bare .mcap or .db3 file.
        participant: where to publish.
        rate: speed; 2 is twice as fast as it was recorded.
        keep_stamps: leave the stamps as recorded. By default they are moved to now, so that ages
            and latencies are true; there is no /clock here.
        stop: asked before each message and while waiting.
        progress: called with the number of messages done and the number in all.

    Raises:
        ParameterError: the rate is not above zero.
        RecordingError: the recording cannot be read.
        TransportError: a message type cannot be announced, or a message cannot be sent.
    """
    if not rate > 0:
        raise ParameterError(f"rate {rate:g} is not above zero")
    with open_recording(bag) as recording:
        topics = [topic for topic in recording.types if not topic.startswith(OWN_NAMESPACE)]
        publishers = {
            topic: participant.publisher(
                topic,
                recording.types[topic],
                latched=topic == _LATCHED,
                depth=_DEPTH,
                typestore=recording.reader.typestore,
            )
            for topic in topics
        }
        # What is sent before others know of the publishers would be lost.
        deadline = time.monotonic() + _LISTENERS_S
        while time.monotonic() < deadline and not stop():
            if all(publisher.subscribers for publisher in publishers.values()):
                break
            time.sleep(_SLICE_S)
        return _play(recording, publishers, rate, keep_stamps, stop, progress)


def _play(
    recording: Recording,
    publishers: dict[str, Any],
    rate: float,
    keep_stamps: bool,
    stop: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> int:
    total = sum(recording.count(topic) for topic in publishers)
    done, first_ns, start_ns, start = 0, 0, 0, 0.0

    def moved(stamp_ns: int) -> int:
        return start_ns + round((stamp_ns - first_ns) / rate)

    for topic, msgtype, received_ns, data in recording.messages(list(publishers)):
        if not done:
            first_ns, start_ns, start = received_ns, time.time_ns(), time.monotonic()
        due = start + (received_ns - first_ns) * 1e-9 / rate
        while not stop() and (wait := due - time.monotonic()) > 0:
            time.sleep(min(wait, _SLICE_S))
        if stop():
            break
        if keep_stamps:
            publishers[topic].publish_cdr(bytes(data))
        else:
            message = recording.deserialize(data, msgtype)
            move_stamps(message, moved)
            publishers[topic].publish(message)
        done += 1
        progress(done, total)
    return done
