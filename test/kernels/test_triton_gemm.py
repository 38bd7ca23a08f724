"""Triton kernels of the linears equal their references, interpreted and on a GPU.

On a GPU: python -m pytest test/kernels/test_triton_gemm.py
"""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import (
    GROUP_SIZES,
    IntegerWeight,
    dequantize,
    fp8,
    gemm_configs,
    int4_linear,
    int4_linear_int8,
    pack_integer,
    quantize_rows_fp8,
    quantize_tokens,
    requantize,
    tuning,
)
from qvggt_kernels.gemm_configs import Blocks, Config
from qvggt_kernels.reference import linear as reference
from qvggt_kernels.weight import Epilogue
from support.interpreter import DEVICE, INTERPRETED, on_device, run_interpreted
from support.weights import integer_weight, normal, packed_weight
from torch.nn import functional as F

pytest.importorskip("triton")

# The interpreter computes with the bits of bfloat16 instead of its values, silently.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
SMALL = Blocks(16, 32, 128, 1, 4, 2)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_all_under_the_interpreter():
    run_interpreted(__file__)


def on_gpu(weight):
    return type(weight)(*(t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in weight))


def on_cpu(weight):
    return type(weight)(*(t.cpu() if isinstance(t, torch.Tensor) else t for t in weight))


def random(*shape, dtype=torch.float32, seed=1):
    return normal(*shape, dtype=dtype, seed=seed).to(DEVICE)


def agree(y, expected, tolerance):
    assert y.shape == expected.shape
    error = (y.double().cpu() - expected.double().cpu()).norm()
    assert error <= tolerance * expected.double().cpu().norm(), error


ACTIVATIONS = {"none": lambda y: y, "gelu": F.gelu}


@on_device
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (33, 3), (64, 2)])
def test_dequantization_has_the_bits_of_the_reference(rows, groups, dtype, group_size, zeros):
    from qvggt_kernels.triton import unpack

    packed = on_gpu(packed_weight(rows, groups * group_size, group_size, zeros=zeros))
    if INTERPRETED and dtype == torch.bfloat16:
        # The interpreter truncates where it should round: products that need no rounding.
        scales = (2.0 ** torch.randint(-12, 3, packed.scales.shape)).bfloat16()
        packed = packed._replace(scales=scales)
    weight = unpack.dequantize(packed, dtype)
    assert weight.dtype == dtype
    assert torch.equal(weight.cpu(), dequantize(on_cpu(packed), dtype))


@on_device
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (33, 3), (8, 17)])
def test_requantization_has_the_bits_of_the_reference(rows, groups, group_size, zeros):
    from qvggt_kernels.triton import unpack

    packed = on_gpu(packed_weight(rows, groups * group_size, group_size, zeros=zeros))
    packed.scales[0] = 0
    q8, row_scale = unpack.requantize(packed)
    expected = requantize(on_cpu(packed))
    assert torch.equal(q8.cpu(), expected.qweight.t())
    assert torch.equal(row_scale.cpu(), expected.scales)


@on_device
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (34, 50), (130, 70)])
def test_integers_are_transposed_into_rows(rows, columns, bits):
    from qvggt_kernels.triton import unpack

    limit = {8: 127, 4: 7}[bits]
    q = torch.randint(-limit - 1, limit + 1, (rows, columns), dtype=torch.int8)
    assert torch.equal(unpack.columns_to_rows(pack_integer(q, bits).to(DEVICE)).cpu(), q)


@on_device
@pytest.mark.parametrize("highest", [127, 7])
@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 100), (3, 5000)])
def test_tokens_are_quantized_as_the_reference_does(rows, columns, clip, highest):
    from qvggt_kernels.triton import gemm

    x = random(rows, columns)
    x[0] *= 0
    clipped = None if clip is None else torch.tensor(clip, device=DEVICE)
    q, steps = gemm.quantize_tokens(x, highest, clipped)
    expected, expected_steps = quantize_tokens(
        x.cpu(), {127: 8, 7: 4}[highest], torch.tensor(1.0 if clip is None else clip)
    )
    assert torch.equal(q.cpu(), expected)
    assert torch.equal(steps.cpu(), expected_steps[:, 0])


@on_device
@pytest.mark.parametrize("split_k", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "k", "group_size", "zeros", "bias"),
    [
        (1, 32, 128, 128, False, False),
        (2, 33, 128, 64, True, True),
        (33, 40, 384, 128, False, True),
        (17, 40, 96, 32, False, True),
        (5, 31, 192, 64, False, False),
        (3, 65, 256, 128, True, True),
    ],
)
def test_int4_product(m, n, k, group_size, zeros, bias, dtype, split_k):
    from qvggt_kernels.triton import gemm

    x, b = random(m, k, dtype=dtype), random(n, dtype=dtype, seed=2) if bias else None
    packed = on_gpu(packed_weight(n, k, group_size, zeros=zeros, bias=b))
    y = gemm.int4_gemm(x, packed, SMALL._replace(split_k=split_k))
    weight = dequantize(packed, dtype).double()
    assert y.dtype == dtype
    agree(y, F.linear(x.double(), weight, b.double() if bias else None), TOLERANCE[dtype])


