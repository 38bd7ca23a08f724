"""Which frames are new enough to stay in the window: the keyframe gate."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.frame import View

# Motion is measured on a small image whose grey values have the standard deviation _CONTRAST, or
# less where the image is all but blank, in grey levels of 255.
_WIDTH = 256
_BLUR = 1.0
_CONTRAST = 48.0
_MIN_CONTRAST = 12.0

_CORNERS = 200
_CORNER_QUALITY = 0.01
_CORNER_DISTANCE = 7
_LK_WINDOW = (21, 21)
_LK_LEVELS = 3
_MAX_ROUND_TRIP = 0.7
# In pure noise up to 30 % of the corners come back by chance, in a view that shares its half with
# the keyframe more than 50 % do.
_MIN_TRACKED_SHARE = 0.4
_MIN_TRACKS = 12
# Mean grey difference: strong noise of a sensor makes up to 7, two textured views 14 to 55.
_CHANGED = 10.0


@dataclass(frozen=True)
class KeyframeDecision:
    """What the gate thinks of a frame.

    Attributes:
        is_keyframe: whether the frame shows enough that is new.
        motion: median image motion since the last keyframe, as a fraction of the width; NaN for
            a first frame and where too little could be tracked.
        tracked: number of corners that were followed from the last keyframe.
    """

    is_keyframe: bool
    motion: float
    tracked: int


class KeyframeGate:
    """Chooses keyframes by how far the image moved since the last one.

    Corners of the last keyframe are followed by pyramidal Lucas-Kanade flow, forth and back, and
    the median of their motion counts: it sees parallax as well as rotation, and noise on a camera
    that stands still adds up to nothing. Where too few corners are found again, the images
    themselves are compared: a view that changed becomes a keyframe, a blank wall does not.
    """

    def __init__(self, min_motion: float) -> None:
        """Start without a keyframe.

        Args:
            min_motion: median motion, as a fraction of the image's width, that makes a keyframe;
                0 makes every frame one.
        """
        self.min_motion = min_motion
        self._reference: NDArray[np.uint8] | None = None
        self._corners: NDArray[np.float32] = np.empty((0, 1, 2), np.float32)

    def decide(self, view: View) -> KeyframeDecision:
        """Decide on the next view; one that becomes a keyframe is what later ones compare to."""
        grey = _grey(view.image)
        decision = self._decision(grey)
        if decision.is_keyframe:
            self._reference = grey
            self._corners = _corners(grey)
        return decision

    def reset(self) -> None:
        """Forget the last keyframe; the next view becomes one."""
        self._reference = None

    def _decision(self, grey: NDArray[np.uint8]) -> KeyframeDecision:
        if self._reference is None or self.min_motion == 0.0:
            return KeyframeDecision(True, float("nan"), 0)
        motions = _motions(self._reference, grey, self._corners)
        if len(motions) < max(_MIN_TRACKS, _MIN_TRACKED_SHARE * len(self._corners)):
            changed = _difference(self._reference, grey) > _CHANGED
            return KeyframeDecision(changed, float("nan"), len(motions))
        motion = float(np.median(motions)) / grey.shape[1]
        return KeyframeDecision(motion >= self.min_motion, motion, len(motions))


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a small grey image whose brightness and contrast do not depend on the exposure."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if grey.shape[1] > _WIDTH:
        height = max(1, round(grey.shape[0] * _WIDTH / grey.shape[1]))
        grey = cv2.resize(grey, (_WIDTH, height), interpolation=cv2.INTER_AREA)
    grey = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), _BLUR)
    # A blank image keeps its low contrast, so that its noise is not taken for a pattern.
    gain = _CONTRAST / max(float(grey.std()), _MIN_CONTRAST)
    return np.clip((grey - grey.mean()) * gain + 128, 0, 255).astype(np.uint8)


def _corners(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    found = cv2.goodFeaturesToTrack(grey, _CORNERS, _CORNER_QUALITY, _CORNER_DISTANCE)
    return np.empty((0, 1, 2), np.float32) if found is None else np.asarray(found, np.float32)


def _motions(
    reference: NDArray[np.uint8], grey: NDArray[np.uint8], corners: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the lengths in pixels of the motions of those corners that come back."""
    if len(corners) == 0:
        return np.empty(0)
    there, found, _ = _flow(reference, grey, corners)
    back, returned, _ = _flow(grey, reference, there)
    round_trip = np.linalg.norm((back - corners).reshape(-1, 2), axis=1)
    followed = (found.ravel() == 1) & (returned.ravel() == 1) & (round_trip <= _MAX_ROUND_TRIP)
    return np.linalg.norm((there - corners).reshape(-1, 2)[followed], axis=1)


def _flow(
    start: NDArray[np.uint8], end: NDArray[np.uint8], points: NDArray[np.float32]
) -> tuple[NDArray, NDArray, NDArray]:
    return cv2.calcOpticalFlowPyrLK(
        start, end, points, np.empty_like(points), winSize=_LK_WINDOW, maxLevel=_LK_LEVELS
    )


def _difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(cv2.absdiff(one, other).mean())
