"""The coloured points of one frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.geometry.poses import unproject
from qvggt_core.stream.frame import FrameGeometry

# So many steps in a row, which may differ by this share from one to the next, are a plane at a
# grazing angle and no edge that a network has smeared.
_STEPS = 3
_BEND = 0.25


def frame_cloud(geometry: FrameGeometry, max_depth_edge: float, stride: int = 1) -> Cloud:
    """Return the points of a frame in its camera's optical frame.

    Args:
        geometry: depth, intrinsics and image of one view.
        max_depth_edge: relative depth step to a neighbour above which a pixel is left out;
            the network smears such steps into points that hang in the air.
        stride: every n-th pixel per axis is taken.

    Returns:
        The valid points, row by row of the image, in the unit of the depth.
    """
    keep = np.isfinite(geometry.depth) & ~on_depth_edge(geometry.depth, max_depth_edge)
    chosen = np.zeros_like(keep)
    chosen[::stride, ::stride] = keep[::stride, ::stride]
    return Cloud(
        unproject(geometry.depth, geometry.intrinsics)[chosen],
        geometry.view.image[chosen],
        np.asarray(geometry.confidence, dtype=np.float32)[chosen],
    )


def on_depth_edge(depth: NDArray[np.float32], max_depth_edge: float) -> NDArray[np.bool_]:
    """Return the pixels (H, W) whose depth steps by more than a share to a neighbour's.

    A plane that is seen at a grazing angle may step as much from pixel to pixel, but evenly: there
    inverse depth is linear in the image.
    """
    edge = np.zeros(depth.shape, dtype=bool)
    # Of the transposed image, the same memory is seen column by column.
    for lines, marked in ((depth, edge), (depth.T, edge.T)):
        near, far = lines[:-1], lines[1:]
        # A comparison with NaN is false: a hole beside a pixel is not an edge.
        with np.errstate(invalid="ignore"):
            step = np.abs(near - far) > max_depth_edge * np.minimum(near, far)
        step &= ~_is_even(lines)
        marked[:-1] |= step
        marked[1:] |= step
    return edge


def _is_even(lines: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which steps (H - 1, W) from row to row are some of several in a row that are alike."""
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.diff(1.0 / lines, axis=0)
        size = np.abs(steps)
        alike = np.abs(np.diff(steps, axis=0)) <= _BEND * np.minimum(size[:-1], size[1:])
    even = np.zeros(steps.shape, dtype=bool)
    count = len(steps) - _STEPS + 1
    if count > 0:
        run = np.logical_and.reduce([alike[first : first + count] for first in range(_STEPS - 1)])
        for first in range(_STEPS):
            even[first : first + count] |= run
    return even
