"""The command line: what it prints, what it returns, and what it must not import."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.commands import run, small_checkpoint
from support.hub import Hub, running
from support.recordings import RoomNetwork, room_entries, write_recording

from qvggt_core.model.catalog import CATALOG
from qvggt_core.model.download import download
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import LoadedNetwork
from qvggt_ros.cli import app as cli
from qvggt_ros.cli import console

ROOT = Path(__file__).parents[2]


def install(monkeypatch, network):
    facts = {"file": "room", "note": "it knows the room"}
    monkeypatch.setattr(
        "qvggt_core.stream.load_network.load_network",
        lambda parameters: LoadedNetwork(network, parameters, facts),
    )


@pytest.fixture
def known_network(monkeypatch):
    install(monkeypatch, RoomNetwork())


@pytest.fixture
def room(tmp_path):
    return write_recording(tmp_path / "room", room_entries(5))


def test_help_comes_without_what_is_heavy():
    code = (
        "import sys; from qvggt_ros.cli import app as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'cv2', 'matplotlib', 'rosbags', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "replay" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("known_network")
def test_replay_ends_with_what_it_did_and_where_it_is(capsys, room, tmp_path):
    status, printed, errors = run(
        capsys, "replay", room, "-o", tmp_path / "out", "--set", "keyframe_min_motion=0"
    )
    assert status == 0
    assert "5 received, 0 rejected" in printed
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in printed
    assert "it knows the room" in errors
    assert "scale is unknown" in errors


@pytest.mark.usefixtures("known_network")
def test_parameters_come_from_a_file_and_single_ones_over_it(capsys, room, tmp_path):
    (tmp_path / "my.yaml").write_text("/**: {ros__parameters: {window_size: 4, window_stride: 3}}")
    status, _, _ = run(
        capsys,
        *("replay", room, "-o", tmp_path / "out", "--params", tmp_path / "my.yaml"),
        *("--set", "window_stride=2", "--set", "metres_per_unit=0.5", "--no-report"),
    )
    assert status == 0
    effective = Parameters.read(tmp_path / "out" / "effective_params.yaml")
    assert (effective.window_size, effective.window_stride) == (4, 2)
    assert effective.metres_per_unit == 0.5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--set", "window_sise=3"), "no parameter 'window_sise'"),
        (("--set", "window_size"), "write NAME=VALUE"),
        (("--set", "window_size=[1"), "the value cannot be read"),
        (("--params", "nowhere.yaml"), "cannot read the parameter file"),
        (("--checkpoint", "nowhere.pt"), "cannot open the checkpoint nowhere.pt"),
    ],
)
def test_an_explained_error_is_one_line_and_status_2(capsys, arguments, reason, room, tmp_path):
    status, printed, errors = run(capsys, "replay", room, "-o", tmp_path / "out", *arguments)
    assert status == 2
    assert printed == ""
    assert reason in errors
    assert errors.startswith("error:")
    assert "Traceback" not in errors


def test_debug_shows_where_an_error_comes_from(room, tmp_path):
    from qvggt_core.errors import ParameterError

    with pytest.raises(ParameterError):
        cli.main(["--debug", "replay", str(room), "-o", str(tmp_path / "out"), "--set", "x=1"])


def test_ctrl_c_finishes_what_there_is(capsys, monkeypatch, room, tmp_path):
    class Interrupting(RoomNetwork):
        def encode(self, image):
            if self.encoded == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().encode(image)

    install(monkeypatch, Interrupting())
    # A shell lets what it starts in the background ignore Ctrl-C.
    before = signal.getsignal(signal.SIGINT)
    status, printed, errors = run(
        capsys,
        *("replay", room, "-o", tmp_path / "out", "--no-report"),
        *("--set", "keyframe_min_motion=0", "--set", "window_size=2", "--set", "window_stride=1"),
    )
    assert status == 130
    assert "3 received" in printed
    assert "finishing what there is" in errors
    assert (tmp_path / "out" / "bag" / "metadata.yaml").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_quantize_and_info_show_bits_per_part(capsys, tmp_path):
    small_checkpoint(tmp_path / "full.safetensors")
    target = tmp_path / "int4.safetensors"
    status, printed, _ = run(capsys, "quantize", tmp_path / "full.safetensors", "-o", target)
    assert status == 0
    (row,) = [line for line in printed.splitlines() if "frame blocks" in line]
    assert 4.1 < float(row.split("│")[-2]) < 4.5
    status, printed, _ = run(capsys, "info", target)
    assert status == 0
    assert "rtn" in printed


def test_what_is_left_to_choose_is_chosen_and_reported(tmp_path):
    from qvggt_core.stream.load_network import load_network

    path = small_checkpoint(tmp_path / "small.safetensors", {"note": "untrained"})
    loaded = load_network(Parameters(checkpoint=str(path), compute_dtype="float32", device="auto"))
    assert loaded.parameters.device in ("cpu", "cuda")
    assert loaded.parameters.image_width == 28
    assert loaded.parameters.threads >= 1
    assert loaded.facts["note"] == "untrained"
    assert load_network(loaded.parameters).parameters == loaded.parameters


@pytest.mark.usefixtures("known_network")
def test_a_synthetic_recording_can_be_replayed(capsys, tmp_path):
    small = ("--frames", "3", "--width", "56", "--height", "42")
    status, printed, _ = run(capsys, "synth", "-o", tmp_path / "flight", *small)
    assert status == 0
    assert "/ground_truth/pose" in printed
    status, printed, _ = run(
        capsys, "replay", tmp_path / "flight", "-o", tmp_path / "out", "--no-report"
    )
    assert status == 0
    assert "3 received, 0 rejected" in printed


def test_a_training_that_cannot_start_says_why(capsys, tmp_path):
    status, _, errors = run(capsys, "train", tmp_path / "nowhere.yaml", "-o", tmp_path / "run")
    assert status == 2
    assert "cannot read the training configuration" in errors


def test_download_shows_the_licence_and_takes_no_for_an_answer(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("typer.confirm", lambda question: False)
    files = {"model.safetensors": b"weights", "LICENSE.txt": b"Text of the licence"}
    with running(Hub("facebook/VGGT-1B", files, "cc-by-nc-4.0")) as hub:
        from_stand_in = functools.partial(download, endpoint=hub.endpoint)
        monkeypatch.setattr("qvggt_core.model.download.download", from_stand_in)
        status, printed, errors = run(capsys, "download", "vggt-1b", "-o", tmp_path)
    assert status == 2
    assert "Text of the licence" in printed
    assert "cc-by-nc-4.0" in printed
    assert "NON-COMMERCIAL" in printed
    assert "not agreed" in errors
    assert not list(tmp_path.iterdir())


def test_the_networks_are_listed_with_licence_size_and_the_source_of_their_accuracy(capsys):
    status, printed, _ = run(capsys, "networks")
    assert status == 0
    for name in CATALOG:
        assert name in printed
    assert "not measured by us" in " ".join(printed.split())


def test_the_table_of_parameters_has_them_all(capsys):
    _, printed, _ = run(capsys, "params")
    rows = {row.split("|")[1].strip(" `"): row for row in printed.splitlines()[2:]}
    assert list(rows) == list(Parameters.model_fields)
    assert "| `8` | ≥ 1, ≤ 64 |  | Views in a window." in rows["window_size"]
    assert "`true`, `false`" in rows["rectify"]


def test_the_shipped_parameter_file_holds_the_defaults():
    path = ROOT / "config" / "reconstruct.yaml"
    content = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    assert content == Parameters().model_dump()
    assert list(content) == list(Parameters.model_fields)
    assert Parameters.read(path) == Parameters()


def test_a_narrow_terminal_cuts_no_licence_off(capsys, monkeypatch):
    monkeypatch.setattr(console.out, "_width", 80)
    _, output, _ = run(capsys, "networks")
    assert "…" not in output
