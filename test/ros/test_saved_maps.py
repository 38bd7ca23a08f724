"""A recording's map is saved, and another recording is found in it, by `qvggt replay`."""

import hashlib

import numpy as np
import pytest
from support import drifting_flight as flights
from support import hostile_checkpoints as hostile
from support import mapped_room
from support.plain_parameters import PLAIN
from support.recordings import M, read_recording

import qvggt_core as qvggt
from qvggt_core.errors import MapError, OutputError, ParameterError
from qvggt_core.evaluate.trajectory_files import read_trajectory
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_core.stream.saved_map import read_map
from qvggt_ros.drivers.live_session import LiveReconstruction
from qvggt_ros.drivers.options import MapOptions, ReplayOptions
from qvggt_ros.drivers.replay import Comparison, replay
from qvggt_ros.publishing import Driver

PARAMETERS = PLAIN.with_values(window_size=4, window_stride=2)
LATER = flights.circle(40, 0.6, radius=2.15)[7:17]


def run(bag, output, poses, checkpoint, **maps):
    parameters = PARAMETERS.with_values(checkpoint=str(checkpoint))
    return replay(
        bag,
        output,
        LoadedNetwork(mapped_room.BoxNetwork(poses), parameters, {}),
        ReplayOptions(report=False),
        maps=MapOptions(**maps),
        comparison=Comparison(None),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("maps")


@pytest.fixture(scope="module")
def checkpoint(folder):
    path = folder / "network.safetensors"
    path.write_bytes(hostile.base("float"))
    return path


@pytest.fixture(scope="module")
def box(folder, checkpoint):
    bag = mapped_room.recording(folder / "in", mapped_room.TRUTH)
    run(bag, folder / "out", mapped_room.TRUTH, checkpoint, save_map=folder / "box")
    return folder / "box"


@pytest.fixture(scope="module")
def later(folder):
    return mapped_room.recording(folder / "later", LATER)


def test_the_map_is_beside_the_result_and_has_the_network_s_hash(box, folder, checkpoint):
    saved = read_map(box)
    assert len(saved.keyframes) == len(mapped_room.TRUTH)
    assert saved.network == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert not saved.is_metric
    unit = scale_between(saved.poses, mapped_room.MAP_FROM_ROOM @ mapped_room.TRUTH)
    expected = (mapped_room.MAP_FROM_ROOM @ mapped_room.TRUTH)[:, :3, 3]
    np.testing.assert_allclose(unit * saved.poses[:, :3, 3], expected, atol=0.05)


def scale_between(poses, true):
    return (poses[:, :3, 3] * true[:, :3, 3]).sum() / np.square(poses[:, :3, 3]).sum()


def test_a_later_recording_is_found_in_the_map(box, later, folder, checkpoint):
    summary = run(later, folder / "found", LATER, checkpoint, load_map=box)
    result = summary.metrics["result"]
    assert result["localisation"] == "localised in map box after 3 keyframes"
    assert "localised in map box after 3 keyframes" in summary.metrics["events"]
    track = read_trajectory(folder / "found" / "trajectory.tum")
    assert len(track.stamps_ns) == len(LATER)
    expected = mapped_room.MAP_FROM_ROOM @ LATER
    found = np.stack(track.matrices)
    unit = scale_between(found, expected)
    assert np.linalg.norm(unit * found[:, :3, 3] - expected[:, :3, 3], axis=1).max() < 0.2
    worlds = [m.header.frame_id for _, _, m in read_recording(folder / "found/bag")["/qvggt/pose"]]
    assert worlds[0] == "qvggt_unscaled_1"
    assert worlds[-1] == "qvggt_unscaled"


def test_where_nothing_is_recognised_the_result_stays_outside(box, folder, checkpoint):
    away = flights.circle(60, 1.0)[46:51]
    bag = mapped_room.recording(folder / "away", away)
    summary = run(bag, folder / "lost", away, checkpoint, load_map=box)
    assert summary.metrics["result"]["localisation"] == "not localised in map box yet"
    assert (folder / "lost" / "trajectory_1.tum").exists()
    assert not (folder / "lost" / "trajectory.tum").exists()


def test_a_map_of_another_network_is_refused_before_anything_is_made(box, later, folder):
    other = folder / "other.safetensors"
    other.write_bytes(hostile.base("w4a16"))
    with pytest.raises(MapError, match="another network"):
        run(later, folder / "never", LATER, other, load_map=box)
    assert not list(folder.glob("never*"))


def test_what_is_in_the_way_is_refused_before_hours_of_work(later, box, folder, checkpoint):
    with pytest.raises(OutputError, match="exists"):
        run(later, folder / "never", LATER, checkpoint, save_map=box)
    with pytest.raises(ParameterError, match="choose --load-map or --save-map"):
        run(later, folder / "never", LATER, checkpoint, save_map=folder / "b", load_map=box)
    assert not list(folder.glob("never*"))


class Live:
    """A live reconstruction of a flight, image by image."""

    def __init__(self, poses, checkpoint, **values):
        self.worlds = []
        parameters = PARAMETERS.with_values(checkpoint=str(checkpoint), **values)

        def load(given):
            return LoadedNetwork(mapped_room.BoxNetwork(poses), given, {})

        self.session = LiveReconstruction(parameters, Driver(M, self.emit), load=load)
        self.poses = poses

    def emit(self, topic, message, stamp_ns):
        if topic == "pose":
            self.worlds.append(message.header.frame_id)

    def fly(self):
        for image, info in mapped_room.messages(self.poses):
            self.session.on_camera_info(info, "")
            self.session.on_images({"": image})
            # The thread that localises is slower than images come here.
            self.session._worker.call(lambda: None).result(20.0)
            self.session._worker.call(self.session._maps.loops.finish).result(20.0)

    @property
    def status(self):
        return self.session._worker.call(lambda: self.session._session.status().values).result(20.0)


@pytest.fixture
def live(checkpoint):
    started = []

    def start(poses, **values):
        started.append(Live(poses, checkpoint, **values))
        return started[-1]

    yield start
    for each in started:
        assert each.session.close(10.0)


def test_a_live_camera_is_found_in_the_map_that_a_parameter_names(box, live, tmp_path):
    it = live(LATER, load_map=str(box), map_directory=str(tmp_path))
    assert it.session.parameters.loop_closure
    it.fly()
    assert it.status["localisation"] == "localised in map box after 3 keyframes"
    assert (it.worlds[0], it.worlds[-1]) == ("qvggt_unscaled_1", "qvggt_unscaled")
    with pytest.raises(MapError, match="localization_only false it grows"):
        it.session.save_keyframes().result(20.0)
    assert list(tmp_path.iterdir()) == []


def test_a_live_map_is_saved_with_its_keyframes(live, checkpoint, tmp_path):
    it = live(mapped_room.TRUTH[:6], loop_closure=True, map_directory=str(tmp_path / "maps"))
    with pytest.raises(MapError, match="no map to save"):
        it.session.save_keyframes().result(20.0)
    it.fly()
    path, count = it.session.save_keyframes().result(20.0)
    saved = read_map(path)
    assert path.parent == tmp_path / "maps"
    assert len(saved.keyframes) == count >= 4
    assert saved.network == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_images_in_python_are_found_in_the_map_too(box, checkpoint):
    parameters = PARAMETERS.with_values(checkpoint=str(checkpoint), load_map=str(box))
    found = qvggt.Reconstruction(LoadedNetwork(mapped_room.BoxNetwork(LATER), parameters, {}))
    for picture in mapped_room.pictures(LATER):
        found.add(picture, flights.CAMERA)
    found.finish()
    assert "localised in map box after 3 keyframes" in found.events
    assert found.is_in_loaded_map
    assert found.images.tolist() == list(range(2, len(LATER)))
    expected = mapped_room.MAP_FROM_ROOM @ LATER[2:]
    unit = scale_between(found.poses, expected)
    apart = unit * found.poses[:, :3, 3] - expected[:, :3, 3]
    assert np.linalg.norm(apart, axis=1).max() < 0.2
    assert not qvggt.Reconstruction(LoadedNetwork(None, PARAMETERS, {})).is_in_loaded_map


def test_a_map_is_loaded_while_images_come(box, live):
    it = live(LATER, map_directory=str(box.parent))
    answer = it.session.load_map("box").result(20.0)
    assert answer.startswith("map box of 24 keyframes is loaded; it stays as it is")
    assert it.session.parameters.loop_closure
    it.fly()
    assert it.status["localisation"] == "localised in map box after 3 keyframes"
    assert (it.worlds[0], it.worlds[-1]) == ("qvggt_unscaled_1", "qvggt_unscaled")


def test_a_map_that_cannot_be_loaded_changes_nothing(box, live, tmp_path):
    it = live(LATER, map_directory=str(box.parent))
    (tmp_path / "letter").mkdir()
    for place, why in {
        "nowhere": "no saved map",
        str(tmp_path / "letter"): "no saved map",
        "package://maps/box": "no place of a map",
        "": "no place of a map",
    }.items():
        with pytest.raises(MapError, match=why):
            it.session.load_map(place).result(20.0)
    it.fly()
    assert it.status["localisation"] is None
    assert set(it.worlds) == {"qvggt_unscaled"}


def test_the_map_of_a_flight_is_frozen_and_grows_again(live, tmp_path):
    it = live(mapped_room.TRUTH, loop_closure=True, map_directory=str(tmp_path))
    with pytest.raises(MapError, match="no map to save"):
        it.session.set_localization_only(True).result(20.0)
    it.fly()
    assert "stays as it is" in it.session.set_localization_only(True).result(20.0)
    it.fly()
    assert it.status["localisation"] == "localised in map of this flight after 3 keyframes"
    with pytest.raises(MapError, match="localization_only false"):
        it.session.save_keyframes().result(20.0)
    assert "are added" in it.session.set_localization_only(False).result(20.0)
    it.fly()
    assert it.status["localisation"] == "localised in map of this flight, which grows"
    _, count = it.session.save_keyframes().result(20.0)
    assert count > len(mapped_room.TRUTH)


def test_a_recording_extends_a_map(box, later, folder, checkpoint):
    parameters = PARAMETERS.with_values(checkpoint=str(checkpoint), localization_only=False)
    summary = replay(
        later,
        folder / "longer",
        LoadedNetwork(mapped_room.BoxNetwork(LATER), parameters, {}),
        ReplayOptions(report=False),
        maps=MapOptions(load_map=box, save_map=folder / "larger"),
        comparison=Comparison(None),
    )
    localisation = "localised in map box, which grows"
    assert summary.metrics["result"]["localisation"] == localisation
    before, after = read_map(box), read_map(folder / "larger")
    assert len(after.keyframes) == len(before.keyframes) + len(LATER)
    expected = mapped_room.MAP_FROM_ROOM @ np.concatenate([mapped_room.TRUTH, LATER])
    unit = scale_between(after.poses, expected)
    apart = unit * after.poses[:, :3, 3] - expected[:, :3, 3]
    assert np.linalg.norm(apart, axis=1).max() < 0.2
