"""The graph of similarities against SciPy's least squares, and with edges that are wrong."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from qvggt_core.geometry.similarities import (
    inverse_similarity,
    motion_of,
    moved_by,
    scale_of,
)
from qvggt_core.stream.pose_graph import OUTLIER_SQUARE, Edges, Graph, solve

SIGMA = np.array([0.01] * 3 + [0.02] * 3 + [0.01])


def circle(count=24, radius=3.0):
    """Return poses (N, 4, 4) on a circle that ends where it began."""
    angle = np.linspace(0.0, 2.0 * np.pi, count)
    motions = np.zeros((count, 7))
    motions[:, 2] = angle
    poses = moved_by(motions)
    poses[:, :3, 3] = radius * np.stack([np.sin(angle), 1.0 - np.cos(angle), 0 * angle], axis=1)
    return poses


def measured(truth, pairs, rng, sigma=SIGMA):
    first, second = np.array(pairs).T
    between = inverse_similarity(truth[first]) @ truth[second]
    noise = moved_by(sigma * rng.standard_normal((len(pairs), 7)))
    return first, second, between @ noise


def graph_of(truth, loops, rng, wrong=(), scale_sigma=np.inf):
    """Return a chain of noisy edges from a start at the integrated chain, with loop edges."""
    count = len(truth)
    chain = [(i, i + 1) for i in range(count - 1)]
    first, second, relations = measured(truth, [*chain, *loops], rng)
    for number in wrong:
        relations[len(chain) + number] = moved_by(rng.normal(0, [0.5] * 3 + [2.0] * 3 + [0.2]))
    edges = Edges(
        first,
        second,
        relations,
        np.tile(np.diag(SIGMA**-2.0), (len(first), 1, 1)),
        np.arange(len(first)) >= len(chain),
    )
    start = [truth[0]]
    for relation in relations[: count - 1]:
        start.append(start[-1] @ relation)
    return Graph(np.stack(start), edges, np.full(count, scale_sigma))


def reference(graph):
    """Return the nodes that SciPy finds: squares for the chain, Geman and McClure's for loops."""
    edges, start = graph.edges, graph.world_from_node
    roots = np.linalg.cholesky(edges.information).swapaxes(1, 2)

    def nodes(unknowns):
        moved = start.copy()
        moved[1:] = start[1:] @ moved_by(unknowns.reshape(-1, 7))
        return moved

    def cost(unknowns):
        at = nodes(unknowns)
        white = np.einsum("nij,nj->ni", roots, edges.residuals(at))
        square = (white**2).sum(axis=1)
        shrunk = 1.0 / np.sqrt(1.0 + square / OUTLIER_SQUARE)
        white[edges.is_robust] *= shrunk[edges.is_robust, None]
        prior = np.log(scale_of(at)) / graph.scale_sigma
        return np.concatenate([white.ravel(), prior])

    zero = motion_of(inverse_similarity(start[1:]) @ solve(graph).world_from_node[1:]).ravel()
    found = least_squares(cost, zero, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14)
    return nodes(found.x)


@pytest.mark.parametrize("scale_sigma", [np.inf, 0.02])
def test_it_is_the_least_of_squares(scale_sigma):
    rng = np.random.default_rng(1)
    graph = graph_of(circle(12), [(0, 11), (2, 9)], rng, scale_sigma=scale_sigma)
    apart = motion_of(inverse_similarity(reference(graph)) @ solve(graph).world_from_node)
    np.testing.assert_allclose(apart, 0.0, atol=2e-5)


def test_a_loop_takes_most_of_the_drift_out():
    rng = np.random.default_rng(2)
    truth = circle(60)
    graph = graph_of(truth, [(0, 59), (1, 58)], rng)
    found = solve(graph).world_from_node

    def error(nodes):
        return np.linalg.norm(nodes[:, :3, 3] - truth[:, :3, 3], axis=1).mean()

    assert error(found) < 0.5 * error(graph.world_from_node)


def test_scales_that_drift_are_mended_by_a_loop():
    rng = np.random.default_rng(3)
    truth = circle(30)
    graph = graph_of(truth, [(0, 29)], rng)
    drifting = graph.edges.first_from_second.copy()
    drifting[:29] = drifting[:29] @ moved_by([0, 0, 0, 0, 0, 0, 0.01])
    edges = Edges(**{**vars(graph.edges), "first_from_second": drifting})
    found = solve(Graph(graph.world_from_node, edges, graph.scale_sigma)).world_from_node
    assert abs(np.log(scale_of(found[-1]))) < 0.04  # of 0.29
    assert np.linalg.norm(found[-1, :3, 3] - truth[-1, :3, 3]) < 0.1


def test_a_wrong_edge_loses_its_weight_where_others_contradict_it():
    truth = circle(60)
    loops = [(0, 59), (2, 57), (4, 55), (10, 40)]
    with_wrong = solve(graph_of(truth, loops, np.random.default_rng(4), wrong=[3]))
    without = solve(graph_of(truth, loops[:3], np.random.default_rng(4)))
    apart = with_wrong.world_from_node[:, :3, 3] - without.world_from_node[:, :3, 3]
    assert np.linalg.norm(apart, axis=1).max() < 0.02
    assert with_wrong.square[-1] > 10 * OUTLIER_SQUARE
    assert with_wrong.square[-4:-1].max() < OUTLIER_SQUARE


def test_what_agrees_already_stays():
    truth = circle(12)
    graph = graph_of(truth, [(0, 11)], np.random.default_rng(5))
    first, second = graph.edges.first, graph.edges.second
    exact = inverse_similarity(truth[first]) @ truth[second]
    edges = Edges(**{**vars(graph.edges), "first_from_second": exact})
    found = solve(Graph(truth, edges, graph.scale_sigma))
    np.testing.assert_allclose(found.world_from_node, truth, atol=1e-9)
    assert found.steps == 1
