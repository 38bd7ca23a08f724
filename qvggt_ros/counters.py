"""What a session counted, what happened, and the state that diagnostics show."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qvggt_core.results.facts import percentiles
from qvggt_core.stream.frame import Confirmation, Losses, Scale, ScaleState, Verdict
from qvggt_core.util.quoting import visible

logger = logging.getLogger(__name__)

_LATENCIES_KEPT = 10_000
_EVENTS_KEPT = 200
_WARNINGS_SHOWN = 3
_KINDS_KEPT = 100
_LONGEST_REASON = 500
_OTHER_REASONS = "other reasons"
# Numbers that stand alone, and sizes as 640x480; those of names, as nv12 or '16UC1', are not.
_NUMBER = re.compile(r"\d+x\d+|(?<![\w'./])\d+(\.\d+)?")


@dataclass
class _Warning:
    text: str
    count: int = 0
    last_s: float = -math.inf


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
        losses: what the reconstruction has no geometry for.
        keyframes: published frames that stayed in the window.
        segments: maps begun.
        lost: published frames whose pose is only the last known one.
        verdicts: windows per verdict of the images on the network; see `Confirmation`.
        confirmation: the newest of these.
        latencies: seconds from an image's arrival to its geometry, the newest last.
        ages: seconds from the stamp of the newest image to the run of the network that it
            started, the newest last; only where the driver has a clock.
        events: sentences for the operator, the newest last.
        warning_holds_s: seconds after which a warning that does not come again is over.
        clock: seconds, for warnings.
    """

    received: int = 0
    decoded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    uncalibrated: int = 0
    windows: int = 0
    published: int = 0
    losses: Losses = field(default_factory=Losses)
    keyframes: int = 0
    segments: int = 0
    lost: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    confirmation: Confirmation | None = None
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))
    events: deque[str] = field(default_factory=lambda: deque(maxlen=_EVENTS_KEPT))
    warning_holds_s: float = math.inf
    clock: Callable[[], float] = time.monotonic
    _kinds: dict[str, str] = field(default_factory=dict)
    _warnings: dict[str, _Warning] = field(default_factory=dict)

    def reject(self, reason: str) -> None:
        """Count a message that cannot be used, and warn."""
        reason = visible(reason[:_LONGEST_REASON])
        kind = _kind(reason)
        if kind not in self._kinds and len(self._kinds) >= _KINDS_KEPT:
            # A camera that breaks anew each time must not fill the memory and the diagnostics.
            self.rejected[_OTHER_REASONS] += 1
            self.warn("messages could not be used for reasons that change all the time")
            return
        self.rejected[self._kinds.setdefault(kind, reason)] += 1
        self.warn(reason)

    def why_rejected(self) -> str:
        """Return the most frequent reasons of messages that could not be used; "" without any."""
        most = self.rejected.most_common(_WARNINGS_SHOWN)
        return "; ".join(f"{reason} ({count} times)" for reason, count in most)

    def warn(self, event: str) -> None:
        """Take a warning; the first of a kind is logged and an event, and the next when it is over.

        One fault of a camera is one kind, whatever numbers it comes with.
        """
        event = visible(event[:_LONGEST_REASON])
        now, kind = self.clock(), _kind(event)
        known = self._warnings.get(kind)
        if known is None or now - known.last_s > self.warning_holds_s:
            logger.warning("%s", event)
            self.events.append(event)
            known = self._warnings[kind] = _Warning(event)
        known.last_s = now
        known.count += 1

    def warnings(self) -> list[str]:
        """Return the warnings that hold, the most frequent first."""
        now = self.clock()
        for kind, known in list(self._warnings.items()):
            if now - known.last_s > self.warning_holds_s:
                del self._warnings[kind]
        found = sorted(self._warnings.values(), key=lambda each: -each.count)
        return [
            f"{each.count} times: {each.text}" if each.count > 1 else each.text for each in found
        ]

    def forget_warnings(self) -> None:
        """End all warnings; what holds on comes again."""
        self._warnings.clear()

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
            "gated": self.losses.gated,
            "segments": self.segments,
            "lost": self.lost,
            "withheld": self.losses.withheld,
            "not_finite": self.losses.not_finite,
            "verdicts": dict(self.verdicts),
            "metres_per_unit": scale.metres_per_unit,
            "scale_source": scale.source,
            "scale_state": scale.state.value if scale.state is not None else "unknown",
            "scale_sigma": scale.sigma,
            "scale_sources": list(scale.sources),
        }


