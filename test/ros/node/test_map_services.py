"""Saved maps by services: loaded, frozen and grown while the node runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

from nav_msgs.srv import LoadMap
from robot import robot
from std_srvs.srv import SetBool, Trigger
from support import mapped_room

from qvggt_core.model import shipped_checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import checkpoint_sha256
from qvggt_core.stream.saved_map import write_map

RESULT = LoadMap.Response


@pytest.fixture
def maps(tmp_path):
    network = checkpoint_sha256(Parameters(checkpoint=str(shipped_checkpoint())))
    write_map(tmp_path / "box", replace(mapped_room.saved(), network=network))
    write_map(tmp_path / "foreign", mapped_room.saved())
    return tmp_path


def load(it, url):
    return it.ask(LoadMap, "load_map", LoadMap.Request(map_url=url)).result


def localization_only(it, value):
    return it.ask(SetBool, "set_localization_only", SetBool.Request(data=value))


def test_a_map_is_loaded_by_its_name_its_path_or_its_url(maps):
    with robot(map_directory=str(maps)) as it:
        assert it.node.start()
        for url in ("box", str(maps / "box"), f"file://{maps}/box"):
            assert load(it, url) == RESULT.RESULT_SUCCESS
            assert it.node._live.parameters.load_map == str(maps / "box")
        assert it.node._live.parameters.loop_closure


def test_what_is_no_map_has_a_code_and_the_log_the_reason(maps, capfd):
    with robot(map_directory=str(maps)) as it:
        assert load(it, "box") == RESULT.RESULT_UNDEFINED_FAILURE
        assert it.node.start()
        assert load(it, "nowhere") == RESULT.RESULT_MAP_DOES_NOT_EXIST
        assert load(it, "package://maps/box") == RESULT.RESULT_MAP_DOES_NOT_EXIST
        assert load(it, "foreign") == RESULT.RESULT_INVALID_MAP_DATA
        assert it.node._live.parameters.load_map == ""
    written = capfd.readouterr()
    text = written.out + written.err
    for reason in ("not configured", "no saved map", "no place of a map", "another network"):
        assert reason in text


def test_a_map_is_frozen_or_grows(maps):
    with robot(map_directory=str(maps)) as it:
        assert it.node.start()
        refused = localization_only(it, True)
        assert not refused.success
        assert "no map to save" in refused.message
        assert load(it, "box") == RESULT.RESULT_SUCCESS
        assert "stays as it is" in localization_only(it, True).message
        refused = it.ask(Trigger, "save_keyframes", Trigger.Request())
        assert not refused.success
        grows = localization_only(it, False)
        assert grows.success
        assert "are added" in grows.message
        assert it.ask(Trigger, "save_keyframes", Trigger.Request()).success
        assert len(list(maps.glob("keyframes_*/map.json"))) == 1
