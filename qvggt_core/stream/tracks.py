"""Image points followed from frame to frame: corners, pyramidal flow, forward-backward check."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qvggt_core.geometry.camera import Camera
from qvggt_core.stream.image_features import Features, features_of, matched

# Share of the strongest corner's texture: none, or one thing of much texture would hide the rest.
_CORNER_QUALITY = 1e-6
_LK_LEVELS = 4
_LK_CRITERIA = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 20, 0.03)
# Flow in pure noise goes back to within half a pixel of its start by chance in one case of 18.
_MAX_ROUND_TRIP = 0.5
# Flow needs texture in both directions; in a blank image corners are its noise.
_MIN_EIGENVALUE = 2e-4
# Share of the points below which flow is taken to have lost the scene.
_COLLAPSE = 0.35
# New corners fill cells evenly, columns and rows, from so many times the points that are kept.
_CELLS = 8, 6
_CANDIDATES = 4
_FEWEST_FOUND = 20
_KEYPOINTS = 1500
# Where fewer points are followed, a change of the exposure is looked at, if it is more than this.
_EXPOSED_ALIKE = 0.7
_SAME_EXPOSURE = 0.02
# Between these values pixels show it.
_DARKEST, _BRIGHTEST = 8, 247
# A point goes where the matches around it go: so many, the nearest within a share of the width.
_NEIGHBOURS = 4
_NEAR = 0.1


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

    def take(self, index: NDArray) -> Tracks:
        """Return some of the points."""
        return Tracks(self.ids[index], self.pixels[index], self.rays[index], self.focal)


@dataclass(frozen=True)
class _State:
    """An image, and the points that are followed in it."""

    grey: NDArray[np.uint8] | None
    ids: NDArray[np.int64]
    points: NDArray[np.float32]


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
        self._last_good: _State | None = None
        self._described: list[tuple[NDArray[np.uint8], Features]] = []
        self._ids = np.empty(0, np.int64)
        self._points = np.empty((0, 2), np.float32)

    def track(
        self,
        image: NDArray[np.uint8],
        camera: Camera,
        mask: NDArray[np.uint8] | None = None,
        of_no_use: Collection[int] = (),
    ) -> Tracks:
        """Follow the points into the next image and add new ones where there are few.

        Where hardly any point can be followed (a jump, a covered lens), the points of the last
        good image are looked for, in this and in later images, by descriptors.

        Args:
            image: (H, W, 3) uint8 RGB.
            camera: its calibration.
            mask: (H, W) uint8, non-zero where the scene is static; None for everywhere.
            of_no_use: numbers of points that move by themselves: they are followed on, which
                keeps new ones from their places, but others come for them.
        """
        grey, scale = self._grey(image)
        before = _State(self._previous, self._ids, self._points)
        now = _followed(before, grey)
        if len(now.ids) <= _COLLAPSE * len(before.ids):
            if self._last_good is None or len(before.ids) > len(self._last_good.ids) // 2:
                self._last_good = before
            # What was new in between is given up: the old points know their place in the map.
            found = _found_again(self._last_good, grey, self._features_of)
            if len(found.ids) >= max(len(now.ids), _FEWEST_FOUND):
                now, self._last_good = found, None
        elif len(now.ids) >= self._corners // 2:
            self._last_good = None
        self._previous, self._ids, self._points = grey, now.ids, now.points
        allowed = np.full(grey.shape, 255, np.uint8)
        if mask is not None:
            allowed[cv2.resize(mask, grey.shape[::-1], interpolation=cv2.INTER_NEAREST) == 0] = 0
            kept = _lookup(allowed, self._points) > 0
            self._ids, self._points = self._ids[kept], self._points[kept]
        self._add(grey, allowed, np.isin(self._ids, list(of_no_use)).sum())
        pixels = (self._points.astype(np.float64) + 0.5) / scale - 0.5
        rays = camera.rays(pixels)
        return Tracks(self._ids.copy(), pixels, rays, float(scale[0] * camera.intrinsics[0, 0]))

    def _features_of(self, grey: NDArray[np.uint8]) -> Features:
        """Return an image's features; of the two images that were last compared they are kept."""
        found = next((known for image, known in self._described if image is grey), None)
        if found is None:
            found = features_of(grey, _KEYPOINTS)
        others = [each for each in self._described if each[0] is not grey]
        self._described = [*others[-1:], (grey, found)]
        return found

    def _grey(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        if width > self._width:
            size = (self._width, max(1, round(height * self._width / width)))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        return np.asarray(grey, np.uint8), np.array([grey.shape[1] / width, grey.shape[0] / height])

    def _add(self, grey: NDArray[np.uint8], allowed: NDArray[np.uint8], of_no_use: int) -> None:
        wanted = self._corners + min(of_no_use, self._corners) - len(self._points)
        if wanted < self._corners // 8:
            return
        distance = max(5, round(np.sqrt(grey.size / self._corners) * 0.5))
        for x, y in self._points:
            cv2.circle(allowed, (round(float(x)), round(float(y))), distance, 0, cv2.FILLED)
        found, strength = cv2.goodFeaturesToTrackWithQuality(
            grey, _CANDIDATES * self._corners, _CORNER_QUALITY, distance, allowed, blockSize=5
        )
        if found is None or len(found) == 0:
            return
        corners = np.asarray(found, np.float32).reshape(-1, 2)[strength.ravel() >= _MIN_EIGENVALUE]
        new = corners[_spread(corners, self._points, grey.shape)[:wanted]]
        ids = np.arange(self._next_id, self._next_id + len(new), dtype=np.int64)
        self._next_id += len(new)
        self._ids = np.concatenate([self._ids, ids])
        self._points = np.concatenate([self._points, new])


def _spread(
    corners: NDArray[np.float32], taken: NDArray[np.float32], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return the order in which corners (N, 2) fill the cells of an image evenly.

    Args:
        corners: the best first.
        taken: (M, 2) points that are there already.
        shape: rows and columns of the image.
    """
    size = np.array([shape[1] / _CELLS[0], shape[0] / _CELLS[1]])
    cells = [(points // size).astype(np.int64) @ (1, _CELLS[0]) for points in (taken, corners)]
    order = np.argsort(cells[1], kind="stable")
    inside = cells[1][order]
    starts = np.searchsorted(inside, inside)
    rank = np.empty(len(corners), np.int64)
    rank[order] = np.arange(len(corners)) - starts
    rank += np.bincount(cells[0], minlength=_CELLS[0] * _CELLS[1])[cells[1]]
    return np.argsort(rank, kind="stable")


def _followed(before: _State, grey: NDArray[np.uint8]) -> _State:
    """Return those points that can be followed from one image into the next, and back."""
    if before.grey is None or len(before.ids) == 0 or before.grey.shape != grey.shape:
        return _State(grey, before.ids[:0], before.points[:0])
    found = _flown(before, grey, before.points, _MAX_ROUND_TRIP)
    if len(found.ids) >= _EXPOSED_ALIKE * len(before.ids):
        return found
    start, end = _equally_exposed(before.grey, grey)
    if start is before.grey and end is grey:
        return found
    other = _flown(replace(before, grey=start), end, before.points, _MAX_ROUND_TRIP)
    return max(found, replace(other, grey=grey), key=lambda state: len(state.ids))


def _flown(
    before: _State, grey: NDArray[np.uint8], guess: NDArray[np.float32], max_round_trip: float
) -> _State:
    assert before.grey is not None
    window = _window(grey.shape[1])
    there, found = flow(before.grey, grey, before.points, guess, window)
    back, returned = flow(grey, before.grey, there, before.points, window)
    kept = found & returned
    kept &= np.linalg.norm(back - before.points, axis=1) <= max_round_trip
    kept &= (there >= 0).all(axis=1)
    kept &= (there <= np.array([grey.shape[1] - 1, grey.shape[0] - 1])).all(axis=1)
    return _State(grey, before.ids[kept], there[kept])


def _found_again(
    before: _State, grey: NDArray[np.uint8], described: Callable[[NDArray[np.uint8]], Features]
) -> _State:
    """Return those points of an earlier image that are in this one, wherever they went.

    Matches of descriptors (Lowe, "Distinctive image features from scale-invariant keypoints",
    IJCV 2004) show where in the image a point's surroundings went; flow does the rest.

    Args:
        before: the earlier image and its points.
        grey: this image.
        described: returns an image's features.
    """
    nothing = _State(grey, before.ids[:0], before.points[:0])
    if before.grey is None or len(before.ids) == 0 or before.grey.shape != grey.shape:
        return nothing
    old, new = described(before.grey), described(grey)
    first, second = matched(old, new)
    one, other = old.pixels[first], new.pixels[second]
    if len(one) < _FEWEST_FOUND:
        return nothing
    _, mask = cv2.findFundamentalMat(one, other, cv2.FM_RANSAC, 2.0, 0.99, 1000)
    if mask is None or np.count_nonzero(mask) < _FEWEST_FOUND:
        return nothing
    one, other = one[mask.ravel() > 0], other[mask.ravel() > 0]
    distance, nearest = cKDTree(one).query(before.points, k=_NEIGHBOURS)
    shift = np.median((other - one)[nearest], axis=1)
    near = distance[:, 0] <= _NEAR * grey.shape[1]
    start = _State(before.grey, before.ids[near], before.points[near])
    if len(start.ids) == 0:
        return nothing
    guess = (start.points + shift[near]).astype(np.float32)
    return _flown(start, grey, guess, 2.0 * _MAX_ROUND_TRIP)


def _equally_exposed(
    one: NDArray[np.uint8], other: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return two images, the brighter one darkened to the other's exposure.

    Flow takes a point to keep its brightness; an exposure that changes by a tenth between images
    would lose them all.
    """
    few, few_other = one[::4, ::4], other[::4, ::4]
    known = (np.minimum(few, few_other) > _DARKEST) & (np.maximum(few, few_other) < _BRIGHTEST)
    if not known.any():
        return one, other
    gain = float(np.mean(few_other, where=known) / np.mean(few, where=known))
    if abs(gain - 1.0) < _SAME_EXPOSURE:
        return one, other
    if gain < 1.0:
        return np.asarray(cv2.convertScaleAbs(one, alpha=gain), np.uint8), other
    return one, np.asarray(cv2.convertScaleAbs(other, alpha=1.0 / gain), np.uint8)


def _window(width: int) -> tuple[int, int]:
    """Return the side of the flow's window: 15 pixels at full width, less in small images.

    One of 21 keeps a hundredth more points and a fifth more of what is noise, at 1.5 times the
    time.
    """
    side = int(np.clip(round(width / 42), 9, 15)) | 1
    return side, side


def flow(
    start: NDArray[np.uint8],
    end: NDArray[np.uint8],
    points: NDArray[np.float32],
    guess: NDArray[np.float32],
    window: tuple[int, int],
    levels: int = _LK_LEVELS,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return where points (N, 2) of one image are in another, and which were found.

    Args:
        start: (H, W) in which the points are.
        end: (H, W) in which they are looked for.
        points: (N, 2) pixels.
        guess: (N, 2) about where they are.
        window: columns and rows around a point that are compared.
        levels: of the pyramid above the images.
    """
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        start,
        end,
        points[:, None],
        guess[:, None].copy(),
        winSize=window,
        maxLevel=levels,
        criteria=_LK_CRITERIA,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return np.asarray(there, np.float32)[:, 0], found.ravel() == 1


def _lookup(image: NDArray[np.uint8], points: NDArray[np.float32]) -> NDArray[np.uint8]:
    columns, rows = np.rint(points).astype(int).T.reshape(2, -1)
    return image[rows.clip(0, image.shape[0] - 1), columns.clip(0, image.shape[1] - 1)]
