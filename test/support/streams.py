"""Streams through a reconstructor whose network has the exact poses of the room."""

import numpy as np

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, rotation_angle
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Reconstructor
from support import known_room as room


def start(poses, noise=None, loops=None, **values):
    """Return a reconstructor with a network that knows the poses; every frame a keyframe."""
    values = {
        "keyframe_min_motion": 0.0,
        "min_confidence_percentile": 0.0,
        "confirm": False,
        "refine": False,
        **values,
    }
    network = room.KnowingNetwork(poses, noise or room.Noise())
    return Reconstructor(network, Parameters(**values), loops=loops), network


def run(reconstructor, frames):
    """Return all reconstructions of a stream that ends after the frames."""
    return [r for frame in frames for r in reconstructor.add(frame)] + [*reconstructor.flush()]


def geometries(results):
    return [geometry for result in results for geometry in result.frames]


def stamps(results):
    return [geometry.view.stamp_ns for geometry in geometries(results)]


def events(results):
    return [event for result in results for event in result.events]


def assert_true_up_to_the_unit(found, poses, unit, tolerance=1e-5):
    """Hold that poses are the true ones, from the first camera, in units of so many metres."""
    estimated = np.stack([geometry.map_from_camera for geometry in found])
    expected = FLU_FROM_OPTICAL @ inverse(poses[0]) @ poses
    between = np.swapaxes(estimated[:, :3, :3], -1, -2) @ expected[:, :3, :3]
    assert rotation_angle(between).max() < tolerance
    np.testing.assert_allclose(unit * estimated[:, :3, 3], expected[:, :3, 3], atol=tolerance)
