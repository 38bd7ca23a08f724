"""Triton kernels of the linears equal their references, interpreted and on a GPU.

On a GPU: python -m pytest test/kernels/test_triton_gemm.py
"""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import (
    GROUP_SIZES,
    cuda,
    dequantize,
    fp8,
    integer_linear,
    pack,
    pack_integer,
    quantize_rows_fp8,
    quantize_tokens,
    requantize,
    table,
)
from qvggt_kernels.table import Blocks, Choice
from support.interpreter import DEVICE, INTERPRETED, on_device, run_interpreted
from torch.nn import functional as F

pytest.importorskip("triton")

# The interpreter computes with the bits of bfloat16 instead of its values, silently.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
SMALL = Blocks(16, 32, 128, 1, 4, 2)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_all_under_the_interpreter():
    run_interpreted(__file__)


def words(rows, columns, group_size, zeros=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=generator)
    shape = (rows, columns // group_size)
    scales = (torch.rand(shape, generator=generator) * 0.01 + 0.001).bfloat16()
    points = torch.randint(0, 16, shape, generator=generator).to(torch.uint8) if zeros else None
    return (
        pack(q, group_size).to(DEVICE),
        scales.to(DEVICE),
        None if points is None else points.to(DEVICE),
    )


def random(*shape, dtype=torch.float32, seed=1):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE, dtype)


def on_cpu(*tensors):
    return [None if tensor is None else tensor.cpu() for tensor in tensors]


def agree(y, expected, tolerance):
    assert y.shape == expected.shape
    error = (y.double().cpu() - expected.double().cpu()).norm()
    assert error <= tolerance * expected.double().cpu().norm(), error


ACTIVATIONS = {"none": lambda y: y, "gelu": F.gelu, "silu": F.silu}


@on_device
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (33, 3), (64, 2)])
def test_dequantization_has_the_bits_of_the_reference(rows, groups, dtype, group_size, zeros):
    from qvggt_kernels.triton import unpack

    packed, scales, points = words(rows, groups * group_size, group_size, zeros)
    if INTERPRETED and dtype == torch.bfloat16:
        # The interpreter truncates where it should round: products that need no rounding.
        scales = (2.0 ** torch.randint(-12, 3, scales.shape)).bfloat16()
    weight = unpack.dequantize(packed, scales, dtype, points)
    assert weight.dtype == dtype
    assert torch.equal(weight.cpu(), dequantize(*on_cpu(packed, scales), dtype, *on_cpu(points)))


@on_device
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (33, 3), (8, 17)])
def test_requantization_has_the_bits_of_the_reference(rows, groups, group_size, zeros):
    from qvggt_kernels.triton import unpack

    packed, scales, points = words(rows, groups * group_size, group_size, zeros)
    scales[0] = 0
    q8, row_scale = unpack.requantize(packed, scales, points)
    expected, expected_scale = requantize(*on_cpu(packed, scales, points))
    assert torch.equal(q8.cpu(), expected)
    assert torch.equal(row_scale.cpu(), expected_scale)


@on_device
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (34, 50), (130, 70)])
def test_integers_are_turned_into_rows(rows, columns, bits):
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

    packed, scales, points = words(n, k, group_size, zeros)
    x, b = random(m, k, dtype=dtype), random(n, dtype=dtype, seed=2) if bias else None
    y = gemm.int4_gemm(x, packed, scales, b, points, SMALL._replace(split_k=split_k))
    weight = dequantize(packed, scales, dtype, points).double()
    assert y.dtype == dtype
    agree(y, F.linear(x.double(), weight, b.double() if bias else None), TOLERANCE[dtype])


