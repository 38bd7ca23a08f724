"""Services hold no one up, a failed configure can be mended, and a misspelt name is named."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from robot import NAMESPACE, robot
from std_srvs.srv import Trigger
from support.recordings import header, stamp_of

SUCCESS = TransitionCallbackReturn.SUCCESS


class Busy:
    """Holds the node's worker until it is let go, as a long window does."""

    def __init__(self, it):
        self._go, begun = threading.Event(), threading.Event()

        def work():
            begun.set()
            self._go.wait(30.0)

        it.node._live._worker.call(work)
        assert begun.wait(10.0)

    def end(self):
        self._go.set()


def set_parameter(it, name, value):
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    (result,) = it.ask(SetParameters, "reconstruct/set_parameters", request).results
    return result


@pytest.mark.parametrize("service", ["save_map", "reset"])
def test_while_a_service_waits_for_the_network_everything_else_goes_on(service):
    with robot(diagnostics_period_s=0.1) as it:
        assert it.node.start()
        it.listen("/diagnostics", "DiagnosticArray")
        it.film(range(4))
        busy = Busy(it)
        client = it.peer.create_client(Trigger, service)
        it.spin_until(client.service_is_ready)
        answer = client.call_async(Trigger.Request())
        it.spin(0.2)
        before, taken = len(it.received["/diagnostics"]), it.images_taken
        it.spin_until(lambda: len(it.received["/diagnostics"]) > before + 3)
        it.show(4)
        it.spin_until(lambda: it.images_taken > taken)
        assert set_parameter(it, "point_stride", 2).successful
        assert not answer.done()
        busy.end()
        it.spin_until(answer.done)
        assert answer.result().success


def test_a_clean_up_answers_who_waits():
    with robot() as it:
        assert it.node.start()
        busy = Busy(it)
        client = it.peer.create_client(Trigger, "save_map")
        it.spin_until(client.service_is_ready)
        answer = client.call_async(Trigger.Request())
        it.spin(0.3)
        assert it.node.trigger_deactivate() == SUCCESS
        assert it.node.trigger_cleanup() == SUCCESS
        it.spin_until(answer.done)
        assert not answer.result().success
        assert "cleaned up" in answer.result().message
        later = it.ask(Trigger, "save_map", Trigger.Request())
        assert "not configured" in later.message
        busy.end()


def test_a_configure_waits_for_the_network_of_before(capfd):
    with robot() as it:
        assert it.node.start()
        threads = threading.active_count()
        busy = Busy(it)
        assert it.node.trigger_deactivate() == SUCCESS
        assert it.node.trigger_cleanup() == SUCCESS
        errors = capfd.readouterr()
        assert "still at work on a window" in errors.out + errors.err
        threading.Timer(0.5, busy.end).start()
        assert it.node.trigger_configure() == SUCCESS
        assert threading.active_count() <= threads + 1  # with the timer's own


def test_a_failed_configure_can_be_mended():
    with robot(checkpoint="/nothing/here.safetensors", autostart=False) as it:
        assert it.node.trigger_configure() != SUCCESS
        assert set_parameter(it, "checkpoint", "").successful
        assert it.node.trigger_configure() == SUCCESS
        refused = set_parameter(it, "window_size", 12)
        assert not refused.successful
        assert "fixed while the network is loaded" in refused.reason
        assert set_parameter(it, "window_size", 8).successful  # as it is
        assert it.node.trigger_cleanup() == SUCCESS
        assert set_parameter(it, "window_size", 12).successful
        assert it.node.trigger_configure() == SUCCESS
        assert it.node._live.parameters.window_size == 12


def test_no_one_on_the_graph_chooses_where_maps_are_written(tmp_path):
    with robot(map_directory=str(tmp_path), autostart=False) as it:
        refused = set_parameter(it, "map_directory", "/etc")
        assert not refused.successful
        assert it.node.trigger_configure() == SUCCESS
        assert not set_parameter(it, "map_directory", "/etc").successful
        assert it.node._live.parameters.map_directory == str(tmp_path)


def test_a_misspelt_parameter_is_named_with_what_was_meant(capfd):
    override = {"qos_overrides./qvggt/image.subscription.reliability": "reliable"}
    with robot(windw_size=8, something_else=1, use_sim_time=False, autostart=False, **override):
        pass
    errors = capfd.readouterr()
    text = errors.out + errors.err
    assert "no parameter windw_size" in text
    assert "is window_size meant?" in text
    assert "no parameter something_else" in text
    assert "qos_overrides" not in text
    assert "use_sim_time" not in text


def test_the_last_images_of_a_stream_get_their_geometry():
    with robot() as it:
        assert it.node.start()
        it.listen("pose", "PoseStamped")
        it.film(range(7))
        it.spin_until(lambda: len(it.received["pose"]) == 7)


def test_of_a_rig_the_camera_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("qvggt_ros.drivers.live_session._SILENCE_S", 0.5)
    with robot(cameras=["front", "left"], diagnostics_period_s=0.1) as it:
        assert it.node.start()
        it.listen("/diagnostics", "DiagnosticArray")
        it.show(0, topic="front/image", header=header(0, "front_optical"))
        it.spin(1.0)
        text = it.received["/diagnostics"][-1].status[0].message
        assert "/qvggt/left/image" in text
        assert "/qvggt/front/image" not in text
        late = header(0, "left_optical", stamp_ns=stamp_of(5))
        it.show(0, topic="left/image", header=late)
        it.spin(0.5)
        assert "sync_slop_s" in it.received["/diagnostics"][-1].status[0].message


def test_a_camera_that_stops_is_not_one_that_never_sent(monkeypatch):
    monkeypatch.setattr("qvggt_ros.drivers.live_session._SILENCE_S", 0.3)
    monkeypatch.setattr("qvggt_ros.drivers.node._QUIET_S", 0.3)
    with robot(diagnostics_period_s=0.1) as it:
        assert it.node.start()
        it.listen("/diagnostics", "DiagnosticArray")
        it.film(range(2))
        it.spin_until(
            lambda: any(
                "stopped sending" in message.status[0].message
                for message in it.received["/diagnostics"]
            )
        )
        name = it.received["/diagnostics"][-1].status[0].name
        assert name == f"{NAMESPACE.strip('/')}/reconstruct: reconstruction"


def test_each_camera_of_a_rig_is_rectified_or_not_by_its_own_topic(monkeypatch):
    with robot(cameras=["front", "left"], autostart=False) as it:
        topics = {"left/image": "/left/image_rect"}
        resolve = it.node.resolve_topic_name
        monkeypatch.setattr(
            it.node, "resolve_topic_name", lambda name, **k: topics.get(name) or resolve(name, **k)
        )
        assert it.node.trigger_configure() == SUCCESS
        calibrations = it.node._live._session._calibrations
        assert {camera: each._rectified for camera, each in calibrations.items()} == {
            "front": False,
            "left": True,
        }
