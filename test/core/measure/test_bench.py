"""What `qvggt bench` compares is comparable, and its raw results say what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from qvggt_kernels import PackedWeight, dequantize, pack
from support.modules import load_script
from support.small_network import TINY

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure import layers, timing
from qvggt_core.measure.bench import run
from qvggt_core.measure.bench_cases import Session, _timed
from qvggt_core.measure.bench_request import CASES, Request
from qvggt_core.measure.candidates import (
    BFLOAT16,
    FLOAT32,
    INT4,
    INT4_FP8,
    INT4_INTEGERS,
    build,
)
from qvggt_core.measure.layers import block_and_tokens, separate_calls
from qvggt_core.measure.roofline import Shape
from qvggt_core.measure.tables import as_markdown, find, read_results
from qvggt_core.model import read_checkpoint
from qvggt_core.quantize.random_checkpoint import write_random_checkpoint
from qvggt_ros.cli.app import main

CPU = torch.device("cpu")
OURS = (FLOAT32, BFLOAT16, INT4, INT4_INTEGERS, INT4_FP8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("speed") / "tiny-int4.safetensors"
    write_random_checkpoint(path, dataclasses.replace(TINY, point_head=True))
    return path


class Machine:
    """A clock and calls that take known times on it, on a machine that gets slower."""

    def __init__(self):
        self.now = 0.0
        self.slowness = 1.0
        self.calls = []

    def takes(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += seconds * self.slowness
            self.slowness *= 1.01

        return call


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setitem(timing.CLOCKS, "cpu", lambda: machine.now)
    return machine


def test_speedups_survive_a_machine_that_slows_down(machine):
    runs = {"one": machine.takes("one", 1.0), "three": machine.takes("three", 3.0)}
    times = timing.measure(runs, 10, "cpu")
    assert len(times["one"]) == len(times["three"]) == 10
    assert times["one"][-1] > 1.15 * times["one"][0]
    assert timing.speedup(times["three"], times["one"]) == pytest.approx(3, rel=0.011)


def test_rounds_go_forwards_and_backwards(machine):
    runs = {name: machine.takes(name, 1.0) for name in "abc"}
    timing.measure(runs, 3, "cpu")
    assert "".join(machine.calls) == "abccbaabc"


def test_short_calls_are_repeated_until_the_clock_resolves_them(machine):
    times = timing.measure({"short": machine.takes("short", 1e-4)}, 2, "cpu")
    assert len(machine.calls) >= 2 * 45
    assert len(times["short"]) == 2


def test_a_spent_budget_leaves_one_round(machine):
    times = timing.measure({"one": machine.takes("one", 1.0)}, 50, "cpu", budget_s=0.0)
    assert len(times["one"]) == 1


def test_speedups_of_different_rounds_are_refused():
    with pytest.raises(ValueError, match="zip"):
        timing.speedup([1.0, 2.0], [1.0])


def test_contenders_compute_the_same(checkpoint):
    heads = ("camera", "depth")
    images = torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = {c.name: c.forward(images, heads) for c in build(OURS, checkpoint, heads, CPU)}
    assert tuple(outputs) == OURS
    exact = outputs[FLOAT32]
    for name, tolerance in ((BFLOAT16, 0.1), (INT4, 0.1), (INT4_INTEGERS, 0.1), (INT4_FP8, 0.2)):
        for output in ("depth", "pose"):
            error = (outputs[name][output] - exact[output]).norm() / exact[output].norm()
            assert error < tolerance, (name, output)


def test_the_block_by_separate_calls_is_the_block(checkpoint):
    shape = Shape(3, 28, 42)
    for across_frames in (False, True):
        block, tokens, rope = block_and_tokens(read_checkpoint(checkpoint).config, shape, CPU)
        for scale in (block.ls1, block.ls2):
            scale.gamma.fill_(0.5)  # as it is made, the residual would hide the block
        with torch.inference_mode():
            expected = separate_calls(block, tokens, rope, across_frames)
            assert not torch.allclose(expected, tokens, atol=0.1)
            out = block(tokens.clone(), rope, across_frames=across_frames)
        assert torch.allclose(out, expected, atol=1e-5)


def test_linears_of_other_libraries_take_part_or_are_named(monkeypatch):
    def good(q, scales, bias):
        weight = q.float().unflatten(1, (scales.shape[1], -1)) * scales.float()[..., None]
        return lambda x: x @ weight.flatten(1).t() + bias

    def absent(q, scales, bias):
        raise ModuleNotFoundError("No module named 'absent'")

    monkeypatch.setattr(layers, "_OTHERS", {"good": good, "absent": absent})
    q = torch.randint(-8, 8, (8, 64), dtype=torch.int8)
    scales, bias, x = torch.rand(8, 2).bfloat16(), torch.randn(8), torch.randn(3, 64)
    runs, widths, missing = {}, {}, {}
    layers._add_others(runs, widths, (q, scales, bias), x, range(2), missing)
    expected = dequantize(PackedWeight(pack(q, 32), scales), torch.float32)
    assert torch.allclose(runs["good"](), x @ expected.t() + bias, atol=1e-4)
    assert set(runs) == set(widths) == {"good"}
    assert missing == {"absent": "ModuleNotFoundError: No module named 'absent'"}


def test_the_command_measures_every_case(checkpoint, tmp_path, capsys):
    options = "--frames 2 --sizes 28x42 --threads 1 --clock cpu --rounds 2 --window 3"
    contenders = [word for name in (FLOAT32, INT4, INT4_FP8) for word in ("--contender", name)]
    common = ["bench", str(checkpoint), *options.split(), *contenders]
    timed = [case for case in CASES if case != "memory"]
    main_ends_well([*common, "-o", str(tmp_path / "a"), "--cases", ",".join(timed)])
    main_ends_well([*common, "-o", str(tmp_path / "b"), "--cases", "memory"])

    results = read_results(tmp_path / "a" / "bench.json")
    assert {row["case"] for row in results["rows"]} == set(timed)
    for row in results["rows"]:
        assert len(row["seconds"]) >= 1
        assert min(row["seconds"]) > 0
        assert row["ratio"] > 0
    assert results["machine"]["cpu"]
    assert results["machine"]["gpu"].startswith("none") or torch.cuda.is_available()
    assert results["request"]["rounds"] == 2
    page = (tmp_path / "a" / "bench.md").read_text()
    assert page == as_markdown(results)
    assert all(row["what"] in page for row in results["rows"])
    streams = [row for row in results["rows"] if row["case"] == "stream"]
    assert all(row["facts"]["bit_equal"] for row in streams)

    memory = read_results(tmp_path / "b" / "bench.json")
    for measured in (results, memory):
        assert measured["not_measured"][INT4_FP8] == "only GPUs multiply 8-bit floats"
    where = "2 frames of 28x42"
    dense, packed = (find(memory, "memory", where, name) for name in (FLOAT32, INT4))
    assert dense["facts"]["peak_mib"] > dense["facts"]["interpreter_mib"] > 0
    assert packed["ratio"] == dense["facts"]["peak_mib"] / packed["facts"]["peak_mib"]


def main_ends_well(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code


def test_a_contender_that_fails_is_named_and_the_next_one_is_the_baseline(checkpoint):
    def fails():
        raise BenchmarkError("it does not run as a CUDA graph")

    request = Request(checkpoint, threads=1, device=CPU, clock="wall", rounds=2)
    session = Session(request, peaks=None, advance=print)
    runs = {"graph": fails, "eager": lambda: None, "other": lambda: None}
    rows = _timed(session, "network", "2 frames", runs, {})
    assert [row.contender for row in rows] == ["eager", "other"]
    assert rows[0].ratio == 1.0
    assert session.missing == {"graph, 2 frames": "it does not run as a CUDA graph"}
    assert _timed(session, "network", "2 frames", {"graph": fails}, {}) == []


def test_rows_are_kept_as_they_are_known(checkpoint):
    kept = []
    request = Request(
        checkpoint, cases=("parts",), frames=(1,), sizes=((28, 42),), device=CPU, rounds=1
    )
    results = run(request, keep=lambda now: kept.append(json.loads(json.dumps(now))))
    assert [len(now["rows"]) for now in kept] == [1, 2, 3, 4]
    assert not any(now["complete"] for now in kept)
    assert "Not complete" in as_markdown(kept[0])
    assert json.loads(json.dumps(results)) == kept[-1] | {"complete": True}
    assert "Not complete" not in as_markdown(results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases", "speed"], "not among memory"),
        (["--contender", "unknown"], "not among original float32"),
        (["--sizes", "30x42"], "multiples of 14"),
        (["--sizes", "large"], "HEIGHTxWIDTH"),
        (["--frames", "0"], "0 frames"),
        (["--clock", "cuda", "--device", "cpu"], "clock cuda on cpu"),
    ],
)
def test_what_cannot_be_measured_is_refused(checkpoint, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        main(["bench", str(checkpoint), "-o", str(tmp_path), *options])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_original_needs_its_clone(checkpoint, tmp_path):
    with pytest.raises(BenchmarkError, match="holds no vggt/models"):
        build(["original float32"], checkpoint, ("camera", "depth"), CPU, tmp_path)
    with pytest.raises(BenchmarkError, match="clone"):
        build(["original float32"], checkpoint, ("camera", "depth"), CPU)


def test_foreign_results_are_refused(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"format": "other/3"}))
    with pytest.raises(BenchmarkError, match="other/3"):
        read_results(path)
    path.write_text("[]")
    with pytest.raises(BenchmarkError, match="no results"):
        read_results(path)


def test_the_table_of_speed_is_that_of_the_raw_results():
    root = Path(__file__).parents[3]
    writer = load_script("benchmarks/speed_table.py")
    text = (root / "docs/performance.md").read_text(encoding="utf-8")
    assert writer.BEGIN in text
    assert writer.replaced(text, read_results(writer.RESULTS)) == text
