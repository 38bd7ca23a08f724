"""Triton kernels of norms, rotation and attention: equal to the reference."""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import HeadNorm, Rotation, int8_attention, layer_norm_add_, qk_norm_rope_
from qvggt_kernels.reference import attention as reference_attention
from qvggt_kernels.reference import normalise as reference_normalise
from qvggt_kernels.reference import rotary as reference_rotary
from support.interpreter import DEVICE, INTERPRETED, on_device, run_interpreted
from support.weights import normal

from qvggt_core.model.rope import RotaryTables

pytest.importorskip("triton")

# The interpreter computes with the bits of bfloat16 instead of its values, silently.
DTYPES = (torch.float32, torch.float16)

# A half of the last place where a sum or a quotient falls between two numbers, on either side.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}


def close(actual, expected):
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual.cpu(), expected, atol=tolerance, rtol=tolerance)


def moved(parts):
    return [part.to(DEVICE) if isinstance(part, torch.Tensor) else part for part in parts]


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_all_under_the_interpreter():
    run_interpreted(__file__)


@on_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(33, 64), (5, 96), (2, 3, 7, 384), (1, 1024), (3, 4096), (2, 33)]
)
def test_layer_norm_of_a_sum_matches_the_reference(dtype, shape):
    from qvggt_kernels.triton.normalise import layer_norm_add_ as triton_layer_norm_add_

    width = shape[-1]
    x, branch = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    # Far from zero: a variance taken from the mean of squares would lose it.
    x += 30
    gains = [normal(width, seed=2), *(normal(width, dtype=dtype, seed=seed) for seed in (3, 4))]
    target = x.to(DEVICE, copy=True)
    y = triton_layer_norm_add_(target, *moved([branch, *gains]), 1e-6)
    expected = reference_normalise.layer_norm_add_(x, branch, *gains, 1e-6)
    close(target, x)
    close(y, expected)


@on_device
def test_layer_norm_add_of_a_branch_with_strides_and_of_nothing():
    from qvggt_kernels.triton.normalise import layer_norm_add_ as triton_layer_norm_add_

    x, branch = normal(4, 64).to(DEVICE), normal(64, 4, seed=1).t().to(DEVICE)
    gains = moved([normal(64, seed=seed) for seed in (2, 3, 4)])
    expected = torch.addcmul(x, branch, gains[0])
    triton_layer_norm_add_(x, branch, *gains, 1e-5)
    close(x, expected.cpu())
    assert triton_layer_norm_add_(x[:0], branch[:0], *gains, 1e-5).shape == (0, 64)


@on_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("norm", "rope"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("batch", "frames", "grid", "heads", "dim"),
    [(1, 2, (3, 5), 3, 64), (2, 1, (2, 2), 2, 24), (1, 1, (1, 1), 1, 32), (1, 2, (5, 9), 2, 128)],
)
def test_norm_and_rotation_match_the_reference(dtype, norm, rope, batch, frames, grid, heads, dim):
    from qvggt_kernels.triton.rotary import qk_norm_rope_ as triton_qk_norm_rope_

    cos, sin = RotaryTables(dim, 5)(*grid, torch.device("cpu"))
    qkv = normal(batch, frames, len(cos), 3, heads, dim, dtype=dtype)
    gains = [normal(dim, dtype=dtype, seed=seed) if norm else None for seed in (1, 2, 3, 4)]
    tables = (cos, sin) if rope else (None, None)
    target = qkv.to(DEVICE, copy=True)
    head_norm, rotation = HeadNorm(*gains, 1e-5), Rotation(*tables)
    triton_qk_norm_rope_(target, HeadNorm(*moved(head_norm)), Rotation(*moved(rotation)))
    values = qkv[:, :, :, 2].clone()
    reference_rotary.qk_norm_rope_(qkv, head_norm, rotation)
    close(target, qkv)
    assert torch.equal(target[:, :, :, 2].cpu(), values)


