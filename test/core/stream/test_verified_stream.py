"""A stream with confirmation and refinement: true poses, and nothing where nothing is seen."""

from dataclasses import replace

import numpy as np
import pytest
from support import known_room as room
from support.streams import assert_true_up_to_the_unit, events, geometries, run, stamps

from qvggt_core.geometry.poses import inverse, rotation_angle
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, Reconstructor, Verdict
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_core.stream.track_odometry import TrackOdometry
from qvggt_core.stream.verification import Verifier

PERIOD_NS = 100_000_000


def stream(images, camera=room.CAMERA):
    """Frames whose first pixels carry their index for `KnowingNetwork`."""
    frames = []
    zoom = len(images[0]) // room.HEIGHT
    for index, image in enumerate(images):
        image = image.copy()
        image[:zoom, :zoom] = (index // 256, index % 256, 0)
        frames.append(Frame(1_000_000_000 + index * PERIOD_NS, image, camera, "camera"))
    return frames


def slow(count=24):
    """A flight to the side, whose parallax flow can follow in small images."""
    y = 0.06 * np.arange(count)
    return room.flight(np.stack([0 * y - 3, y - 0.7, 0 * y], axis=1), np.zeros((count, 3)))


def start(poses, noise=None, **values):
    network = room.KnowingNetwork(poses, noise or room.Noise())
    return Reconstructor(network, Parameters(**values)), network


def verdicts(results):
    return [r.confirmation.verdict for r in results if r.confirmation]


def black(count):
    return [np.zeros((room.HEIGHT, room.WIDTH, 3), np.uint8)] * count


def test_a_true_network_is_confirmed_and_its_poses_stay_true():
    poses = slow()
    reconstructor, _ = start(poses)
    frames = stream([room.image_of(pose) for pose in poses])
    results = run(reconstructor, frames)
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert Verdict.CONTRADICTED not in verdicts(results)
    assert verdicts(results)[-1] is Verdict.CONFIRMED
    found = geometries(results)
    positions = np.stack([geometry.map_from_camera[:3, 3] for geometry in found])
    length = np.linalg.norm(positions[-1] - positions[0])
    along = np.linspace(0, 1, len(found))[:, None]
    straight = positions[0] + along * (positions[-1] - positions[0])
    # The wall is 33 m away: its first half pixel of parallax is none.
    assert np.abs(positions - straight).max() < 0.1 * length
    last = found[-1]
    unit = np.nanmedian(room.depth_of(poses[-1]) / last.depth)
    assert unit * length == pytest.approx(0.06 * 23, rel=0.1)
    error = np.abs(unit * last.depth / room.depth_of(poses[-1]) - 1)
    assert np.nanmean(error) < 0.05
    assert events(results) == []


def test_poses_are_right_although_the_network_s_are_not():
    poses = slow()
    wrong = room.Noise(angle=20.0, centre=1.0, view_scale=0.5)
    reconstructor, _ = start(poses, wrong)
    results = run(reconstructor, stream([room.image_of(pose) for pose in poses]))
    assert Verdict.CONFIRMED not in verdicts(results)
    turns = [geometry.map_from_camera[:3, :3] for geometry in geometries(results)]
    assert max(np.degrees(rotation_angle(turns[0].T @ turn)) for turn in turns) < 3.0


def test_a_covered_lens_holds_the_pose_and_gives_no_depth():
    poses = slow(30)
    reconstructor, _ = start(poses)
    seen = [room.image_of(pose) for pose in poses[:18]]
    found = geometries(run(reconstructor, stream(seen + black(12))))
    dark = found[18:]
    assert all(geometry.is_lost for geometry in dark)
    assert not any(np.isfinite(geometry.depth).any() for geometry in dark)
    for geometry in dark:
        np.testing.assert_array_equal(geometry.map_from_camera, dark[0].map_from_camera)
    step = np.linalg.norm(dark[0].map_from_camera[:3, 3] - found[17].map_from_camera[:3, 3])
    assert step == 0.0
    sigmas = [np.sqrt(np.trace(geometry.covariance[:3, :3])) for geometry in dark]
    assert (np.diff(sigmas) > 0).all()
    assert sigmas[-1] > 10 * np.sqrt(np.trace(found[17].covariance[:3, :3]))


@pytest.mark.parametrize("value", [0, 127, 255])
def test_images_of_one_value_give_no_depth_and_no_certainty(value):
    reconstructor, _ = start(slow(12))
    flat = np.full((room.HEIGHT, room.WIDTH, 3), value, np.uint8)
    results = run(reconstructor, stream([flat] * 12))
    assert set(verdicts(results)) == {Verdict.UNDECIDED}
    for geometry in geometries(results):
        assert geometry.is_lost
        assert not np.isfinite(geometry.depth).any()
        assert np.sqrt(geometry.covariance[0, 0]) > 1.0


def test_noise_gives_no_depth_and_is_never_confirmed():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, room.HEIGHT, room.WIDTH, 3), dtype=np.uint8)
    reconstructor, _ = start(slow(12))
    results = run(reconstructor, stream(list(images)))
    assert Verdict.CONFIRMED not in verdicts(results)
    assert not any(np.isfinite(geometry.depth).any() for geometry in geometries(results))


