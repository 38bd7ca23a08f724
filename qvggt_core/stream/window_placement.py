"""Where a window's views lie in the map, by what they share with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse
from qvggt_core.stream.align import Alignment, Anchor, Similarity, align
from qvggt_core.stream.depth_scale import valid_depth
from qvggt_core.stream.frame import PlacedView, WindowPrediction
from qvggt_core.stream.window import Entry


def trusted_depth(
    entries: list[Entry], prediction: WindowPrediction, percentile: float
) -> NDArray[np.float32]:
    """Return the window's last depth images (D, H, W), NaN where they are not to be trusted.

    Args:
        entries: the window.
        prediction: the network's.
        percentile: of the confidence, below which depth is left out.
    """
    with_depth = entries[len(entries) - len(prediction.depth) :]
    return np.stack(
        [
            entry.view.static(valid_depth(depth, confidence, percentile))
            for entry, depth, confidence in zip(
                with_depth, prediction.depth, prediction.confidence, strict=True
            )
        ]
    )


def first_alignment(entries: list[Entry], prediction: WindowPrediction) -> Alignment:
    """Return the alignment of a map that begins at the first new camera, level, in its unit."""
    first = next(i for i, entry in enumerate(entries) if not entry.is_published)
    map_from_window = FLU_FROM_OPTICAL @ prediction.camera_from_world[first]
    return Alignment(Similarity(1.0, map_from_window[:3, :3], map_from_window[:3, 3]))


def alignment_to_map(
    entries: list[Entry],
    prediction: WindowPrediction,
    depth: NDArray[np.float32],
    max_scale_spread: float,
) -> Alignment:
    """Return how a window lies in the map, by its views that are placed there.

    Args:
        entries: the window.
        prediction: the network's.
        depth: (D, H, W) of the last D views, see `trusted_depth`.
        max_scale_spread: see `align`.

    Raises:
        AlignmentError: the views do not agree.
    """
    shared = [i for i, entry in enumerate(entries) if entry.anchor is not None]
    without_depth = len(entries) - len(depth)
    scaled = [i - without_depth for i in shared if i >= without_depth]
    return align(
        [entry.anchor for entry in entries if entry.anchor is not None],
        prediction.camera_from_world[shared],
        depth[scaled],
        prediction.confidence[scaled],
        max_scale_spread,
    )


def placed_views(
    entries: list[Entry],
    prediction: WindowPrediction,
    depth: NDArray[np.float32],
    map_from_window: Similarity,
) -> Iterator[tuple[int, PlacedView]]:
    """Put the window's views into the map; yield the new ones with their place in the window."""
    map_depth = np.float32(map_from_window.scale) * depth
    window_from_camera = inverse(prediction.camera_from_world)
    without_depth = len(entries) - len(depth)
    for index, entry in enumerate(entries):
        # What is given out stays; what later windows are aligned to is the newest estimate.
        # Its views agree with each other, where first estimates of several windows do not:
        # drift is 5 to 20 % less in windows that overlap by more than a half.
        pose = map_from_window.pose(window_from_camera[index])
        has_depth = index >= without_depth
        entry.anchor = Anchor(pose, map_depth[index - without_depth] if has_depth else None)
        if not entry.is_published:
            # Copies: whoever keeps a frame must not keep its whole window in memory.
            yield (
                index,
                PlacedView(
                    pose,
                    map_depth[index - without_depth].copy(),
                    prediction.confidence[index - without_depth].copy(),
                ),
            )