@on_device
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int4_product_ends_in_an_activation_and_in_the_same_bits(dtype, split_k, activation):
    from qvggt_kernels.triton import gemm

    packed, scales, _ = words(32, 256, 128)
    arguments = (random(7, 256, dtype=dtype), packed, scales, random(32, dtype=dtype), None)
    blocks = SMALL._replace(split_k=split_k)
    y = gemm.int4_gemm(*arguments, blocks, activation)
    x, bias = arguments[0].double(), arguments[3].double()
    product = F.linear(x, dequantize(packed, scales, dtype).double(), bias)
    agree(y, ACTIVATIONS[activation](product), TOLERANCE[dtype])
    assert torch.equal(y, gemm.int4_gemm(*arguments, blocks, activation))


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
    y = gemm.int8_gemm(
        *(tensor.to(DEVICE) for tensor in (q, steps, weight, scales)),
        b,
        dtype,
        Blocks(16, 32, 64, 1, 4, 2),
        activation,
        gamma,
        None if before is None else before.clone(),
    )
    b, gamma, before = (None if t is None else t.double() for t in on_cpu(b, gamma, before))
    expected = (q.double() @ weight.double().t()) * steps.double()[:, None] * scales.double()
    expected = ACTIVATIONS[activation](expected if b is None else expected + b)
    if residual:
        expected = before + gamma * expected
    assert y.dtype == dtype
    agree(y, expected, TOLERANCE[dtype])


@on_device
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("choice", [Choice("fused", SMALL), Choice("dequantize", None)])
@pytest.mark.parametrize("shape", [(128,), (2, 3, 128), (1, 65, 128), (0, 128)])
def test_the_path_of_a_cuda_device(monkeypatch, shape, choice, zeros):
    monkeypatch.setattr(cuda, "_choice", lambda *_: choice)
    packed, scales, points = words(24, 128, 64, zeros)
    dtype = DTYPES[-1]
    x, bias = random(*shape, dtype=dtype), random(24, dtype=dtype, seed=2)
    weight = dequantize(packed, scales, dtype, points)
    expected = F.linear(x.double(), weight.double(), bias.double())
    y = cuda.int4_linear(x, packed, scales, bias, points, False)
    agree(y, expected, TOLERANCE[dtype])
    y = cuda.int4_linear(x, packed, scales, bias, points, True)
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

    packed, scales, points = words(7, 2 * group, group, zeros)
    q, steps = unpack.requantize(packed, scales, points, fp8.DTYPE)
    expected, step = quantize_rows_fp8(dequantize(packed, scales, torch.float32, points))
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
@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (0, 64)])
@pytest.mark.parametrize("rows", [32, 24])
@pytest.mark.parametrize("gelu", [False, True])
def test_the_path_of_8_bit_floats(monkeypatch, shape, rows, gelu):
    """On the CPU `torch._scaled_mm` itself is PyTorch's, called as on a GPU."""
    monkeypatch.setattr(cuda, "_has_fp8", lambda device: True)
    if INTERPRETED:
        # The interpreter has no arithmetic for bfloat16, the only dtype of these products.
        from qvggt_kernels.triton import gemm, unpack

        monkeypatch.setattr(gemm, "quantize_tokens", tokens_by_pytorch)
        monkeypatch.setattr(unpack, "requantize", rows_by_pytorch)
    packed, scales, points = words(rows, 64, 32, zeros=True)
    x, bias = random(*shape, dtype=torch.bfloat16), random(rows, dtype=torch.bfloat16, seed=2)
    y = cuda.int4_linear_fp8(x, packed, scales, bias, points, gelu)
    expected = fp8.int4_linear_fp8(x, packed, scales, bias, points).double()
    agree(y, F.gelu(expected) if gelu else expected, 1e-2)


def tokens_by_pytorch(x, highest, dtype):
    assert (highest, dtype) == (fp8.HIGHEST, fp8.DTYPE)
    q, steps = quantize_rows_fp8(x.float())
    return q, steps[:, 0].contiguous()


def rows_by_pytorch(packed, scales, zeros, dtype):
    return tokens_by_pytorch(dequantize(packed, scales, torch.float32, zeros), fp8.HIGHEST, dtype)


