"""Depth at every pixel of a window's views, from where its other views show the pixel.

Poses and a first depth foretell where a pixel of one view is seen in another; optical flow from
there (Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016) finds where it is
seen. Where several views agree, that gives the depth; elsewhere the first depth stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import inverse

_PARTNERS = 4
"""Views that a view is compared with: those that show most of it, from elsewhere."""

_ENOUGH_PARALLAX = 1.5
"""Pixels that a pixel moves where its depth is multiplied by e, three times flow's error.

More count no more: views from far away show less of the same, and flow to them is wrong more often.
"""

_LEAST_SHARE = 0.05
_SPACING = 8
"""Pixels between those by which partners are chosen."""

_PIXEL_SIGMA = 0.5
_PRIOR_SIGMA = 0.25
"""Standard deviation of the first depth's logarithm."""

_RETURNS_TO = 1.5
"""Pixels by which flow, forth and back, may miss where it began."""

_AGREES = 1.0
"""Pixels from where the depth puts a pixel at which what a view shows counts a quarter."""

_ITERATIONS = 3
_MOST = 1.0
"""Change of the depth's logarithm beyond which flow is wrong more often than depth."""

_NEAREST = 1e-3
_E = np.float32(np.e)


@dataclass(frozen=True)
class DenseDepth:
    """Depth of D views, and where it was found.

    Attributes:
        depth: (D, H, W) float32, in the unit of what it began with.
        sigma: (D, H, W) float32 standard deviation of the depth's logarithm, by flow's errors and
            those of the first depth.
        agrees: (D, H, W) whether another view shows the pixel where its depth puts it; so it
            does where nothing is to be seen that could contradict.
    """

    depth: NDArray[np.float32]
    sigma: NDArray[np.float32]
    agrees: NDArray[np.bool_]


def triangulate_depth(
    images: Sequence[NDArray[np.uint8]],
    camera_from_world: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    depth: NDArray[np.float32],
) -> DenseDepth:
    """Return depth that agrees with what the other views of a window show.

    Args:
        images: S of (H, W, 3) RGB.
        camera_from_world: (S, 4, 4), in the depth's unit.
        intrinsics: (S, 3, 3) in pixels.
        depth: (D, H, W) of the last D views, right to about a quarter; NaN where unknown, and there
            it stays so.
    """
    window = _Window.of(images, camera_from_world, intrinsics)
    first = len(images) - len(depth)
    is_large_enough = max(depth.shape[1:]) > window.dis.getPatchSize()
    hosts = range(first, len(images)) if is_large_enough else range(0)
    places = {
        (host, other): window.place(host, other, depth[host - first])
        for host in hosts
        for other in window.partners(host, depth[host - first])
    }
    flow = {pair: window.flow(*pair, place.start) for pair, place in places.items()}
    flow |= {
        (other, host): window.flow(other, host, -there)
        for (host, other), there in flow.items()
        if (other, host) not in flow
    }
    result, agrees = depth.astype(np.float32), np.zeros(depth.shape, bool)
    sigma = np.full_like(result, _PRIOR_SIGMA)
    for number, host in enumerate(hosts):
        seen = [
            window.seen(place, flow[host, other], flow[other, host])
            for (one, other), place in places.items()
            if one == host
        ]
        if seen:
            result[number], sigma[number] = _agreed(depth[number], seen)
            agrees[number] = np.any([each.agrees(1.0 / result[number]) for each in seen], axis=0)
    return DenseDepth(result, sigma, agrees)


@dataclass(frozen=True)
class _Place:
    """Where a first depth puts the pixels of a view in another one.

    Attributes:
        other: number of the other view.
        turned: (3, H, W) rays of the pixels, depth 1, as the other view is turned.
        shift: (3,) the view's centre in the other view.
        distance: (H, W) along the other's optical axis, by the depth.
        start: (H, W, 2) pixels from where the pixels are to where they are put; 0 outside.
        is_inside: (H, W) whether they are put inside of the other view.
    """

    other: int
    turned: NDArray[np.float32]
    shift: NDArray[np.float32]
    distance: NDArray[np.float32]
    start: NDArray[np.float32]
    is_inside: NDArray[np.bool_]


