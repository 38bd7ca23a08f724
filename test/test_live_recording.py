"""What the live node published, recorded: its errors, its latency and what it dropped."""

from __future__ import annotations

import json

import numpy as np
import pytest
from recordings import (
    RoomNetwork,
    read_recording,
    room_entries,
    stamp_of,
    write_recording,
)
from rich.console import Console
from rosbags.rosbag2 import StoragePlugin, Writer

from qvggt_core.cloud import read_ply
from qvggt_core.errors import RecordingError
from qvggt_core.parameters import Parameters
from qvggt_ros import cli, console
from qvggt_ros.bag import replay
from qvggt_ros.live_recording import gather
from qvggt_ros.messages import rosbags_typestore
from qvggt_ros.metrics import Metrics

FRAMES = 12
PARAMETERS = Parameters(keyframe_min_motion=0.0, min_confidence_percentile=0.0)
LATENCY_NS = 250_000_000
DROPPED = (4, 5, 9)


def record_live(bag, result, path, *, without=()):
    """Record a flight as a robot would: images as they come, geometry a quarter second later."""
    entries = []
    for source in (bag, result / "bag"):
        for topic, messages in read_recording(source).items():
            if topic in without or (source is not bag and not topic.startswith("/qvggt/")):
                continue
            for _, data, message in messages:
                stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                if topic.startswith("/qvggt/"):
                    if stamp in [stamp_of(index) for index in DROPPED]:
                        continue
                    stamp += LATENCY_NS
                entries.append((stamp, topic, message.__msgtype__, data))
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for stamp, topic, kind, data in sorted(entries, key=lambda entry: entry[0]):
            if topic not in connections:
                connections[topic] = writer.add_connection(
                    topic, kind, typestore=rosbags_typestore()
                )
            writer.write(connections[topic], stamp, data)
    return path


@pytest.fixture(scope="module")
def flight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    bag = write_recording(folder / "in", room_entries(FRAMES))
    replay(bag, folder / "replayed", RoomNetwork(), PARAMETERS, report=False)
    return folder


def evaluate(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(console, "out", Console(width=200))
    monkeypatch.setattr(console, "err", Console(width=200, stderr=True))
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def test_a_live_flight_is_compared_and_its_drops_and_latency_are_told(
    capsys, monkeypatch, flight, tmp_path
):
    live = record_live(flight / "in", flight / "replayed", tmp_path / "live")
    output = tmp_path / "out"
    status, printed, _ = evaluate(capsys, monkeypatch, live, "-o", output)
    assert status == 0
    assert "/ground_truth/pose, sim3 alignment" in printed
    metrics = Metrics.read(output / "metrics.json")
    (segment,) = metrics.accuracy.segments
    assert segment.compared == FRAMES - len(DROPPED)
    assert segment.alignments["sim3"].translation.rmse < 1e-5
    assert metrics.coverage.dropped == len(DROPPED)
    assert metrics.coverage.frames == pytest.approx(1 - len(DROPPED) / FRAMES)
    # 0.25 s at 10 Hz: two images came in between.
    assert metrics.coverage.delay_images_median == 2
    assert metrics.coverage.largest_gap_s == pytest.approx(0.3)
    run = json.loads((output / "run.json").read_text())
    assert run["timings"]["latency_s"]["p50"] == pytest.approx(0.25)
    assert "recorder&#39;s receipt" in (output / "report.html").read_text()
    # Its map is made of the same points as the replay's, less those of the dropped frames.
    own, replayed = read_ply(output / "points.ply"), read_ply(flight / "replayed" / "points.ply")
    assert 0.6 * len(replayed) < len(own) <= len(replayed)
    assert np.allclose(own.positions.min(axis=0), replayed.positions.min(axis=0), atol=0.1)


def test_poses_alone_are_enough_to_compare(capsys, monkeypatch, flight, tmp_path):
    without = ("/qvggt/points", "/qvggt/depth/image", "/camera/image_raw")
    live = record_live(flight / "in", flight / "replayed", tmp_path / "live", without=without)
    status, _, _ = evaluate(capsys, monkeypatch, live, "-o", tmp_path / "out")
    assert status == 0
    metrics = Metrics.read(tmp_path / "out" / "metrics.json")
    assert metrics.accuracy.segments[0].alignments["sim3"].translation.rmse < 1e-5
    assert metrics.coverage.delay_images_median is None


def test_a_recording_without_the_node_says_what_to_do(capsys, monkeypatch, flight, tmp_path):
    status, _, errors = evaluate(capsys, monkeypatch, flight / "in")
    assert (status, "--output" in errors) == (2, True)
    with pytest.raises(RecordingError, match="has no /qvggt/pose: record the node's topics"):
        gather(flight / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(RecordingError, match="exists"):
        gather(flight / "in", tmp_path / "out")
