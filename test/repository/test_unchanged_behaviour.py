"""What a user gets from the commands does not change when the code is rearranged.

Everything here goes through the installed command and the files that it writes, so that the
same test runs on any layout of the code, back to the commit before its rearrangement (86e1490,
which gave the golden figures). A short synthetic flight and a quantization are compared with it;
what came later (confirmation, refinement, a scale from odometry, further kernels) is switched off.
On machines that computed the golden bytes (`python test/repository/test_unchanged_behaviour.py`
adds this machine's; only do so on a commit whose behaviour is known to be right) trajectory, cloud,
every message and the quantized tensors are equal to the byte. Other machines get more room:
libraries take other kernels there, which round differently.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rosbags.highlevel import AnyReader
from safetensors.torch import load_file

from qvggt_core.model import VGGT, ModelConfig, save_checkpoint

GOLDEN = Path(__file__).with_name("unchanged_behaviour.json")
COMMAND = Path(sysconfig.get_path("scripts")) / "qvggt"
FLIGHT = ["--world", "studio", "--flight", "survey", "--seed", "3", "--frames", "20"]
FLIGHT += ["--width", "128", "--height", "96", "--step", "0.1"]
SETTINGS = {"compute_dtype": "float32", "threads": "1", "confirm": "false", "refine": "false"}
OPTIONS = ("--no-odometry",)
"""Parameters and options that a version does not have are left out."""
TOPICS = {
    "/qvggt/pose",
    "/qvggt/odometry",
    "/qvggt/path",
    "/qvggt/depth/image",
    "/qvggt/depth/camera_info",
    "/qvggt/points",
    "/qvggt/confidence",
    "/tf",
}
FLIGHT_FILES = ("trajectory.tum", "points.ply")
ROOM_NETWORK = Path(__file__).parents[2] / "benchmarks/checkpoints/qvggt-small-int4.safetensors"
"""What shipped when the figures were taken."""

NETWORK = Path(__file__).with_name("unchanged_behaviour_network.json")
"""Sizes of a small network to quantize."""


def run(*arguments: str | Path, native: str = "0") -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400", "NO_COLOR": "1"}
    environment["QVGGT_NATIVE"] = native
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def settings() -> list[str]:
    known = run("params")
    chosen = {name: value for name, value in SETTINGS.items() if f"`{name}`" in known}
    words = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    usage = run("replay", "--help")
    return words + [option for option in OPTIONS if option in usage]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def machine() -> str:
    """What decides on bits: the processor's instructions and the libraries that compute."""
    flags = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        words = next((line for line in lines if line.startswith("flags")), "").split()
        flags = " ".join(sorted(word for word in words if word.startswith(("avx", "amx", "fma"))))
    parts = [platform.machine(), flags]
    parts += [version(name) for name in ("numpy", "torch", "scipy", "opencv-python-headless")]
    return sha256(" ".join(parts).encode())[:16]


def processor() -> str:
    """What decides on the bits of a flight besides: libraries choose kernels by the model."""
    facts = dict.fromkeys(("vendor_id", "cpu family", "model"), "")
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in facts:
                facts[name.strip()] = value.strip()
    return sha256(" ".join([machine(), *facts.values()]).encode())[:16]


def digests(result: Path) -> dict[str, str]:
    """Digests of the files and, by topic, of the messages of a result."""
    found = {name: hashlib.sha256((result / name).read_bytes()) for name in FLIGHT_FILES}
    with AnyReader([result / "bag"]) as reader:
        for connection, time, data in reader.messages():
            if connection.topic in TOPICS:
                digest = found.setdefault(connection.topic, hashlib.sha256())
                digest.update(time.to_bytes(8, "little") + data)
    return {name: digest.hexdigest() for name, digest in found.items()}