@dataclass(frozen=True)
class _Seen:
    """Where another view shows the pixels of one, as equations: slope x inverse depth = offset.

    Attributes:
        slope: (2, H, W) pixels by inverse depth.
        offset: (2, H, W) pixels.
        is_seen: (H, W) where flow, forth and back, comes to where it began.
    """

    slope: NDArray[np.float32]
    offset: NDArray[np.float32]
    is_seen: NDArray[np.bool_]

    def weight(self, inverse_depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the view counts (H, W) where the pixels' inverse depth is this."""
        return self.is_seen / (1.0 + self._off(inverse_depth) / np.float32(_AGREES**2)) ** 2

    def agrees(self, inverse_depth: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether (H, W) the view shows the pixels where an inverse depth puts them."""
        return self.is_seen & (self._off(inverse_depth) < _AGREES**2)

    def _off(self, inverse_depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the square of the pixels (H, W) between both."""
        return ((self.slope * inverse_depth - self.offset) ** 2).sum(axis=0)


@dataclass(frozen=True)
class _Window:
    """The views of a window.

    Attributes:
        grey: S of (H, W).
        camera_from_world: (S, 4, 4).
        intrinsics: (S, 3, 3).
        pixels: (2, H, W) column and row of each pixel.
        dis: finds where another view shows pixels.
    """

    grey: list[NDArray[np.uint8]]
    camera_from_world: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    pixels: NDArray[np.float32]
    dis: cv2.DISOpticalFlow

    @classmethod
    def of(
        cls,
        images: Sequence[NDArray[np.uint8]],
        camera_from_world: NDArray[np.float64],
        intrinsics: NDArray[np.float64],
    ) -> _Window:
        """Return a window of S images (H, W, 3)."""
        grey = [np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in images]
        height, width = grey[0].shape
        pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        # At half the images' size thin things are lost.
        dis.setFinestScale(0)
        dis.setGradientDescentIterations(8)
        dis.setVariationalRefinementIterations(2)
        return cls(grey, camera_from_world, intrinsics, pixels, dis)

    def partners(self, view: int, depth: NDArray[np.float32]) -> list[int]:
        """Return the other views that show most of a view's pixels from elsewhere."""
        some = (slice(_SPACING // 2, None, _SPACING),) * 2
        worth = {}
        for other in range(len(self.grey)):
            if other == view:
                continue
            turned, shift = self._relative(view, other, some)
            place, _, is_inside = self._projected(other, turned, shift, depth[some])
            farther, _, _ = self._projected(other, turned, shift, _E * depth[some])
            moved = np.hypot(*(farther - place))[is_inside]
            if is_inside.mean() >= _LEAST_SHARE:
                worth[other] = float(np.minimum(moved, _ENOUGH_PARALLAX).sum())
        return sorted(worth, key=lambda other: -worth[other])[:_PARTNERS]

    def place(self, view: int, other: int, depth: NDArray[np.float32]) -> _Place:
        """Return where depth puts a view's pixels in another view."""
        turned, shift = self._relative(view, other)
        place, distance, is_inside = self._projected(other, turned, shift, depth)
        start = cv2.merge([*np.where(is_inside, place - self.pixels, np.float32(0.0))])
        return _Place(other, turned, shift, distance / depth, start, is_inside)

    def flow(self, view: int, other: int, start: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how far (H, W, 2) a view's pixels are elsewhere in another, found from a start."""
        found = self.dis.calc(self.grey[view], self.grey[other], start.copy())
        return np.asarray(found, np.float32)

    def seen(self, place: _Place, forth: NDArray[np.float32], back: NDArray[np.float32]) -> _Seen:
        """Return what flow to the other view, and back, shows."""
        there = np.stack(cv2.split(forth))
        found = self.pixels + there
        again = cv2.remap(
            back, found[0], found[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        misses = np.hypot(*(there + np.stack(cv2.split(again))))
        focal, centre = self._lens(place.other)
        ray = (found - centre) / focal
        by_pixel = focal / place.distance
        return _Seen(
            slope=(place.shift[:2, None, None] - ray * place.shift[2]) * by_pixel,
            offset=(ray * place.turned[2] - place.turned[:2]) * by_pixel,
            is_seen=place.is_inside & self._is_within(found) & (misses < _RETURNS_TO),
        )

    def _lens(self, view: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return focal lengths and principal point (2, 1, 1) of a view."""
        matrix = self.intrinsics[view].astype(np.float32)
        return matrix[[0, 1], [0, 1]][:, None, None], matrix[:2, 2][:, None, None]

    def _relative(
        self, view: int, other: int, some: tuple[slice, ...] = ()
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return a view's rays (3, h, w), depth 1, as another is turned, and its centre there."""
        pose = self.camera_from_world[other] @ inverse(self.camera_from_world[view])
        turn, shift = pose[:3, :3].astype(np.float32), pose[:3, 3].astype(np.float32)
        focal, centre = self._lens(view)
        x, y = (self.pixels[(slice(None), *some)] - centre) / focal
        return np.stack([row[0] * x + row[1] * y + row[2] for row in turn]), shift

    def _projected(
        self,
        other: int,
        turned: NDArray[np.float32],
        shift: NDArray[np.float32],
        depth: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Return where depth (h, w) puts rays in another view, how far, and if it is inside."""
        distance = turned[2] * depth + shift[2]
        is_before = distance > _NEAREST * depth
        distance = np.where(is_before, distance, depth).astype(np.float32)
        focal, centre = self._lens(other)
        place = (turned[:2] * depth + shift[:2, None, None]) / distance * focal + centre
        return place, distance, is_before & self._is_within(place)

    def _is_within(self, place: NDArray[np.float32]) -> NDArray[np.bool_]:
        height, width = self.grey[0].shape
        x, y = place
        return (x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5)


def _agreed(
    depth: NDArray[np.float32], seen: list[_Seen]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the depth (H, W) that agrees with most of what other views show, and its sigma."""
    first = 1.0 / depth
    prior = (_PIXEL_SIGMA / (_PRIOR_SIGMA * first)) ** 2
    square = [(each.slope**2).sum(axis=0) for each in seen]
    product = [(each.slope * each.offset).sum(axis=0) for each in seen]
    weight = [each.is_seen.astype(np.float32) for each in seen]
    found = first
    for iteration in range(_ITERATIONS):
        if iteration:
            weight = [each.weight(found) for each in seen]
        above = sum((w * p for w, p in zip(weight, product, strict=True)), prior * first)
        below = sum((w * s for w, s in zip(weight, square, strict=True)), prior)
        found = above / below
    limit = np.float32(np.exp(_MOST))
    found = np.clip(found, first / limit, first * limit)
    return 1.0 / found, _PIXEL_SIGMA / (np.sqrt(below) * found)
