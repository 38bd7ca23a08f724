"""A graph of similarities between keyframes, solved so that all that was measured agrees best.

Each edge gives where one node lies in another's frame, with a covariance; the nodes' scales are
states like their rotations and positions (Strasdat, Montiel, Davison, "Scale drift-aware large
scale monocular SLAM", RSS 2010). Edges that may be wrong altogether count by a truncated cost that
is approached from a convex one (graduated non-convexity with Geman and McClure's cost: Yang,
Antonante, Tzoumas, Carlone, RA-L 2020), so that they need no good start and lose their weight if
the others contradict them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, spmatrix
from scipy.sparse.linalg import splu

from qvggt_core.geometry.similarities import (
    adjoint_of,
    inverse_right_jacobian,
    inverse_similarity,
    motion_of,
    moved_by,
    scale_of,
)

OUTLIER_SQUARE = 18.5
"""Squared residual, in standard deviations, beyond which an edge is wrong: 99 % of chi-square with
7 degrees of freedom lie below."""

_SHRINK = 3.0
_MAX_STEPS = 40
_CONVERGED = 1e-5

_Result = TypeVar("_Result")
Parts = Generator[int, None, _Result]
"""Work in parts: each yields how many edges it went through."""


@dataclass(frozen=True)
class Edges:
    """E measured relations.

    Attributes:
        first: (E,) indices of nodes.
        second: (E,) indices of others.
        first_from_second: (E, 4, 4) similarities, as measured.
        information: (E, 7, 7) inverse covariances of small motions in the second node's frame.
        is_robust: (E,) whether an edge may be wrong altogether.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_from_second: NDArray[np.float64]
    information: NDArray[np.float64]
    is_robust: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of edges."""
        return len(self.first)

    def residuals(self, world_from_node: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the motions (E, 7) by which nodes differ from what was measured."""
        between = inverse_similarity(world_from_node[self.first]) @ world_from_node[self.second]
        return motion_of(inverse_similarity(self.first_from_second) @ between)

    def normals(
        self, world_from_node: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each edge's part (E, 14, 14), (E, 14) of the normal equations.

        Args:
            world_from_node: (N, 4, 4).
            weights: (E,) of the edges.

        Returns:
            Second derivatives and gradients by small motions of both nodes, the first one's before
            the second one's, each in its node's frame.
        """
        residuals = self.residuals(world_from_node)
        by_second = inverse_right_jacobian(residuals)
        second_from_first = (
            inverse_similarity(world_from_node[self.second]) @ world_from_node[self.first]
        )
        by_first = -by_second @ adjoint_of(second_from_first)
        jacobian = np.concatenate([by_first, by_second], axis=2)
        weighted = weights[:, None, None] * np.swapaxes(jacobian, 1, 2) @ self.information
        return weighted @ jacobian, (weighted @ residuals[:, :, None])[..., 0]

    def squares(self, world_from_node: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the squared residuals (E,) in standard deviations."""
        residuals = self.residuals(world_from_node)
        return np.einsum("ni,nij,nj->n", residuals, self.information, residuals)


@dataclass(frozen=True)
class Graph:
    """N nodes, and what is known of them.

    Attributes:
        world_from_node: (N, 4, 4) similarities; where the first node is, the world begins.
        edges: between them; they connect all nodes.
        scale_sigma: (N,) standard deviation of the logarithm of each node's scale around 0, where
            its unit is known by other means; infinite where not.
    """

    world_from_node: NDArray[np.float64]
    edges: Edges
    scale_sigma: NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """Where the nodes are.

    Attributes:
        world_from_node: (N, 4, 4).
        square: (E,) squared residual of each edge in standard deviations.
        steps: number of linear systems solved.
    """

    world_from_node: NDArray[np.float64]
    square: NDArray[np.float64]
    steps: int


def solve(graph: Graph) -> Solution:
    """Return the nodes that agree best with the edges; the first one stays where it is."""
    return finished(solution(graph))


def finished(work: Parts[_Result]) -> _Result:
    """Return what all parts give together."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: _Result = stop.value
            return result


def solution(graph: Graph) -> Parts[Solution]:
    """Do what `solve` does; each part is one linear system."""
    edges, robust = graph.edges, graph.edges.is_robust
    square = edges.squares(graph.world_from_node)
    control = max(1.0, 2.0 * float(square[robust].max(initial=0.0)) / OUTLIER_SQUARE)
    steps = 0
    while steps < _MAX_STEPS:
        weights = np.where(robust, _weight(square, control), 1.0)
        motions = _step(graph, weights)
        graph = replace(graph, world_from_node=graph.world_from_node @ moved_by(motions))
        square = edges.squares(graph.world_from_node)
        steps += 1
        if control == 1.0 and float(np.abs(motions).max(initial=0.0)) < _CONVERGED:
            break
        control = max(1.0, control / _SHRINK)
        yield len(edges)
    return Solution(graph.world_from_node, square, steps)


def _weight(square: NDArray[np.float64], control: float) -> NDArray[np.float64]:
    limit = control * OUTLIER_SQUARE
    return (limit / (square + limit)) ** 2


def _step(graph: Graph, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the motions (N, 7) of the nodes in their own frames that solve the linear system."""
    nodes, edges, count = graph.world_from_node, graph.edges, len(graph.world_from_node)
    blocks, sides = edges.normals(nodes, weights)
    unknowns = 7 * np.stack([edges.first, edges.second], axis=1)[:, :, None] + np.arange(7)
    unknowns = unknowns.reshape(len(edges), 14)
    side = np.bincount(unknowns.ravel(), sides.ravel(), 7 * count)
    known = 1.0 / graph.scale_sigma**2
    scales = 7 * np.arange(count) + 6
    side[scales] = side[scales] + known * np.log(scale_of(nodes))
    rows = np.concatenate([np.repeat(unknowns, 14, axis=1).ravel(), scales])
    columns = np.concatenate([np.tile(unknowns, (1, 14)).ravel(), scales])
    values = np.concatenate([blocks.ravel(), known])
    matrix = csc_matrix((values, (rows, columns)), shape=(7 * count, 7 * count))[7:, 7:]
    motions = np.zeros(7 * count)
    if count > 1:
        motions[7:] = -solved_sparse(matrix, side[7:])
    return motions.reshape(count, 7)


def solved_sparse(matrix: spmatrix, right: NDArray) -> NDArray[np.float64]:
    """Return x of matrix x = right, for a symmetric matrix most of which is zero.

    Raises:
        RuntimeError: it is singular.
    """
    options = {"SymmetricMode": True}
    factors = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", options=options)
    return np.asarray(factors.solve(right))
