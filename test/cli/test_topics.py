"""`qvggt topics`: which topics of a recording a live node is given."""

import json

from support.commands import run
from support.recordings import room_entries, write_recording


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
