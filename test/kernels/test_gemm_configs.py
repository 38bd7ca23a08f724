"""Kernel configurations: what is shipped, and what a user's cache adds."""

from __future__ import annotations

import json
import logging

import pytest
from qvggt_kernels import gemm_configs
from qvggt_kernels.gemm_configs import ANY, Blocks, Config, ConfigError, Entry

FUSED = Config("fused", Blocks(16, 64, 128, 4, 4, 4))
DEQUANTIZE = Config("dequantize", None)
ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = gemm_configs.cache_file("NVIDIA Test 9000")
    assert path == tmp_path / "qvggt" / "kernels" / "nvidia-test-9000.json"
    path.parent.mkdir(parents=True)
    return path


def test_every_architecture_ships_configurations():
    assert gemm_configs.shipped_architectures() == ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("operator", gemm_configs.OPERATORS)
def test_every_product_has_a_shipped_configuration(architecture, operator):
    for rows in (1, 2, 33, 1041, 50000):
        config = gemm_configs.select(gemm_configs.shipped(architecture), operator, (1000, 96), rows)
        assert config.kernel in gemm_configs.OPERATORS[operator]
        assert (config.blocks is None) == (config.kernel == "dequantize")


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((7, 5), None), ((8, 0), 80), ((8, 7), 87), ((9, 0), 90), ((10, 3), 100), ((12, 1), 120)],
)
def test_a_gpu_without_configurations_takes_those_of_the_one_before(capability, architecture):
    assert gemm_configs.architecture_of(capability) == architecture


def test_rows_fall_into_buckets():
    assert [gemm_configs.bucket_of(rows) for rows in (1, 16, 17, 1041, 10**6)] == [
        16,
        16,
        32,
        2048,
        8192,
    ]


def test_a_weights_own_shape_comes_before_any():
    entries = [
        Entry("int4", ANY, 64, FUSED),
        Entry("int4", ANY, 8192, DEQUANTIZE),
        Entry("int4", (1024, 512), 32, DEQUANTIZE),
    ]
    assert gemm_configs.select(entries, "int4", (512, 512), 30) == FUSED
    assert gemm_configs.select(entries, "int4", (512, 512), 65) == DEQUANTIZE
    assert gemm_configs.select(entries, "int4", (1024, 512), 1) == DEQUANTIZE
    with pytest.raises(ConfigError, match="int8"):
        gemm_configs.select(entries, "int8", (512, 512), 1)


def test_configurations_survive_their_file(cache):
    entries = (Entry("int4", (1024, 512), 32, FUSED), Entry("int4", ANY, 64, DEQUANTIZE))
    cache.write_text(gemm_configs.render(entries, device="NVIDIA Test 9000", triton="3.9.0"))
    assert gemm_configs.tuned("NVIDIA Test 9000", "3.9.0") == entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"triton": "3.8.0"}, "Triton 3.8.0"),
        ({"entries": {}}, "no kernel configurations"),
        ({"entries": None}, "no kernel configurations"),
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
def test_a_broken_cache_is_reported_and_ignored(cache, caplog, change, message):
    content = json.loads(
        gemm_configs.render([Entry("int4", ANY, 64, FUSED)], device="x", triton="3.9.0")
    )
    for key, value in change.items():
        (content if key in content else content["entries"][0])[key] = value
    if change == {"entries": {}}:
        content["entries"] = {"a": 1}
    cache.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert gemm_configs.tuned("NVIDIA Test 9000", "3.9.0") == ()
    assert message in caplog.text
    assert "qvggt tune" in caplog.text


@pytest.mark.parametrize("content", [b"", b"[" * 10**5, b"\xff", b" " * (2**20 + 1), b"1" * 5000])
def test_a_file_that_is_no_configuration_is_ignored(cache, content):
    cache.write_bytes(content)
    assert gemm_configs.tuned("NVIDIA Test 9000", "3.9.0") == ()
