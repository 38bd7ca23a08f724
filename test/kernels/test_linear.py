"""The INT4 linear: exact weights on every path, and a layer that stays small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qvggt_kernels import (
    GROUP_SIZES,
    Int4Linear,
    PackedWeight,
    PackingError,
    dequantize,
    pack,
)
from qvggt_kernels.cpu import linear as cpu
from support.concurrency import results_of_threads
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("cpu_code")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def quantized(rows, columns, group_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=generator)
    scales = torch.rand(rows, columns // group_size, generator=generator) * 0.01 + 0.001
    return q, scales.bfloat16()


def layer_of(rows, columns, group_size=32, seed=0, bias=True):
    q, scales = quantized(rows, columns, group_size, seed)
    return Int4Linear.from_quantized(q, scales, torch.linspace(-1, 1, rows) if bias else None)


def exact_weight(q, scales):
    """Weights in float64, where the product of number and scale is exact."""
    group_size = q.shape[1] // scales.shape[1]
    return q.double() * scales.double().repeat_interleave(group_size, dim=1)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_rounds_the_exact_product_once(group_size, dtype):
    q, scales = quantized(7, 3 * group_size, group_size)
    weight = dequantize(PackedWeight(pack(q, group_size), scales), dtype)
    assert weight.dtype == dtype
    assert torch.equal(weight, exact_weight(q, scales).to(dtype))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", sorted(cpu.DTYPES, key=str))
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_cpu_path_gives_the_bits_of_the_reference(group_size, dtype, rows):
    q, scales = quantized(rows, 2 * group_size, group_size, seed=rows)
    packed = PackedWeight(pack(q, group_size), scales)
    assert torch.equal(cpu.dequantize(packed, dtype), dequantize(packed, dtype))


@pytest.mark.parametrize("dtype", sorted(cpu.DTYPES, key=str))
def test_cpu_path_is_exact_for_every_scale_that_bfloat16_has(dtype):
    bits = np.arange(2**16, dtype=np.uint16).view(np.int16)
    scales = torch.from_numpy(bits).view(torch.bfloat16).view(-1, 1)
    scales = scales[torch.isfinite(scales[:, 0])]
    q = torch.arange(32, dtype=torch.int8).remainder(16).sub(8).expand(len(scales), -1)
    packed = PackedWeight(pack(q.contiguous(), 32), scales)
    assert torch.equal(cpu.dequantize(packed, dtype), dequantize(packed, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("tokens", [1, 33, 17 * 3])
def test_linear_agrees_with_a_float64_linear(dtype, group_size, tokens):
    q, scales = quantized(40, 2 * group_size, group_size)
    layer = Int4Linear.from_quantized(q, scales, torch.linspace(-1, 1, 40))
    x = torch.randn(tokens, 2 * group_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = layer(x)
    expected = F.linear(x.double(), exact_weight(q, scales), layer.bias.double())
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_path_is_taken_where_it_can_be(without_native_kernels, monkeypatch, dtype):
    taken = []
    monkeypatch.setattr(cpu, "dequantize", lambda *a: taken.append(a) or dequantize(*a))
    layer_of(16, 64)(torch.randn(2, 64).to(dtype))
    assert len(taken) == (dtype in cpu.DTYPES)


def test_leading_dimensions_and_missing_bias():
    layer = layer_of(12, 64, bias=False)
    x = torch.randn(2, 3, 5, 64)
    assert layer(x).shape == (2, 3, 5, 12)
    assert torch.allclose(layer(x)[1, 2], layer(x[1, 2]), atol=1e-6)
    assert layer(x[:0]).shape == (0, 3, 5, 12)


def test_results_do_not_live_in_the_shared_scratch():
    first, second = layer_of(16, 64, seed=1), layer_of(16, 64, seed=2)
    x = torch.randn(4, 64)
    y = first(x)
    kept = y.clone()
    second(x)
    assert torch.equal(y, kept)


def test_threads_do_not_share_scratch():
    layers = [layer_of(256, 256, seed=seed) for seed in range(4)]
    x = torch.randn(8, 256)
    expected = [layer(x) for layer in layers]
    for index, result in results_of_threads(lambda index: layers[index](x), count=4):
        assert torch.equal(result, expected[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scratch_grows_and_serves_smaller_layers_again(dtype):
    for rows in (8, 128, 8, 512, 128):
        layer = layer_of(rows, 64, seed=rows)
        expected = dequantize(layer.packed(), dtype)
        assert torch.equal(cpu.dequantize(layer.packed(), dtype), expected)


def test_inference_mode_and_normal_mode_share_a_scratch():
    layer = layer_of(96, 96)
    x = torch.randn(3, 96)
    with torch.inference_mode():
        inside = layer(x)
    assert torch.equal(layer(x), inside)


def test_gradients_pass_through_layers_of_one_shape():
    """A shared scratch in the graph would give the first layer the second one's weight."""
    layers = [layer_of(64, 64, seed=seed) for seed in (1, 2)]
    x = torch.randn(5, 64, requires_grad=True)
    layers[1](torch.tanh(layers[0](x))).sum().backward()
    twin = x.detach().double().requires_grad_()
    hidden = twin
    for index, layer in enumerate(layers):
        weight = dequantize(layer.packed(), torch.float64)
        hidden = F.linear(hidden, weight, layer.bias.double())
        hidden = torch.tanh(hidden) if index == 0 else hidden
    hidden.sum().backward()
    assert torch.allclose(x.grad.double(), twin.grad, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_casting_touches_the_bias_alone(dtype):
    layer = layer_of(16, 64)
    qweight, scales = layer.qweight.clone(), layer.scales.clone()
    nn.Sequential(layer).to(dtype)
    assert torch.equal(layer.qweight, qweight)
    assert layer.scales.dtype == torch.bfloat16
    assert torch.equal(layer.scales, scales)
    assert layer.bias.dtype == dtype


def test_scales_come_back_from_float16_unharmed():
    """2^-30 is nothing in float16: a cast that went through it would silently zero a weight."""
    q, scales = quantized(4, 32, 32)
    layer = Int4Linear.from_quantized(q, torch.full_like(scales, 2.0**-30))
    layer.half().bfloat16()
    assert torch.equal(layer.scales, torch.full_like(scales, 2.0**-30))


def test_layer_is_made_empty_and_filled_from_a_file(tmp_path):
    from safetensors.torch import load_file, save_file

    layer = layer_of(16, 64)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    empty = Int4Linear(64, 16, group_size=32, device="meta")
    empty.to(torch.bfloat16)
    empty.load_state_dict(load_file(tmp_path / "layer.safetensors"), assign=True)
    x = torch.randn(3, 64)
    assert torch.equal(empty(x), layer(x))


def test_layer_holds_four_bits_a_weight_before_and_after_use():
    layer = layer_of(128, 256, group_size=128, bias=False)
    layer(torch.randn(2, 256))
    held = sum(
        value.nbytes
        for holder in (vars(layer), layer._buffers, layer._parameters)
        for value in holder.values()
        if isinstance(value, torch.Tensor)
    )
    assert held == 128 * 256 // 2 + 2 * 128 * 2


def test_the_representation_names_the_sizes():
    text = repr(layer_of(16, 64))
    assert text == "Int4Linear(in_features=64, out_features=16, group_size=32, bias=True)"


def test_parts_that_do_not_fit_are_refused():
    q, scales = quantized(4, 64, 32)
    with pytest.raises(PackingError, match="100 columns"):
        Int4Linear(100, 8, group_size=32)
    with pytest.raises(PackingError, match="group size 16"):
        Int4Linear.from_quantized(q, scales.repeat(1, 2))
    with pytest.raises(PackingError, match="float32"):
        Int4Linear.from_quantized(q, scales.float())
