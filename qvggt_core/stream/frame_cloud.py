"""The coloured points of one frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.geometry.poses import unproject
from qvggt_core.stream.frame import FrameGeometry


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
    """Return the pixels (H, W) whose depth steps by more than a share to a neighbour's."""
    edge = np.zeros(depth.shape, dtype=bool)
    for near, far in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        # A comparison with NaN is false: a hole beside a pixel is not an edge.
        with np.errstate(invalid="ignore"):
            step = np.abs(depth[near] - depth[far]) > max_depth_edge * np.minimum(
                depth[near], depth[far]
            )
        edge[near] |= step
        edge[far] |= step
    return edge
