"""The messages of a recording with its images in the order of their own stamps."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qvggt_core.errors import RecordingError
from qvggt_ros.io.bag import Recording
from qvggt_ros.io.conversions import set_stamp, stamp_ns

_REACH = 3
"""Images that may come before one that was taken earlier, as of drivers with several threads."""


@dataclass(frozen=True, order=True)
class Received:
    """A message of a recording.

    Attributes:
        stamp_ns: of an image; 0 of other messages.
        topic: its topic.
        received_ns: when it was recorded.
        data: its bytes.
        message: the message; None if it cannot be read.
        error: why it cannot be read; empty if it can.
    """

    stamp_ns: int
    topic: str = field(compare=False)
    received_ns: int = field(compare=False)
    data: bytes = field(compare=False)
    message: Any = field(compare=False, default=None)
    error: str = field(compare=False, default="")


def in_order_of_stamps(
    recording: Recording, topics: Sequence[str], image_topic: str
) -> Iterator[Received]:
    """Yield messages as they were received, but images in the order of their stamps.

    An image whose stamp is zero gets the time at which it was received. Only neighbours change
    places: where stamps jump back, as where a clock was set, the order stays.
    """
    slots: deque[Received | None] = deque()
    images: list[Received] = []
    newest_ns: int | None = None
    for received in _read(recording, topics, image_topic):
        if received.topic != image_topic or received.error:
            slots.append(received)
            continue
        stamp = received.stamp_ns
        jumps_back = newest_ns is not None and stamp <= newest_ns
        if jumps_back or any(image.stamp_ns == stamp for image in images):
            yield from _drained(slots, images)
            newest_ns = None
        slots.append(None)  # the place of an image, of whichever is next
        insort(images, received)
        if len(images) > _REACH:
            newest_ns = images[0].stamp_ns
            while (slot := slots.popleft()) is not None:
                yield slot
            yield images.pop(0)
    yield from _drained(slots, images)


def _drained(slots: deque[Received | None], images: list[Received]) -> Iterator[Received]:
    while slots:
        slot = slots.popleft()
        yield images.pop(0) if slot is None else slot


def _read(recording: Recording, topics: Sequence[str], image_topic: str) -> Iterator[Received]:
    for topic, msgtype, received_ns, data in recording.messages(topics):
        stamp = 0
        try:
            message = recording.deserialize(data, msgtype)
            if topic == image_topic:
                if stamp_ns(message) == 0:
                    set_stamp(message, received_ns)
                stamp = stamp_ns(message)
        except RecordingError as error:
            yield Received(0, topic, received_ns, data, error=str(error))
        else:
            yield Received(stamp, topic, received_ns, data, message)
