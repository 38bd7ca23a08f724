"""Tuning: what is measured, what is written, and what it needs."""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import Int4Linear, IntegerLinear, gemm_configs, tuning
from qvggt_kernels.gemm_configs import ANY, BUCKETS, Config, Entry
from torch import nn

from qvggt_ros.cli import app as cli

DEQUANTIZE = Config("dequantize", None)
ARCHITECTURES = gemm_configs.shipped_architectures()
NAME = "NVIDIA Test 9000"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = gemm_configs.cache_file(NAME)
    path.parent.mkdir(parents=True)
    return path


def test_candidates_are_within_what_a_cache_may_hold():
    for architecture in ARCHITECTURES:
        for operator in gemm_configs.OPERATORS:
            for bucket in BUCKETS:
                entries = tuple(
                    Entry(operator, ANY, bucket, config)
                    for config in tuning.candidates(operator, bucket, architecture)
                )
                assert len(set(entries)) == len(entries) > 1
                assert gemm_configs.parse(gemm_configs.render(entries)) == entries


def test_a_network_is_measured_by_its_shapes():
    network = nn.Sequential(
        Int4Linear(256, 64, group_size=32),
        Int4Linear(256, 64, group_size=32),
        IntegerLinear(128, 32, weight_bits=4, activation_bits=8),
        nn.Linear(8, 8),
    )
    assert tuning.shapes_of(network) == {
        tuning.Shape("int4", 64, 256, 32),
        tuning.Shape("int8", 64, 256, 0),
        tuning.Shape("int8", 32, 128, 0),
    }


def test_the_fastest_is_written_and_other_shapes_stay(cache, monkeypatch):
    """Without a GPU: its name and its times are made up, all else is real."""
    triton = pytest.importorskip("triton")
    other = Entry("int4", (8, 32), 16, DEQUANTIZE)
    replaced = Entry("int4", (64, 256), 16, DEQUANTIZE)
    cache.write_text(gemm_configs.render([other, replaced], device=NAME, triton=triton.__version__))
    monkeypatch.setattr(tuning, "require_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: NAME)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(
        tuning,
        "_measure",
        lambda shape, rows, configs, device: {c: -i for i, c in enumerate(configs)},
    )
    steps = []
    path, entries = tuning.tune(
        [tuning.Shape("int4", 64, 256, 32)], rows=(16, 2048), advance=lambda *now: steps.append(now)
    )
    assert path == cache
    assert entries == [
        Entry("int4", (64, 256), rows, tuning.candidates("int4", rows, 90)[-1])
        for rows in (16, 2048)
    ]
    assert gemm_configs.tuned(NAME, triton.__version__) == (*entries, other)
    assert steps[0] == (0, 2, "int4 64x256, 16 rows")
    assert not list(cache.parent.glob("*.tmp"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_command_says_what_it_needs(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", "any.safetensors"])
    assert ended.value.code == 2
    assert "there is no CUDA device here" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_measuring_on_the_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shapes = [tuning.Shape("int4", 256, 256, 128), tuning.Shape("int8", 256, 256, 0)]
    path, entries = tuning.tune(shapes, rows=(16, 1024))
    assert path.is_file()
    assert len(entries) == 4
    assert (
        gemm_configs.for_device(torch.cuda.current_device(), "int4", 256, 256, 16)
        == entries[0].choice
    )
