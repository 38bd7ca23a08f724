"""`qvggt quantize`, `qvggt sensitivity` and their images, as a user meets them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from support.recordings import room_entries, write_recording
from support.small_network import TINY, open_state

from qvggt_core.errors import QuantizationError
from qvggt_core.model import load_model, read_checkpoint
from qvggt_core.model.checkpoint import save_checkpoint
from qvggt_core.quantize import Plan
from qvggt_core.training.clips import PoolConfig
from qvggt_core.training.pool import build_pool
from qvggt_ros.cli import app as cli
from qvggt_ros.io.calibration_images import read_calibration_data


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    save_checkpoint(path, open_state(), TINY)
    return path


def picture(seed, width=80, height=60):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(6):
        cv2.imwrite(str(images / f"{index:03}.png"), picture(index))
    (images / "notes.txt").write_text("not an image")
    return images


def run(capsys, *arguments):
    """Return exit status, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def test_quantize_calibrates_on_a_folder_and_the_file_says_so(source, folder, tmp_path, capsys):
    target, report = tmp_path / "q.safetensors", tmp_path / "report.json"
    arguments = ("--recipe", "awq", "--calibration", folder, "--images", 4, "--frames", 2)
    status, out, err = run(capsys, "quantize", source, "-o", target, *arguments, "--report", report)
    assert (status, err) == (0, err)
    assert "folder images (6 images)" in out
    assert not target.with_name("q.safetensors.partial").exists()
    metadata = read_checkpoint(target).metadata
    calibration = json.loads(metadata["calibration"])
    assert (calibration["images"], calibration["size"], calibration["frames_per_window"]) == (
        4,
        "56x42",
        2,
    )
    assert calibration["selection"] == "2 of 3 windows, seed 0"
    assert json.loads(report.read_text())["calibration"] == calibration
    assert metadata["recipe"] == "awq"
    load_model(target)


def test_an_interrupted_command_says_how_to_go_on(source, folder, tmp_path, capsys, monkeypatch):
    target = tmp_path / "q.safetensors"
    arguments = ("--recipe", "gptq", "--calibration", folder, "--images", 4, "--frames", 2)
    from qvggt_core.quantize.calibration_store import CalibrationStore

    finished = CalibrationStore.write

    def interrupted(store, site, reports):
        finished(store, site, reports)
        if site.path == "aggregator.frame_blocks.1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CalibrationStore, "write", interrupted)
        status, _, err = run(capsys, "quantize", source, "-o", target, *arguments)
    assert status == 130
    assert "run the same command again" in err
    status, out, _ = run(capsys, "quantize", source, "-o", target, *arguments)
    assert status == 0
    assert "3 blocks of a former run" in out


def test_finished_blocks_of_other_settings_are_not_deleted_silently(
    source, folder, tmp_path, capsys, caplog, monkeypatch
):
    # As outside of tests: warnings are for reports.
    monkeypatch.setattr(logging.getLogger(), "level", logging.ERROR)
    monkeypatch.setattr(logging.getLogger("qvggt_core.quantize"), "level", logging.NOTSET)
    target = tmp_path / "q.safetensors"
    workspace = tmp_path / "q.safetensors.partial"
    workspace.mkdir()
    (workspace / "run.json").write_text(json.dumps({"fingerprint": "another"}))
    (workspace / "aggregator.frame_blocks.0.safetensors").write_bytes(b"hours of work")
    arguments = ("--recipe", "awq", "--calibration", folder, "--images", 4, "--frames", 2)
    assert run(capsys, "quantize", source, "-o", target, *arguments)[0] == 0
    assert "holds 1 finished block(s) of a calibration with other settings" in caplog.text


def test_images_alone_choose_the_best_recipe(source, folder, tmp_path, capsys):
    target = tmp_path / "q.safetensors"
    arguments = ("--calibration", folder, "--images", 4, "--frames", 2)
    assert run(capsys, "quantize", source, "-o", target, *arguments)[0] == 0
    assert read_checkpoint(target).metadata["recipe"] == "qvggt+"
    status, _, err = run(capsys, "quantize", source, "-o", target)
    assert (status, "is there already: name another, or add --overwrite" in err) == (2, True)
    assert read_checkpoint(target).metadata["recipe"] == "qvggt+"
    assert run(capsys, "quantize", source, "-o", target, "--overwrite")[0] == 0
    assert read_checkpoint(target).metadata["recipe"] == "rtn"


