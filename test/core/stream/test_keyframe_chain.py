"""Chains of keyframes reduced to their loops, against the graph of all of them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.similarities import (
    inverse_similarity,
    motion_of,
    moved_by,
    rigid,
    scale_of,
    similarity,
)
from qvggt_core.stream.keyframe_chain import Chains, Loop, correct, thinned_loops
from qvggt_core.stream.pose_graph import Edges, Graph, solve

STEP = np.diag(np.square([0.004] * 3 + [0.01] * 3 + [0.004]))
SURE = np.diag(np.square([0.002] * 3 + [0.005] * 3 + [0.003]))


def circle(count, radius=3.0):
    angle = np.linspace(0.0, 2.0 * np.pi, count)
    turn = Rotation.from_euler("z", angle[:, None]).as_matrix()
    centres = radius * np.stack([np.sin(angle), 1.0 - np.cos(angle), 0.1 * angle], axis=1)
    return similarity(np.ones(count), turn, centres)


def flown(truth, rng, segment_of=lambda index: 0, drift=1.0):
    """Return chains of a flight that drifts, each segment in a world and a unit of its own."""
    chains = Chains()
    pose = truth[0]
    for index in range(len(truth)):
        segment = segment_of(index)
        if index and segment == segment_of(index - 1):
            step = rigid(inverse_similarity(truth[index - 1]) @ truth[index])
            noise = rng.multivariate_normal(np.zeros(7), STEP)
            pose = rigid(pose @ step @ moved_by(drift * noise))
        elif index:
            pose = similarity(
                1.0, Rotation.random(random_state=rng).as_matrix(), rng.normal(size=3)
            )
        chains.append(pose, STEP, segment)
    return chains


def loop(truth, first, second, scale=1.0):
    relation = inverse_similarity(truth[first]) @ truth[second]
    return Loop(first, second, relation @ moved_by([0, 0, 0, 0, 0, 0, np.log(scale)]), SURE)


def whole_graph(chains, loops):
    """Return what the graph of every keyframe and step gives."""
    count = len(chains)
    relations = [inverse_similarity(chains.poses[:-1]) @ chains.poses[1:]]
    relations += [np.stack([each.first_from_second for each in loops])]
    information = [np.tile(np.linalg.inv(STEP), (count - 1, 1, 1))]
    information += [np.stack([np.linalg.inv(each.covariance) for each in loops])]
    pairs = [(i, i + 1) for i in range(count - 1)] + [(e.first, e.second) for e in loops]
    first, second = np.array(pairs).T
    edges = Edges(
        first,
        second,
        np.concatenate(relations),
        np.concatenate(information),
        np.arange(len(pairs)) >= count - 1,
    )
    return solve(Graph(chains.poses, edges, np.full(count, np.inf))).world_from_node


def test_the_reduced_graph_is_the_whole_one_for_small_corrections():
    truth = circle(60)
    chains = flown(truth, np.random.default_rng(1), drift=0.3)
    loops = [loop(truth, 1, 57), loop(truth, 4, 55), loop(truth, 20, 40)]
    found, expected = correct(chains, loops).poses, whole_graph(chains, loops)
    moved = np.abs(motion_of(inverse_similarity(chains.poses) @ expected)).max()
    apart = np.abs(motion_of(inverse_similarity(found) @ expected)).max()
    assert moved > 0.02
    assert apart < 0.01 * moved


def test_a_closed_loop_halves_the_error_at_least():
    truth = circle(80)
    chains = flown(truth, np.random.default_rng(2))
    found = correct(chains, [loop(truth, 2, 77), loop(truth, 3, 78)])

    def error(poses):
        return np.sqrt(np.square(poses[:, :3, 3] - truth[:, :3, 3]).sum(axis=1).mean())

    assert error(found.poses) < 0.5 * error(chains.poses)
    assert (found.square < 18.5).all()


def test_without_loops_everything_stays():
    chains = flown(circle(20), np.random.default_rng(3))
    found = correct(chains, [])
    np.testing.assert_array_equal(found.poses, chains.poses)


def test_segments_that_see_the_same_place_get_one_world_and_one_unit():
    truth = circle(60)
    chains = flown(truth, np.random.default_rng(4), lambda index: 3 if index >= 30 else 1)
    unit = 2.5  # the second segment's lengths are so many times too small
    chains.transform(3, 1.0 / unit, np.eye(3))
    found = correct(chains, [loop(truth, 0, 59, unit), loop(truth, 2, 58, unit)])
    assert found.worlds.tolist() == [1] * 60
    assert scale_of(found.poses[30:]) == pytest.approx(unit, rel=0.05)
    assert np.linalg.norm(found.poses[:, :3, 3] - truth[:, :3, 3], axis=1).max() < 0.5


def test_segments_without_relation_are_left_alone():
    truth = circle(60)
    chains = flown(truth, np.random.default_rng(5), lambda index: index // 20)
    found = correct(chains, [loop(truth, 21, 38)])
    assert found.worlds.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    np.testing.assert_array_equal(found.poses[:20], chains.poses[:20])
    np.testing.assert_array_equal(found.poses[40:], chains.poses[40:])
    assert not np.allclose(found.poses[39], chains.poses[39])


def test_another_unit_and_other_axes_do_not_change_what_loops_do():
    truth = circle(40)
    rotation = Rotation.from_euler("xyz", [0.3, -0.5, 1.0]).as_matrix()
    one, other = (flown(truth, np.random.default_rng(6)) for _ in range(2))
    other.transform(0, 3.0, rotation)
    closed = loop(truth, 1, 38)
    unit = similarity(3.0, np.eye(3), np.zeros(3))
    relation = unit @ closed.first_from_second @ inverse_similarity(unit)
    spread = np.repeat([1.0, 3.0, 1.0], [3, 3, 1])
    scaled = Loop(1, 38, relation, closed.covariance * np.outer(spread, spread))
    expected = correct(one, [closed]).poses
    world = similarity(3.0, rotation, np.zeros(3))
    found = inverse_similarity(world) @ correct(other, [scaled]).poses @ unit
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_left_out_leaves_the_steps_over_it():
    truth = circle(40)
    chains = flown(truth, np.random.default_rng(7))
    closed = correct(chains, [loop(truth, 0, 39)]).poses
    kept = np.array([0, 5, 17, 30, 39])
    chains.keep(kept)
    found = correct(chains, [Loop(0, 4, loop(truth, 0, 39).first_from_second, SURE)])
    np.testing.assert_allclose(found.poses, closed[kept], atol=1e-9)


def test_of_many_loops_some_stay_evenly_and_those_that_hold_segments_together():
    segments = np.repeat([0, 1, 2], [40, 40, 20])
    inside = [Loop(number, number + 20, np.eye(4), STEP) for number in range(15)]
    between = [Loop(number, 60 + number, np.eye(4), STEP) for number in range(15)]
    last = [Loop(45, 90, np.eye(4), STEP)]
    loops = inside + between + last
    assert thinned_loops(loops, segments, 31) is loops
    found = [loops.index(loop) for loop in thinned_loops(loops, segments, 7)]
    assert found == [0, 5, 10, 15, 16, 17, 20, 25, 30]
