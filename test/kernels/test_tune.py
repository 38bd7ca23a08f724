"""The tables of kernels: what is shipped, what a user's cache adds, and how it is measured."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from qvggt_kernels import Int4Linear, IntegerLinear, table, tune
from qvggt_kernels.table import ANY, BUCKETS, Blocks, Choice, Entry, TableError
from torch import nn

from qvggt_ros.cli import app as cli

FUSED = Choice("fused", Blocks(16, 64, 128, 4, 4, 4))
DEQUANTIZE = Choice("dequantize", None)
ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = table.cache_file("NVIDIA Test 9000")
    assert path == tmp_path / "qvggt" / "kernels" / "nvidia-test-9000.json"
    path.parent.mkdir(parents=True)
    return path


def test_every_architecture_ships_a_table():
    assert table.shipped_architectures() == ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("operator", table.OPERATORS)
def test_a_shipped_table_answers_for_every_product(architecture, operator):
    for rows in (1, 2, 33, 1041, 50000):
        choice = table.choose(table.shipped(architecture), operator, (1000, 96), rows)
        assert choice.kernel in table.OPERATORS[operator]
        assert (choice.blocks is None) == (choice.kernel == "dequantize")


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((7, 5), None), ((8, 0), 80), ((8, 7), 87), ((9, 0), 90), ((10, 3), 100), ((12, 1), 120)],
)
def test_a_gpu_without_a_table_takes_that_of_the_one_before(capability, architecture):
    assert table.architecture_of(capability) == architecture


def test_rows_fall_into_buckets():
    assert [table.bucket_of(rows) for rows in (1, 16, 17, 1041, 10**6)] == [16, 16, 32, 2048, 8192]


def test_the_shape_of_its_own_comes_before_any():
    entries = [
        Entry("int4", ANY, 64, FUSED),
        Entry("int4", ANY, 8192, DEQUANTIZE),
        Entry("int4", (1024, 512), 32, DEQUANTIZE),
    ]
    assert table.choose(entries, "int4", (512, 512), 30) == FUSED
    assert table.choose(entries, "int4", (512, 512), 65) == DEQUANTIZE
    assert table.choose(entries, "int4", (1024, 512), 1) == DEQUANTIZE
    with pytest.raises(TableError, match="int8"):
        table.choose(entries, "int8", (512, 512), 1)


def test_a_table_survives_its_file(cache):
    entries = (Entry("int4", (1024, 512), 32, FUSED), Entry("int4", ANY, 64, DEQUANTIZE))
    cache.write_text(table.render(entries, device="NVIDIA Test 9000", triton="3.9.0"))
    assert table.tuned("NVIDIA Test 9000", "3.9.0") == entries


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"triton": "3.8.0"}, "Triton 3.8.0"),
        ({"entries": {}}, "not a table"),
        ({"entries": None}, "not a table"),
        ({"operator": "int2"}, "int2"),
        ({"kernel": "triton"}, "triton"),
        ({"rows": 17}, "17 rows"),
        ({"n": -1}, "n = -1"),
        ({"k": "512"}, "k = '512'"),
        ({"blocks": [16, 64, 128, 4, 4]}, "6 numbers"),
        ({"blocks": [2**20, 64, 128, 4, 4, 4]}, "m = 1048576"),
        ({"blocks": [16, 48, 128, 4, 4, 4]}, "power of two"),
        ({"blocks": [16, 64, 32, 4, 4, 4]}, "64 columns"),
        ({"blocks": [16, 64, 128, 4, 4, 100]}, "stages = 100"),
    ],
)
def test_a_broken_cache_is_reported_and_left(cache, caplog, change, said):
    content = json.loads(table.render([Entry("int4", ANY, 64, FUSED)], device="x", triton="3.9.0"))
    for key, value in change.items():
        (content if key in content else content["entries"][0])[key] = value
    if change == {"entries": {}}:
        content["entries"] = {"a": 1}
    cache.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert table.tuned("NVIDIA Test 9000", "3.9.0") == ()
    assert said in caplog.text
    assert "qvggt tune" in caplog.text


@pytest.mark.parametrize("content", [b"", b"[" * 10**5, b"\xff", b" " * (2**20 + 1), b"1" * 5000])
def test_what_is_no_table_at_all_is_left_too(cache, content):
    cache.write_bytes(content)
    assert table.tuned("NVIDIA Test 9000", "3.9.0") == ()


def test_candidates_are_within_what_a_cache_may_hold():
    for architecture in ARCHITECTURES:
        for operator in table.OPERATORS:
            for bucket in BUCKETS:
                entries = tuple(
                    Entry(operator, ANY, bucket, choice)
                    for choice in tune.candidates(operator, bucket, architecture)
                )
                assert len(set(entries)) == len(entries) > 1
                assert table.parse(table.render(entries)) == entries


def test_a_network_is_measured_by_its_shapes():
    network = nn.Sequential(
        Int4Linear(256, 64, group_size=32),
        Int4Linear(256, 64, group_size=32),
        IntegerLinear(128, 32, weight_bits=4, activation_bits=8),
        nn.Linear(8, 8),
    )
    assert tune.shapes_of(network) == {
        tune.Shape("int4", 64, 256, 32),
        tune.Shape("int8", 64, 256, 0),
        tune.Shape("int8", 32, 128, 0),
    }


def test_the_fastest_is_written_and_other_shapes_stay(cache, monkeypatch):
    """Without a GPU: its name and its times are made up, all else is real."""
    triton = pytest.importorskip("triton")
    other = Entry("int4", (8, 32), 16, DEQUANTIZE)
    replaced = Entry("int4", (64, 256), 16, DEQUANTIZE)
    name = "NVIDIA Test 9000"
    cache.write_text(table.render([other, replaced], device=name, triton=triton.__version__))
    monkeypatch.setattr(tune, "require_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(
        tune,
        "_measure",
        lambda shape, rows, choices, device: {c: -i for i, c in enumerate(choices)},
    )
    told = []
    path, entries = tune.tune(
        [tune.Shape("int4", 64, 256, 32)], rows=(16, 2048), advance=lambda *now: told.append(now)
    )
    assert path == cache
    assert entries == [
        Entry("int4", (64, 256), rows, tune.candidates("int4", rows, 90)[-1]) for rows in (16, 2048)
    ]
    assert table.tuned(name, triton.__version__) == (*entries, other)
    assert told[0] == (0, 2, "int4 64x256, 16 rows")
    assert not list(cache.parent.glob("*.tmp"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_command_says_what_it_needs(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune"])
    assert ended.value.code == 2
    assert "there is no CUDA device here" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_measuring_on_the_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shapes = [tune.Shape("int4", 256, 256, 128), tune.Shape("int8", 256, 256, 0)]
    path, entries = tune.tune(shapes, rows=(16, 1024))
    assert path.is_file()
    assert len(entries) == 4
    assert table.for_device(torch.cuda.current_device(), "int4", 256, 256, 16) == entries[0].choice
