"""How a window lies in the map, from the views that are in both.

A network gives every window its own gauge: where its world is, how it is turned, how long its
unit is. Fitting a similarity to the camera centres, as is often done, has no answer when they lie
on a line or in a point, which is how robots move. Here each part comes from what always
determines it: the rotation from the views' rotations, the scale from their depths, and then the
translation from their centres. One shared view is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import AlignmentError
from qvggt_core.geometry.poses import inverse, rotation_angle, transform
from qvggt_core.stream.depth_scale import depth_scale

USUAL_ANGLE = float(np.radians(0.2))
"""Noise in radians that the orientations of any network have at least."""

USUAL_DISTANCE = 0.002
"""The same for positions, as a share of the depth."""

# Views agree within three times what is usual: the median among them, or at least that noise.
_OUTLIER_FACTOR = 3.0


@dataclass(frozen=True)
class Anchor:
    """A view's place in the map, by which later windows are aligned.

    Attributes:
        map_from_camera: (4, 4) float64, optical axes.
        depth: (H, W) float32 in map units; NaN where it is not trusted. None for a view from
            which no scale is taken any more.
    """

    map_from_camera: NDArray[np.float64]
    depth: NDArray[np.float32] | None


@dataclass(frozen=True)
class Similarity:
    """A change of coordinates that also scales: x -> scale * rotation @ x + translation."""

    scale: float
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    def pose(self, source_from_camera: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `target_from_camera` (4, 4), rigid, of a camera posed in the source."""
        return transform(
            self.rotation @ source_from_camera[:3, :3],
            self.scale * self.rotation @ source_from_camera[:3, 3] + self.translation,
        )


@dataclass(frozen=True)
class Alignment:
    """How a window lies in the map, and how well the shared views agree on it.

    Attributes:
        map_from_window: takes the window's world to the map.
        scale_spread: largest over smallest of the views' own scales, 1 when they agree.
        rotation_residual: median angle in radians between the views' own rotations and the result.
        translation_residual: median distance in map units between the translations that the views
            ask for and the result.
        overlap: number of views that the window shares with the map.
    """

    map_from_window: Similarity
    scale_spread: float = 1.0
    rotation_residual: float = 0.0
    translation_residual: float = 0.0
    overlap: int = 0


def align(
    anchors: Sequence[Anchor],
    camera_from_window: NDArray[np.float64],
    depth: NDArray[np.float32],
    confidence: NDArray[np.float32],
    max_scale_spread: float,
) -> Alignment:
    """Return how a window lies in the map.

    Args:
        anchors: the S views that the window shares with the map, as they are in the map.
        camera_from_window: (S, 4, 4) poses of the same views in the window.
        depth: (D, H, W) of the last D shared views in window units; NaN where it is not trusted.
        confidence: (D, H, W) of `depth`.
        max_scale_spread: ratio between the views' own scales from which the window is refused.

    Raises:
        AlignmentError: no view is shared, the poses are not finite, too few pixels have depth in
            both, or the views disagree on the scale.
    """
    if not anchors:
        raise AlignmentError("the window shares no view with the map")
    if not np.isfinite(camera_from_window).all():
        raise AlignmentError("the network gave poses that are not finite")
    scaled = [anchor.depth for anchor in anchors[-len(depth) :]]
    map_depth = np.stack([placed for placed in scaled if placed is not None])
    scale = depth_scale(map_depth, depth, confidence)
    if scale.spread > max_scale_spread:
        raise AlignmentError(
            f"the {len(map_depth)} views that the window shares with the map disagree on its scale "
            f"by a factor of {scale.spread:.2f} (max_scale_spread is {max_scale_spread:g})"
        )
    map_from_camera = np.stack([anchor.map_from_camera for anchor in anchors])
    window_from_camera = inverse(camera_from_window)
    rotation, residual = _common_rotation(
        map_from_camera[:, :3, :3] @ camera_from_window[:, :3, :3]
    )
    translation, distance = _common_translation(
        map_from_camera[:, :3, 3] - scale.ratio * window_from_camera[:, :3, 3] @ rotation.T,
        usual=USUAL_DISTANCE * float(np.nanmedian(map_depth)),
    )
    return Alignment(
        Similarity(scale.ratio, rotation, translation),
        scale_spread=scale.spread,
        rotation_residual=residual,
        translation_residual=distance,
        overlap=len(anchors),
    )


def _common_rotation(rotations: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the mean (chordal) of the rotations (S, 3, 3) that agree, and the median residual."""
    between = rotation_angle(np.swapaxes(rotations, -1, -2)[:, None] @ rotations[None, :])
    agreeing = rotations[_agreeing(between, USUAL_ANGLE)]
    mean = Rotation.from_matrix(agreeing).mean().as_matrix()
    return mean, float(np.median(rotation_angle(mean.T @ rotations)))


def _common_translation(
    translations: NDArray[np.float64], usual: float
) -> tuple[NDArray[np.float64], float]:
    """Return the mean of the translations (S, 3) that agree, and the median residual."""
    between = np.linalg.norm(translations[:, None] - translations[None, :], axis=-1)
    mean = translations[_agreeing(between, usual)].mean(axis=0)
    return mean, float(np.median(np.linalg.norm(translations - mean, axis=-1)))


def _agreeing(between: NDArray[np.float64], usual: float) -> NDArray[np.bool_]:
    """Return which of S estimates agree with the medoid, given their distances (S, S)."""
    # The medoid is the estimate with the smallest sum of distances: a median without iterations
    # that holds while fewer than half of the estimates are wrong.
    to_medoid = between[between.sum(axis=1).argmin()]
    return to_medoid <= _OUTLIER_FACTOR * max(usual, float(np.median(to_medoid)))