def fly(directory: Path) -> dict[str, Any]:
    run("synth", "-o", directory / "flight", *FLIGHT)
    result = directory / "result"
    network = ("--checkpoint", ROOM_NETWORK)
    run("replay", directory / "flight", "-o", result, "--no-report", *network, *settings())
    metrics = json.loads((result / "metrics.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((result / "errors.csv").open(encoding="utf-8")))
    return {
        "numbers": {
            "metrics": flat(metrics),
            "poses": np.loadtxt(result / "trajectory.tum")[:, 1:].tolist(),
            "errors": {name: [float(row[name] or "nan") for row in rows] for name in rows[0]},
        },
        "digests": digests(result),
    }


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Names and leaves of nested facts."""
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in flat(each, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {
            k: v
            for index, each in enumerate(value)
            for k, v in flat(each, f"{name}/{index}").items()
        }
    return {name: value}


def quantize(directory: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    config = ModelConfig.from_dict(json.loads(NETWORK.read_text(encoding="utf-8")))
    network = VGGT(config).initialise()
    state = {
        name: torch.full_like(value, 0.5) if name.endswith("gamma") else value
        for name, value in network.state_dict().items()
    }
    original = directory / "network.safetensors"
    save_checkpoint(original, state, config)
    found: dict[str, Any] = {"numbers": {}, "digests": {}}
    images = ["--calibration", directory / "flight", "--images", "8", "--frames", "2"]
    images += ["--width", "56"]
    for recipe in ("rtn", "awq", "gptq"):
        path = directory / f"{recipe}.safetensors"
        run("quantize", original, "-o", path, "--recipe", recipe, "--group-size", "64", *images)
        tensors = sorted(load_file(path).items())
        found["numbers"][recipe] = {name: [*value.shape] for name, value in tensors}
        content = b"".join(
            name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes()
            for name, value in tensors
            if value.numel() and value.ndim
        )
        found["digests"][recipe] = sha256(content)
    return found


def measure(directory: Path) -> dict[str, Any]:
    return {"flight": fly(directory), "quantization": quantize(directory)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unchanged")


@pytest.fixture(scope="module")
def measured(directory: Path) -> dict[str, Any]:
    return json.loads(json.dumps(measure(directory)))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def golden_bytes(known: dict[str, Any], key: str) -> dict[str, Any]:
    if key not in known:
        pytest.skip(f"no golden bytes of a machine like this one ({key})")
    return known[key]


def is_golden(golden: dict[str, Any]) -> bool:
    """Whether a machine like this one gave golden bytes of the flight."""
    return processor() in golden["flight_digests"]


def test_a_flight_gives_the_same_numbers(measured: dict[str, Any], golden: dict[str, Any]) -> None:
    before, now = (each["flight"]["numbers"] for each in (golden, measured))
    tolerance = 1e-4 if machine() in golden["digests"] else 2e-2
    np.testing.assert_allclose(now["poses"], before["poses"], atol=tolerance)


def test_errors_of_each_frame_stay(measured: dict[str, Any], golden: dict[str, Any]) -> None:
    before, now = (each["flight"]["numbers"]["errors"] for each in (golden, measured))
    assert list(now) == list(before), "columns of errors.csv are public"
    room = {"rtol": 1e-9, "atol": 1e-9} if is_golden(golden) else {"rtol": 0.1, "atol": 0.05}
    for name, values in before.items():
        np.testing.assert_allclose(now[name], values, **room, err_msg=name)


def test_a_flights_bytes_are_the_same_on_a_machine_of_the_golden_figures(
    measured: dict[str, Any], golden: dict[str, Any]
) -> None:
    assert measured["flight"]["digests"] == golden_bytes(golden["flight_digests"], processor())


def test_two_processes_give_a_flight_the_same_bytes(
    measured: dict[str, Any], directory: Path
) -> None:
    first, second = directory / "first", directory / "second"
    for result in (first, second):
        run("replay", directory / "flight", "-o", result, "--no-report", native="1")
    assert digests(first) == digests(second)


def test_metrics_keep_their_names_and_their_values(
    measured: dict[str, Any], golden: dict[str, Any]
) -> None:
    before, now = (each["flight"]["numbers"]["metrics"] for each in (golden, measured))
    assert before.keys() <= now.keys(), "keys of metrics.json are public"
    is_known = is_golden(golden)
    room = {"rel": 1e-9, "abs": 1e-9} if is_known else {"rel": 0.05, "abs": 0.02}
    for name, value in before.items():
        if isinstance(value, float):
            # Small errors are differences of like numbers, so bits of other machines show.
            assert now[name] == pytest.approx(value, **room), name
        elif isinstance(value, int) and "map_points" in name:
            assert now[name] == pytest.approx(value, rel=0.02), name
        else:
            assert now[name] == value, name


def test_quantization_gives_the_same_tensors(
    measured: dict[str, Any], golden: dict[str, Any]
) -> None:
    assert measured["quantization"]["numbers"] == golden["quantization"]["numbers"]


def test_quantized_bytes_are_the_same_on_a_machine_of_the_golden_figures(
    measured: dict[str, Any], golden: dict[str, Any]
) -> None:
    digests = golden_bytes(golden["digests"], machine())
    assert measured["quantization"]["digests"] == digests["quantization"]


def remember(figures: dict[str, Any]) -> None:
    """Add this machine's bytes to the golden figures, and the first machine's numbers."""
    kept = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    flight, quantized = (figures[name].pop("digests") for name in ("flight", "quantization"))
    kept.setdefault("flight_digests", {})[processor()] = flight
    kept.setdefault("digests", {})[machine()] = {"quantization": quantized}
    kept = {**figures, **kept}
    GOLDEN.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        remember(measure(Path(scratch)))
    sys.stdout.write(f"wrote {GOLDEN} of machine {machine()}, {processor()}\n")
