"""What is kept of keyframes as long as the map lives: enough to find and to build them again."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import rotation_angle
from qvggt_core.stream.loop_verification import Corners
from qvggt_core.stream.place_index import PlaceIndex, place_descriptor

MAX_KEYFRAMES = 2000
"""Keyframes that are kept at most, and their"""
MAX_BYTES = 512 * 2**20
"""size. Beyond either, a tenth of them is left out, where they are densest."""

_NEWEST = 20


@dataclass(frozen=True)
class StoredKeyframe:
    """One keyframe; where it is, `Chains` knows.

    Attributes:
        stamp_ns: capture time.
        image: (H, W, 3) uint8 as the network sees it.
        intrinsics: (3, 3) float64 of `image` in pixels.
        tokens: what the network's encoder made of it, (P, C) float16, or as the network keeps it.
        depth: (H, W) float16 in units of `unit`; NaN where invalid.
        unit: lengths of the keyframe's odometry per unit of `depth`.
        corners: what it is recognised by in detail.
    """

    stamp_ns: int
    image: NDArray[np.uint8]
    intrinsics: NDArray[np.float64]
    tokens: Any
    depth: NDArray[np.float16]
    unit: float
    corners: Corners

    @property
    def size(self) -> int:
        """Bytes."""
        arrays = (
            self.image,
            self.tokens,
            self.depth,
            self.corners.features.descriptors,
            self.corners.features.pixels,
            self.corners.rays,
            self.corners.depth,
        )
        return sum(getattr(each, "nbytes", 0) for each in arrays)

    def scaled(self, factor: float) -> StoredKeyframe:
        """Return it in another unit of length."""
        corners = replace(self.corners, depth=np.float32(factor) * self.corners.depth)
        return replace(self, unit=factor * self.unit, corners=corners)


def packed_depth(depth: NDArray[np.float32]) -> tuple[NDArray[np.float16], float]:
    """Return a depth image in 16 bits, and its unit, for any range: the median is 1."""
    valid = depth[np.isfinite(depth)]
    unit = float(np.median(valid)) if len(valid) else 1.0
    with np.errstate(over="ignore"):
        return (depth / np.float32(unit)).astype(np.float16), unit


def packed_tokens(tokens: Any) -> Any:
    """Return tokens on the host in 16 bits; what is no tensor or array stays as it is."""
    if hasattr(tokens, "detach"):
        tokens = tokens.detach().float().cpu().numpy()
    return tokens.astype(np.float16) if isinstance(tokens, np.ndarray) else tokens


class KeyframeStore:
    """Keyframes in order of time, bounded in number and size.

    Attributes:
        keyframes: the keyframes.
        index: finds those that look alike.
    """

    def __init__(self, max_keyframes: int = MAX_KEYFRAMES, max_bytes: int = MAX_BYTES) -> None:
        """Start empty."""
        self.keyframes: list[StoredKeyframe] = []
        self.index = PlaceIndex()
        self._max_keyframes = max_keyframes
        self._max_bytes = max_bytes
        self._bytes = 0

    def __len__(self) -> int:
        """Return the number of keyframes."""
        return len(self.keyframes)

    def append(self, keyframe: StoredKeyframe, place: NDArray[np.float32] | None = None) -> None:
        """Add the next one.

        Args:
            keyframe: to add.
            place: (D,) what it is recognised by, if known.
        """
        self.keyframes.append(keyframe)
        if place is None:
            place = place_descriptor(keyframe.tokens, keyframe.image)
        self.index.append(place)
        self._bytes += keyframe.size

    def copy(self) -> KeyframeStore:
        """Return one that goes its own way; keyframes themselves never change."""
        other = copy(self)
        other.keyframes, other.index = list(self.keyframes), copy(self.index)
        return other

    @property
    def is_full(self) -> bool:
        """Whether some have to go."""
        return len(self) > self._max_keyframes or self._bytes > self._max_bytes

    def keep(self, index: NDArray[np.int64]) -> None:
        """Leave out all but some."""
        self.keyframes = [self.keyframes[number] for number in index]
        self.index.keep(index)
        self._bytes = sum(keyframe.size for keyframe in self.keyframes)


def thinned(
    poses: NDArray[np.float64], needed: NDArray[np.bool_], depth: float
) -> NDArray[np.int64]:
    """Return the indices of nine tenths of keyframes, without those nearest to their neighbours.

    Args:
        poses: (N, 4, 4) world_from_camera, in order of time.
        needed: (N,) which of them have to stay; the newest stay in any case.
        depth: usual distance of things: a step by it counts as a turn by a radian.
    """
    count = len(poses)
    wanted = max(1, count // 10)
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / depth
    turns = rotation_angle(np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3])
    along = np.concatenate([[0.0], np.cumsum(steps + turns)])
    gap = np.full(count, np.inf)
    gap[1:-1] = along[2:] - along[:-2]
    gap[needed], gap[-_NEWEST:] = np.inf, np.inf
    kept = np.ones(count, bool)
    for number in np.argsort(gap, kind="stable"):
        if wanted == 0 or not np.isfinite(gap[number]):
            break
        # Not two neighbours at once: the gap between would be larger than either knew.
        if kept[number - 1] and kept[number + 1]:
            kept[number], wanted = False, wanted - 1
    return np.flatnonzero(kept)
