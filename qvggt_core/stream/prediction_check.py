"""What a network predicts, held against what a camera can see, before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qvggt_core.stream.frame import Array64, View, WindowPrediction

# Of a rotation's product with its transpose: half precision and a quaternion leave 1e-3.
_RIGID_TOLERANCE = 0.05
# Units of a window are about its depth: what is farther away, or nearer, is no place.
_NEAREST, _FARTHEST = 1e-6, 1e6
# Wider than what lenses have: a network that errs is aligned like others, one that overflows not.
_FOCAL_BY_WIDTH = (0.01, 1e6)
_LEAST_CONFIDENCE = np.float32(1.0)


def cleaned(prediction: WindowPrediction) -> WindowPrediction:
    """Return a prediction whose faults are all NaN.

    Poses that are no rigid motions near the first view become NaN, all of them, as they are
    relative to each other; depth that no camera has becomes NaN; confidence that is not finite or
    negative becomes the least of the others.
    """
    poses, depth, sure = prediction.camera_from_world, prediction.depth, prediction.confidence
    if not _are_rigid(poses):
        poses = np.full_like(poses, np.nan)
    valid = (depth > _NEAREST) & (depth < _FARTHEST)
    if not valid.all():
        depth = np.where(valid, depth, np.float32(np.nan))
    valid = np.isfinite(sure) & (sure >= 0)
    if not valid.all():
        sure = np.where(valid, sure, sure[valid].min() if valid.any() else _LEAST_CONFIDENCE)
    return replace(prediction, camera_from_world=poses, depth=depth, confidence=sure)


def has_poses(prediction: WindowPrediction) -> bool:
    """Return whether a cleaned prediction has poses."""
    return bool(np.isfinite(prediction.camera_from_world).all())


def has_intrinsics(
    prediction: WindowPrediction, views: Sequence[View], use_camera_intrinsics: bool
) -> bool:
    """Return whether every view has intrinsics of its own, or such as a lens can have.

    Args:
        prediction: of the window.
        views: the window's, in its order.
        use_camera_intrinsics: whether those of the views go before the prediction's.
    """
    return all(
        (use_camera_intrinsics and view.intrinsics is not None)
        or _is_a_lens(matrix, view.image.shape[1])
        for view, matrix in zip(views, prediction.intrinsics, strict=True)
    )


def _are_rigid(poses: Array64) -> bool:
    if not np.isfinite(poses).all() or np.abs(poses).max() > _FARTHEST:
        return False
    rotation = poses[:, :3, :3]
    product = rotation @ np.swapaxes(rotation, -1, -2)
    is_rotation = np.abs(product - np.eye(3)).max() < _RIGID_TOLERANCE
    return bool(is_rotation and (np.linalg.det(rotation) > 0).all())


def _is_a_lens(matrix: NDArray[np.float64], width: int) -> bool:
    focal = np.diag(matrix)[:2]
    least, most = (share * width for share in _FOCAL_BY_WIDTH)
    return bool(
        np.isfinite(matrix).all()
        and ((least <= focal) & (focal <= most)).all()
        and (np.abs(matrix[:2, 2]) <= most).all()
    )
