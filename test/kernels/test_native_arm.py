"""The C++ kernels for ARM, on one or under emulation: what they alone have."""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import GROUP_SIZES, Backend, backends, cpu_features, dequantize, native
from qvggt_kernels.native import heads as native_heads
from qvggt_kernels.native import norms as native_norms
from support.instruction_sets import assert_float32_is_kept
from support.weights import normal, packed_weight

from qvggt_core.model import ComputeSettings, load_model, shipped_checkpoint


@pytest.fixture
def dotprod(use_instructions):
    """Run a test with the kernels for ARM with dot products."""
    use_instructions("dotprod")


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("cortex-a53", None),
        ("cortex-a72", None),
        ("cortex-a76", "dotprod"),
        ("neoverse-n1", "dotprod"),
        ("max", "i8mm"),
    ],
)
def test_what_linux_reports_of_a_processor_decides(monkeypatch, emulated, processor, expected):
    library = emulated(processor)
    monkeypatch.delenv("QVGGT_NATIVE", raising=False)
    monkeypatch.setattr(cpu_features, "_arm_capabilities", lambda: library.capabilities)
    for name in ("avx512", "avx_vnni", "avx2"):
        monkeypatch.setattr(cpu_features, f"has_{name}", lambda: False)
    assert native.instruction_set.__wrapped__() == expected
    # The one binary loads on all of them.
    assert library.qvggt_interface() == native._INTERFACE


def test_an_older_processor_does_without_and_says_what_it_lacks(monkeypatch, tmp_path):
    monkeypatch.delenv("QVGGT_NATIVE", raising=False)
    monkeypatch.setattr(native, "instruction_set", lambda: None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    expected = "not for this processor, which lacks dot products of 8-bit integers (ARMv8.2)"
    assert native.open_library(tmp_path) == (None, expected)


def test_float32_and_integers_are_for_kernels_and_bfloat16_is_for_pytorch(dotprod):
    weight, heads = packed_weight(8, 64), normal(1, 2, 5, 64)
    for rows in (3, 65):
        tokens = normal(rows, 64)
        assert backends.choose("int4_linear", tokens, weight) == Backend.NATIVE
        assert backends.choose("int4_linear_int8", tokens, weight) == Backend.NATIVE
        assert backends.choose("int4_linear", tokens.bfloat16(), weight) == Backend.CPU
    assert backends.choose("attention", heads, heads, heads) == Backend.NATIVE
    assert backends.choose("int8_attention", heads, heads, heads) == Backend.REFERENCE
    assert not native.supports_int4_linear(normal(0, 64), weight)


@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize(
    ("count", "rows", "columns"),
    # The last is large enough for several threads.
    [(65, 1, 128), (97, 33, 384), (70, 150, 640), (66, 16, 1152), (200, 200, 640)],
)
def test_many_float32_tokens_keep_float32(dotprod, threads, group, count, rows, columns):
    x, bias = normal(count, columns, seed=1), normal(rows, seed=2)
    packed = packed_weight(rows, columns, group, zeros=rows > 1, bias=bias)
    assert_float32_is_kept(x, packed, threads)


@pytest.mark.parametrize("columns", [32, 96, 544])
def test_many_float32_tokens_that_are_one_somewhere_read_the_exact_weights(dotprod, columns):
    packed = packed_weight(35, columns, 32, zeros=True)
    ones = torch.eye(columns).repeat(1 + 64 // columns, 1)
    ones = torch.cat([ones, ones])
    found = native.int4_linear(ones, packed)
    assert torch.equal(found, ones @ dequantize(packed, torch.float32).t())


def test_a_float32_token_does_not_depend_on_those_beside_it(dotprod):
    x, packed = normal(130, 256, seed=1), packed_weight(40, 256, 64)
    together = native.int4_linear(x, packed)
    assert torch.equal(native.int4_linear(x[7:90], packed), together[7:90])


@pytest.mark.parametrize("name", ["dotprod", "i8mm"])
def test_the_network_that_ships_has_the_bits_of_pytorch_with_integer_products(
    use_instructions, monkeypatch, name
):
    heads = ("camera", "depth")
    model = load_model(shipped_checkpoint(), "cpu", torch.float32, heads)
    model.configure(ComputeSettings(linears="int8"))
    images = normal(1, 2, 3, 70, 98).sigmoid()
    # The other kernels round differently, and quantized tokens would differ by whole steps.
    for module, other in (
        (native, "int4_linear"),
        (native_heads, "attention"),
        (native_heads, "qk_norm_rope"),
        (native_norms, "layer_norm"),
    ):
        monkeypatch.setattr(module, f"supports_{other}", lambda *_, **__: False)
    monkeypatch.setattr(backends, "supports_convolution3x3", lambda *_: False)
    monkeypatch.setattr(backends, "supports_dense_output", lambda *_: False)
    with torch.inference_mode():
        with monkeypatch.context() as without_kernels:
            without_kernels.setattr(native, "load", lambda: None)
            expected = model(images)
        use_instructions(name)
        found = model(images)
    assert torch.equal(found.depth, expected.depth)
    assert torch.equal(found.pose_encodings[-1], expected.pose_encodings[-1])
