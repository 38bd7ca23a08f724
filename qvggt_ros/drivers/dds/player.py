"""Plays a recording to the graph in real time, as if it were happening now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qvggt_core.errors import ParameterError, RecordingError, TransportError
from qvggt_ros.drivers.dds.participant import Participant, Publisher
from qvggt_ros.io.conversions import NANOSECONDS, move_stamps
from qvggt_ros.io.recording import Recording, open_recording
from qvggt_ros.io.topics import playable_topics

_LISTENERS_S = 1.0
_SLICE_S = 0.05
_DEPTH = 10
_LATCHED = "/tf_static"
_LAST_STAMP_NS = (1 << 31) * NANOSECONDS - 1


@dataclass(frozen=True)
class Played:
    """What became of a recording.

    Attributes:
        messages: number of messages that were published.
        warnings: sentences about what was left out.
    """

    messages: int
    warnings: tuple[str, ...]


def play(
    bag: Path,
    participant: Participant,
    *,
    rate: float = 1.0,
    keep_stamps: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Played:
    """Publish a recording's topics, but for those of a former reconstruction.

    A message or a topic that cannot be published is left out.

    Args:
        bag: rosbag2 directory, or a bare .mcap or .db3 file.
        participant: where to publish.
        rate: speed; 2 is twice as fast as it was recorded.
        keep_stamps: leave the stamps as recorded. By default they are moved to now, so that ages
            and latencies are true; there is no /clock here.
        stop: called before each message and while waiting.
        progress: called with the number of messages done and the number in all.

    Raises:
        ParameterError: the rate is not above zero.
        RecordingError: the recording cannot be read.
    """
    if not rate > 0:
        raise ParameterError(f"rate {rate:g} is not above zero")
    with open_recording(bag) as recording:
        publishers = _publishers(recording, participant)
        # What is sent before others know of the publishers would be lost.
        deadline = time.monotonic() + _LISTENERS_S
        while time.monotonic() < deadline and not stop():
            if all(publisher.subscribers for publisher in publishers.values()):
                break
            time.sleep(_SLICE_S)
        messages = _play(recording, publishers, rate, keep_stamps, stop, progress)
        return Played(messages, tuple(recording.warnings))


def _publishers(recording: Recording, participant: Participant) -> dict[str, Publisher]:
    publishers = {}
    for topic in playable_topics(recording):
        msgtype = recording.types[topic]
        try:
            publishers[topic] = participant.publisher(
                topic,
                msgtype,
                latched=topic == _LATCHED,
                depth=_DEPTH,
                typestore=recording.typestore,
            )
        except TransportError as error:
            recording.warnings.append(f"{topic} is left out: {error}")
    return publishers


def _play(
    recording: Recording,
    publishers: dict[str, Publisher],
    rate: float,
    keep_stamps: bool,
    stop: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> int:
    total = sum(recording.count(topic) for topic in publishers)
    sent = 0
    first_ns, start_ns, start = 0, 0, 0.0

    def moved(stamp_ns: int) -> int:
        now_ns = start_ns + round((stamp_ns - first_ns) / rate)
        # A clock that is not the recorder's may lead beyond what a stamp can hold.
        return min(max(now_ns, 0), _LAST_STAMP_NS)

    messages = recording.messages(list(publishers))
    for done, (topic, msgtype, received_ns, data) in enumerate(messages):
        if not done:
            first_ns, start_ns, start = received_ns, time.time_ns(), time.monotonic()
        due = start + (received_ns - first_ns) * 1e-9 / rate
        while not stop() and (wait := due - time.monotonic()) > 0:
            time.sleep(min(wait, _SLICE_S))
        if stop():
            break
        try:
            if keep_stamps:
                publishers[topic].publish_cdr(bytes(data))
            else:
                message = recording.deserialize(data, msgtype)
                move_stamps(message, moved)
                publishers[topic].publish(message)
            sent += 1
        except (RecordingError, TransportError) as error:
            recording.warnings.append(f"a message of {topic} is left out: {error}")
        progress(done + 1, total)
    return sent
