"""The sample frames of a page: pictures row by row, and their legends."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.report.page import painted, photo, ramp
from qvggt_core.report.pictures import limits
from qvggt_core.results.result import Result
from qvggt_core.results.samples import Samples

_DEPTH_COLORS, _CONFIDENCE_COLORS, _ERROR_COLORS = "turbo_r", "viridis", "magma"
_LARGEST_ERROR = 0.2
_DRAWN_WIDTH = 480
_POINT_LIMITS = (1.0, 3.0)
_POINT_COLORS = ((76, 194, 116), (226, 192, 68), (247, 60, 90))
_SCALINGS = {"none": "nothing", "trajectory": "the trajectory", "median": "medians"}


def frames_of(samples: Samples | None, result: Result) -> dict[str, Any]:
    """Return what the template needs for the frames and for the table of depth errors."""
    if samples is None:
        return {
            "frames": [],
            "frame_rows": [],
            "ramps": [],
            "depth_rows": [],
            "frames_title": "What the camera saw",
            "frames_caption": "There are no sample frames in this result.",
        }
    found = _Frames(samples, result)
    return {
        "frames": [found.frame(index) for index in range(len(samples))],
        "frame_rows": found.rows,
        "ramps": found.ramps,
        "depth_rows": _depth_rows(result),
        "frames_title": (
            "Depth beside the truth"
            if found.has_truth
            else "What the camera saw, and how far it is"
        ),
        "frames_caption": found.caption,
    }


class _Frames:
    """The samples with the limits of their colours.

    Where the truth is known, the depth is shown in metres, by the scale of the trajectory.
    """

    def __init__(self, samples: Samples, result: Result) -> None:
        self._samples = samples
        self._result = result
        truths = samples.truths
        self.has_truth = truths is not None and bool(np.isfinite(truths).any())
        self._truths = truths if truths is not None and self.has_truth else None
        scale = result.quoted.scale if result.quoted is not None and self.has_truth else 1.0
        self._depths = samples.depths * np.float32(scale)
        shown = [self._depths] if self._truths is None else [self._depths, self._truths]
        self._near, self._far = limits(np.stack(shown))
        self._least, self._most = limits(samples.confidences)
        self._is_sure = bool(np.isfinite(samples.confidences).any())

    @property
    def title(self) -> str:
        """Heading of the section."""
        if self.has_truth:
            return "Depth beside the truth"
        return "What the camera saw, and how far it is"

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Name and key of each row of pictures."""
        rows = [("image", "image"), ("depth", "depth")]
        if self._has_points:
            rows.insert(1, ("points", "points"))
        if self.has_truth:
            rows += [("true depth", "truth"), ("error", "error")]
        return [*rows, ("confidence", "confidence")] if self._is_sure else rows

    @property
    def _has_points(self) -> bool:
        return self._samples.followed is not None and len(self._samples.followed) > 0

    @property
    def ramps(self) -> list[dict[str, str]]:
        """Legends of the colours."""
        unit = "m" if self.has_truth else self._result.metrics.result.unit
        near, far = f"{self._near:.1f}", f"{self._far:.1f}"
        ramps = [ramp(f"depth ({unit})", _DEPTH_COLORS, near, far)]
        if self.has_truth:
            ramps.append(ramp("error by true depth", _ERROR_COLORS, "0", "20 % and more"))
        if self._is_sure:
            least, most = f"{self._least:.1f}", f"{self._most:.1f}"
            ramps.append(ramp("confidence", _CONFIDENCE_COLORS, least, most))
        return ramps

    @property
    def caption(self) -> str:
        """Sentences below the pictures."""
        facts = self._result.metrics.result
        caption = (
            f"{len(self._samples)} of {facts.published} frames, as the network saw them. Near is "
            "red, far is blue; grey has no depth that can be trusted."
        )
        if self.has_truth and self._result.quoted is not None and facts.unit != "m":
            caption += (
                " The depth is scaled by the trajectory's alignment, so that errors of scale show."
            )
        if self._has_points:
            caption += (
                " Points that were followed are green where they lie within a pixel of where map "
                "and pose put them, yellow within three, else red; lines lead there."
            )
        return caption

    def frame(self, index: int) -> dict[str, str]:
        """Return the pictures of a frame, as addresses by the keys of the rows."""
        samples, depth = self._samples, self._depths[index]
        seconds = float(self._result.seconds([samples.stamps_ns[index]])[0])
        frame = {
            "time": f"{seconds:.1f} s",
            "image": photo(samples.images[index]),
            "depth": painted(depth, _DEPTH_COLORS, self._near, self._far),
            "confidence": painted(
                samples.confidences[index], _CONFIDENCE_COLORS, self._least, self._most
            ),
        }
        if self._has_points:
            frame["points"] = photo(_with_points(samples.images[index], samples.points(index)))
        if self._truths is not None:
            truth = self._truths[index]
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.abs(depth - truth) / truth
            frame["truth"] = painted(truth, _DEPTH_COLORS, self._near, self._far)
            frame["error"] = painted(error, _ERROR_COLORS, 0.0, _LARGEST_ERROR)
        return frame


def _with_points(image: NDArray[np.uint8], points: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image, enlarged, with followed points (P, 4) and where they were expected."""
    enlarged = max(1, round(_DRAWN_WIDTH / image.shape[1]))
    height, width = enlarged * image.shape[0], enlarged * image.shape[1]
    drawn = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) // 2
    shift = 4
    places = np.rint(((points + 0.5) * enlarged - 0.5) * 2**shift)
    places = places.clip(-(2**20), 2**20).astype(int)
    off = np.linalg.norm(points[:, :2] - points[:, 2:], axis=1)
    for (x, y, there_x, there_y), pixels in zip(places.tolist(), off, strict=True):
        color = _POINT_COLORS[int(np.searchsorted(_POINT_LIMITS, pixels))]
        cv2.line(drawn, (x, y), (there_x, there_y), color, 1, cv2.LINE_AA, shift)
        cv2.circle(drawn, (x, y), 2 << shift, color, cv2.FILLED, cv2.LINE_AA, shift)
    return np.asarray(drawn, np.uint8)


def _depth_rows(result: Result) -> list[list[str]]:
    depth = result.metrics.accuracy.depth if result.metrics.accuracy is not None else None
    return [
        [
            _SCALINGS[name],
            f"{found.abs_rel:.4f}",
            f"{found.rmse:.3f}",
            f"{found.delta_1:.1%}",
            f"{found.delta_2:.1%}",
            f"{found.valid:.1%}",
        ]
        for name, found in (depth.alignments.items() if depth is not None else ())
    ]
