"""Times the steps of one block of VGGT-1B at two frames of 392x518, and two convolutions of a head.

`qvggt bench --cases blocks` times the whole block, this script its steps. Each step runs in several
arithmetics, side by side; speed-ups are over bfloat16.

    python benchmarks/block.py [--threads 2] [--clock wall] [--rounds 9]
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import (
    HeadNorm,
    Int4Linear,
    Rotation,
    attention,
    cpu_features,
    fastest_dtype,
    int8_attention,
    layer_norm_add_,
    qk_norm_rope_,
)
from qvggt_kernels.cpu import attention as cpu_attention
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.measure.layers import block_and_tokens, pack_linears
from qvggt_core.measure.machine import describe_machine
from qvggt_core.measure.provenance import write_results
from qvggt_core.measure.roofline import Shape
from qvggt_core.measure.timing import CLOCKS, Run, measure, speedup
from qvggt_core.model import ModelConfig
from qvggt_core.model.blocks import Block

SHAPE = Shape(frames=2, height=392, width=518)
CPU = torch.device("cpu")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine: dict[str, Any] = {
        **describe_machine(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "clock": arguments.clock,
        "load_average": os.getloadavg()[0],
    }
    steps = {}
    with torch.inference_mode():
        for name, runs in block_steps().items():
            for run in runs.values():
                run()
            times = measure(runs, arguments.rounds, arguments.clock)
            steps[name] = {
                each: {
                    "median_ms": 1e3 * statistics.median(taken),
                    "speedup": speedup(times["bf16"], taken),
                }
                for each, taken in times.items()
            }
    machine["load_average_after"] = os.getloadavg()[0]
    machine["chosen"] = {
        "oneDNN in float32": cpu_features.prefers_onednn(),
        "tiled attention": cpu_attention.prefers_tiles(fastest_dtype("cpu")),
    }
    console = Console()
    console.print(as_table(steps, machine))
    path = arguments.out / f"block_steps_{arguments.threads}_threads_{arguments.clock}.json"
    content = {"machine": machine, "rounds": arguments.rounds, "steps": steps}
    write_results(path, content)
    console.print(f"wrote {path}")


def block_steps() -> dict[str, dict[str, Run]]:
    """Return what a block spends its time on, each step in several arithmetics."""
    block, tokens, rope = block_and_tokens(ModelConfig.vggt_1b(), SHAPE, CPU)
    return {
        **linear_steps(block, tokens),
        **attention_steps(block, tokens),
        **fused_steps(block, tokens, rope),
        **convolution_steps(),
    }


def linear_steps(block: Block, tokens: Tensor) -> dict[str, dict[str, Run]]:
    """Return the block's four linears."""
    rows = tokens[0].numel() // tokens.shape[-1]
    steps = {}
    for name, layer in (
        ("qkv", block.attn.qkv),
        ("proj", block.attn.proj),
        ("fc1", block.mlp.fc1),
        ("fc2", block.mlp.fc2),
    ):
        x = torch.randn(rows, layer.in_features)
        packed = pack_linears(nn.Sequential(copy.deepcopy(layer))).bfloat16()
        integers = copy.deepcopy(packed)
        for module in integers.modules():
            if isinstance(module, Int4Linear):
                module.arithmetic = "int8"
        layer16, x16 = copy.deepcopy(layer).bfloat16(), x.bfloat16()
        steps[name] = {
            "bf16": _call(layer16, x16),
            "fp32, as PyTorch has it": _call(layer, x),
            "int4": _call(packed, x16),
            "int4 int8": _call(integers, x16),
        }
    return steps


def _random_qkv(block: Block, tokens: Tensor) -> Tensor:
    rows, dim = tokens[0].numel() // tokens.shape[-1], tokens.shape[-1]
    heads, frames = block.attn.num_heads, SHAPE.frames
    return torch.randn(1, frames, rows // frames, 3, heads, dim // heads)


def attention_steps(block: Block, tokens: Tensor) -> dict[str, dict[str, Run]]:
    """Return attention within frames and across them."""
    qkv = _random_qkv(block, tokens)
    steps = {}
    for name, sequences in (("frame attention", SHAPE.frames), ("global attention", 1)):
        parts = qkv.view(sequences, -1, *qkv.shape[3:]).unbind(2)
        full = [part.transpose(1, 2) for part in parts]
        half = [part.bfloat16() for part in full]
        steps[name] = {
            "bf16": _call(attention, *half),
            "8-bit scores": _call(int8_attention, *half),
            "bf16, as PyTorch has it": _call(F.scaled_dot_product_attention, *half),
            "fp32": _call(attention, *full),
            "fp32, as PyTorch has it": _call(F.scaled_dot_product_attention, *full),
        }
    return steps


def fused_steps(
    block: Block, tokens: Tensor, rope: tuple[Tensor, Tensor]
) -> dict[str, dict[str, Run]]:
    """Return norm, rotation and GELU."""
    dim, qkv = tokens.shape[-1], _random_qkv(block, tokens)
    hidden = torch.randn(tokens[0].numel() // dim, 4 * dim)
    steps: dict[str, dict[str, Run]] = {"norm": {}, "rotation": {}, "gelu": {}}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        x, gains = tokens.to(dtype), torch.ones(dim, dtype=dtype)
        norm = HeadNorm(*[torch.ones(qkv.shape[-1], dtype=dtype)] * 4, 1e-6)
        own_qkv, own_hidden = qkv.to(dtype), hidden.to(dtype)
        steps["norm"][name] = _call(layer_norm_add_, x, x.clone(), gains * 0, gains, gains, 1e-6)
        steps["rotation"][name] = _call(qk_norm_rope_, own_qkv, norm, Rotation(*rope))
        steps["gelu"][name] = _call(F.gelu, own_hidden)
    return steps


def convolution_steps() -> dict[str, dict[str, Run]]:
    """Return the two convolutions of a dense head that cost most."""
    steps = {}
    for inputs, outputs, scale in ((256, 256, 4), (128, 32, 14)):
        size = (scale * SHAPE.height // 14, scale * SHAPE.width // 14)
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        image = torch.randn(1, inputs, *size)
        convolution16 = copy.deepcopy(convolution).bfloat16()
        convolution16.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image16 = image.bfloat16().contiguous(memory_format=torch.channels_last)
        steps[f"3x3, {inputs} to {outputs}, {size[0]}x{size[1]}"] = {
            "bf16": _call(convolution16, image16),
            "fp32, as PyTorch has it": _call(convolution, image),
        }
    return steps


def _call(function: Any, *arguments: object) -> Run:
    return lambda: function(*arguments)


def as_table(steps: dict[str, dict[str, Any]], machine: dict[str, Any]) -> Table:
    """Return milliseconds and speed-ups over bfloat16, one row per step."""
    where = "{cpu}, {threads} threads, {clock} time, torch {torch}".format(**machine)
    names = list(dict.fromkeys(name for figures in steps.values() for name in figures))
    table = Table(title=f"Steps of a block, 2 x 1041 tokens; {where}")
    table.add_column("")
    for heading in names:
        table.add_column(heading, justify="right")
    for step, figures in steps.items():
        cells = [
            f"{figures[name]['median_ms']:.1f} ms {figures[name]['speedup']:.2f}x"
            if name in figures
            else ""
            for name in names
        ]
        table.add_row(step, *cells)
    return table


if __name__ == "__main__":
    main()
