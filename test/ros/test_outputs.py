"""No command writes over what it reads, or over what somebody else has laid where it writes."""

import hashlib

import pytest
import yaml
from support.commands import run, small_checkpoint
from support.recordings import room_entries, write_recording
from support.small_result import write_result
from support.tiny_run import TINY


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    write_result(folder / "result")
    write_recording(folder / "bag", room_entries(4))
    small_checkpoint(folder / "network.safetensors")
    (folder / "train.yaml").write_text(yaml.safe_dump(TINY))
    for name in ("model.safetensors", "bench.json", "sensitivity.png", "comparison.html"):
        (folder / "mine").mkdir(exist_ok=True)
        (folder / "mine" / name).write_text("mine")
    (folder / "notes.html").write_text("<!doctype html><title>notes</title>")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "quantize network.safetensors -o network.safetensors --overwrite",
        "import network.safetensors -o network.safetensors --overwrite",
        "export result -o result --format colmap --overwrite",
        "export result -o result/points.ply --overwrite",
        "export result -o result/metrics.glb",
        "replay bag -o bag --overwrite",
        "replay-many bag -o bag --overwrite",
        "compare-runs result -o result/metrics.json",
        "compare-runs result -o notes.html",
        "compare-runs result -o mine",
        "train train.yaml -o mine --device cpu",
        "train train.yaml -o train.yaml --device cpu",
        "bench network.safetensors -o mine",
        "bench network.safetensors -o network.safetensors",
        "bench-node bag -o notes.html",
        "bench-node bag -o bag/metadata.yaml",
        "sensitivity network.safetensors -o mine --calibration synthetic",
        "compare network.safetensors -o mine",
    ],
)
def test_it_is_refused_and_nothing_is_changed(made, capsys, monkeypatch, words):
    monkeypatch.chdir(made)
    before = contents(made)
    status, _, errors = run(capsys, *words.split())
    assert status == 2
    assert "error: " in errors
    assert contents(made) == before


@pytest.mark.parametrize("inside", [False, True], ids=["beside", "in the working directory"])
@pytest.mark.parametrize(
    "words",
    [
        "synth --world studio --frames 2 --width 64 --height 48",
        "synth --world studio --frames 2 --width 64 --height 48 --storage sqlite3",
        "export RESULT --format colmap",
        "export RESULT --format nerfstudio",
        "replay BAG --no-report",
    ],
)
def test_what_was_replaced_is_gone(made, capsys, monkeypatch, tmp_path, words, inside):
    place = tmp_path / "place"
    output = place if inside else place / "made"
    place.mkdir()
    monkeypatch.chdir(output if inside else tmp_path)
    words = words.replace("RESULT", str(made / "result")).replace("BAG", str(made / "bag"))
    found = []
    for _ in range(3):
        status, _, errors = run(capsys, *words.split(), "-o", output, "--overwrite")
        assert status == 0, errors
        found.append(sorted(contents(tmp_path)))
    assert found[0] == found[1] == found[2]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert inside or [path.name for path in place.iterdir()] == ["made"]


def test_a_page_of_a_former_run_is_replaced(made, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(made)
    for _ in range(2):
        status, _, errors = run(capsys, "compare-runs", "result", "-o", tmp_path / "page.html")
        assert status == 0, errors
