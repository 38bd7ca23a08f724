"""`qvggt topics`: which topics of a recording a live node is given."""

import json
import logging

from support.commands import run
from support.recordings import room_entries, write_recording

from qvggt_ros.cli import console


def test_what_a_former_run_of_the_node_published_is_not_for_playing(capsys, tmp_path):
    entries = room_entries(3)
    pose = next(entry for entry in entries if entry[1] == "PoseStamped")
    for topic in ("/qvggt/pose", "/robot1/qvggt/pose", "/events/pose", "/clock_offset"):
        entries.append((topic, *pose[1:]))
    bag = write_recording(tmp_path / "bag", entries)
    status, output, _ = run(capsys, "topics", bag, "--json", "--namespace", "/robot1/qvggt")
    assert status == 0
    play = json.loads(output)["play"]
    assert "/clock_offset" in play
    assert not {"/qvggt/pose", "/robot1/qvggt/pose", "/events/pose"} & set(play)


HOSTILE = "/\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt"


def test_names_of_topics_cannot_take_over_the_terminal(capsys, tmp_path):
    entries = room_entries(2)
    pose = next(entry for entry in entries if entry[1] == "PoseStamped")
    bag = write_recording(tmp_path / "bag", [*entries, (HOSTILE, *pose[1:])])
    printed = [run(capsys, "topics", bag), run(capsys, "replay", bag, "-o", tmp_path / HOSTILE[1:])]
    printed += [run(capsys, "topics", tmp_path / HOSTILE[1:])]
    everything = "".join(out + err for _, out, err in printed)
    assert "owned" in everything
    for sign in "\x1b\x07\x9b\u202e":
        assert sign not in everything


def test_names_are_no_pictures(capsys, monkeypatch):
    for name in ("out", "err"):
        terminal = getattr(console, name)
        assert terminal.render_str("/a:bee:b").plain == "/a:bee:b"


def test_a_log_record_cannot_take_over_the_terminal(capsys):
    record = logging.LogRecord("ros", logging.WARNING, "f", 1, "frame %r %s", ("a", HOSTILE), None)
    console.LogHandler(console=console.err, show_path=False).handle(record)
    assert r"frame 'a' /\x1b]0;owned" in capsys.readouterr().err
