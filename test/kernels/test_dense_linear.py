"""Linears with plain weights: the exact product to rounding, by every way that computes them."""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import Backend, DenseLinear, backends, cpu_features, dense_linear, native
from support.instruction_sets import outputs
from support.weights import normal

ROUNDING = {torch.float32: 2**-20, torch.bfloat16: 2**-8}
"""Of a sum of some hundred products, relative to their magnitudes, and of the result."""


@pytest.fixture
def avx512(use_instructions):
    """Run a test with the kernels for AVX-512."""
    use_instructions("avx512")


def arguments(tokens, columns, rows, dtype):
    x, weight = normal(*tokens, columns), normal(rows, columns, seed=1) / columns**0.5
    return x.to(dtype), weight.to(dtype), normal(rows, seed=2).to(dtype)


def assert_exact_to_rounding(found, x, weight, bias):
    x, weight, bias = (part.double() for part in (x, weight, bias))
    exact = torch.einsum("...k,nk->...n", x, weight) + bias
    terms = torch.einsum("...k,nk->...n", x.abs(), weight.abs()) + bias.abs()
    assert found.shape == exact.shape
    unit = ROUNDING[found.dtype]
    assert ((found.double() - exact).abs() <= 2**-20 * terms + unit * exact.abs()).all()


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("tokens", "columns", "rows"),
    # One number, odd ends, several panels and tasks, and enough for three threads.
    [((1,), 64, 1), ((2, 3), 192, 65), ((131,), 128, 130), ((3, 100), 384, 257)],
)
def test_a_kernels_product_is_exact_to_rounding(avx512, threads, dtype, tokens, columns, rows):
    parts = arguments(tokens, columns, rows, dtype)
    first, *others = outputs(*parts, run=native.dense_linear, threads=threads)
    assert_exact_to_rounding(first, *parts)
    assert all(torch.equal(first, other) for other in others), "threads change no bit"


def test_tokens_that_are_one_somewhere_read_the_weights(avx512):
    weight = normal(70, 192)
    assert torch.equal(native.dense_linear(torch.eye(192), weight), weight.t())


def test_strided_tokens_and_weights_are_read_right(avx512):
    x, weight = normal(130, 5, 2).transpose(0, 2)[..., :128], normal(128, 9).t()
    assert_exact_to_rounding(native.dense_linear(x, weight), x, weight, torch.zeros(9))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_the_others_are_too(dtype, backend):
    if backend is Backend.CPU and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    if dtype == torch.bfloat16 and not cpu_features.multiplies_bfloat16():
        pytest.skip("oneDNN has no products of bfloat16 for this processor")
    parts = arguments((2, 70), 96, 33, dtype)
    assert_exact_to_rounding(dense_linear(*parts, backend=backend), *parts)


def test_many_tokens_go_to_the_kernel_and_few_to_pytorch(avx512, monkeypatch):
    monkeypatch.setattr(cpu_features, "has_amx", lambda: False)
    monkeypatch.setattr(cpu_features, "prefers_onednn", lambda: True)
    for dtype, other in ((torch.float32, Backend.CPU), (torch.bfloat16, Backend.REFERENCE)):
        x, weight, bias = arguments((65,), 64, 8, dtype)
        assert backends.choose("dense_linear", x, weight, bias) == Backend.NATIVE
        assert backends.choose("dense_linear", x[:64], weight, bias) == other
        assert backends.choose("dense_linear", x[:, :32], weight[:, :32], bias) == other


def test_a_matrix_unit_and_intels_library_keep_theirs(avx512, monkeypatch):
    monkeypatch.setattr(cpu_features, "has_amx", lambda: True)
    monkeypatch.setattr(cpu_features, "prefers_onednn", lambda: False)
    for dtype in ROUNDING:
        parts = arguments((65,), 64, 8, dtype)
        assert backends.choose("dense_linear", *parts) == Backend.REFERENCE


@pytest.mark.parametrize("change", ["columns", "bias", "dtype", "device"])
def test_sizes_are_checked_before_memory_is_read(avx512, change):
    x, weight, bias = arguments((3,), 128, 8, torch.float32)
    wrong = {
        "columns": (x[:, :64], weight, bias),
        "bias": (x, weight, bias[:4]),
        "dtype": (x, weight.bfloat16(), bias),
        "device": (x, weight.to("meta"), bias),
    }
    with pytest.raises(ValueError, match="fit together"):
        native.dense_linear(*wrong[change])


def test_a_layer_computes_it_and_learns():
    layer, x = DenseLinear(128, 40), normal(100, 128)
    with torch.no_grad():
        assert_exact_to_rounding(layer(x), x, layer.weight, layer.bias)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(40, -1), rtol=1e-4, atol=1e-4)


def test_autocast_brings_parts_together():
    layer, x = DenseLinear(64, 8), normal(100, 64).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_compilers_see_the_operator_whole():
    parts = arguments((70,), 64, 8, torch.float32)
    torch.library.opcheck(torch.ops.qvggt.dense_linear.default, parts)
    x, weight, bias = normal(70, 64), normal(64, seed=1), normal(64, seed=2)
    torch.library.opcheck(torch.ops.qvggt.layer_norm.default, (x, weight, bias, 1e-5))
