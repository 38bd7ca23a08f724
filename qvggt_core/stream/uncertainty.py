"""How uncertain a pose is that comes step by step: what each step adds, and where it goes.

The error of a pose is a small motion in its camera's frame, (rotation, translation), and one of
the scale that all further steps have in common. Each step carries the error of the pose before it
along (the adjoint of SE(3), Barfoot, "State estimation for robotics", 2017, section 7.1) and adds
its own, that of the adjustment.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.poses import cross_matrix

STEP_FACTOR = 2.0
"""By how much errors of a keyframe's step are larger than its adjustment takes them to be: points
drift along with their tracks, which an adjustment cannot know. From synthetic flights, see
docs/confirmation.md."""

COMMON_PIXELS = 0.15
"""Error in pixels that all points of a keyframe have in common, from lens, flow and rolling rows;
more points do not make it smaller. From the same."""

SCALE_SIGMA = 0.004
"""Standard deviation of what one keyframe adds to the logarithm of the scale; from the same."""

ADRIFT_SHARE = 0.5
"""Error of a pose, as a share of the image's motion before the map knew distances; from the
same."""

FLOOR_ANGLE = float(np.radians(0.05))
FLOOR_DISTANCE = 0.001
"""What no pose is better than: radians, and a share of the depth."""

# What no pose whose points are followed is worse than: radians, and depths.
_MOST_ANGLE = float(np.pi)
_MOST_DISTANCE = 10.0

# While nothing is followed a camera may turn and move like this: rad/s, and depths per second.
_LOST_TURN = 0.5
_LOST_SPEED = 1.0


def carried(covariance: NDArray[np.float64], b_from_a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance (7, 7) of pose b from that of pose a, the motion between them exact.

    Args:
        covariance: (7, 7) of rotation and translation in the camera's frame, and of the logarithm
            of the scale.
        b_from_a: (4, 4).
    """
    matrix = np.eye(7)
    matrix[:6, :6] = adjoint(b_from_a)
    matrix[3:6, 6] = b_from_a[:3, 3]
    return matrix @ covariance @ matrix.T


def at_one_scale(
    covariance: NDArray[np.float64], direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the covariance (6 F, 6 F) of F poses given that their common scale is exact.

    Args:
        covariance: (6 F, 6 F).
        direction: (6 F,) how the poses move as the scale grows.
    """
    along = covariance @ direction
    variance = float(direction @ along)
    return covariance - np.outer(along, along) / variance if variance > 0.0 else covariance


def bounded(covariance: NDArray[np.float64], depth: float) -> NDArray[np.float64]:
    """Return the covariance (6 F, 6 F) of F poses, less where it is more than a camera can be off.

    Along what nothing observes an adjustment has variances without meaning, which would never
    leave the poses after it.

    Args:
        covariance: of rotations and translations; correlations stay.
        depth: how far away things are.
    """
    most = np.tile(np.repeat([_MOST_ANGLE, _MOST_DISTANCE * depth], 3), len(covariance) // 6)
    shrink = np.minimum(1.0, most / np.sqrt(np.maximum(np.diag(covariance), most**2)))
    return covariance * np.outer(shrink, shrink)


def adjoint(b_from_a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (6, 6) matrix that takes small motions (rotation, translation) of a to those of b.

    If a pose's error is exp(x) in frame a, it is exp(adjoint x) in frame b.
    """
    rotation, shift = b_from_a[:3, :3], b_from_a[:3, 3]
    result = np.zeros((6, 6))
    result[:3, :3] = result[3:, 3:] = rotation
    result[3:, :3] = cross_matrix(shift) @ rotation
    return result


def between(covariance: NDArray[np.float64], b_from_a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance (6, 6) of pose b against pose a, from both together (12, 12)."""
    matrix = np.hstack([-adjoint(b_from_a), np.eye(6)])
    return matrix @ covariance @ matrix.T


def in_map(
    covariance: NDArray[np.float64], camera_from_map: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the covariance (6, 6) of position and rotation along the map's axes, as ROS has it.

    Args:
        covariance: (6, 6) of rotation and translation in the camera's frame.
        camera_from_map: (4, 4) pose of the camera.
    """
    rotation = camera_from_map[:3, :3].T
    matrix = np.zeros((6, 6))
    matrix[:3, 3:] = matrix[3:, :3] = -rotation
    return matrix @ covariance @ matrix.T


def common(focal: float, depth: float) -> NDArray[np.float64]:
    """Return what a keyframe adds (6, 6) by the error that its points have in common.

    Args:
        focal: pixels per unit of x / z.
        depth: how far away things are.
    """
    angle = COMMON_PIXELS / focal
    return np.diag(np.repeat([angle**2, (angle * depth) ** 2], 3))


def adrift(angle: float, depth: float) -> NDArray[np.float64]:
    """Return what a map whose distances are not known yet adds to a pose's covariance (6, 6).

    Without distances a sideways motion looks like a turn, and a motion about something in view
    like none.

    Args:
        angle: by how much the image has moved since the map began, radians.
        depth: how far away things are.
    """
    turn = ADRIFT_SHARE * angle
    return np.diag(np.repeat([turn**2, (turn * depth) ** 2], 3))


def floor(depth: float) -> NDArray[np.float64]:
    """Return the least covariance (6, 6) of rotation and translation at a usual depth."""
    return np.diag(np.repeat([FLOOR_ANGLE**2, (FLOOR_DISTANCE * depth) ** 2], 3))


def lost(seconds: float, depth: float) -> NDArray[np.float64]:
    """Return what a time without any point adds to the covariance (6, 6) of a pose.

    Args:
        seconds: since the last pose that is known.
        depth: how far away things were.
    """
    turn, shift = _LOST_TURN * seconds, _LOST_SPEED * depth * seconds
    return np.diag(np.repeat([turn**2, shift**2], 3))