@on_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys", "dim"),
    [
        (1, 2, 130, 130, 64),  # a query block and a bit, two key blocks and a bit
        (2, 1, 1, 1, 64),
        (1, 1, 7, 201, 128),
        (1, 2, 64, 64, 16),  # narrower than a tensor core's instruction
        (1, 1, 70, 129, 32),
        (1, 1, 3, 40, 48),  # no power of two
    ],
)
def test_int8_attention_matches_the_reference(dtype, batch, heads, queries, keys, dim):
    from qvggt_kernels.triton.attention import int8_attention as triton_int8_attention

    q = normal(batch, queries, heads, dim, dtype=dtype).transpose(1, 2)
    # Keys with a mean, and both they and the values as slices of a qkv projection.
    _, k, v = normal(batch, keys, 3, heads, dim, dtype=dtype, seed=1).transpose(1, 3).unbind(2)
    k = k + 3
    out = triton_int8_attention(*moved([q, k, v]))
    expected = reference_attention.int8_attention(q, k, v)
    assert out.stride() == expected.stride()
    close(out, expected)


@on_device
def test_int8_attention_of_far_scores_stays_finite():
    from qvggt_kernels.triton.attention import int8_attention as triton_int8_attention

    q, k, v = (1e3 * normal(1, 1, 70, 64, seed=seed) for seed in range(3))
    out = triton_int8_attention(*moved([q, k, v])).cpu()
    best = (q @ k.mT).argmax(-1)[..., None].expand_as(v)
    # Scores this far apart choose one key per query; the same one, but where two are close.
    chosen = (out - v.gather(2, best)).abs().amax(-1) < 1e-2
    assert chosen.double().mean() > 0.9


@on_device
@pytest.mark.parametrize("blocks", [(16, 32, 4, 2), (64, 64, 4, 1)])
def test_int8_attention_is_the_same_in_other_blocks(blocks):
    from qvggt_kernels.triton.attention import Blocks
    from qvggt_kernels.triton.attention import int8_attention as triton_int8_attention

    q, k, v = moved([normal(1, 2, 100, 64, seed=seed) for seed in range(3)])
    close(triton_int8_attention(q, k, v, Blocks(*blocks)), triton_int8_attention(q, k, v).cpu())


@on_device
def test_shapes_that_do_not_fit_are_refused_with_their_sizes():
    from qvggt_kernels.triton import attention, normalise, rotary

    x = torch.zeros(2, 64, device=DEVICE)
    with pytest.raises(ValueError, match="have 32, 64 and 64 elements"):
        normalise.layer_norm_add_(x, x, x[0, :32], x[0], x[0], 1e-5)
    with pytest.raises(ValueError, match="added to in place"):
        normalise.layer_norm_add_(x.t(), x.t(), x[:, 0], x[:, 0], x[:, 0], 1e-5)
    qkv = torch.zeros(1, 1, 2, 3, 1, 64, device=DEVICE)
    with pytest.raises(ValueError, match=r"not \(2, 1, 64\)"):
        rotary.qk_norm_rope_(qkv, HeadNorm(), Rotation(x[:1], x[:1]))
    with pytest.raises(ValueError, match="has to be contiguous"):
        rotary.qk_norm_rope_(qkv[..., :32], HeadNorm(), Rotation())
    q = torch.zeros(1, 1, 2, 192, device=DEVICE)
    with pytest.raises(ValueError, match="D up to 128"):
        attention.int8_attention(q, q, q)
    with pytest.raises(ValueError, match=r"torch\.float16"):
        attention.int8_attention(q[..., :64], q[..., :64].half(), q[..., :64])


@pytest.mark.skipif(DEVICE != "cuda", reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operators_on_a_gpu_against_the_cpu(dtype):
    cos, sin = RotaryTables(64, 5)(28, 37, torch.device("cpu"))
    x, branch = normal(1, 2, len(cos), 1024, dtype=dtype), normal(1, 2, len(cos), 1024, dtype=dtype)
    gains = [normal(1024, dtype=dtype, seed=seed) for seed in (2, 3, 4)]
    qkv = normal(1, 2, len(cos), 3, 16, 64, dtype=dtype)
    heads = [normal(64, dtype=dtype, seed=seed) for seed in (5, 6, 7, 8)]
    results = []
    for device in ("cpu", "cuda"):
        y, z = x.to(device, copy=True), qkv.to(device, copy=True)
        norm = layer_norm_add_(y, branch.to(device), *(gain.to(device) for gain in gains), 1e-5)
        head_norm = HeadNorm(*(gain.to(device) for gain in heads), 1e-5)
        qk_norm_rope_(z, head_norm, Rotation(cos.to(device), sin.to(device)))
        q, k, v = z.flatten(1, 2).transpose(1, 3).unbind(2)
        results.append([part.cpu().float() for part in (y, norm, z, int8_attention(q, k, v))])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, atol=5e-2, rtol=2e-2)
