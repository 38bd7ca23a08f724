"""Two cameras at known places: metres, a map while standing still, no metres where TF is wrong."""

from functools import cache

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support import known_room as room
from support.nonsense import Nonsense
from support.streams import geometries

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, Reconstructor
from qvggt_core.stream.frame import ScaleState
from qvggt_core.stream.stereo_points import StereoPair
from qvggt_core.stream.tracks import Tracker

ZOOM = 2
CAMERA = room.camera_of(ZOOM)
HERE = room.flight(np.array([[0.0, 0.0, 0.2]]), np.array([[0.6, 0.1, 0.0]]))[0]


def turned(*degrees):
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def place(x=0.2, y=0.0, z=0.0, turn=(0.0, 0.0, 0.0)):
    """Where the second camera sits: first_from_other."""
    return transform(turned(*turn), np.array([x, y, z]))


PLACES = {
    "to the right": place(),
    "to the left": place(-0.2),
    "below": place(0.0, 0.2),
    "turned inward": place(0.25, 0.02, 0.03, (2.0, -6.0, 4.0)),
}


@cache
def clean(of):
    """The image of the camera whose pose has these bytes."""
    return room.image_of(np.frombuffer(of).reshape(4, 4), ZOOM)


def seen(pose, seed=0):
    """What a camera sees, with a sensor's noise."""
    image = clean(np.ascontiguousarray(pose).tobytes())
    noise = np.random.default_rng(seed).normal(0.0, 2.0, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def measure(first_from_other, claimed=None):
    tracks = Tracker().track(seen(HERE), CAMERA)
    claimed = first_from_other if claimed is None else claimed
    pair = StereoPair(CAMERA, CAMERA, inverse(claimed))
    assert pair.problem == ""
    return tracks, pair.measure(seen(HERE), seen(HERE @ first_from_other, 1), tracks)


def true_distances(tracks):
    """By the room's own walls, at the first camera's points."""
    rays = np.column_stack([tracks.rays, np.ones(len(tracks.rays))]) @ HERE[:3, :3].T
    with np.errstate(divide="ignore"):
        reach = np.max([(room.LOW - HERE[:3, 3]) / rays, (room.HIGH - HERE[:3, 3]) / rays], axis=0)
    return reach.min(axis=1) * np.linalg.norm(rays, axis=1)


@pytest.mark.parametrize("where", PLACES)
def test_distances_are_the_room_s_as_well_as_is_claimed(where):
    tracks, measured = measure(PLACES[where])
    assert len(measured.ids) > 100
    true = 1.0 / true_distances(tracks.take(np.isin(tracks.ids, measured.ids)))
    off = (measured.inverse_distance - true) / np.hypot(
        measured.sigma, measured.common / measured.stretch
    )
    assert np.median(abs(off)) < 1.0
    assert np.mean(abs(off) > 4.0) < 0.03
    assert abs(np.median(np.log(measured.inverse_distance / true))) < 0.02


@pytest.mark.parametrize("turn", [(1.0, 0, 0), (0, 1.0, 0), (0, -1.0, 0)])
def test_a_transform_that_is_turned_by_a_degree_gives_no_distance(turn):
    _, problem = measure(place(turn=turn), claimed=place())
    assert "as if one were turned by" in problem


def test_cameras_that_are_taken_for_each_other_give_no_distance():
    _, problem = measure(place(), claimed=place(-0.2))
    assert isinstance(problem, str)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (place(turn=(0, 180.0, 0)), "do not look to the same side"),
        (place(0.0, 0.0, 0.3), "do not look to the same side"),
        (place(turn=(0, 120.0, 0)), "do not look to the same side"),
    ],
)
def test_cameras_that_see_nothing_together_have_a_reason(where, why):
    assert why in StereoPair(CAMERA, CAMERA, inverse(where)).problem


def test_narrow_images_that_do_not_overlap_have_a_reason():
    narrow = Camera(224, 168, np.array([[600.0, 0, 111.5], [0, 600.0, 83.5], [0, 0, 1]]))
    pair = StereoPair(narrow, narrow, inverse(place(turn=(0, 40.0, 0))))
    assert "do not overlap" in pair.problem