@on_device
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int4_product_ends_in_an_activation_and_in_the_same_bits(dtype, split_k, activation):
    from qvggt_kernels.triton import gemm

    x, bias = random(7, 256, dtype=dtype), random(32, dtype=dtype)
    packed = on_gpu(packed_weight(32, 256, 128, bias=bias))
    blocks = SMALL._replace(split_k=split_k)
    y = gemm.int4_gemm(x, packed, blocks, activation)
    product = F.linear(x.double(), dequantize(packed, dtype).double(), bias.double())
    agree(y, ACTIVATIONS[activation](product), TOLERANCE[dtype])
    assert torch.equal(y, gemm.int4_gemm(x, packed, blocks, activation))


@on_device
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k", "bias"), [(1, 32, 64, False), (33, 40, 100, True), (18, 65, 256, True)]
)
def test_int8_product(m, n, k, bias, residual, dtype, activation):
    from qvggt_kernels.triton import gemm

    generator = torch.Generator().manual_seed(n)
    q, weight = (
        torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
        for shape in ((m, k), (n, k))
    )
    steps, scales = (torch.rand(size, generator=generator) * 0.01 for size in (m, n))
    b = random(n, dtype=dtype, seed=2) if bias else None
    gamma = random(n, dtype=dtype, seed=3) if residual else None
    before = random(m, n, dtype=dtype, seed=4) if residual else None
    tokens = gemm.Tokens(q.to(DEVICE), steps.to(DEVICE), dtype)
    y = gemm.int8_gemm(
        tokens,
        IntegerWeight(weight.to(DEVICE).t(), scales.to(DEVICE), b),
        Blocks(16, 32, 64, 1, 4, 2),
        Epilogue(activation == "gelu", gamma, None if before is None else before.clone()),
    )
    b, gamma, before = (None if t is None else t.double().cpu() for t in (b, gamma, before))
    expected = (q.double() @ weight.double().t()) * steps.double()[:, None] * scales.double()
    expected = ACTIVATIONS[activation](expected if b is None else expected + b)
    if residual:
        expected = before + gamma * expected
    assert y.dtype == dtype
    agree(y, expected, TOLERANCE[dtype])


@on_device
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("config", [Config("fused", SMALL), Config("dequantize", None)])
@pytest.mark.parametrize("shape", [(128,), (2, 3, 128), (1, 65, 128)])
def test_int4_linears_of_any_shape(monkeypatch, shape, config, zeros):
    monkeypatch.setattr(gemm_configs, "for_product", lambda *_: config)
    from qvggt_kernels.triton import linear

    dtype = DTYPES[-1]
    x, bias = random(*shape, dtype=dtype), random(24, dtype=dtype, seed=2)
    packed = on_gpu(packed_weight(24, 128, 64, zeros=zeros, bias=bias))
    expected = F.linear(x.double(), dequantize(packed, dtype).double(), bias.double())
    agree(linear.int4_linear(x, packed), expected, TOLERANCE[dtype])
    y = linear.int4_linear(x, packed, Epilogue(gelu=True))
    agree(y, F.gelu(expected), TOLERANCE[dtype])


@on_device
@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_in_8_bit_floats(m, dtype):
    from qvggt_kernels.triton import gemm

    x = random(m, 200, dtype=dtype)
    x[0] = 0
    q, steps = gemm.quantize_tokens(x, fp8.HIGHEST, dtype=fp8.DTYPE)
    expected, step = quantize_rows_fp8(x.float())
    assert torch.equal(torch.where(steps == 0, 1, steps), step[:, 0])
    agree_fp8(q, expected)


@on_device
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("zeros", [False, True])
def test_rows_in_8_bit_floats(group, zeros):
    from qvggt_kernels.triton import unpack

    packed = on_gpu(packed_weight(7, 2 * group, group, zeros=zeros))
    q, steps = unpack.requantize(packed, fp8.DTYPE)
    expected, step = quantize_rows_fp8(dequantize(packed, torch.float32))
    assert torch.equal(steps, step[:, 0])
    agree_fp8(q, expected)


def agree_fp8(q, expected):
    """Equal on a GPU.

    The interpreter rounds ties away from zero, and loses what a mantissa carries into the exponent.
    """
    assert q.dtype == expected.dtype
    found, wanted = q.float(), expected.float()
    if INTERPRETED:
        kept = wanted.frexp().mantissa.abs() != 0.5
        assert kept.float().mean() > 0.8
        assert ((found - wanted).abs() <= wanted.abs() / 8 + 2**-9)[kept].all()
        assert (found == wanted)[kept].float().mean() > 0.6
    else:
        assert torch.equal(found, wanted)


