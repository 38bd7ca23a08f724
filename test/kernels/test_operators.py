"""The operators: PyTorch's own checks of a registration, whole-graph compilation, gradients."""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import (
    Backend,
    Int4Linear,
    dequantize,
    int4_linear,
    int4_linear_int8,
    quantize_tokens,
    requantize,
)
from qvggt_kernels import operators as functions
from support.weights import integer_weight, normal, packed_weight
from torch.nn import functional as F

from qvggt_core.model.blocks import LayerScale, Mlp

OPERATORS = torch.ops.qvggt


def tokens(*shape, dtype=torch.float32):
    return normal(*shape, dtype=dtype, seed=7)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "operator", [OPERATORS.int4_linear, OPERATORS.int4_linear_int8, OPERATORS.int4_linear_fp8]
)
def test_int4_operators_are_registered_as_pytorch_requires(operator, dtype, zeros):
    bias = tokens(24, dtype=dtype) if zeros else None
    x, weight = tokens(2, 3, 64, dtype=dtype), packed_weight(24, 64, zeros=zeros, bias=bias)
    torch.library.opcheck(operator.default, (x, *weight, zeros))
    total, gamma = tokens(2, 3, 24, dtype=dtype), tokens(24)
    torch.library.opcheck(OPERATORS.int4_linear_int8_add_.default, (total, x, gamma, *weight))


@pytest.mark.parametrize("activation_bits", [8, 4])
@pytest.mark.parametrize("weight_bits", [8, 4])
def test_integer_operator_is_registered_as_pytorch_requires(weight_bits, activation_bits):
    x = tokens(2, 3, 64)
    weight = integer_weight(24, 64, weight_bits, bias=tokens(24), activation_bits=activation_bits)
    weight = weight._replace(clip=torch.tensor(0.9))
    torch.library.opcheck(OPERATORS.integer_linear.default, (x, *weight, True))
    total, gamma = tokens(2, 3, 24), tokens(24)
    torch.library.opcheck(OPERATORS.integer_linear_add_.default, (total, x, gamma, *weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_linear_with_an_epilogue_is_the_linear_and_the_step(dtype):
    x, bias, gamma = tokens(5, 64, dtype=dtype), tokens(24, dtype=dtype), tokens(24)
    packed = packed_weight(24, 64, zeros=True, bias=bias)
    integers = integer_weight(24, 64, 8, bias=bias, clip=0.9)
    for name, weight in (
        ("int4_linear", packed),
        ("int4_linear_fp8", packed),
        ("int4_linear_int8", packed),
        ("integer_linear", integers),
    ):
        multiply, add_ = getattr(functions, name), getattr(functions, name + "_add_", None)
        y = multiply(x, weight)
        assert torch.equal(multiply(x, weight, gelu=True), F.gelu(y))
        if add_ is not None:
            total = tokens(5, 24, dtype=dtype)
            expected = torch.addcmul(total, y, gamma.to(dtype))
            add_(total, x, gamma, weight)
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
    x, bias = tokens(5, 64), tokens(24)
    weight = packed_weight(24, 64, zeros=True, bias=bias)
    q8, row_scale, *_ = requantize(weight)
    q, step = quantize_tokens(x, 8)
    expected = (q.double() @ q8.double()) * step.double() * row_scale.double() + bias
    y = int4_linear_int8(x, weight, backend=Backend.REFERENCE)
    assert torch.allclose(y.double(), expected, rtol=1e-6, atol=1e-6)
    exact = F.linear(x, dequantize(weight, torch.float32), bias)
    assert (y - exact).norm() < 0.02 * exact.norm()
    # The fastest implementation may keep the groups' own scales, which is nearer still.
    assert (int4_linear_int8(x, weight) - exact).norm() < 0.02 * exact.norm()


def test_one_graph_holds_all_linears():
    packed, integers = packed_weight(64, 64, zeros=True), integer_weight(64, 64, 8)

    def network(x):
        x = F.gelu(int4_linear(x, packed))
        x = F.gelu(int4_linear_int8(x, packed))
        return functions.integer_linear(x, integers)

    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        for batch in (2, 3):
            x = tokens(batch, 5, 64)
            assert torch.equal(compiled(x), network(x))


def test_gradients_take_the_differentiable_path():
    x = tokens(3, 64).requires_grad_()
    bias = tokens(24).requires_grad_()
    weight = packed_weight(24, 64, zeros=True, bias=bias)
    int4_linear(x, weight).sum().backward()
    expected = dequantize(weight, torch.float32).sum(0).expand(3, -1)
    assert torch.allclose(x.grad, expected, atol=1e-6)
    assert torch.equal(bias.grad, torch.full((24,), 3.0))
    bias.grad = None
    int4_linear(x.detach(), weight).sum().backward()
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
