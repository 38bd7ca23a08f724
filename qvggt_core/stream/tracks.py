"""Image points followed from frame to frame: corners, pyramidal flow, forward-backward check."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.camera import Camera

_CORNER_QUALITY = 0.005
_LK_LEVELS = 4
_LK_CRITERIA = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 20, 0.03)
# Flow in pure noise goes back to within a pixel of its start by chance in one case of 30.
_MAX_ROUND_TRIP = 0.5
# Flow needs texture in both directions; in a blank image corners are its noise.
_MIN_EIGENVALUE = 2e-4


@dataclass(frozen=True)
class Tracks:
    """Where the followed points lie in one image.

    Attributes:
        ids: (N,) int64, increasing; a point keeps its number as long as it is followed.
        pixels: (N, 2) float64 in pixels of the image as it was taken, centres at integers.
        rays: (N, 2) float64, the same without lens: x / z and y / z in the camera's frame.
        focal: pixels of the tracked image per unit of `rays`.
    """

    ids: NDArray[np.int64]
    pixels: NDArray[np.float64]
    rays: NDArray[np.float64]
    focal: float


class Tracker:
    """Follows a few hundred corners through the images of one camera.

    Shi and Tomasi, "Good features to track", CVPR 1994, and Bouguet's pyramidal Lucas-Kanade
    flow, as OpenCV has them. Images wider than `width` are reduced to it.
    """

    def __init__(self, corners: int = 400, width: int = 640) -> None:
        """Start without an image.

        Args:
            corners: number of points to keep up.
            width: most columns of the image in which they are followed.
        """
        self._corners = corners
        self._width = width
        self._next_id = 0
        self.reset()

    def reset(self) -> None:
        """Forget all points; numbers are not used again."""
        self._previous: NDArray[np.uint8] | None = None
        self._ids = np.empty(0, np.int64)
        self._points = np.empty((0, 2), np.float32)

    def track(
        self, image: NDArray[np.uint8], camera: Camera, mask: NDArray[np.uint8] | None = None
    ) -> Tracks:
        """Follow the points into the next image and add new ones where there are few.

        Args:
            image: (H, W, 3) uint8 RGB.
            camera: its calibration.
            mask: (H, W) uint8, non-zero where the scene is static; None for everywhere.
        """
        grey, scale = self._grey(image)
        window = _window(grey.shape[1])
        if self._previous is not None and len(self._points):
            self._follow(self._previous, grey, window)
        allowed = np.full(grey.shape, 255, np.uint8)
        if mask is not None:
            allowed[cv2.resize(mask, grey.shape[::-1], interpolation=cv2.INTER_NEAREST) == 0] = 0
            self._keep(_lookup(allowed, self._points) > 0)
        self._add(grey, allowed)
        self._previous = grey
        pixels = (self._points.astype(np.float64) + 0.5) / scale - 0.5
        rays = camera.rays(pixels)
        return Tracks(self._ids.copy(), pixels, rays, float(scale[0] * camera.intrinsics[0, 0]))

    def _grey(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        if width > self._width:
            size = (self._width, max(1, round(height * self._width / width)))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        return np.asarray(grey, np.uint8), np.array([grey.shape[1] / width, grey.shape[0] / height])

    def _follow(
        self, previous: NDArray[np.uint8], grey: NDArray[np.uint8], window: tuple[int, int]
    ) -> None:
        there, found = _flow(previous, grey, self._points, self._points, window)
        back, returned = _flow(grey, previous, there, self._points, window)
        kept = found & returned
        kept &= np.linalg.norm(back - self._points, axis=1) <= _MAX_ROUND_TRIP
        kept &= (there >= 0).all(axis=1)
        kept &= (there <= np.array([grey.shape[1] - 1, grey.shape[0] - 1])).all(axis=1)
        self._points = there
        self._keep(kept)

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        self._ids, self._points = self._ids[kept], self._points[kept]

    def _add(self, grey: NDArray[np.uint8], allowed: NDArray[np.uint8]) -> None:
        wanted = self._corners - len(self._points)
        if wanted < self._corners // 8:
            return
        distance = max(5, round(np.sqrt(grey.size / self._corners) * 0.5))
        for x, y in self._points:
            cv2.circle(allowed, (round(float(x)), round(float(y))), distance, 0, cv2.FILLED)
        strength = cv2.cornerMinEigenVal(grey, 5, ksize=3)
        allowed[strength < _MIN_EIGENVALUE] = 0
        found = cv2.goodFeaturesToTrack(
            grey, wanted, _CORNER_QUALITY, distance, mask=allowed, blockSize=5
        )
        if found is None:
            return
        new = np.asarray(found, np.float32).reshape(-1, 2)
        ids = np.arange(self._next_id, self._next_id + len(new), dtype=np.int64)
        self._next_id += len(new)
        self._ids = np.concatenate([self._ids, ids])
        self._points = np.concatenate([self._points, new])


def _window(width: int) -> tuple[int, int]:
    """Return the side of the flow's window: 21 pixels at full width, less in small images."""
    side = int(np.clip(round(width / 30), 9, 21)) | 1
    return side, side


def _flow(
    start: NDArray[np.uint8],
    end: NDArray[np.uint8],
    points: NDArray[np.float32],
    guess: NDArray[np.float32],
    window: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        start,
        end,
        points[:, None],
        guess[:, None].copy(),
        winSize=window,
        maxLevel=_LK_LEVELS,
        criteria=_LK_CRITERIA,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return np.asarray(there, np.float32)[:, 0], found.ravel() == 1


def _lookup(image: NDArray[np.uint8], points: NDArray[np.float32]) -> NDArray[np.uint8]:
    columns, rows = np.rint(points).astype(int).T.reshape(2, -1)
    return image[rows.clip(0, image.shape[0] - 1), columns.clip(0, image.shape[1] - 1)]
