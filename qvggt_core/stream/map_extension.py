"""A saved map that goes on growing: its keyframes are those with which a `LoopFinder` begins."""

from __future__ import annotations

import numpy as np

from qvggt_core.stream.keyframe_placement import WORLD
from qvggt_core.stream.loop_finder import LoopFinder
from qvggt_core.stream.saved_map import SavedMap

# What the way between two neighbours of a saved map may be off by: radians, share of the depth,
# log of the scale. A map does not keep how it was made; over some sixty keyframes these grow to
# the 2 to 5 cm and 0.5 to 2.5 degrees that saved maps were measured to be off by.
_TURN, _SHIFT, _SCALE = float(np.radians(0.15)), 0.003, 0.003


def extended(saved: SavedMap) -> LoopFinder:
    """Return what adds new keyframes to a map, once loops show where they are in it.

    The map's keyframes are the segment `WORLD`; the segments of the flight have other numbers.
    New loops may move the map's keyframes too.
    """
    finder = LoopFinder(map_name=saved.name)
    for pose, keyframe, place in zip(saved.poses, saved.keyframes, saved.places, strict=True):
        finder.store.append(keyframe, place)
        shift = _SHIFT * keyframe.unit
        step = np.diag(np.square(np.repeat([_TURN, shift, _SCALE], [3, 3, 1])))
        finder.chains.append(pose, step, WORLD)
    finder.begin_with(saved.is_metric)
    return finder