@on_device
@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (0, 64)])
@pytest.mark.parametrize("choice", [Choice("triton", Blocks(16, 32, 64, 1, 4, 2)), None])
def test_the_integer_paths_of_a_cuda_device(monkeypatch, shape, choice):
    monkeypatch.setattr(cuda, "_choice", lambda *_: choice)
    x, bias = random(*shape), random(24, seed=2)
    packed, scales, points = words(24, 64, 32, zeros=True)
    q8, row_scale = requantize(*on_cpu(packed, scales, points))
    expected = integer_linear(x.cpu(), q8.t().contiguous(), row_scale, bias.cpu(), 8)
    weight = (packed, scales, bias, points)
    agree(cuda.int4_linear_int8(x, *weight, False), expected, 1e-6)
    agree(cuda.int4_linear_int8(x, *weight, True), F.gelu(expected), 1e-6)
    before, gamma = random(*shape[:-1], 24, seed=5), random(24, seed=6)
    total = before.clone()
    cuda.int4_linear_int8_add_(total, x, gamma, *weight)
    agree(total, before.cpu() + gamma.cpu() * expected, 1e-6)
    for weight_bits in (8, 4):
        q = torch.randint(-7, 8, (24, 64), dtype=torch.int8)
        stored = pack_integer(q, weight_bits)
        for activation_bits in (8, 4):
            arguments = (activation_bits, torch.tensor(0.8))
            expected = integer_linear(x.cpu(), stored, row_scale, bias.cpu(), *arguments)
            y = cuda.integer_linear(
                x,
                stored.to(DEVICE),
                row_scale.to(DEVICE),
                bias,
                activation_bits,
                arguments[1].to(DEVICE),
                False,
            )
            agree(y, expected, 1e-6)
            total = before.clone()
            cuda.integer_linear_add_(
                total,
                x,
                gamma,
                stored.to(DEVICE),
                row_scale.to(DEVICE),
                bias,
                activation_bits,
                arguments[1].to(DEVICE),
            )
            agree(total, before.cpu() + gamma.cpu() * expected, 1e-6)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("m", [1, 2, 33, 1041])
@pytest.mark.parametrize("operator", ["int4", "int8"])
def test_every_candidate_agrees_on_the_gpu(operator, m):
    from qvggt_kernels import tune

    architecture = table.architecture_of(torch.cuda.get_device_capability())
    packed, scales, _ = words(1024, 2048, 128)
    x, bias = random(m, 2048, dtype=torch.bfloat16), random(1024, dtype=torch.bfloat16)
    weight = dequantize(packed, scales, torch.bfloat16)
    expected = F.linear(x.double(), weight.double(), bias.double())
    q8, row_scale = requantize(packed, scales)
    for choice in tune.candidates(operator, table.bucket_of(m), architecture):
        if operator == "int4":
            y = cuda.int4_product(x, packed, scales, bias, None, choice)
            agree(y, expected, 1e-2)
        else:
            y = cuda.int8_product(x, q8, row_scale, bias, 8, None, choice)
            agree(y, expected, 3e-2)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_a_graph_replays_what_was_captured():
    from qvggt_kernels import int4_linear, int4_linear_int8

    packed, scales, _ = words(256, 256, 128)
    x = random(2082, 256, dtype=torch.bfloat16)

    def network():
        y = int4_linear(x, packed, scales)
        return int4_linear_int8(y, packed, scales)

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
    from qvggt_kernels import int4_linear

    other = torch.device("cuda", 1 - torch.cuda.current_device())
    packed, scales, _ = words(64, 128, 128)
    x = random(3, 128, dtype=torch.bfloat16)
    y = int4_linear(x.to(other), packed.to(other), scales.to(other))
    assert y.device == other
    assert torch.equal(y.to(DEVICE), int4_linear(x, packed, scales))
