"""What a session counted, what happened, and the state that diagnostics show."""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from qvggt_core.results.facts import percentiles
from qvggt_core.stream.frame import Scale

logger = logging.getLogger(__name__)

_LATENCIES_KEPT = 10_000
_EVENTS_KEPT = 200


@dataclass
class Counters:
    """What happened so far.

    Attributes:
        received: image messages.
        decoded: images that became frames.
        rejected: messages that could not be used, per reason.
        uncalibrated: frames without a calibration.
        windows: runs of the network.
        published: frames with geometry.
        gated: frames that got no geometry because they showed nothing new.
        keyframes: published frames that stayed in the window.
        segments: maps begun.
        latencies: seconds from an image's arrival to its geometry, the newest last.
        ages: seconds from the stamp of the newest image to the run of the network that it
            started, the newest last; only where the driver has a clock.
        events: sentences for the operator, the newest last.
    """

    received: int = 0
    decoded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    uncalibrated: int = 0
    windows: int = 0
    published: int = 0
    gated: int = 0
    keyframes: int = 0
    segments: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))
    events: deque[str] = field(default_factory=lambda: deque(maxlen=_EVENTS_KEPT))

    def reject(self, reason: str) -> None:
        """Count a message that cannot be used; the first of a kind is logged and an event."""
        # One fault of a camera is one kind, whatever numbers it comes with.
        kinds = {_kind(known): known for known in self.rejected}
        first = kinds.get(_kind(reason))
        self.rejected[first or reason] += 1
        if first is None:
            self.warn_once(reason)

    def warn_once(self, event: str) -> None:
        """Log a warning and keep it as an event, if it is not one of the newest already."""
        if event not in self.events:
            logger.warning("%s", event)
            self.events.append(event)

    def values(self, scale: Scale) -> dict[str, Any]:
        """Return the counters and the scale: the same for the same messages."""
        return {
            "received": self.received,
            "decoded": self.decoded,
            "rejected": dict(self.rejected),
            "uncalibrated": self.uncalibrated,
            "windows": self.windows,
            "published": self.published,
            "keyframes": self.keyframes,
            "gated": self.gated,
            "segments": self.segments,
            "metres_per_unit": scale.metres_per_unit,
            "scale_source": scale.source,
        }


@dataclass(frozen=True)
class Status:
    """The state in one line for an operator, and in numbers.

    Attributes:
        level: "OK" or "WARN".
        message: one sentence.
        values: names and numbers, JSON-able.
    """

    level: str
    message: str
    values: dict[str, Any]

    @classmethod
    def of(cls, counters: Counters, scale: Scale, newest_ns: int | None, *, ages: bool) -> Status:
        """Return the state: WARN while the scale is unknown or messages were rejected.

        Args:
            counters: what was counted.
            scale: unit of the newest geometry.
            newest_ns: stamp of the newest image, None before the first.
            ages: whether the driver has a clock that stamps can be compared with.
        """
        rejected = sum(counters.rejected.values())
        warnings = []
        if counters.published and scale.metres_per_unit is None:
            warnings.append(
                "the scale is unknown: lengths are in the network's units, not in metres"
            )
        if rejected:
            reason, _ = counters.rejected.most_common(1)[0]
            warnings.append(f"{rejected} messages could not be used, most often: {reason}")
        message = "; ".join(warnings) or (
            "reconstructing" if counters.published else "waiting for images"
        )
        known = scale.stamp_ns is not None and newest_ns is not None
        values = {
            **counters.values(scale),
            "scale_age_s": (newest_ns - scale.stamp_ns) * 1e-9 if known else None,  # type: ignore[operator]
            "latency_s": percentiles(counters.latencies),
        }
        if ages:
            values["age_s"] = percentiles(counters.ages)
        return cls("WARN" if warnings else "OK", message, values)


def _kind(reason: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", reason)
