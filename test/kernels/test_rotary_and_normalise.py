"""Fused elementwise operators: the numbers of the eager formulation, and the right maths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qvggt_kernels import HeadNorm, Rotation, layer_norm_add_, qk_norm_rope_
from support.norms import gains, normalised
from support.weights import normal
from torch.nn import functional as F

from qvggt_core.model.rope import RotaryTables, rotate

pytestmark = pytest.mark.usefixtures("cpu_code")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def rotated(x, cos, sin):
    """Rotate pairs (j, j + D/4) of each half as complex numbers, in float64.

    Args:
        x: (..., N, H, D).
        cos: (N, 1, D).
        sin: (N, 1, D).
    """
    phase = cos.double().numpy() + 1j * sin.double().numpy()
    quarter = x.shape[-1] // 4
    out = np.empty_like(x)
    for first in (0, 2 * quarter):
        low, high = slice(first, first + quarter), slice(first + quarter, first + 2 * quarter)
        product = (x[..., low] + 1j * x[..., high]) * phase[..., low]
        out[..., low], out[..., high] = product.real, product.imag
    return out


def tables(tokens_per_side, head_dim, special=5):
    cos, sin = RotaryTables(head_dim, special)(*tokens_per_side, torch.device("cpu"))
    return len(cos), cos, sin


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (3, 5, 96), (2, 2, 70, 1024), (7, 4096)])
def test_layer_norm_add_gives_the_bits_of_its_two_steps(without_native_kernels, dtype, shape):
    x, branch = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    gamma, (weight, bias) = normal(shape[-1], seed=2), gains(shape[-1], dtype)
    expected = torch.addcmul(x, branch, gamma.to(dtype))
    y = layer_norm_add_(x, branch, gamma, weight, bias, 1e-5)
    assert torch.equal(x, expected)
    assert torch.equal(y, F.layer_norm(expected, shape[-1:], weight, bias, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_add_against_numpy_in_float64(dtype):
    x, branch = normal(9, 192, dtype=dtype), normal(9, 192, dtype=dtype, seed=1)
    gamma, (weight, bias) = normal(192, dtype=dtype, seed=2), gains(192, dtype)
    total = x.double() + gamma.double() * branch.double()
    y = layer_norm_add_(x, branch, gamma, weight, bias, 1e-6)
    np.testing.assert_allclose(x.double(), total, atol=ROUNDING[dtype])
    exact = normalised(x, weight, bias, 1e-6)
    np.testing.assert_allclose(
        y.double().numpy(), exact, atol=ROUNDING[dtype], rtol=ROUNDING[dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize(
    ("batch", "frames", "grid", "heads", "dim"),
    # Frames that share a slice, frames that need several, and one token.
    [
        (2, 3, (2, 3), 2, 16),
        (1, 2, (24, 18), 16, 64),
        (1, 1, (1, 1), 1, 32),
        (2, 9, (8, 8), 4, 128),
    ],
)
def test_qk_norm_rope_gives_the_bits_of_frame_by_frame_rotation(
    without_native_kernels, dtype, norm, rope, batch, frames, grid, heads, dim
):
    tokens, cos, sin = tables(grid, dim)
    qkv = normal(batch, frames, tokens, 3, heads, dim, dtype=dtype)
    qw, qb = gains(dim, dtype, seed=2)
    kw, kb = gains(dim, dtype, seed=4)
    expected = qkv.clone()
    for index, weight, bias in ((0, qw, qb), (1, kw, kb)):
        for frame in expected[:, :, :, index].unbind(1):
            y = F.layer_norm(frame, (dim,), weight, bias, 1e-5) if norm else frame
            frame.copy_(rotate(y, cos, sin) if rope else y)
    head_norm = HeadNorm(qw, qb, kw, kb, 1e-5) if norm else HeadNorm()
    qk_norm_rope_(qkv, head_norm, Rotation(cos, sin) if rope else Rotation())
    assert torch.equal(qkv, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_qk_norm_rope_against_complex_numbers_in_float64(dtype):
    tokens, cos, sin = tables((3, 4), 32)
    qkv = normal(1, 2, tokens, 3, 2, 32, dtype=dtype)
    before = qkv.clone()
    qw, qb = gains(32, dtype, seed=2)
    kw, kb = gains(32, dtype, seed=4)
    qk_norm_rope_(qkv, HeadNorm(qw, qb, kw, kb, 1e-5), Rotation(cos, sin))
    for index, weight, bias in ((0, qw, qb), (1, kw, kb)):
        exact = rotated(normalised(before[:, :, :, index], weight, bias, 1e-5), cos, sin)
        np.testing.assert_allclose(
            qkv[:, :, :, index].double().numpy(), exact, atol=2 * ROUNDING[dtype]
        )
    assert torch.equal(qkv[:, :, :, 2], before[:, :, :, 2])


@pytest.mark.parametrize("shape", [(0, 1, 5, 3, 2, 16), (1, 2, 0, 3, 2, 16), (1, 2, 5, 3, 0, 16)])
def test_nothing_is_left_as_it_is(shape):
    qkv = torch.zeros(shape)
    qk_norm_rope_(qkv)
    assert qkv.shape == shape


def test_special_tokens_are_not_rotated():
    tokens, cos, sin = tables((2, 2), 16, special=5)
    qkv = normal(1, 1, tokens, 3, 1, 16)
    before = qkv.clone()
    qk_norm_rope_(qkv, rotation=Rotation(cos, sin))
    assert torch.equal(qkv[:, :, :5], before[:, :, :5])
    assert not torch.equal(qkv[:, :, 5:, :2], before[:, :, 5:, :2])


def test_compilers_see_the_operators_whole():
    x, branch, gamma = normal(3, 64), normal(3, 64, seed=1), normal(64, seed=2)
    torch.library.opcheck(
        torch.ops.qvggt.layer_norm_add_.default, (x, branch, gamma, *gains(64), 1e-5)
    )
    tokens, cos, sin = tables((2, 3), 16)
    qkv = normal(1, 2, tokens, 3, 2, 16)
    for norms in ((*gains(16), *gains(16)), (None,) * 4):
        torch.library.opcheck(torch.ops.qvggt.qk_norm_rope_.default, (qkv, *norms, 1e-5, cos, sin))
