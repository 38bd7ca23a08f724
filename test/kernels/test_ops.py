"""The operators: PyTorch's own checks of a registration, whole-graph compilation, gradients."""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import (
    Int4Linear,
    dequantize,
    int4_linear,
    int4_linear_fp8,
    int4_linear_int8,
    int4_linear_int8_add_,
    integer_linear,
    integer_linear_add_,
    pack,
    pack_integer,
    quantize_tokens,
    requantize,
)
from torch.nn import functional as F

from qvggt_core.model.blocks import LayerScale, Mlp

OPERATORS = torch.ops.qvggt


def packed_weight(rows=24, columns=64, group_size=32, zeros=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=generator)
    shape = (rows, columns // group_size)
    scales = (torch.rand(shape, generator=generator) * 0.01 + 0.001).bfloat16()
    points = torch.randint(0, 16, shape, generator=generator).to(torch.uint8) if zeros else None
    return pack(q, group_size), scales, points


def integer_weight(bits, rows=24, columns=64):
    generator = torch.Generator().manual_seed(bits)
    limit = {8: 127, 4: 7}[bits]
    q = torch.randint(-limit, limit + 1, (rows, columns), dtype=torch.int8, generator=generator)
    return pack_integer(q, bits), torch.rand(rows, generator=generator) * 0.01


def tokens(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "operator", [OPERATORS.int4_linear, OPERATORS.int4_linear_int8, OPERATORS.int4_linear_fp8]
)
def test_int4_operators_are_registered_soundly(operator, dtype, zeros):
    words, scales, points = packed_weight(zeros=zeros)
    bias = tokens(24, dtype=dtype) if zeros else None
    x, weight = tokens(2, 3, 64, dtype=dtype), (words, scales, bias, points)
    torch.library.opcheck(operator.default, (x, *weight, zeros))
    total, gamma = tokens(2, 3, 24, dtype=dtype), tokens(24)
    torch.library.opcheck(OPERATORS.int4_linear_int8_add_.default, (total, x, gamma, *weight))


@pytest.mark.parametrize("activation_bits", [8, 4])
@pytest.mark.parametrize("weight_bits", [8, 4])
def test_integer_operator_is_registered_soundly(weight_bits, activation_bits):
    words, scales = integer_weight(weight_bits)
    x, weight = tokens(2, 3, 64), (words, scales, tokens(24), activation_bits, torch.tensor(0.9))
    torch.library.opcheck(OPERATORS.integer_linear.default, (x, *weight, True))
    total, gamma = tokens(2, 3, 24), tokens(24)
    torch.library.opcheck(OPERATORS.integer_linear_add_.default, (total, x, gamma, *weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_follows_a_linear_is_what_would_follow_it_as_a_step(dtype):
    words, scales, points = packed_weight(zeros=True)
    integers, row_scale = integer_weight(8)
    x, bias, gamma = tokens(5, 64, dtype=dtype), tokens(24, dtype=dtype), tokens(24)
    for multiply, add_, weight in (
        (int4_linear, None, (words, scales, bias, points)),
        (int4_linear_fp8, None, (words, scales, bias, points)),
        (int4_linear_int8, int4_linear_int8_add_, (words, scales, bias, points)),
        (integer_linear, integer_linear_add_, (integers, row_scale, bias, 8, 0.9)),
    ):
        y = multiply(x, *weight)
        assert torch.equal(multiply(x, *weight, gelu=True), F.gelu(y))
        if add_ is not None:
            total = tokens(5, 24, dtype=dtype)
            expected = torch.addcmul(total, y, gamma.to(dtype))
            add_(total, x, gamma, *weight)
            assert torch.equal(total, expected)


@pytest.mark.parametrize("arithmetic", ["float", "int8", "fp8"])
def test_an_mlp_of_packed_layers_is_its_steps(arithmetic):
    torch.manual_seed(0)
    mlp, scale = Mlp(64, 128), LayerScale(64, 0.1)
    for name, rows, columns in (("fc1", 128, 64), ("fc2", 64, 128)):
        q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
        scales = (torch.rand(rows, columns // 32) * 0.01).bfloat16()
        layer = Int4Linear.from_quantized(q, scales, torch.randn(rows))
        layer.arithmetic = arithmetic
        setattr(mlp, name, layer)
    x, y = tokens(2, 7, 64), tokens(2, 7, 64)
    with torch.no_grad():
        expected = x + scale.gamma * mlp.fc2(F.gelu(mlp.fc1(y)))
        assert torch.allclose(mlp.add_to(x, y, scale), expected, atol=1e-6)


def test_int4_in_int8_is_the_product_of_requantized_weight_and_quantized_tokens():
    words, scales, points = packed_weight(zeros=True)
    x, bias = tokens(5, 64), tokens(24)
    q8, row_scale = requantize(words, scales, points)
    q, step = quantize_tokens(x, 8)
    expected = (q.double() @ q8.double().t()) * step.double() * row_scale.double() + bias
    y = int4_linear_int8(x, words, scales, bias, points)
    assert torch.allclose(y.double(), expected, rtol=1e-6, atol=1e-6)
    exact = F.linear(x, dequantize(words, scales, torch.float32, points), bias)
    assert (y - exact).norm() < 0.02 * exact.norm()


def test_one_graph_holds_all_linears():
    words, scales, points = packed_weight(rows=64, zeros=True)
    integers, row_scale = integer_weight(8, rows=64)

    def network(x):
        x = F.gelu(int4_linear(x, words, scales, None, points))
        x = F.gelu(int4_linear_int8(x, words, scales, None, points))
        return integer_linear(x, integers, row_scale, None, 8)

    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        for batch in (2, 3):
            x = tokens(batch, 5, 64)
            assert torch.equal(compiled(x), network(x))


def test_gradients_take_the_differentiable_path():
    words, scales, points = packed_weight(zeros=True)
    x = tokens(3, 64).requires_grad_()
    bias = tokens(24).requires_grad_()
    int4_linear(x, words, scales, bias, points).sum().backward()
    weight = dequantize(words, scales, torch.float32, points)
    assert torch.allclose(x.grad, weight.sum(0).expand(3, -1), atol=1e-6)
    assert torch.equal(bias.grad, torch.full((24,), 3.0))
    bias.grad = None
    int4_linear(x.detach(), words, scales, bias, points).sum().backward()
    assert torch.equal(bias.grad, torch.full((24,), 3.0))


def test_importing_the_package_needs_no_triton(tmp_path):
    import subprocess
    import sys

    (tmp_path / "triton.py").write_text("raise ImportError('not wanted')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import qvggt_kernels, torch\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