def test_import_replaces_no_file_by_default(tmp_path, capsys):
    kept = tmp_path / "full.safetensors"
    kept.write_bytes(b"weights")
    status, _, err = run(capsys, "import", tmp_path / "model-v2.pt", "-o", kept)
    assert (status, "is there already" in err) == (2, True)
    assert kept.read_bytes() == b"weights"


def test_quantize_asks_for_what_is_missing(source, tmp_path, capsys):
    target = tmp_path / "q.safetensors"
    for arguments, message in (
        (("--recipe", "awq"), "the recipe awq needs images to calibrate on"),
        (("--plan", "auto"), "plan auto measures sensitivity"),
        (("--budget-mb", "3"), "a budget is solved by --plan auto"),
        (("--precision", "w4"), "is not like w4a16"),
        (("--group-size", "100"), "group size 100 is not one of"),
        (("--calibration", tmp_path / "nowhere"), "there is no"),
        (("--calibration", source), "is no folder, no recording"),
    ):
        status, _, err = run(capsys, "quantize", source, "-o", target, *arguments)
        assert status == 2
        assert message in " ".join(err.split())
    assert not target.exists()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images in"),
        ([picture(1)], "gives one image"),
        ([picture(1) * 0, picture(2) * 0], "are black"),
        ([picture(1) * 0 + 128, picture(2) * 0 + 90], "is of one colour"),
        ([picture(1), picture(2, width=60, height=80)], "has images of 2 shapes"),
        ([picture(1), picture(2, width=900, height=60)], "more than 8 times as long"),
    ],
)
def test_a_folder_of_no_use_is_refused_with_the_reason(source, tmp_path, images, message):
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / f"{index}.png"), image)
    with pytest.raises(QuantizationError, match=message):
        read_calibration_data(str(folder), read_checkpoint(source), images=4, frames=2)


def test_a_file_that_is_no_image_is_named(source, folder):
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(QuantizationError, match=r"broken\.jpg cannot be read"):
        read_calibration_data(str(folder), read_checkpoint(source), images=4, frames=2)


def test_videos_and_recordings_give_windows(source, tmp_path):
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 60))
    for index in range(5):
        writer.write(picture(index))
    writer.release()
    bag = write_recording(tmp_path / "room", room_entries(5))
    checkpoint = read_checkpoint(source)
    for path, expected in ((film, "video film.avi (5 frames)"), (bag, "recording room")):
        data = read_calibration_data(str(path), checkpoint, images=4, frames=2)
        assert data.source.startswith(expected)
        assert data.images.shape[:3] == (2, 2, 3)
        assert data.images.shape[-1] == 56
    (tmp_path / "no.mp4").write_bytes(b"no film")
    with pytest.raises(QuantizationError, match="cannot be read as a video"):
        read_calibration_data(str(tmp_path / "no.mp4"), checkpoint, images=4, frames=2)


def test_synthetic_worlds_and_pools_bring_their_truth(source, tmp_path):
    checkpoint = read_checkpoint(source)
    data = read_calibration_data("synthetic:studio", checkpoint, images=2, frames=2)
    assert data.truth is not None
    assert data.images.shape == (2, 2, 3, 42, 56)
    build_pool(PoolConfig(clips=2, frames=3, height=42, width=56, samples=0), tmp_path, workers=1)
    pooled = read_calibration_data(str(tmp_path), checkpoint, images=2, frames=2)
    assert pooled.truth is not None
    assert len(pooled.images) == 2


def test_sensitivity_leaves_a_table_a_map_and_a_plan(source, folder, tmp_path, capsys):
    out = tmp_path / "sweep"
    arguments = ("--calibration", folder, "--images", 2, "--frames", 2, "--group-size", 64)
    status, printed, _ = run(
        capsys, "sensitivity", source, "-o", out, *arguments, "--budget-bits", 12
    )
    assert status == 0
    assert "everything" in printed
    sweep = json.loads((out / "sensitivity.json").read_text())
    assert len(sweep["rows"]) == 9 * 5
    assert sweep["calibration"]["images"] == 2
    assert (out / "sensitivity.png").stat().st_size > 1000
    plan = Plan.from_yaml((out / "plan.yaml").read_text())
    target = tmp_path / "q.safetensors"
    arguments = ("--plan", out / "plan.yaml", "--group-size", 64)
    assert run(capsys, "quantize", source, "-o", target, *arguments)[0] == 0
    stored = Plan.from_yaml(read_checkpoint(target).metadata["plan"])
    assert stored == plan
    assert yaml.safe_load((out / "plan.yaml").read_text())["name"] == "auto"
