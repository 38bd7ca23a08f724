"""Times one block of VGGT-1B at two frames of 392x518, and the steps that it is made of.

A frame block attends within each of the frames, a global block across both. Candidates:

    original fp32   separate PyTorch calls in float32, as the original implementation makes them
    original bf16   the same in bfloat16
    fp32, bf16      the block of this repository with full weights
    int4            4-bit weights, multiplied in bfloat16
    int4 int8       4-bit weights, multiplied in 8-bit integers

    python benchmarks/block.py [--threads 2] [--clock wall] [--rounds 9]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import Int4Linear, attention, capability, layer_norm_add_, qk_norm_rope_
from rich.console import Console
from rich.table import Table
from timing import CLOCKS, compare, describe_run
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model import ModelConfig
from qvggt_core.model.blocks import Block
from qvggt_core.model.rope import RotaryTables, rotate

FRAMES, HEIGHT, WIDTH = 2, 392, 518
GROUP_SIZE = 128
ORIGINAL = ("original fp32", "original bf16")


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    machine = describe_run(arguments.clock)
    clock = CLOCKS[arguments.clock]
    machine["gains"] = {
        "bfloat16": capability._cpu_gain(),
        "oneDNN in float32": capability.prefers_onednn(),
        "tiled attention": capability.tiles_attention(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"block_{arguments.threads}_threads_{arguments.clock}.json"
    content: dict[str, Any] = {"machine": machine, "rounds": arguments.rounds}
    groups = {
        "blocks": (("frame", block_candidates(False)), ("global", block_candidates(True))),
        "steps": block_steps().items(),
    }
    for title, group in groups.items():
        content[title] = {}
        for name, runs in group:
            content[title][name] = compare(runs, arguments.rounds, clock)
            console.print(f"measured {name}", style="dim")
        machine["load_average_after"] = os.getloadavg()[0]
        console.print(as_table(f"{title}, 2 x 1041 tokens", content[title], machine))
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {path}")


def block_candidates(across_frames: bool) -> dict[str, Callable[[], object]]:
    """Return blocks of one kind that take the same tokens, bfloat16 being the yardstick."""
    full, tokens, rope = _block_and_tokens()
    full16 = copy.deepcopy(full).bfloat16()
    packed = pack_linears(copy.deepcopy(full)).bfloat16()
    integers = copy.deepcopy(packed)
    for module in integers.modules():
        if isinstance(module, Int4Linear):
            module.arithmetic = "int8"

    def ours(block: Block, dtype: torch.dtype) -> Callable[[], object]:
        # A block overwrites its tokens; LayerScale is small, so they stay what they are.
        x = tokens.to(dtype)

        def run() -> None:
            with torch.inference_mode():
                block(x, rope, across_frames=across_frames)

        return run

    def original(block: Block, dtype: torch.dtype) -> Callable[[], object]:
        x = tokens.to(dtype)

        def run() -> None:
            with torch.inference_mode():
                original_block(block, x, rope, across_frames)

        return run

    return {
        "bf16": ours(full16, torch.bfloat16),
        "original fp32": original(full, torch.float32),
        "original bf16": original(full16, torch.bfloat16),
        "fp32": ours(full, torch.float32),
        "int4": ours(packed, torch.bfloat16),
        "int4 int8": ours(integers, torch.bfloat16),
    }


def original_block(
    block: Block, x: Tensor, rope: tuple[Tensor, Tensor], across_frames: bool
) -> Tensor:
    """Run a block's weights by separate calls that keep every intermediate, on (B, S, N, C)."""
    batch, frames, tokens, dim = x.shape
    sequence = (batch, frames * tokens) if across_frames else (batch * frames, tokens)
    layer = block.attn
    qkv = layer.qkv(block.norm1(x)).unflatten(-1, (3, layer.num_heads, -1))
    query, key, value = qkv.unbind(3)
    query, key = rotate(layer.q_norm(query), *rope), rotate(layer.k_norm(key), *rope)
    heads = [part.reshape(*sequence, layer.num_heads, -1) for part in (query, key, value)]
    out = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in heads))
    out = layer.proj(out.transpose(1, 2).reshape(batch, frames, tokens, dim))
    x = x + out * block.ls1.gamma
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))) * block.ls2.gamma


