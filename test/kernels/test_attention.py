"""Attention in 8-bit integers: its arithmetic, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qvggt_kernels import int8_attention
from qvggt_kernels.reference import attention as reference
from scipy.special import softmax
from torch.nn import functional as F


def heads(batch, count, length, dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, count, dim, generator=generator).to(dtype)
    return x.transpose(1, 2)


def whole(x):
    """Integers of -127 to 127 per token, and their steps; in float64."""
    step = np.abs(x).max(-1, keepdims=True) / 127
    return np.rint(x / np.where(step == 0, 1, step)).astype(np.int64), step


def by_definition(q, k, v):
    """The documented arithmetic in NumPy: int64 products, float64 for the rest."""
    q, k, v = (part.double().numpy() for part in (q, k, v))
    k = k - k.mean(-2, keepdims=True)
    (q8, q_steps), (k8, k_steps) = whole(q), whole(k)
    scores = (q8 @ k8.swapaxes(-1, -2)) * q_steps * k_steps.swapaxes(-1, -2)
    return softmax(scores / np.sqrt(q.shape[-1]), -1) @ v


@pytest.mark.parametrize(
    ("queries", "keys", "dim"), [(50, 50, 64), (1, 1, 64), (9, 33, 128), (40, 17, 16)]
)
def test_the_documented_arithmetic(queries, keys, dim):
    q, k, v = (
        heads(2, 3, queries, dim),
        heads(2, 3, keys, dim, seed=1),
        heads(2, 3, keys, dim, seed=2),
    )
    out = int8_attention(q, k + 2, v)
    # A quotient of float32 may round to the other neighbour: a few scores move by a step.
    np.testing.assert_allclose(out.double().numpy(), by_definition(q, k + 2, v), atol=2e-3)
    assert out.shape == q.shape
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_close_to_attention_in_floating_point(dtype):
    q, k, v = (heads(1, 4, 300, 64, dtype, seed) for seed in range(3))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    error = (int8_attention(q, k, v).double() - exact).norm() / exact.norm()
    assert error < 0.012


def test_a_mean_that_all_keys_share_costs_no_accuracy():
    q, k, v = (heads(1, 2, 200, 64, seed=seed) for seed in range(3))
    offset = 20 * heads(1, 2, 1, 64, seed=3)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    with_mean = int8_attention(q, k + offset, v)
    assert (with_mean.double() - exact).norm() / exact.norm() < 0.012


def test_blocks_of_rows_bound_memory_and_change_nothing():
    q, k, v = (heads(1, 2, 70, 32, seed=seed) for seed in range(3))
    expected = int8_attention(q, k, v)
    found = reference.int8_attention(q, k, v, block_scores=70 * 16)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_tokens_of_zeros_have_no_step_and_no_nan():
    q, k, v = (heads(1, 1, 5, 32, seed=seed) for seed in range(3))
    out = int8_attention(torch.zeros_like(q), torch.ones_like(k), v)
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(v))


def test_compilers_see_the_operator_whole():
    parts = [heads(2, 2, 9, 32, seed=seed) for seed in range(3)]
    torch.library.opcheck(torch.ops.qvggt.int8_attention.default, tuple(parts))
