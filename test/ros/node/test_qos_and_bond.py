"""What the node logs of a QoS that does not match, and its bond with Nav2's lifecycle manager."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from robot import robot, ros_class

SUCCESS = TransitionCallbackReturn.SUCCESS
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def test_a_qos_that_does_not_match_is_logged_and_diagnosed_with_its_policy(capfd):
    override = {"qos_overrides./qvggt/image.subscription.reliability": "reliable"}
    with robot(diagnostics_period_s=0.1, **override) as it:
        assert it.node.start()
        it.listen("/diagnostics", "DiagnosticArray")
        it.peer.create_publisher(ros_class("Image"), "image", BEST_EFFORT)
        it.spin_until(lambda: "/qvggt/image" in it.node._refused_policies)
        assert "reliability" in it.node._what_is_missing()
    errors = capfd.readouterr()
    assert "/qvggt/image has a publisher whose reliability" in errors.out + errors.err
    assert "qos_overrides./qvggt/image.subscription.reliability" in errors.out + errors.err


def test_an_override_is_for_its_topic_alone():
    override = {"qos_overrides./qvggt/odom.subscription.reliability": "reliable"}
    with robot(**override) as it:
        assert it.node.start()
        policies = {
            name: it.peer.get_subscriptions_info_by_topic(f"/qvggt/{name}")
            for name in ("odom", "camera_info", "image")
        }
    assert {name: infos[0].qos_profile.reliability for name, infos in policies.items()} == {
        "odom": ReliabilityPolicy.RELIABLE,
        "camera_info": ReliabilityPolicy.BEST_EFFORT,
        "image": ReliabilityPolicy.BEST_EFFORT,
    }


class Bond:
    made: list[Bond] = []  # noqa: RUF012

    def __init__(self, topic, bond_id, node):
        self.arguments = (topic, bond_id, node.get_name())
        self.states = []
        self.made.append(self)

    def start(self):
        self.states.append("started")

    def shutdown(self):
        self.states.append("ended")


def test_the_bond_lives_while_the_node_is_active(monkeypatch):
    package, module = ModuleType("bondpy"), ModuleType("bondpy.bondpy")
    module.Bond = Bond
    monkeypatch.setitem(sys.modules, "bondpy", package)
    monkeypatch.setitem(sys.modules, "bondpy.bondpy", module)
    Bond.made.clear()
    with robot(bond_id="qvggt/reconstruct") as it:
        assert it.node.trigger_configure() == SUCCESS
        assert not Bond.made
        assert it.node.trigger_activate() == SUCCESS
        (bond,) = Bond.made
        assert bond.arguments == ("/bond", "qvggt/reconstruct", "reconstruct")
        assert bond.states == ["started"]
        assert it.node.trigger_deactivate() == SUCCESS
        assert bond.states == ["started", "ended"]


def test_without_bondpy_activation_fails_with_what_to_install(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "bondpy", None)
    with robot(bond_id="qvggt/reconstruct") as it:
        assert it.node.trigger_configure() == SUCCESS
        assert it.node.trigger_activate() != SUCCESS
        assert not it.node._inputs
    errors = capfd.readouterr()
    assert "ros-$ROS_DISTRO-bondpy" in errors.out + errors.err


def test_without_an_id_no_bond_is_formed(monkeypatch):
    monkeypatch.setitem(sys.modules, "bondpy", None)
    with robot() as it:
        assert it.node.start()
        assert it.node._bond is None
