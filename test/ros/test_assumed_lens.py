"""A recording without a calibration has the lens that is given, or that its images show."""

from __future__ import annotations

import numpy as np
import pytest
from support.recordings import (
    START_NS,
    WIDTH,
    RoomNetwork,
    camera_info_message,
    room_entries,
    write_recording,
)

from qvggt_core.errors import ParameterError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.focal_length import FocalLength
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_ros.drivers import assumed_lens
from qvggt_ros.drivers.options import ReplayOptions
from qvggt_ros.drivers.replay import Watcher, replay

FRAMES = 10


def recording(path, info=None):
    """Return a recording with one CameraInfo, or without."""
    entries = [entry for entry in room_entries(FRAMES) if entry[1] != "CameraInfo"]
    if info is not None:
        entries.insert(0, ("/camera/camera_info", "CameraInfo", START_NS, info))
    return write_recording(path, entries)


def replayed(bag, output, watcher=None, **options):
    loaded = LoadedNetwork(RoomNetwork(), Parameters(), {"file": "room"})
    options = ReplayOptions(report=False, **options)
    summary = replay(bag, output, loaded, options, watcher=watcher)
    with np.load(output / "frames.npz") as frames:
        return summary.metrics, frames["intrinsics"][0]


@pytest.fixture
def shown(monkeypatch):
    """Let images show a focal length of 44 pixels; count how often they are asked."""
    asked = []

    def estimate(images, progress):
        progress(0, 2)
        asked.append(sum(1 for _ in images))
        return FocalLength(44.0, 0.02)

    monkeypatch.setattr(assumed_lens, "estimate_focal_length", estimate)
    return asked


@pytest.mark.parametrize("info", [None, camera_info_message(0, k=np.zeros(9))])
def test_it_is_found_where_there_is_no_calibration(tmp_path, shown, info):
    metrics, intrinsics = replayed(recording(tmp_path / "bag", info), tmp_path / "out")
    assert shown == [FRAMES]
    assert metrics["recording"]["focal_length_px"] == 44.0
    assert metrics["recording"]["focal_length_sigma"] == 0.02
    assert metrics["result"]["uncalibrated"] == FRAMES
    assert any("44 pixels, to 2.0%, found from the images" in each for each in metrics["events"])
    assert intrinsics[0, 0] == pytest.approx(44.0)
    assert intrinsics[0, 2] == pytest.approx((WIDTH - 1) / 2)


def test_the_search_is_shown_before_the_first_image(tmp_path, shown):
    events = []
    watcher = Watcher(
        progress=lambda done, total: events.append(("image", done, total)),
        searching=lambda done, total: events.append(("search", done, total)),
    )
    replayed(recording(tmp_path / "bag"), tmp_path / "out", watcher)
    assert events[:2] == [("search", 0, 2), ("image", 1, FRAMES)]


def test_it_is_not_looked_for_where_there_is_a_calibration(tmp_path, shown):
    bag = write_recording(tmp_path / "bag", room_entries(FRAMES))
    metrics, _ = replayed(bag, tmp_path / "out")
    assert not shown
    assert metrics["recording"]["focal_length_px"] is None
    assert metrics["result"]["uncalibrated"] == 0


def test_one_that_is_given_is_taken(tmp_path, shown):
    metrics, intrinsics = replayed(recording(tmp_path / "bag"), tmp_path / "out", focal_length=50.0)
    assert not shown
    assert metrics["recording"]["focal_length_px"] == 50.0
    assert intrinsics[0, 0] == pytest.approx(50.0)


@pytest.mark.parametrize("given", [0.0, None])
def test_the_network_s_own_is_taken_on_request_or_where_images_do_not_show_it(
    tmp_path, monkeypatch, given
):
    monkeypatch.setattr(assumed_lens, "estimate_focal_length", lambda *_: "it is dark")
    metrics, _ = replayed(recording(tmp_path / "bag"), tmp_path / "out", focal_length=given)
    assert metrics["recording"]["focal_length_px"] is None
    assert metrics["result"]["published"] == FRAMES
    assert given == 0.0 or any("it is dark" in each for each in metrics["events"])


@pytest.mark.parametrize("given", [-1.0, float("nan"), float("inf")])
def test_what_is_no_focal_length_is_refused_before_the_work(tmp_path, given):
    with pytest.raises(ParameterError, match="focal length"):
        replayed(recording(tmp_path / "bag"), tmp_path / "out", focal_length=given)
    assert not (tmp_path / "out").exists()
