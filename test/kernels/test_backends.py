"""Which implementation computes a call."""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import Backend, HeadNorm, Rotation, attention, backends, int4_linear, native
from support.weights import integer_weight, normal, packed_weight
from torch.nn import functional as F

needs_kernels = pytest.mark.skipif(
    native.load() is None or native.instruction_set() != "avx512", reason=native.status()
)

WEIGHTS = {
    "int4_linear": packed_weight(24, 64),
    "int4_linear_int8": packed_weight(24, 64),
    "int4_linear_fp8": packed_weight(24, 64),
    "integer_linear": integer_weight(24, 64, 8),
}


@pytest.mark.parametrize("operator", WEIGHTS)
@pytest.mark.parametrize("x", [torch.empty(0, 64), torch.empty(3, 64, device="meta")])
def test_nothing_to_compute_and_other_devices_take_plain_pytorch(operator, x):
    assert backends.choose(operator, x, WEIGHTS[operator]) == Backend.REFERENCE


@pytest.mark.parametrize("operator", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_without_our_kernels_takes_pytorch_in_pieces_where_it_gains(
    without_native_kernels, operator, dtype
):
    chosen = backends.choose(operator, normal(3, 64, dtype=dtype), WEIGHTS[operator])
    emulated = operator == "int4_linear" and dtype == torch.float16
    slow = operator == "int4_linear_fp8" or emulated
    assert chosen == (Backend.REFERENCE if slow else Backend.CPU)


@needs_kernels
@pytest.mark.parametrize("operator", ["int4_linear_int8", "integer_linear"])
def test_a_cpu_with_our_kernels_multiplies_integers_by_them(operator):
    x = normal(3, 64)
    assert backends.choose(operator, x, WEIGHTS[operator]) == Backend.NATIVE
    odd = {"int4_linear_int8": packed_weight(24, 96), "integer_linear": integer_weight(24, 96, 8)}
    assert backends.choose(operator, normal(3, 96), odd[operator]) == Backend.CPU


@needs_kernels
def test_norm_and_rotation_take_our_kernel_for_heads_of_64():
    qkv = normal(1, 1, 5, 3, 2, 64)
    arguments = (HeadNorm(), Rotation())
    assert backends.choose("qk_norm_rope_", qkv, *arguments) == Backend.NATIVE
    in_16_bits = backends.choose("qk_norm_rope_", qkv.bfloat16(), *arguments)
    wide = native.instruction_set() == "avx512"
    assert in_16_bits == (Backend.NATIVE if wide else Backend.REFERENCE)
    assert backends.choose("qk_norm_rope_", qkv[..., :32], *arguments) == Backend.REFERENCE


@pytest.mark.parametrize(
    ("capability", "dtype", "rows", "expected"),
    [
        ((9, 0), torch.bfloat16, 32, True),
        ((8, 9), torch.bfloat16, 32, True),
        ((8, 6), torch.bfloat16, 32, False),
        ((9, 0), torch.float16, 32, False),
        ((9, 0), torch.bfloat16, 24, False),
    ],
)
def test_8_bit_floats_need_their_tensor_cores_and_multiples_of_16(
    monkeypatch, capability, dtype, rows, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = backends.multiplies_fp8(normal(3, 64, dtype=dtype), packed_weight(rows, 64))
    assert found == expected


def test_a_backend_can_be_required():
    x, weight = normal(5, 64), packed_weight(24, 64)
    with torch.no_grad():
        expected = int4_linear(x, weight, backend=Backend.REFERENCE)
        assert torch.allclose(int4_linear(x, weight, backend=Backend.CPU), expected, atol=1e-6)
    q = normal(1, 2, 9, 64)
    found = attention(q, q, q, backend=Backend.CPU)
    assert torch.allclose(found, F.scaled_dot_product_attention(q, q, q), atol=1e-5)