class InOrder(room.KnowingNetwork):
    """Knows the room, and which view it is by how many came before."""

    def encode(self, image):
        self.encoded.append(len(self.encoded))
        return self.encoded[-1]


def stream(poses, claimed=None, network=None):
    """Return what a rig gives whose network knows nothing of the room, unless one is given."""
    network = network or Nonsense(room.WIDTH, room.PATCH, room.INTRINSICS)
    reconstructor = Reconstructor(network, Parameters(cameras=["left", "right"]))
    other = place() if claimed is None else claimed
    reconstructor.sensors.set_extrinsics("right", inverse(other))
    results = []
    for index, pose in enumerate(poses):
        frames = [
            Frame(index * 100_000_000, seen(at, 2 * index + side), CAMERA, name, name)
            for side, (name, at) in enumerate((("left", pose), ("right", pose @ place())))
        ]
        results += reconstructor.add(*frames)
    return [*results, *reconstructor.flush()]


def test_a_rig_that_stands_still_has_metres_and_does_not_drift():
    results = stream(np.repeat(HERE[None], 16, axis=0))
    last = next(result for result in reversed(results) if result.frames)
    assert last.scale.state is ScaleState.METRIC
    assert last.scale.sources == ("baseline",)
    assert last.scale.sigma < 0.05
    left, right = (
        np.stack([g.map_from_camera for g in geometries(results) if g.view.source == name])
        for name in ("left", "right")
    )
    assert len(left) == len(right) == 16
    assert np.linalg.norm(left[:, :3, 3] - left[0, :3, 3], axis=1).max() < 0.005
    np.testing.assert_allclose(inverse(left[-1]) @ right[-1], place(), atol=0.01)
    for geometry in last.frames[-2:]:
        pose = HERE if geometry.view.source == "left" else HERE @ place()
        known = np.isfinite(geometry.depth)
        assert known.mean() > 0.3
        ratio = geometry.depth[known] / room.depth_of(pose)[known]
        assert np.median(ratio) == pytest.approx(1.0, abs=0.03)


def test_a_rig_that_moves_keeps_its_metres():
    steps = np.zeros((12, 3))
    steps[:, 0], steps[:, 2] = 0.1 * np.arange(12), 0.2
    poses = room.flight(steps, np.tile([0.6, 0.1, 0.0], (12, 1)))
    results = stream(poses)
    left = np.stack([g.map_from_camera for g in geometries(results) if g.view.source == "left"])
    moved = np.linalg.norm(left[-1, :3, 3] - left[0, :3, 3])
    assert moved == pytest.approx(11 * 0.1, rel=0.03)
    assert next(r for r in reversed(results) if r.frames).scale.state is ScaleState.METRIC


def test_a_wrong_transform_never_makes_a_map_metric():
    results = stream(np.repeat(HERE[None], 12, axis=0), claimed=place(turn=(0, 1.0, 0)))
    assert all(result.scale.state is not ScaleState.METRIC for result in results)
    assert any("right: what both cameras see is as if" in each.scale.note for each in results)


@pytest.mark.parametrize("network_knows", [False, True])
def test_a_wrong_transform_gives_no_metres_on_the_way_either(network_knows):
    """A network that relates both cameras by what they show does not make the length right."""
    steps = np.zeros((12, 3))
    steps[:, 0], steps[:, 2] = 0.1 * np.arange(12), 0.2
    poses = room.flight(steps, np.tile([0.6, 0.1, 0.0], (12, 1)))
    pairs = np.stack([each for pose in poses for each in (pose, pose @ place())])
    network = InOrder(pairs, room.Noise()) if network_knows else None
    results = stream(poses, claimed=place(turn=(0, 1.0, 0)), network=network)
    assert all(result.scale.state is not ScaleState.METRIC for result in results)
    assert "right: what both cameras see is as if" in results[-1].scale.note