@dataclass(frozen=True)
class Status:
    """The state in one line for an operator, and in numbers.

    Attributes:
        level: "OK", "WARN", or "ERROR" where the network gives nothing that can be used.
        message: one sentence.
        values: names and numbers, JSON-able.
    """

    level: str
    message: str
    values: dict[str, Any]

    @classmethod
    def of(cls, counters: Counters, scale: Scale, newest_ns: int | None, *, ages: bool) -> Status:
        """Return the state: WARN while the scale is unknown or another warning holds.

        Args:
            counters: what was counted.
            scale: unit of the newest geometry.
            newest_ns: stamp of the newest image, None before the first.
            ages: whether the driver has a clock that stamps can be compared with.
        """
        warnings = counters.warnings()[:_WARNINGS_SHOWN]
        is_estimated = scale.state is ScaleState.ESTIMATING
        if counters.published and scale.metres_per_unit is None:
            warnings.append(
                f"the scale is {'still estimated' if is_estimated else 'unknown'}: lengths are in "
                f"the network's units, not in metres{f' ({scale.note})' if scale.note else ''}"
            )
        elif scale.state is ScaleState.STALE:
            warnings.append(
                "the scale is stale: nothing has confirmed it for long"
                f"{f' ({scale.note})' if scale.note else ''}"
            )
        elif scale.note and counters.published:
            warnings.append(scale.note)
        warnings += _doubts(counters)
        waiting = (
            f"{counters.received} images, none with geometry yet"
            if counters.received
            else "waiting for images"
        )
        message = "; ".join(warnings) or ("reconstructing" if counters.published else waiting)
        known = scale.stamp_ns is not None and newest_ns is not None
        values = {
            **counters.values(scale),
            "scale_age_s": (newest_ns - scale.stamp_ns) * 1e-9 if known else None,  # type: ignore[operator]
            "latency_s": percentiles(counters.latencies),
        }
        if ages:
            values["age_s"] = percentiles(counters.ages)
        if counters.confirmation is not None:
            values["confirmation"] = _numbers(counters.confirmation)
        level = "WARN" if warnings else "OK"
        if counters.losses.not_finite and not counters.published:
            level = "ERROR"
        return cls(level, message, values)

    def with_warning(self, warning: str, values: dict[str, Any]) -> Status:
        """Return the state with one warning more, and with other values."""
        message = warning if self.level == "OK" else f"{self.message}; {warning}"
        return Status("WARN" if self.level == "OK" else self.level, message, values)


def _doubts(counters: Counters) -> list[str]:
    """Return what the images and the network's output leave to be desired, and what helps."""
    found = []
    if counters.losses.not_finite:
        found.append(
            f"{counters.losses.not_finite} windows of the network were not finite: try "
            "compute_dtype float32, or another checkpoint"
        )
    newest = counters.confirmation
    if newest is None or newest.verdict is Verdict.CONFIRMED:
        return found
    if newest.verdict is Verdict.CONTRADICTED:
        found.append(
            f"the images contradict the network ({newest.reason}; "
            f"{counters.verdicts[newest.verdict.value]} of {counters.windows} windows): a network "
            "that was trained on such scenes helps"
        )
    elif newest.followed == 0:
        found.append(
            f"the camera is lost ({newest.reason}): poses are the last known ones, depth is "
            "invalid; more light, more texture or a slower motion help"
        )
    else:
        found.append(
            f"the network is not confirmed yet ({newest.reason}): a motion to the side helps"
        )
    return found


def _numbers(confirmation: Confirmation) -> dict[str, Any]:
    return {
        "verdict": confirmation.verdict.value,
        "reason": confirmation.reason,
        "followed": confirmation.followed,
        "motion": confirmation.motion,
        "parallax": confirmation.parallax,
        "residual": confirmation.residual,
    }


def _kind(reason: str) -> str:
    return _NUMBER.sub("#", reason)
