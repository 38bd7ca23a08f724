"""Windows whose poses and depth come from matches between their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import CheckpointError
from qvggt_core.stream.dense_triangulation import triangulate_depth
from qvggt_core.stream.frame import View, WindowPrediction
from qvggt_core.stream.matched_poses import solve_window
from qvggt_core.stream.network import Network
from qvggt_core.stream.prediction_check import has_intrinsics, has_poses
from qvggt_core.stream.view_matches import match_views

_FOCAL_SIGMA = 0.07
"""Standard deviation of the logarithm of predicted focal lengths, against that of matches.

It is 0.2; what is wrong with matches is alike in many of them, so that a third of it is as good.
"""

_VIEWS_FOR_FOCAL = 3
"""Views that show a focal length: two leave it to noise."""

_MOSTLY = 0.5
"""Share of a view's pixels that another view must show for its depth to be taken from there."""

_SHARED_SIGMA = 0.1
"""What wrong poses do to the depth's logarithm, alike at many pixels.

Without it a few near pixels would decide how long a window is.
"""


@runtime_checkable
class MatchingNetwork(Protocol):
    """What is asked of a network that was trained to match."""

    @property
    def patch_size(self) -> int:
        """Side in pixels of its patches."""
        ...

    @property
    def finds_matches(self) -> bool:
        """Whether its predictions have a `similarity`."""
        ...


class PosesFromMatches:
    """Solves windows by the matches that their network finds between their views."""

    def __init__(self, network: Network, use_camera_intrinsics: bool = True) -> None:
        """Take a network into use.

        Args:
            network: that gives the predictions.
            use_camera_intrinsics: whether calibrated cameras are taken as they are; a single
                camera without a calibration gets the focal length that matches show, several are
                as the network predicts them, alike in all views of one.

        Raises:
            CheckpointError: it finds no matches.
        """
        if not isinstance(network, MatchingNetwork) or not network.finds_matches:
            raise CheckpointError(
                f"a {type(network).__name__} finds no matches: choose poses_from camera_head"
            )
        self._network = network
        self._use_camera_intrinsics = use_camera_intrinsics

    def solved(self, prediction: WindowPrediction, views: Sequence[View]) -> WindowPrediction:
        """Return a window with the poses that its matches show, and depth that agrees with them.

        See `solve_window` and `triangulate_depth`. A prediction without poses, or with intrinsics
        that no lens has, is returned as it is.

        Args:
            prediction: of S views.
            views: the S views.
        """
        if not has_poses(prediction) or not has_intrinsics(
            prediction, views, self._use_camera_intrinsics
        ):
            return prediction
        similarity = prediction.similarity
        assert similarity is not None, "the network says that it finds matches"
        images = [view.image for view in views]
        without_depth = len(views) - len(prediction.depth)
        matches = match_views(images, similarity, self._network.patch_size, without_depth)
        # Larger than all else that a prediction has, and not asked for again.
        prediction = replace(prediction, similarity=None)
        intrinsics, log_focal_sigma = self._intrinsics(prediction, views)
        solved = solve_window(prediction, matches, intrinsics, log_focal_sigma)
        return _with_dense_depth(prediction, solved, images)

    def _intrinsics(
        self, prediction: WindowPrediction, views: Sequence[View]
    ) -> tuple[NDArray[np.float64], float]:
        """Return intrinsics (S, 3, 3), and how uncertain the logarithm of the focal length is."""
        result = prediction.intrinsics.copy()
        sources = np.array([view.source for view in views])
        for source in set(sources):
            focal = np.log(result[sources == source][:, [0, 1], [0, 1]]).mean(axis=0)
            result[sources == source, [[0], [1]], [[0], [1]]] = np.exp(focal)[:, None]
        known = [view.intrinsics if self._use_camera_intrinsics else None for view in views]
        for matrix, calibrated in zip(result, known, strict=True):
            if calibrated is not None:
                matrix[:] = calibrated
        is_one = len(set(sources)) == 1 and all(calibrated is None for calibrated in known)
        is_shown = is_one and len(views) >= _VIEWS_FOR_FOCAL
        return result, _FOCAL_SIGMA if is_shown else 0.0


def _with_dense_depth(
    prediction: WindowPrediction, solved: WindowPrediction, images: Sequence[NDArray[np.uint8]]
) -> WindowPrediction:
    """Return a solved window with the depth that most of a view's pixels have in other views.

    Its confidence is 1 + 1 / sigma of the depth's logarithm, of what pixels share too. Views that
    others hardly show keep what the network predicted, in the window's unit: matches are few there,
    and what follows from them is wrong more often than the network.
    """
    found = triangulate_depth(images, solved.camera_from_world, solved.intrinsics, solved.depth)
    ratio = solved.depth / prediction.depth
    is_known = np.isfinite(ratio)
    unit = np.float32(np.median(ratio[is_known]) if is_known.any() else 1.0)
    is_shown = found.agrees.sum(axis=(1, 2)) >= _MOSTLY * is_known.sum(axis=(1, 2))
    is_shown = is_shown[:, None, None]
    sigma = np.hypot(found.sigma, np.float32(_SHARED_SIGMA))
    return replace(
        solved,
        depth=np.where(is_shown, found.depth, unit * prediction.depth),
        confidence=np.where(
            is_shown & np.isfinite(sigma), 1.0 + 1.0 / sigma, prediction.confidence
        ),
    )
