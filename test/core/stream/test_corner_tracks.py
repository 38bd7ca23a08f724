"""Corners of several keyframes are one point where pairs of them look alike and one motion fits."""

from dataclasses import replace

import numpy as np
import pytest
from support import drifting_flight as flights

from qvggt_core.stream import corner_tracks as module
from qvggt_core.stream.corner_tracks import corner_tracks
from qvggt_core.stream.image_features import Features
from qvggt_core.stream.loop_finder import NewKeyframe, corners_of

POSES = flights.circle(60, 1.0)[:6]
NEIGHBOURS = [(i, j) for i in range(6) for j in range(i + 1, min(6, i + 3))]


@pytest.fixture(scope="module")
def keyframes():
    """Corners of six keyframes of a flight through the room."""
    found = []
    for frame, preprocessor, result in flights.reconstructions(POSES, POSES):
        geometry = result.frames[0]

        def view_pixels(pixels, rays, f=frame, g=geometry, p=preprocessor):
            return p.view_pixels(f, g.view, pixels, rays)

        new = NewKeyframe(0, geometry, np.eye(7), None, frame.image, flights.CAMERA, view_pixels)
        found.append(corners_of(new))
    return found


def places(tracks, keyframes):
    """Where each observation's corner is in the room, by exact depth and pose."""
    found = []
    for number, corner in zip(tracks.keyframe, tracks.corner, strict=True):
        corners, pose = keyframes[number], POSES[number]
        ray = np.append(corners.rays[corner], 1.0)
        found.append(pose[:3, :3] @ (corners.depth[corner] * ray) + pose[:3, 3])
    return np.array(found)


def test_corners_of_a_track_are_at_one_place(keyframes):
    tracks = corner_tracks(keyframes, NEIGHBOURS)
    where = places(tracks, keyframes)
    assert tracks.point.max() + 1 == len(np.unique(tracks.point)) > 100
    off = []
    for point in range(tracks.point.max() + 1):
        own = where[tracks.point == point]
        off.append(np.linalg.norm(own - np.median(own, axis=0), axis=1).max())
    # Depth is of the network's coarse image: at the box's edges it is off by more.
    assert np.nanmedian(off) < 0.05
    assert np.nanmean(np.array(off) < 0.3) > 0.95


def test_a_keyframe_sees_a_point_once_and_two_keyframes_see_each(keyframes):
    tracks = corner_tracks(keyframes, NEIGHBOURS)
    pairs = np.stack([tracks.point, tracks.keyframe])
    assert len(np.unique(pairs, axis=1).T) == len(pairs.T)
    assert np.bincount(tracks.point).min() == 2
    assert (np.diff(tracks.keyframe) >= 0).all()


def test_only_pairs_that_are_given_are_compared(keyframes):
    tracks = corner_tracks(keyframes, [(0, 1), (3, 4)])
    assert set(tracks.keyframe) == {0, 1, 3, 4}
    for point in np.unique(tracks.point):
        assert set(tracks.keyframe[tracks.point == point]) in ({0, 1}, {3, 4})
    nothing = corner_tracks(keyframes, [])
    assert len(nothing.point) == len(nothing.keyframe) == 0


def test_two_corners_of_a_keyframe_that_would_be_one_point_are_none(keyframes, monkeypatch):
    """By way of the second keyframe, corners 3 and 7 of the first would be the same point."""
    pairs = {(0, 1): ([3, 9], [5, 6]), (1, 2): ([5, 6], [4, 8]), (0, 2): ([7, 9], [4, 8])}
    by_corners = {
        (id(keyframes[i]), id(keyframes[j])): tuple(np.array(each) for each in both)
        for (i, j), both in pairs.items()
    }
    monkeypatch.setattr(
        module, "_consistent", lambda first, second: by_corners[id(first), id(second)]
    )
    tracks = corner_tracks(keyframes[:3], pairs)
    assert tracks.keyframe.tolist() == [0, 1, 2]
    assert tracks.corner.tolist() == [9, 6, 8]
    assert tracks.point.tolist() == [0, 0, 0]


def test_thinned_tracks_are_the_longest_and_still_link_neighbours(keyframes):
    tracks = corner_tracks(keyframes, NEIGHBOURS)
    thin = tracks.thinned(most=40, linking=15)
    assert thin.points < 0.5 * tracks.points
    whole, left = (np.bincount(each.keyframe, minlength=6) for each in (tracks, thin))
    assert (left >= np.minimum(whole, 40)).all()

    def shared(each, one, other):
        seen = [set(each.point[each.keyframe == number]) for number in (one, other)]
        return len(seen[0] & seen[1])

    for number in range(5):
        wanted = min(15, shared(tracks, number, number + 1))
        assert shared(thin, number, number + 1) >= wanted
    assert np.bincount(thin.point).mean() > np.bincount(tracks.point).mean()
    corners = set(zip(tracks.keyframe.tolist(), tracks.corner.tolist(), strict=True))
    assert corners >= set(zip(thin.keyframe.tolist(), thin.corner.tolist(), strict=True))


def test_matches_that_no_motion_explains_join_nothing(keyframes):
    first, second = keyframes[0], keyframes[1]
    mixed = np.random.default_rng(0).permutation(len(second.rays))
    tracks = corner_tracks([first, replace(second, rays=second.rays[mixed])], [(0, 1)])
    joined = corner_tracks([first, second], [(0, 1)])
    assert len(tracks.point) < 0.3 * len(joined.point)


def test_keyframes_without_corners_are_no_error(keyframes):
    first = keyframes[0]
    features = Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8))
    blank = replace(first, features=features, rays=first.rays[:0], depth=first.depth[:0])
    tracks = corner_tracks([blank, first, blank], [(0, 1), (1, 2), (0, 2)])
    assert len(tracks.point) == 0
