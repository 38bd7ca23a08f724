"""Windows whose poses and depth come from matches between their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qvggt_core.errors import CheckpointError
from qvggt_core.stream.frame import View, WindowPrediction
from qvggt_core.stream.matched_poses import solve_window
from qvggt_core.stream.network import Network
from qvggt_core.stream.prediction_check import has_intrinsics, has_poses
from qvggt_core.stream.view_matches import match_views


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
            use_camera_intrinsics: whether calibrated cameras are taken as they are; others are
                as the network predicts them, alike in all views of one camera.

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
        """Return a window with the poses that its matches show, see `solve_window`.

        A prediction without poses, or with intrinsics that no lens has, is returned as it is.

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
        return solve_window(prediction, matches, self._intrinsics(prediction, views))

    def _intrinsics(
        self, prediction: WindowPrediction, views: Sequence[View]
    ) -> NDArray[np.float64]:
        result = prediction.intrinsics.copy()
        sources = np.array([view.source for view in views])
        for source in set(sources):
            focal = np.log(result[sources == source][:, [0, 1], [0, 1]]).mean(axis=0)
            result[sources == source, [[0], [1]], [[0], [1]]] = np.exp(focal)[:, None]
        for matrix, view in zip(result, views, strict=True):
            if self._use_camera_intrinsics and view.intrinsics is not None:
                matrix[:] = view.intrinsics
        return result