def test_standing_still_neither_drifts_nor_grows_less_certain():
    rng = np.random.default_rng(1)
    image = room.image_of(slow(1)[0]).astype(float)
    noise = rng.normal(0, 2, (60, *image.shape))
    noisy = list(np.clip(image + noise, 0, 255).astype(np.uint8))
    reconstructor, _ = start(room.hover(60))
    found = geometries(run(reconstructor, stream(noisy)))
    places = np.stack([geometry.map_from_camera[:3, 3] for geometry in found])
    assert np.linalg.norm(places - places[0], axis=1).max() < 0.01
    sigmas = [np.sqrt(np.trace(geometry.covariance[:3, :3])) for geometry in found]
    assert sigmas[-1] < 1.5 * sigmas[10]


@pytest.mark.parametrize("degrees", [2.0, 5.0])
def test_a_turn_on_the_spot_stays_on_the_spot(degrees):
    count = 16
    angles = np.zeros((count, 3))
    angles[:, 0] = np.radians(degrees) * np.arange(count)
    poses = room.flight(np.tile([-3.0, 0, 0], (count, 1)), angles)
    reconstructor, _ = start(poses, room.Noise(angle=5.0, centre=0.5))
    found = geometries(run(reconstructor, stream([room.image_of(pose) for pose in poses])))
    places = np.stack([geometry.map_from_camera[:3, 3] for geometry in found])
    assert np.linalg.norm(places - places[0], axis=1).max() < 0.1
    expected = inverse(poses[0]) @ poses[-1]
    turned = found[0].map_from_camera[:3, :3].T @ found[-1].map_from_camera[:3, :3]
    error = rotation_angle(turned.T @ expected[:3, :3])
    assert error < 3.0 * np.sqrt(np.linalg.eigvalsh(found[-1].covariance[3:, 3:])[-1])


def test_poses_that_are_not_finite_are_counted_and_replaced():
    poses = slow()
    reconstructor, network = start(poses)
    network.spoil = dict.fromkeys(range(100), "poses")
    frames = stream([room.image_of(pose) for pose in poses])
    results = run(reconstructor, frames)
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert reconstructor.losses.not_finite == len(network.windows)
    assert set(verdicts(results)) == {Verdict.CONTRADICTED}
    assert all(np.isfinite(geometry.map_from_camera).all() for geometry in geometries(results))
    assert any("not finite" in event for event in events(results))


def test_contradicted_windows_are_withheld_if_asked():
    poses = slow()
    wrong = room.Noise(angle=20.0, centre=1.0, view_scale=0.5)
    for values in ({"on_contradiction": "withhold"}, {"refine": False}):
        reconstructor, _ = start(poses, wrong, max_scale_spread=10.0, **values)
        results = run(reconstructor, stream([room.image_of(pose) for pose in poses]))
        for result in results:
            if result.confirmation and result.confirmation.verdict is Verdict.CONTRADICTED:
                assert not result.frames
        assert reconstructor.losses.withheld + len(geometries(results)) == len(poses)
        assert reconstructor.losses.withheld > 0


def test_contradicted_windows_are_published_if_asked():
    poses = slow()
    wrong = room.Noise(angle=20.0, centre=1.0)
    reconstructor, _ = start(poses, wrong, on_contradiction="publish")
    results = run(reconstructor, stream([room.image_of(pose) for pose in poses]))
    assert len(geometries(results)) == len(poses)
    assert reconstructor.losses.withheld == 0


def test_without_a_calibration_points_are_followed_by_the_predicted_one():
    poses = slow(30)
    reconstructor, _ = start(poses)
    images = [room.image_of(pose) for pose in poses]
    results = run(reconstructor, stream(images, camera=None))
    assert len(geometries(results)) == len(poses)
    assert Verdict.CONFIRMED in verdicts(results)


def test_switched_off_nothing_is_judged():
    poses = room.straight(12)
    reconstructor, network = start(
        poses, confirm=False, refine=False, keyframe_min_motion=0.0, min_confidence_percentile=0.0
    )
    results = run(reconstructor, stream([room.image_of(pose) for pose in poses]))
    assert verdicts(results) == []
    assert_true_up_to_the_unit(geometries(results), poses, network.units[0])


def test_parameters_take_effect_at_once():
    poses = slow(24)
    reconstructor, _ = start(poses)
    frames = stream([room.image_of(pose) for pose in poses])
    first = [r for frame in frames[:12] for r in reconstructor.add(frame)]
    reconstructor.set_parameters(reconstructor.parameters.with_values(confirm=False, refine=False))
    second = [r for frame in frames[12:] for r in reconstructor.add(frame)]
    assert verdicts(first)
    assert not verdicts(second)
    assert all(geometry.covariance is None for geometry in geometries(second))


