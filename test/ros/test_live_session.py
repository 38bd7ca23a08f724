"""A live reconstruction without a middleware: what it does on its own, and what it reports."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from support.recordings import (
    M,
    camera_info_message,
    image_message,
    load_room_network,
    stamp_of,
)

from qvggt_core.errors import CheckpointError
from qvggt_core.parameters import Parameters
from qvggt_ros.drivers import live_session
from qvggt_ros.drivers.live_session import LiveReconstruction
from qvggt_ros.publishing import Driver


class Live:
    """A reconstruction of the room and what it published."""

    def __init__(self, **options):
        self.stamps = []
        self.now_ns = stamp_of(7)
        driver = Driver(M, self._emit, now_ns=lambda: self.now_ns)
        self.live = LiveReconstruction(Parameters(), driver, load=load_room_network, **options)

    def _emit(self, topic, message, stamp_ns):
        if topic == "pose":
            self.stamps.append(stamp_ns)

    def show(self, indices, *, calibrated=True, **changes):
        for index in indices:
            if calibrated:
                self.live.on_camera_info(camera_info_message(index), "")
            self.live.on_images({"": image_message(index, **changes)})
            for _ in range(2):
                self.live._worker.call(lambda: None).result(20.0)
                time.sleep(0.01)

    def state(self):
        (status,) = self.live.diagnostics().status
        return status.level, status.message

    def wait(self, happened):
        end = time.monotonic() + 20.0
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def start():
    started = []

    def make(**options):
        started.append(Live(**options))
        return started[-1]

    yield make
    for each in started:
        assert each.live.close(10.0)


def test_the_last_images_of_a_stream_get_their_geometry_when_no_other_comes(start, monkeypatch):
    monkeypatch.setattr(live_session, "_FLUSH_AFTER_S", 0.2)
    it = start()
    it.show(range(7))
    it.wait(lambda: len(it.stamps) == 7)
    assert it.stamps == [stamp_of(index) for index in range(7)]
    it.show(range(7, 12))
    it.wait(lambda: len(it.stamps) == 12)


def test_a_failed_start_leaves_no_thread():
    def refuse(parameters):
        raise CheckpointError("no such file")

    threads = threading.active_count()
    with pytest.raises(CheckpointError):
        LiveReconstruction(Parameters(), Driver(M, lambda *_: None), load=refuse)
    assert threading.active_count() == threads


def test_what_is_closed_lets_go_of_the_network():
    networks = []

    def load(parameters):
        loaded = load_room_network(parameters)
        networks.append(weakref.ref(loaded.network))
        return loaded

    it = LiveReconstruction(Parameters(), Driver(M, lambda *_: None), load=load)
    assert it.close(10.0)
    gc.collect()
    assert [network() for network in networks] == [None]


def test_images_without_calibration_are_a_warning_until_there_is_one(start, caplog):
    it = start()
    it.show(range(8), calibrated=False)
    level, text = it.state()
    assert level == 1
    assert "no usable CameraInfo" in text
    assert "no usable CameraInfo" in caplog.text
    it.show(range(8, 12))
    assert "CameraInfo" not in it.state()[1]


def test_a_camera_matrix_of_zeros_is_no_calibration(start):
    it = start()
    it.live.on_camera_info(camera_info_message(0, k=np.zeros(9)), "")
    it.show(range(4), calibrated=False)
    assert "no usable CameraInfo" in it.state()[1]


@pytest.mark.parametrize(("hours", "way"), [(-1, "ahead of"), (1, "behind")])
def test_clocks_that_differ_are_a_warning_while_they_do(start, hours, way):
    it = start()
    it.now_ns += hours * 3600 * 10**9
    it.show(range(4))
    level, text = it.state()
    assert level == 1
    assert f"s {way} this node's clock" in text
    it.now_ns = stamp_of(7)
    it.show(range(4, 8))
    assert "clock" not in it.state()[1]


def test_a_failure_is_an_error_until_it_is_over_or_reset(start, monkeypatch):
    it = start()
    it.live._worker.put(lambda: 1 // 0)
    it.live._worker.call(lambda: None).result(20.0)
    it.wait(lambda: it.state()[0] == 2)
    it.live.reset().result(20.0)
    assert it.state()[0] == 0
    it.live._worker.put(lambda: 1 // 0)
    it.wait(lambda: it.state()[0] == 2)
    monkeypatch.setattr(live_session, "_FAILURE_HOLDS_S", 0.0)
    assert it.state()[0] == 0


def test_images_that_get_no_geometry_are_a_warning(start, monkeypatch):
    monkeypatch.setattr(live_session, "_NO_GEOMETRY_S", 0.0)
    it = start()
    it.state()
    it.show([0])
    level, text = it.state()
    assert level == 1
    assert "none has got its geometry" in text


def test_a_sensor_that_is_too_fast_is_a_warning_with_its_number_while_it_is(start):
    it = start()
    it.show(range(4))
    it.live._worker.pushed_out["imu"] = 7
    assert it.state()[0] == 1
    it.live._worker.pushed_out["imu"] = 12
    level, text = it.state()
    assert level == 1
    assert "imu: 5 messages came faster than they are taken" in text
    values = {each.key: each.value for each in it.live.diagnostics().status[0].values}
    assert values["pushed_out.imu"] == "12"
    assert "imu" not in it.state()[1]


def test_each_node_has_a_status_of_its_own(start):
    names = {
        start(name=name).live.diagnostics().status[0].name
        for name in ("/robot1/reconstruct", "/robot2/qvggt/reconstruct")
    }
    assert names == {
        "robot1/reconstruct: reconstruction",
        "robot2/qvggt/reconstruct: reconstruction",
    }


def test_each_camera_of_a_rig_is_rectified_or_not_by_itself():
    seen = []
    parameters = Parameters(cameras=["front", "left"])
    live = LiveReconstruction(
        parameters,
        Driver(M, lambda topic, message, stamp_ns: None),
        rectified=["left"],
        load=load_room_network,
    )
    try:
        for camera in parameters.cameras:
            live.on_camera_info(camera_info_message(0, p=np.full(12, np.nan)), camera)
        live.on_images({camera: image_message(0) for camera in parameters.cameras})
        for _ in range(3):
            live._worker.call(lambda: None).result(20.0)
            time.sleep(0.01)
        seen = list(live._session.counters.rejected)
    finally:
        assert live.close(10.0)
    # The matrix P is that of a rectified image, and is broken; K is that of the other's.
    assert len(seen) == 1
    assert "P that is not finite" in seen[0]
    assert live.parameters.cameras == ["front", "left"]
