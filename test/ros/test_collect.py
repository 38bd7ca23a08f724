"""What a live node published is evaluated as a replay is."""

import json
import shutil

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from support.plain_parameters import PLAIN
from support.recordings import RoomNetwork, read_recording, room_entries, stamp_of, write_recording
from support.replays import evaluate, replay

from qvggt_core.errors import OutputError, RecordingError
from qvggt_core.report import write_report
from qvggt_core.results.options import EvaluationOptions
from qvggt_core.results.result import Result
from qvggt_core.results.schema import Metrics
from qvggt_ros.drivers.collect import collect
from qvggt_ros.drivers.live_session import diagnostics_name
from qvggt_ros.io.messages import rosbags_messages, rosbags_typestore

M = rosbags_messages()
FRAMES = 13


@pytest.fixture(scope="module")
def flight(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("in") / "room", room_entries(FRAMES))


@pytest.fixture(scope="module")
def replayed(flight, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "replay"
    return replay(flight, output, RoomNetwork(), PLAIN, report=False)


@pytest.fixture
def live(replayed, tmp_path):
    """A recording of what a node published: the same messages, with diagnostics."""
    entries = [
        (topic, message.__msgtype__.rpartition("/")[2], stamp, message)
        for topic, messages in read_recording(replayed.output / "bag").items()
        if topic.startswith("/qvggt/")
        for stamp, _, message in messages
    ]
    values = {"received": str(FRAMES), "windows": "3", "dropped": "0", "latency_s.p50": "0.125"}
    status = M.DiagnosticStatus(
        level=0,
        name=diagnostics_name("/qvggt/reconstruct"),
        message="",
        hardware_id="",
        values=[M.KeyValue(key=key, value=value) for key, value in values.items()],
    )
    newest = max(stamp for _, _, stamp, _ in entries)
    header = M.Header(stamp=M.Time(sec=0, nanosec=0), frame_id="")
    message = M.DiagnosticArray(header=header, status=[status])
    entries.append(("/diagnostics", "DiagnosticArray", newest, message))
    return write_recording(tmp_path / "live", sorted(entries, key=lambda entry: entry[2]))


def test_it_is_evaluated_as_the_replay_is(replayed, live, flight, tmp_path):
    collect(live, flight, tmp_path / "result")
    found = evaluate(tmp_path / "result", EvaluationOptions(ground_truth="/ground_truth/pose"))
    expected = Metrics.read(replayed.output / "metrics.json")
    assert found.accuracy is not None
    assert expected.accuracy is not None
    (mine,), (theirs,) = found.accuracy.segments, expected.accuracy.segments
    assert mine.compared == theirs.compared == FRAMES
    assert mine.alignments["sim3"].translation.rmse == pytest.approx(
        theirs.alignments["sim3"].translation.rmse, abs=1e-9
    )
    assert found.result.windows == 3
    assert found.coverage.frames == 1.0
    assert found.result.map_points[0] > 1000
    assert "dropped images: 0" in found.events


def test_it_holds_what_was_recorded(live, flight, tmp_path):
    collect(live, flight, tmp_path / "result")
    assert read_recording(tmp_path / "result/bag").keys() == read_recording(live).keys()
    lines = (tmp_path / "result/trajectory.tum").read_text().splitlines()
    assert len(lines) == FRAMES
    with np.load(tmp_path / "result/frames.npz") as frames:
        assert len(frames["images"]) == 6


def test_another_recording_is_refused(live, tmp_path):
    other = write_recording(
        tmp_path / "other",
        [
            (topic, name, stamp + 10**12, shifted(message))
            for topic, name, stamp, message in room_entries(3)
        ],
    )
    with pytest.raises(RecordingError, match="is it what was played"):
        collect(live, other, tmp_path / "result")
    assert not (tmp_path / "result").exists()


def shifted(message):
    message.header.stamp = M.Time(sec=message.header.stamp.sec + 1000, nanosec=0)
    return message


def test_a_recording_without_outputs_is_refused(flight, tmp_path):
    with pytest.raises(RecordingError, match="has no /qvggt/pose"):
        collect(flight, flight, tmp_path / "result")


def test_an_existing_output_is_left_alone(live, flight, tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "mine").touch()
    with pytest.raises(OutputError, match="left alone"):
        collect(live, flight, tmp_path / "result")
    shutil.rmtree(tmp_path / "result")


# On a robot, where images and answers are in one recording


LATENCY_NS = 250_000_000
DROPPED = (4, 5)


def record_on_a_robot(bag, result, path):
    """Record a flight as a robot would: images as they come, geometry a quarter second later."""
    entries = []
    for source in (bag, result / "bag"):
        for topic, messages in read_recording(source).items():
            if source is not bag and not topic.startswith("/qvggt/"):
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


def test_latency_and_drops_of_a_flight_are_reported(flight, replayed, tmp_path):
    live = record_on_a_robot(flight, replayed.output, tmp_path / "live")
    collect(live, None, tmp_path / "result")
    found = evaluate(tmp_path / "result", EvaluationOptions())
    assert found.accuracy is not None
    (segment,) = found.accuracy.segments
    assert segment.compared == FRAMES - len(DROPPED)
    assert segment.alignments["sim3"].translation.rmse < 1e-5
    assert found.coverage.dropped == len(DROPPED)
    assert found.coverage.frames == pytest.approx(1 - len(DROPPED) / FRAMES)
    assert found.coverage.largest_gap_s == pytest.approx(0.3)
    run = json.loads((tmp_path / "result" / "run.json").read_text())
    assert run["timings"]["latency_s"]["p50"] == pytest.approx(0.25)
    assert len(run["series"]["latency_s"]) == FRAMES - len(DROPPED)
    write_report(Result.read(tmp_path / "result"), tmp_path / "result")
    assert "recorder&#39;s receipt" in (tmp_path / "result" / "report.html").read_text()