def pack_linears(module: nn.Module) -> nn.Module:
    """Replace every linear of a module by a packed one of random 4-bit weights, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            shape = (child.out_features, child.in_features)
            q = torch.randint(-8, 8, shape, dtype=torch.int8)
            scales = (torch.rand(shape[0], shape[1] // GROUP_SIZE) * 0.01 + 0.001).bfloat16()
            setattr(module, name, Int4Linear.from_quantized(q, scales, child.bias.detach()))
        else:
            pack_linears(child)
    return module


def block_steps() -> dict[str, dict[str, Callable[[], object]]]:
    """Return what a block spends its time on, each step in several arithmetics."""
    block, tokens, (cos, sin) = _block_and_tokens()
    rows, dim = tokens[0].numel() // tokens.shape[-1], tokens.shape[-1]
    heads = block.attn.num_heads
    qkv = torch.randn(1, FRAMES, rows // FRAMES, 3, heads, dim // heads)
    hidden = torch.randn(rows, 4 * dim)
    steps: dict[str, dict[str, Callable[[], object]]] = {}
    for name, layer in (
        ("qkv", block.attn.qkv),
        ("proj", block.attn.proj),
        ("fc1", block.mlp.fc1),
        ("fc2", block.mlp.fc2),
    ):
        x = torch.randn(rows, layer.in_features)
        packed = pack_linears(nn.Sequential(copy.deepcopy(layer))).bfloat16()
        integers = copy.deepcopy(packed)
        integers[0].arithmetic = "int8"
        layer16, x16 = copy.deepcopy(layer).bfloat16(), x.bfloat16()
        steps[name] = {
            "bf16": _quietly(layer16, x16),
            "original fp32": _quietly(layer, x),
            "int4": _quietly(packed, x16),
            "int4 int8": _quietly(integers, x16),
        }
    for name, shape in (("frame attention", FRAMES), ("global attention", 1)):
        parts = qkv.view(shape, -1, 3, heads, dim // heads).unbind(2)
        full = [part.transpose(1, 2) for part in parts]
        half = [part.bfloat16() for part in full]
        steps[name] = {
            "bf16": _quietly(attention, *half),
            "original fp32": _quietly(F.scaled_dot_product_attention, *full),
            "original bf16": _quietly(F.scaled_dot_product_attention, *half),
            "fp32": _quietly(attention, *full),
        }
    fused: dict[str, list[Callable[[], object]]] = {"norm": [], "rotation": [], "gelu": []}
    for dtype in (torch.bfloat16, torch.float32):
        x, gains = tokens.to(dtype), torch.ones(dim, dtype=dtype)
        norms = [torch.ones(dim // heads, dtype=dtype)] * 4
        own_qkv, own_hidden = qkv.to(dtype), hidden.to(dtype)
        fused["norm"].append(_quietly(layer_norm_add_, x, x.clone(), gains * 0, gains, gains, 1e-6))
        fused["rotation"].append(_quietly(qk_norm_rope_, own_qkv, *norms, 1e-6, cos, sin))
        fused["gelu"].append(_quietly(F.gelu, own_hidden))
    for name, (run16, run32) in fused.items():
        steps[name] = {"bf16": run16, "fp32": run32}
    return steps


def _quietly(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            function(*arguments)

    return run


def _block_and_tokens() -> tuple[Block, Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    config = ModelConfig.vggt_1b()
    block = Block(
        config.embed_dim, config.num_heads, config.mlp_ratio, layer_scale=1e-5, qk_norm=True
    ).eval()
    rows, columns = HEIGHT // config.patch_size, WIDTH // config.patch_size
    tables = RotaryTables(config.embed_dim // config.num_heads, config.num_special_tokens)
    rope = tables(rows, columns, torch.device("cpu"))
    tokens = torch.randn(1, FRAMES, len(rope[0]), config.embed_dim)
    return block, tokens, rope


def as_table(title: str, groups: dict[str, dict[str, Any]], machine: dict[str, Any]) -> Table:
    """Return milliseconds and ratios to bfloat16, one row per group."""
    where = "{cpu}, {threads} threads, {clock} time, torch {torch}".format(**machine)
    table = Table(title=f"{title}; {where}", caption="x: ratio to bf16, median of rounds")
    names = list(dict.fromkeys(name for figures in groups.values() for name in figures))
    table.add_column("")
    for heading in names:
        table.add_column(heading, justify="right")
    for group, figures in groups.items():
        cells = [
            f"{figures[name]['median_ms']:.1f} ms {figures[name]['ratio']:.2f}x"
            if name in figures
            else ""
            for name in names
        ]
        table.add_row(group, *cells)
    return table


if __name__ == "__main__":
    main()
