"""The integer linear and the Hadamard transform: exact where integers promise it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qvggt_kernels import (
    ACTIVATION_BITS,
    Int4Linear,
    IntegerLinear,
    PackingError,
    hadamard_block,
    hadamard_transform,
    integer_product,
    pack_integer,
    quantize_tokens,
    unpack_integer,
)
from scipy.linalg import hadamard
from support.weights import random_integers as integers

pytestmark = pytest.mark.usefixtures("cpu_code")


def layer_of(q, weight_bits, activation_bits, **extras):
    scales = torch.linspace(0.001, 0.02, len(q))
    bias = torch.linspace(-1, 1, len(q))
    return IntegerLinear.from_quantized(
        q, scales, bias, weight_bits=weight_bits, activation_bits=activation_bits, **extras
    )


# --- Hadamard -----------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 8, 32, 64, 128, 1024, 4096])
def test_the_transform_is_scipys_matrix_divided_by_its_length(block):
    x = torch.randn(3, 2 * block, dtype=torch.float64)
    matrix = torch.from_numpy(hadamard(block) / np.sqrt(block))
    expected = (x.view(3, 2, block) @ matrix).view(3, -1)
    # The factors are float32: 1 / sqrt(32) is rounded there.
    assert torch.allclose(hadamard_transform(x, block), expected, rtol=0, atol=2e-6)


def test_the_transform_is_its_own_inverse_and_lets_gradients_through():
    x = torch.randn(5, 384, requires_grad=True)
    back = hadamard_transform(hadamard_transform(x, 128), 128)
    assert torch.allclose(back, x, atol=1e-5)
    weights = torch.randn(5, 384)
    (hadamard_transform(x, 128) * weights).sum().backward()
    assert torch.allclose(x.grad, hadamard_transform(weights, 128), atol=1e-5)


@pytest.mark.parametrize(("width", "block"), [(4096, 4096), (384, 128), (96, 32), (7, 1)])
def test_a_width_has_a_largest_block(width, block):
    assert hadamard_block(width) == block


@pytest.mark.parametrize("block", [3, 256, -2])
def test_blocks_that_do_not_fit_are_refused(block):
    with pytest.raises(PackingError, match="a rotation in blocks of"):
        hadamard_transform(torch.ones(1, 384), block)


# --- packing ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9).map(lambda n: 2 * n),
    columns=st.integers(1, 40),
    bits=st.sampled_from(ACTIVATION_BITS),
    seed=st.integers(0, 2**31),
)
def test_packed_numbers_come_back(rows, columns, bits, seed):
    q = integers(rows, columns, bits, seed)
    packed = pack_integer(q, bits)
    assert packed.nbytes == rows * columns * bits // 8
    assert torch.equal(unpack_integer(packed).t(), q)


def test_the_layout_of_4_bits_is_as_documented():
    q = integers(6, 5, 4)
    packed = pack_integer(q, 4)
    for k in range(5):
        for j in range(3):
            low, high = int(q[j, k]) + 8, int(q[j + 3, k]) + 8
            assert int(packed[k, j]) == low | high << 4


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(PackingError, match=r"range over \[-9, 0\]: four bits"):
        pack_integer(torch.tensor([[-9], [0]], dtype=torch.int8), 4)
    with pytest.raises(PackingError, match="3 rows are odd"):
        pack_integer(integers(3, 4, 4), 4)
    with pytest.raises(PackingError, match="integers of 5 bits"):
        pack_integer(integers(2, 4, 4), 5)


# --- tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "top"), [(8, 127), (4, 7)])
def test_every_token_has_its_own_range(bits, top):
    x = torch.tensor([[1.0, -0.5, 0.0], [100.0, -50.0, 1.0], [0.0, 0.0, 0.0]])
    q, step = quantize_tokens(x, bits)
    assert q[:2, 0].tolist() == [top, top]
    assert step.squeeze(1).tolist() == pytest.approx([1 / top, 100 / top, 0.0])
    assert (q[2] == 0).all()
    assert ((q * step - x).abs() <= 0.5 * step * (1 + 1e-6)).all()


def test_a_clipped_range_covers_less_in_smaller_steps():
    x = torch.tensor([[1.0, 0.3]])
    q, step = quantize_tokens(x, 4, clip=0.5)
    assert float(step) == pytest.approx(0.5 / 7)
    assert q.tolist() == [[7, 4]]


# --- products -----------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 1000, 5000])
def test_the_reference_and_the_fast_product_are_exact(columns):
    a, b = integers(17, columns, 8, seed=1), integers(columns, 23, 8, seed=2)
    exact = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)
    assert np.array_equal(integer_product(a, b).numpy(), exact)
    assert np.array_equal(torch._int_mm(a, b).numpy(), exact)


@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize("activation_bits", [8, 4])
@pytest.mark.parametrize("rotation", [0, 64])
def test_the_layer_is_the_integer_formula(weight_bits, activation_bits, rotation):
    q = integers(10, 192, weight_bits)
    factors = torch.linspace(0.5, 2, 192)
    layer = layer_of(
        q, weight_bits, activation_bits, rotation=rotation, input_scale=factors, clip=0.9
    )
    x = torch.randn(2, 3, 192, generator=torch.Generator().manual_seed(3))
    prepared = hadamard_transform(x, rotation) if rotation else x
    tokens, step = quantize_tokens(prepared * factors, activation_bits, 0.9)
    sums = tokens.long().numpy().reshape(-1, 192) @ q.long().numpy().T
    expected = sums * step.numpy().reshape(-1, 1) * layer.scales.numpy() + layer.bias.numpy()
    assert np.allclose(layer(x).numpy().reshape(-1, 10), expected, rtol=1e-5, atol=1e-5)


def test_a_token_does_not_depend_on_its_neighbours():
    layer = layer_of(integers(8, 64, 4), 4, 4)
    x = torch.randn(5, 64)
    alone = torch.cat([layer(x[i : i + 1]) for i in range(5)])
    assert torch.equal(layer(x), alone)


def test_few_bits_of_both_come_close_to_a_float_linear():
    torch.manual_seed(0)
    weight = torch.randn(32, 128)
    x = torch.randn(64, 128)
    scales = weight.abs().amax(dim=1) / 127
    q = (weight / scales[:, None]).round().to(torch.int8)
    layer = IntegerLinear.from_quantized(q, scales, weight_bits=8, activation_bits=8)
    exact = x @ weight.t()
    assert (layer(x) - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_leave_the_checkpoints_numbers_alone(dtype):
    layer = layer_of(integers(8, 64, 4), 4, 8, input_scale=torch.full((64,), 1 / 3))
    x = torch.randn(4, 64)
    before = layer(x)
    scales, factors, clip = layer.scales.clone(), layer.input_scale.clone(), layer.clip.clone()
    layer.to(dtype)
    assert torch.equal(layer.scales, scales)
    assert torch.equal(layer.input_scale, factors)
    assert torch.equal(layer.clip, clip)
    assert layer(x.to(dtype)).dtype == dtype
    assert torch.allclose(layer(x.to(dtype)).float(), before, atol=0.05)


def test_a_rotated_and_scaled_4_bit_weight_undoes_what_its_input_gets():
    torch.manual_seed(0)
    q, scales = integers(16, 128, 4), torch.full((16, 1), 0.01).bfloat16()
    factors = torch.linspace(0.5, 2, 128)
    layer = Int4Linear.from_quantized(q, scales, rotation=128, input_scale=factors)
    weight = hadamard_transform((q * scales.float()) * factors, 128)
    x = torch.randn(9, 128)
    assert torch.allclose(layer(x), x @ weight.t(), rtol=1e-4, atol=1e-4)


def test_impossible_sizes_are_refused():
    with pytest.raises(PackingError, match="5 outputs are odd"):
        IntegerLinear(64, 5, weight_bits=4, activation_bits=8)
    with pytest.raises(PackingError, match="integers of 16 bits"):
        IntegerLinear(64, 6, weight_bits=8, activation_bits=16)
    with pytest.raises(PackingError, match=r"scales are \(4,\)"):
        IntegerLinear.from_quantized(
            integers(6, 8, 8), torch.ones(4), weight_bits=8, activation_bits=8
        )