ZOOM = 3


def with_a_passing_poster(images, share):
    """Lay a textured rectangle over images that covers a share of them and moves by itself."""
    rng = np.random.default_rng(3)
    rows, columns = images[0].shape[:2]
    height, width = round(rows * share**0.5), round(columns * share**0.5)
    coarse = rng.integers(60, 200, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    poster = np.kron(coarse, np.ones((6, 6, 1), np.uint8))[:height, :width]
    covered, found = [], []
    for index, image in enumerate(images):
        # Down, where the camera's own motion moves nothing.
        top = 3 * index
        where = (slice(top, min(top + height, rows)), slice(60, 60 + width))
        image = image.copy()
        image[where] = poster[: where[0].stop - top]
        covered.append(image)
        found.append(where)
    return covered, found


def test_what_moves_by_itself_does_not_drag_a_founded_map_along_and_is_not_sure():
    poses = slow(32)
    reconstructor, _ = start(poses)
    images, where = with_a_passing_poster([room.image_of(pose, ZOOM) for pose in poses], 0.15)
    found = geometries(run(reconstructor, stream(images, room.camera_of(ZOOM))))
    # Two views with parallax found the map after four keyframes.
    poses, turns = found[16:], [geometry.map_from_camera[:3, :3] for geometry in found[16:]]
    assert max(np.degrees(rotation_angle(turns[0].T @ turn)) for turn in turns) < 1.0
    moved = np.array([g.map_from_camera[:3, 3] - poses[0].map_from_camera[:3, 3] for g in poses])
    along = np.outer(np.linspace(0, 1, len(moved)), moved[-1])
    assert np.linalg.norm(moved - along, axis=1).max() < 0.1 * np.linalg.norm(moved[-1])
    inside, outside = [], []
    for geometry, (rows, columns) in list(zip(found, where, strict=True))[16:]:
        covered = np.zeros((ZOOM * room.HEIGHT, ZOOM * room.WIDTH), bool)
        covered[rows, columns] = True
        covered = covered[1::ZOOM, 1::ZOOM]
        inside.append(np.mean(geometry.confidence[covered] - 1))
        outside.append(np.mean(geometry.confidence[~covered] - 1))
    assert np.mean(inside) < 0.7 * np.mean(outside)


@pytest.mark.parametrize("was_confirmed", [False, True])
def test_an_undecided_window_has_a_say_on_distances_only_after_one_was_confirmed(was_confirmed):
    poses = slow(6)
    network = room.KnowingNetwork(poses, room.Noise())
    preprocessor, odometry = Preprocessor(room.WIDTH, room.PATCH, True), TrackOdometry()
    verifier, observations, tokens = Verifier(odometry), [], []
    for frame in stream([room.image_of(pose) for pose in poses]):
        view = preprocessor.view(frame)
        tracked, _ = verifier.follow(frame, view, preprocessor)
        observations.append(verifier.observe(tracked, is_keyframe=True))
        tokens.append(network.encode(view.image))
    prediction = network.predict(tokens, room.HEIGHT, room.WIDTH, len(tokens))
    verifier.expect(prediction, observations, Verdict.CONTRADICTED)
    verifier.is_trusted = was_confirmed
    before = odometry.map.points.prior.copy()
    verifier.expect(prediction, observations, Verdict.UNDECIDED)
    assert (odometry.map.points.prior != before).any() == was_confirmed


class MapOfOnePoint:
    """A map that a verifier fills; it keeps what it was made to expect."""

    def __init__(self):
        self.map, self.expected, self.is_measured = self, [], False

    def forget_map(self):
        pass

    def rescale(self, factor):
        pass

    def expect(self, ids, inverse_distance, share):
        self.expected.append((ids, inverse_distance, share))


@pytest.mark.parametrize(("is_solved", "times"), [(False, 1), (True, 0)])
def test_windows_solved_by_matches_give_the_map_no_distances(monkeypatch, is_solved, times):
    """Errors of distances that come from the same images would count as knowledge."""
    known = (np.array([7]), np.array([0.5]), np.array([1.0]))
    monkeypatch.setattr(Verifier, "_predicted_points", lambda *_: known)
    local_map = MapOfOnePoint()
    verifier = Verifier(local_map)
    poses = slow(2)
    prediction = room.KnowingNetwork(poses, room.Noise()).predict([0, 1], room.HEIGHT, room.WIDTH)
    for _ in range(2):
        unit = verifier.expect(
            replace(prediction, is_solved=is_solved), [None, None], Verdict.CONFIRMED
        )
    assert len(local_map.expected) == 2 * times
    assert unit == pytest.approx(0.5), "the map's unit is taken all the same"
