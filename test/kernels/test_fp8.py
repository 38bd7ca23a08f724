"""8-bit floats: rounding to nearest, and errors that do not grow with outliers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qvggt_kernels import (
    Int4Linear,
    PackedWeight,
    dequantize,
    int4_linear_fp8,
    int4_linear_int8,
    pack,
    quantize_rows_fp8,
)
from torch.nn import functional as F


def weight_of(rows=64, columns=512, group=128):
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=generator)
    scales = (torch.rand(rows, columns // group, generator=generator) * 0.01 + 0.001).bfloat16()
    return q, scales


def nearest(x):
    """Round to the nearest number of OCP's E4M3, ties to even mantissas, by its definition."""
    bits = np.arange(0x7F)  # 0x7F is not a number
    exponent, mantissa = bits >> 3, bits & 7
    tiny = exponent == 0
    numbers = (mantissa / 8 + ~tiny) * 2.0 ** (np.where(tiny, 1, exponent) - 7)
    above = np.searchsorted(numbers, np.abs(x)).clip(1, len(numbers) - 1)
    middle = (numbers[above - 1] + numbers[above]) / 2
    up = (np.abs(x) > middle) | ((np.abs(x) == middle) & (above % 2 == 0))
    return np.copysign(numbers[np.where(up, above, above - 1)], x)


def test_numbers_are_rounded_to_the_nearest_of_the_format():
    x = torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    x[3] = 0
    q, step = quantize_rows_fp8(x)
    assert torch.equal(q[3].float(), torch.zeros(300))
    assert np.array_equal(q.double().numpy(), nearest((x / step).double().numpy()))
    assert torch.allclose(step[:3, 0] * 448, x[:3].abs().amax(1))


def test_the_linear_is_the_product_of_what_was_rounded():
    q, scales = weight_of()
    bias = torch.randn(64)
    weight = PackedWeight(pack(q, 128), scales, bias)
    x = torch.randn(2, 5, 512, generator=torch.Generator().manual_seed(2))
    tokens, step = quantize_rows_fp8(x)
    rows, row_step = quantize_rows_fp8(dequantize(weight, torch.float32))
    exact = (tokens.double() * step.double()) @ (rows.double() * row_step.double()).t() + bias
    assert torch.allclose(int4_linear_fp8(x, weight).double(), exact, atol=1e-5)
    rounded = int4_linear_fp8(x.bfloat16(), weight._replace(bias=bias.bfloat16()))
    assert rounded.dtype == torch.bfloat16


@pytest.mark.parametrize(("outliers", "better"), [(1.0, "integers"), (100.0, "floats")])
def test_floats_keep_accuracy_beside_outliers_and_integers_do_not(outliers, better):
    q, scales = weight_of()
    weight = PackedWeight(pack(q, 128), scales)
    x = torch.randn(200, 512, generator=torch.Generator().manual_seed(3))
    x[:, :5] *= outliers
    exact = F.linear(x, dequantize(weight, torch.float32))
    floats, integers = (
        float((multiply(x, weight) - exact).norm() / exact.norm())
        for multiply in (int4_linear_fp8, int4_linear_int8)
    )
    assert floats < 0.05
    assert (floats < integers) == (better == "floats")


def test_a_layer_multiplies_8_bit_floats_when_no_gradient_is_recorded():
    q, scales = weight_of()
    layer = Int4Linear.from_quantized(q, scales)
    x = torch.randn(3, 512)
    exact = layer(x)
    layer.arithmetic = "fp8"
    assert torch.equal(layer(x), exact)
    with torch.no_grad():
        assert torch.equal(layer(x), int4_linear_fp8(x, layer.packed()))