@on_device
@pytest.mark.parametrize("shape", [(64,), (2, 3, 64)])
@pytest.mark.parametrize("gelu", [False, True])
def test_linears_in_8_bit_floats(monkeypatch, shape, gelu):
    """On the CPU `torch._scaled_mm` itself is PyTorch's, called as on a GPU."""
    from qvggt_kernels.triton import linear

    if INTERPRETED:
        # The interpreter has no arithmetic for bfloat16, the only dtype of these products.
        from qvggt_kernels.triton import gemm, unpack

        monkeypatch.setattr(gemm, "quantize_tokens", tokens_by_pytorch)
        monkeypatch.setattr(unpack, "requantize", rows_by_pytorch)
    x, bias = random(*shape, dtype=torch.bfloat16), random(32, dtype=torch.bfloat16, seed=2)
    packed = on_gpu(packed_weight(32, 64, 32, zeros=True, bias=bias))
    y = linear.int4_linear_fp8(x, packed, Epilogue(gelu))
    agree(y, reference.int4_linear_fp8(x, packed, Epilogue(gelu)), 1e-2)


def tokens_by_pytorch(x, highest, dtype):
    assert (highest, dtype) == (fp8.HIGHEST, fp8.DTYPE)
    q, steps = quantize_rows_fp8(x.float())
    return q, steps[:, 0].contiguous()


def rows_by_pytorch(packed, dtype):
    return tokens_by_pytorch(dequantize(packed, torch.float32), fp8.HIGHEST, dtype)


def agrees_with_every_epilogue(linear, x, weight, expected):
    """Compare a linear, its GELU and its addition to tokens with the product."""
    agree(linear(x, weight), expected, 1e-6)
    agree(linear(x, weight, Epilogue(gelu=True)), F.gelu(expected), 1e-6)
    before, gamma = random(*expected.shape, seed=5), random(expected.shape[-1], seed=6)
    total = before.clone()
    linear(x, weight, Epilogue(False, gamma, total))
    agree(total, before.cpu() + gamma.cpu() * expected, 1e-6)


@on_device
@pytest.mark.parametrize("shape", [(64,), (2, 3, 64)])
def test_integer_linears_of_any_shape(monkeypatch, shape):
    from qvggt_kernels.triton import linear

    config = Config("triton", Blocks(16, 32, 64, 1, 4, 2))
    monkeypatch.setattr(gemm_configs, "for_product", lambda *_: config)

    x, bias = random(*shape), random(24, seed=2)
    packed = on_gpu(packed_weight(24, 64, zeros=True, bias=bias))
    expected = reference.int4_linear_int8(x.cpu(), on_cpu(packed))
    agrees_with_every_epilogue(linear.int4_linear_int8, x, packed, expected)
    for weight_bits in (8, 4):
        for activation_bits in (8, 4):
            weight = integer_weight(
                24,
                64,
                weight_bits,
                bias=bias,
                activation_bits=activation_bits,
                clip=torch.tensor(0.8),
            )
            expected = reference.integer_linear(x.cpu(), on_cpu(weight))
            agrees_with_every_epilogue(linear.integer_linear, x, on_gpu(weight), expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("m", [1, 2, 33, 1041])
@pytest.mark.parametrize("operator", ["int4", "int8"])
def test_every_candidate_agrees_on_the_gpu(operator, m):
    from qvggt_kernels.triton import linear

    architecture = gemm_configs.architecture_of(torch.cuda.get_device_capability())
    x, bias = random(m, 2048, dtype=torch.bfloat16), random(1024, dtype=torch.bfloat16)
    packed = on_gpu(packed_weight(1024, 2048, 128, bias=bias))
    expected = F.linear(x.double(), dequantize(packed, torch.bfloat16).double(), bias.double())
    integers = requantize(packed)
    for config in tuning.candidates(operator, gemm_configs.bucket_of(m), architecture):
        if operator == "int4":
            agree(linear.int4_product(x, packed, config), expected, 1e-2)
        else:
            agree(linear.int8_product(x, integers, config), expected, 3e-2)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_a_graph_replays_what_was_captured():
    packed = on_gpu(packed_weight(256, 256, 128))
    x = random(2082, 256, dtype=torch.bfloat16)

    def network():
        return int4_linear_int8(int4_linear(x, packed), packed)

    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        network()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = network()
        x.copy_(random(2082, 256, dtype=torch.bfloat16, seed=5))
        graph.replay()
        assert torch.equal(y, network())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_product_runs_where_its_input_is():
    other = torch.device("cuda", 1 - torch.cuda.current_device())
    packed = packed_weight(64, 128, 128)
    x = random(3, 128, dtype=torch.bfloat16)
    y = int4_linear(x.to(other), type(packed)(*(t if t is None else t.to(other) for t in packed)))
    assert y.device == other
    assert torch.equal(y.to(DEVICE), int4_linear(x, on_gpu(packed)))
