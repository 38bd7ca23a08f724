"""The kernels of layer norms: what the definition gives, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qvggt_kernels import LayerNorm, layer_norm_add_
from qvggt_kernels.native import norms
from support.instruction_sets import outputs
from support.norms import gains, normalised
from support.weights import normal
from torch.nn import functional as F


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64), (3, 5, 192), (2, 2, 700, 1024), (7, 4096)])
@pytest.mark.usefixtures("short_vectors")
def test_a_kernels_norms_are_numpys_in_float64_to_rounding(dtype, shape, threads):
    x, branch = normal(*shape, dtype=dtype) + 3, normal(*shape, dtype=dtype, seed=1)
    gamma, (weight, bias) = normal(shape[-1], seed=2), gains(shape[-1], dtype)
    # Of bfloat16, the last of 8 bits; of float32, a few of the sums' roundings.
    rounding = {torch.float32: 4e-6, torch.bfloat16: 2**-8}[dtype]
    exact = normalised(x, weight, bias, 1e-6)
    for y in outputs(x, weight, bias, 1e-6, run=norms.layer_norm, threads=threads):
        np.testing.assert_allclose(y.double().numpy(), exact, atol=rounding, rtol=rounding)
    total = x.double() + gamma.to(dtype).double() * branch.double()

    def run():
        written = x.clone()
        return written, norms.layer_norm_add_(written, branch, gamma, weight, bias, 1e-6)

    (first, y), *others = outputs(run=run, threads=threads)
    np.testing.assert_allclose(first.double(), total, rtol=rounding, atol=rounding)
    exact = normalised(first, weight, bias, 1e-6)
    np.testing.assert_allclose(y.double().numpy(), exact, atol=rounding, rtol=rounding)
    assert all(torch.equal(first, x) and torch.equal(y, z) for x, z in others)


@pytest.mark.usefixtures("short_vectors")
def test_what_is_not_a_number_stays_in_its_row():
    x = normal(3, 64)
    x[1, 7] = torch.nan
    y = norms.layer_norm(x, torch.ones(64), torch.zeros(64), 1e-5)
    assert y[1].isnan().all()
    assert y[::2].isfinite().all()


@pytest.mark.parametrize("part", ["branch", "gamma", "weight", "dtype", "strides", "columns"])
@pytest.mark.usefixtures("short_vectors")
def test_a_kernels_sizes_are_checked_before_memory_is_read(part):
    x = normal(4, 64)
    parts = {"branch": x.clone(), "gamma": x[0], "weight": x[1], "bias": x[2]}
    if part in parts:
        parts[part] = parts[part][..., :32]
    x = {"dtype": x.double(), "strides": normal(64, 64).t(), "columns": x[:, :32]}.get(part, x)
    with pytest.raises(ValueError, match="that fit"):
        norms.layer_norm_add_(x, *parts.values(), 1e-5)


def test_a_layer_takes_the_kernel_and_is_pytorchs():
    layer, x = LayerNorm(128, eps=1e-6), normal(5, 128)
    torch.nn.init.normal_(layer.weight)
    with torch.no_grad():
        expected = F.layer_norm(x, (128,), layer.weight, layer.bias, 1e-6)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer(x).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.usefixtures("short_vectors")
def test_parts_of_several_dtypes_and_strides_are_pytorchs() -> None:
    """PyTorch takes weights in float32 for tokens of 16 bits, as under autocast."""
    layer, x = LayerNorm(64), normal(5, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = F.layer_norm(x, (64,), layer.weight, layer.bias, layer.eps)
        assert torch.equal(layer(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).shape == x.shape
        every_second = normal(64, 2)[:, 0]
        total, branch, ones = x.clone(), x.clone(), torch.ones(64, dtype=x.dtype)
        layer_norm_add_(total, branch, every_second, ones, ones, 1e-5)
    exact = x.double() * (1 + every_second.to(x.dtype).double())
    np.testing.assert_allclose(total.double(), exact, rtol=2**-8, atol=2**-8)
