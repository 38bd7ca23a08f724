"""`qvggt benchmark` from end to end: every protocol on a small set in its layout, two networks."""

from __future__ import annotations

import json

import pytest
from support.commands import run, small_checkpoint

from qvggt_core.model import shipped_checkpoint
from qvggt_core.protocols import PROTOCOLS
from qvggt_ros.cli import console

FRAMES = {"co3d": 50}


@pytest.fixture(autouse=True)
def _fresh_consoles(monkeypatch):
    monkeypatch.setattr(console, "out", console.Terminal(width=200))
    monkeypatch.setattr(console, "err", console.Terminal(width=200, stderr=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One set per protocol, written by the command itself."""
    from qvggt_ros.cli import app as cli

    root = tmp_path_factory.mktemp("data")
    for layout in PROTOCOLS:
        frames = str(FRAMES.get(layout, 12))
        size = ("--width", "32", "--height", "24", "--frames", frames, "--step", "0.1")
        with pytest.raises(SystemExit) as done:
            cli.main(
                ["synth", "--format", layout, "--world", "studio", "-o", str(root / layout), *size]
            )
        assert not done.value.code
    return root


@pytest.fixture(scope="module")
def full_precision(tmp_path_factory):
    """A small network in full precision, untrained."""
    return small_checkpoint(tmp_path_factory.mktemp("models") / "full.safetensors")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_judges_both_networks(capsys, tmp_path, data, full_precision, protocol):
    every = ("--every", "4") if protocol in ("7scenes", "nrgbd") else ()
    status, printed, errors = run(
        capsys,
        *("benchmark", protocol, "--data", data / protocol, "-o", tmp_path / "out", *every),
        *("--model", shipped_checkpoint(), "--model", full_precision),
        *("--set", "keyframe_min_motion=0", "--set", "confirm=false", "--set", "refine=false"),
    )
    assert status == 0, errors
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["protocol"] == protocol
    int4, full = results["models"]
    assert (int4["name"], full["name"]) == ("qvggt-places-int4", "full")
    table = (tmp_path / "out/table.md").read_text()
    for model in (int4, full):
        assert len(model["scenes"]) == 2
        assert not model["failures"]
        assert model["name"] in printed
        for key, value in model["summary"].items():
            assert value >= 0, key
        assert f"| {model['name']} |" in table
    assert int4["sha256"] != full["sha256"]


def test_it_goes_on_where_it_stopped_and_names_what_is_broken(capsys, tmp_path, data):
    import shutil

    root, out = tmp_path / "co3d", tmp_path / "out"
    shutil.copytree(data / "co3d", root)
    broken = root / "studio/2_3/images/frame000007.jpg"
    kept = broken.read_bytes()
    broken.unlink()
    arguments = ("benchmark", "co3d", "--data", root, "-o", out)
    status, _, errors = run(capsys, *arguments)
    assert status == 2
    assert (
        f"studio/2_3 (qvggt-places-int4): sequence studio/2_3 lacks 1 file(s): {broken}" in errors
    )
    assert (out / "missing.txt").read_text() == f"{broken}\n"
    before = json.loads((out / "results.json").read_text())["models"][0]
    assert list(before["scenes"]) == ["studio/1_1"]
    assert list(before["failures"]) == ["studio/2_3"]

    broken.write_bytes(kept)
    status, _, _ = run(capsys, *arguments)
    assert status == 0
    after = json.loads((out / "results.json").read_text())["models"][0]
    # Its time of computation is that of the first run: it was not judged again.
    assert after["scenes"]["studio/1_1"] == before["scenes"]["studio/1_1"]
    assert list(after["scenes"]) == ["studio/1_1", "studio/2_3"]
    assert not (out / "missing.txt").exists()

    status, _, errors = run(capsys, *arguments, "--seed", "7")
    assert status == 2
    assert "holds results of another run" in errors
    status, _, _ = run(capsys, *arguments, "--seed", "7", "--overwrite")
    assert status == 0
    assert json.loads((out / "results.json").read_text())["settings"]["seed"] == 7


def test_a_run_goes_on_with_the_arithmetic_that_it_began_with(capsys, monkeypatch, tmp_path, data):
    """What is fastest is measured, and another day something else may be."""
    import torch

    arguments = ("benchmark", "nrgbd", "--data", data / "nrgbd", "-o", tmp_path / "out")
    monkeypatch.setattr(
        "qvggt_core.stream.load_network.fastest_dtype", lambda device: torch.float32
    )
    assert run(capsys, *arguments)[0] == 0
    monkeypatch.setattr(
        "qvggt_core.stream.load_network.fastest_dtype", lambda device: torch.bfloat16
    )
    status, _, errors = run(capsys, *arguments)
    assert status == 0, errors
    (model,) = json.loads((tmp_path / "out/results.json").read_text())["models"]
    assert model["parameters"]["compute_dtype"] == "float32"
    status, _, errors = run(capsys, *arguments, "--set", "compute_dtype=bfloat16")
    assert status == 2
    assert "holds results of another run" in errors


def test_ctrl_c_keeps_what_is_done(capsys, monkeypatch, tmp_path, data):
    import os
    import signal

    from qvggt_core.protocols import CameraPose

    judge = CameraPose.judge

    def interrupting(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return judge(self, *arguments)

    arguments = ("benchmark", "re10k", "--data", data / "re10k", "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(CameraPose, "judge", interrupting)
        status, _, errors = run(capsys, *arguments)
    assert status == 130
    assert "was interrupted: run it again to go on" in errors
    (model,) = json.loads((tmp_path / "out/results.json").read_text())["models"]
    assert (len(model["scenes"]), model["interrupted"]) == (1, True)
    assert run(capsys, *arguments)[0] == 0
    (model,) = json.loads((tmp_path / "out/results.json").read_text())["models"]
    assert (len(model["scenes"]), model["interrupted"]) == (2, False)


def test_scenes_can_be_chosen(capsys, tmp_path, data):
    chosen = tmp_path / "scenes.txt"
    chosen.write_text("0000000000000003\n")
    arguments = ("benchmark", "re10k", "--data", data / "re10k")
    status, _, _ = run(capsys, *arguments, "-o", tmp_path / "a", "--scene-list", chosen)
    assert status == 0
    (model,) = json.loads((tmp_path / "a/results.json").read_text())["models"]
    assert list(model["scenes"]) == ["0000000000000003"]
    status, _, errors = run(capsys, *arguments, "-o", tmp_path / "b", "--scene", "fff")
    assert status == 2
    assert "no scene is left to judge; scenes found: 2 (0000000000000001, 00000" in errors
    chosen.write_text("fff\n")
    status, _, errors = run(capsys, *arguments, "-o", tmp_path / "c", "--scene-list", chosen)
    assert status == 2
    assert "1 of the 1 scenes" in errors


def test_scenes_of_a_list_that_are_gone_are_named_and_the_others_judged(capsys, tmp_path, data):
    chosen = tmp_path / "scenes.txt"
    chosen.write_text("0000000000000003\n88dd40199dee2680\n0e101fbd21daf79d\n")
    arguments = ("benchmark", "re10k", "--data", data / "re10k", "-o", tmp_path / "out")
    status, _, errors = run(capsys, *arguments, "--scene-list", chosen)
    assert status == 2
    assert "2 of the 3 scenes" in errors
    (model,) = json.loads((tmp_path / "out/results.json").read_text())["models"]
    assert list(model["scenes"]) == ["0000000000000003"]
    gone = (tmp_path / "out/missing.txt").read_text().split()
    assert gone == ["0e101fbd21daf79d", "88dd40199dee2680"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("kitti", "--data", "."), "there is no protocol 'kitti'"),
        (("tum", "--data", "nowhere"), "there is no directory nowhere"),
        (("co3d", "--data", ".", "--every", "3"), "has no choice 'every'"),
        (("nrgbd", "--data", "NRGBD", "--points", "head"), "the network has no point head"),
    ],
)
def test_what_cannot_run_says_why(capsys, tmp_path, data, arguments, reason):
    arguments = [str(data / "nrgbd") if a == "NRGBD" else a for a in arguments]
    status, _, errors = run(capsys, "benchmark", *arguments, "-o", tmp_path / "out")
    assert status == 2
    assert reason in errors


def test_the_point_heads_points_can_be_judged(capsys, tmp_path, data):
    from dataclasses import replace

    from qvggt_core.model import VGGT, read_checkpoint, save_checkpoint

    config = read_checkpoint(small_checkpoint(tmp_path / "small.safetensors")).config
    config = replace(config, point_head=True)
    save_checkpoint(tmp_path / "points.safetensors", VGGT(config).initialise().state_dict(), config)
    summaries = []
    for points in ("depth", "head"):
        arguments = ("benchmark", "nrgbd", "--data", data / "nrgbd", "-o", tmp_path / points)
        arguments += ("--model", tmp_path / "points.safetensors", "--points", points)
        status, _, errors = run(capsys, *arguments)
        assert status == 0, errors
        results = json.loads((tmp_path / points / "results.json").read_text())
        assert results["settings"]["points"] == points
        summaries.append(results["models"][0]["summary"])
    assert summaries[0] != summaries[1]


def test_a_recording_has_one_flight(capsys, tmp_path):
    status, _, errors = run(capsys, "synth", "-o", tmp_path / "bag", "--scenes", "3")
    assert status == 2
    assert "are for data sets' layouts" in errors
