"""A correction that is solved in parts is that of all at once, and no part is large."""

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
from qvggt_core.stream import pose_graph
from qvggt_core.stream.correction_in_parts import (
    MOST_LOOPS,
    WORK_OF_A_KEYFRAME,
    CorrectionInParts,
)
from qvggt_core.stream.keyframe_chain import Chains, Loop, correct

SIGMA = np.array([0.002] * 3 + [0.005] * 3 + [0.003])
STEP = np.diag(SIGMA**2)
COUNT, LAP = 400, 40


@pytest.fixture(scope="module")
def flight():
    """Return chains of ten drifting laps in a circle, and loops from lap to lap."""
    rng = np.random.default_rng(3)
    angle = 2.0 * np.pi * np.arange(COUNT) / LAP
    turns = Rotation.from_euler("z", angle[:, None]).as_matrix()
    centres = 3.0 * np.stack([np.sin(angle), 1.0 - np.cos(angle), 0.0 * angle], axis=1)
    truth, chains = similarity(np.ones(COUNT), turns, centres), Chains()
    pose = truth[0]
    for index in range(COUNT):
        if index:
            step = inverse_similarity(truth[index - 1]) @ truth[index]
            pose = rigid(pose @ step @ moved_by(SIGMA * rng.normal(size=7)))
        chains.append(pose, STEP, 0)
    ends = rng.choice(np.arange(LAP, COUNT), MOST_LOOPS, replace=False)
    loops = [
        Loop(
            int(end) - LAP,
            int(end),
            inverse_similarity(truth[end - LAP])
            @ truth[end]
            @ moved_by(0.3 * SIGMA * rng.normal(size=7)),
            STEP,
        )
        for end in np.sort(ends)
    ]
    return chains, loops


def in_the_newest_unit(poses):
    """Return similarities (N, 4, 4) scaled about the first one, the last one's scale 1."""
    factor, centre = 1.0 / scale_of(poses[-1]), poses[0, :3, 3]
    return similarity(factor, np.eye(3), (1.0 - factor) * centre) @ poses


def finished(work):
    found = None
    while found is None:
        found = work.advance()
    return found


def test_it_is_the_correction_of_all_at_once(flight):
    chains, loops = flight
    found = finished(CorrectionInParts(chains, loops, np.inf))
    wanted = in_the_newest_unit(correct(chains, loops).poses)
    assert found.contradicted == ()
    np.testing.assert_allclose(motion_of(inverse_similarity(wanted) @ found.poses), 0.0, atol=1e-9)
    assert np.abs(motion_of(inverse_similarity(chains.poses) @ found.poses)).max() > 0.05


def test_a_keyframe_s_part_is_bounded_at_the_most_loops(flight, monkeypatch):
    """At most so many linear systems, counted where they are solved."""
    chains, loops = flight
    solved, solve = [], pose_graph._step

    def counted(graph, weights):
        solved.append(len(graph.edges))
        return solve(graph, weights)

    monkeypatch.setattr(pose_graph, "_step", counted)
    for count in (MOST_LOOPS, 60, 3):
        work, found, parts = CorrectionInParts(chains, loops[:count], np.inf), None, 0
        while found is None:
            solved.clear()
            found = work.advance()
            parts += 1
            assert sum(solved) <= max(WORK_OF_A_KEYFRAME, max(solved, default=0))
            assert len(solved) <= (1 if count == MOST_LOOPS else 12)
        # A few loops are solved as they come.
        assert parts > 5 if count == MOST_LOOPS else parts <= {60: 8, 3: 2}[count]


def test_keyframes_come_and_go_meanwhile(flight):
    chains, loops = flight
    wanted = in_the_newest_unit(correct(chains, loops).poses)
    now = Chains(chains.poses, chains.segments, chains.spread)
    work = CorrectionInParts(now, loops, np.inf)
    kept, found, parts = np.arange(COUNT), None, 0
    while found is None:
        now.append(chains.poses[-1], STEP, 0)
        left = np.delete(np.arange(len(now)), 3 + 7 * parts)
        now.keep(left)
        kept = kept[left[left < len(kept)]]
        work.keep(left)
        found, parts = work.advance(), parts + 1
    assert 5 < parts < COUNT - len(kept) + 1
    np.testing.assert_allclose(found.poses, wanted[kept], atol=1e-9)
    assert len(found.worlds) == len(kept)


def test_loops_that_the_others_contradict_are_named_as_keyframes_are_numbered_then(flight):
    chains, loops = flight
    wrong = [Loop(50, 220, np.eye(4), STEP), Loop(75, 260, np.eye(4), STEP)]
    work = CorrectionInParts(chains, [*loops, *wrong], np.inf)
    assert work.advance() is None
    # The first keyframe of one, and one before both ends of the other.
    work.keep(np.delete(np.arange(COUNT), [60, 75]))
    found = finished(work)
    assert set(found.contradicted) == {(50, 218), (-1, 258)}
    left = np.delete(in_the_newest_unit(correct(chains, loops).poses), [60, 75], axis=0)
    np.testing.assert_allclose(found.poses, left, atol=1e-9)
