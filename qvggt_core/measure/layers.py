"""Linears and blocks in every arithmetic, with random weights, to be timed side by side."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
from qvggt_kernels import Int4Linear, PackedLinear, fastest_dtype, int4_linear_int8
from qvggt_kernels.packing import ZERO
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.measure.roofline import Shape
from qvggt_core.measure.timing import Run
from qvggt_core.model import VGGT, ModelConfig
from qvggt_core.model.blocks import Block
from qvggt_core.model.rope import RotaryTables, rotate
from qvggt_core.model.settings import ComputeSettings

GROUP_SIZE = 128
_COLD_BYTES = 1 << 26
"""Bytes of 16-bit weights that a contender cycles through: more than the last-level caches."""
_INT4_BYTES = 0.5 + 2 / GROUP_SIZE

LinearCall = Callable[[Tensor], Tensor]
"""A linear that is ready to be called."""

Widths = dict[str, tuple[float, float]]
"""Bytes per weight, as stored, and per activation, by contender."""


def linear_shapes(model: VGGT, prefix: str) -> dict[str, tuple[int, int]]:
    """Return (N, K) of the distinct packed linears whose names begin so, by a short name."""
    shapes: dict[tuple[int, int], str] = {}
    for name, module in model.named_modules():
        if name.startswith(prefix) and isinstance(module, PackedLinear):
            short = f"{prefix.split('.')[0]} {name.rpartition('.')[2]}"
            shapes.setdefault((module.out_features, module.in_features), short)
    return {name: shape for shape, name in shapes.items()}


def linear_contenders(
    rows: int, inputs: int, outputs: int, device: torch.device, missing: dict[str, str]
) -> tuple[dict[str, Run], Widths]:
    """Return one linear (rows, K) -> (rows, N) in every arithmetic; bfloat16 is the baseline.

    Every call takes the next of many layers, as in a network, so that no weight is still in a
    cache from its last use. On a GPU, libraries that are installed take part (torchao, gemlite);
    others are named in `missing`.
    """
    torch.manual_seed(0)
    group = next(size for size in (GROUP_SIZE, 64, 32) if inputs % size == 0)
    q = torch.randint(-8, 8, (outputs, inputs), dtype=torch.int8)
    scales = (torch.rand(outputs, inputs // group) * 0.01 + 0.001).bfloat16()
    bias = torch.randn(outputs)
    weight = torch.randn(outputs, inputs)
    x = torch.randn(rows, inputs).to(device)
    x16 = x.bfloat16()
    bias, bias16 = bias.to(device), bias.bfloat16().to(device)
    copies = range(max(2, _COLD_BYTES // (2 * weight.numel())))
    packed = [Int4Linear.from_quantized(q, scales, bias16.cpu()).to(device) for _ in copies]
    weights = itertools.cycle([weight.to(device) for _ in copies])
    weights16 = itertools.cycle([weight.bfloat16().to(device) for _ in copies])
    layers, same_layers = itertools.cycle(packed), itertools.cycle(packed)

    def in_integers() -> Tensor:
        layer = next(same_layers)
        return int4_linear_int8(x16, layer.packed())

    runs: dict[str, Run] = {
        "bfloat16": lambda: F.linear(x16, next(weights16), bias16),
        "float32": lambda: F.linear(x, next(weights), bias),
        "INT4": lambda: next(layers)(x16),
        "INT4, 8-bit products": in_integers,
    }
    widths: Widths = {
        "bfloat16": (2.0, 2.0),
        "float32": (4.0, 4.0),
        "INT4": (_INT4_BYTES, 2.0),
    }
    if device.type == "cuda":
        _add_others(runs, widths, (q, scales, bias16), x16, copies, missing)
    return runs, widths


def _torchao_linear(q: Tensor, scales: Tensor, bias: Tensor) -> LinearCall:
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    columns = q.shape[1]
    layer = nn.Linear(columns, len(q), device=bias.device, dtype=bias.dtype)
    group = columns // scales.shape[1]
    weight = q.float().unflatten(1, (-1, group)) * scales.float()[..., None]
    layer.weight.data.copy_(weight.flatten(1))
    layer.bias.data.copy_(bias)
    quantize_(layer, Int4WeightOnlyConfig(group_size=group))
    return layer


def _gemlite_linear(q: Tensor, scales: Tensor, bias: Tensor) -> LinearCall:
    from gemlite.helper import A16Wn

    group = q.shape[1] // scales.shape[1]
    steps = scales.to(bias.dtype).view(-1, 1)
    maker = A16Wn(device=str(bias.device))
    numbers = (q + ZERO).to(torch.uint8)
    layer: LinearCall = maker.from_weights(
        numbers, steps, torch.full_like(steps, ZERO), 4, group, bias.clone()
    )
    return layer


_OTHERS: dict[str, Callable[[Tensor, Tensor, Tensor], LinearCall]] = {
    "torchao INT4": _torchao_linear,
    "gemlite INT4": _gemlite_linear,
}
"""Makers of 4-bit linears of other libraries, of q (N, K) int8, scales (N, K/g) and a bias (N,)
that has the dtype and device to compute in."""


def _add_others(
    runs: dict[str, Run],
    widths: Widths,
    weight: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    copies: range,
    missing: dict[str, str],
) -> None:
    """Add the linears of all libraries that are installed; name the others in `missing`."""
    for name, make in _OTHERS.items():
        try:
            made = [make(*weight) for _ in copies]
            made[0](x)
        except Exception as error:  # any error of another library leaves out its row alone
            missing[name] = f"{type(error).__name__}: {error}"
            continue
        layers = itertools.cycle(made)
        runs[name] = lambda layers=layers: next(layers)(x)  # type: ignore[misc]
        widths[name] = (_INT4_BYTES, 2.0)


def block_contenders(
    config: ModelConfig, shape: Shape, across_frames: bool, device: torch.device
) -> tuple[dict[str, Run], Widths]:
    """Return one block of the aggregator in every arithmetic, on equal tokens.

    "separate calls" are plain PyTorch calls that keep every intermediate, as the original makes
    them; the rest is the block of this repository, INT4 in the dtype that is fastest on the device.
    The first is the baseline: bfloat16, or float32 by separate calls where that is the fastest.
    """
    full, tokens, rope = block_and_tokens(config, shape, device)
    full16 = copy.deepcopy(full).bfloat16()
    dtype = fastest_dtype(device)
    packed = pack_linears(copy.deepcopy(full)).to(dtype)
    integers = copy.deepcopy(packed)
    for module in integers.modules():
        if isinstance(module, Int4Linear):
            module.arithmetic = ComputeSettings(linears="int8").linears

    def ours(block: nn.Module, dtype: torch.dtype) -> Run:
        # A block overwrites its tokens; LayerScale is small, so they stay what they are.
        x = tokens.to(dtype, copy=True)
        return lambda: block(x, rope, across_frames=across_frames)

    def separate(block: Block, dtype: torch.dtype) -> Run:
        x = tokens.to(dtype)
        return lambda: separate_calls(block, x, rope, across_frames)

    runs = {
        "bfloat16": ours(full16, torch.bfloat16),
        "float32, separate calls": separate(full, torch.float32),
        "bfloat16, separate calls": separate(full16, torch.bfloat16),
        "float32": ours(full, torch.float32),
        "INT4": ours(packed, dtype),
        "INT4, 8-bit products": ours(integers, dtype),
    }
    if dtype == torch.float32:
        # Such a device emulates bfloat16, ten times slower.
        runs = {name: run for name, run in runs.items() if not name.startswith("bfloat16")}
    # The measured peaks are of floats: products of integers have no roofline here.
    widths: Widths = {
        name: (4.0, 4.0) if "float32" in name else (2.0, 2.0) for name in runs if "INT4" not in name
    } | {"INT4": (_INT4_BYTES, float(dtype.itemsize))}
    return runs, widths


def block_and_tokens(
    config: ModelConfig, shape: Shape, device: torch.device
) -> tuple[Block, Tensor, tuple[Tensor, Tensor]]:
    """Return a block of the aggregator with random weights, tokens (1, S, N, C), and its tables."""
    torch.manual_seed(0)
    block = Block(
        config.embed_dim, config.num_heads, config.mlp_ratio, layer_scale=1e-5, qk_norm=True
    )
    tables = RotaryTables(config.embed_dim // config.num_heads, config.num_special_tokens)
    patch = config.patch_size
    rope = tables(shape.height // patch, shape.width // patch, device)
    tokens = torch.randn(1, shape.frames, shape.tokens(config), config.embed_dim)
    return block.to(device).eval().requires_grad_(False), tokens.to(device), rope


def separate_calls(
    block: Block, x: Tensor, rope: tuple[Tensor, Tensor], across_frames: bool
) -> Tensor:
    """Run a block's weights by separate calls that keep every intermediate, on (B, S, N, C)."""
    batch, frames, tokens, dim = x.shape
    sequence = (batch, frames * tokens) if across_frames else (batch * frames, tokens)
    layer = block.attn
    qkv = layer.qkv(block.norm1(x)).unflatten(-1, (3, layer.num_heads, -1))
    query, key, value = qkv.unbind(3)
    assert layer.q_norm is not None
    assert layer.k_norm is not None
    query, key = rotate(layer.q_norm(query), *rope), rotate(layer.k_norm(key), *rope)
    query, key, value = (
        part.reshape(*sequence, layer.num_heads, -1).transpose(1, 2) for part in (query, key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value)
    out = layer.proj(out.transpose(1, 2).reshape(batch, frames, tokens, dim))
    x = x + out * block.ls1.gamma
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))) * block.ls2.gamma


def pack_linears(module: nn.Module) -> nn.Module:
    """Replace every linear of a module by a packed one of random 4-bit weights, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            rows, columns = child.out_features, child.in_features
            group = next(size for size in (GROUP_SIZE, 64, 32) if columns % size == 0)
            q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
            scales = (torch.rand(rows, columns // group) * 0.01 + 0.001).bfloat16()
            packed = Int4Linear.from_quantized(q, scales, child.bias.detach().cpu())
            setattr(module, name, packed.to(child.weight.device))
        else:
            pack_linears(child)
    return module
