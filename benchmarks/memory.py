"""Memory of a VGGT-1B-shaped network: the loaded model, and what a window costs per frame.

Weights are random (memory does not depend on them). Each window size runs in a process of its
own, whose peak resident set is read from the kernel; the slope over window sizes is the cost of
a frame. Beside it stands the same network made to keep every block's output in float32, as the
original implementation does.

    python benchmarks/memory.py --checkpoint out/vggt-1b-int4.safetensors --frames 2 4 6
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from qvggt_core.measure.provenance import write_results
from qvggt_core.measure.rss import MIB, peak_mib, resident_mib
from qvggt_core.model import ModelConfig, load_model
from qvggt_core.quantize.random_checkpoint import write_random_checkpoint


def run_window(args: argparse.Namespace) -> None:
    """Run one window in this process and print its memory as JSON."""
    torch.set_num_threads(args.threads)
    before = resident_mib()
    model = load_model(args.checkpoint, dtype=torch.bfloat16)
    for tensor in model.state_dict().values():
        tensor.amax()  # reads every mapped page
    loaded = resident_mib()
    kept: list[torch.Tensor] = []
    if args.keep_all:
        frame_outputs: list[torch.Tensor] = []
        for frame, window in zip(
            model.aggregator.frame_blocks, model.aggregator.global_blocks, strict=True
        ):
            frame.register_forward_hook(lambda _, __, out: frame_outputs.append(out.clone()))
            window.register_forward_hook(
                lambda _, __, out: kept.append(torch.cat([frame_outputs.pop(), out], -1).float())
            )
    images = torch.rand(1, args.window, 3, args.height, args.width)
    started = time.perf_counter()
    with torch.inference_mode():
        model(images, heads=("camera", "depth"))
    print(
        json.dumps(
            {
                "frames": args.window,
                "keep_all": args.keep_all,
                "interpreter_mib": before,
                "loaded_mib": loaded - before,
                "peak_mib": peak_mib(torch.device("cpu")),
                "seconds": time.perf_counter() - started,
            }
        )
    )


def measure(args: argparse.Namespace, frames: int, keep_all: bool) -> dict[str, float]:
    """Run one window in a process of its own."""
    command = [sys.executable, __file__, "--checkpoint", str(args.checkpoint)]
    command += ["--window", str(frames), "--threads", str(args.threads)]
    command += ["--height", str(args.height), "--width", str(args.width)]
    command += ["--keep-all"] if keep_all else []
    # Large blocks go back to the kernel at once, so that the peak is what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print a table and write the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("out/vggt-1b-int4.safetensors"))
    parser.add_argument("--frames", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--height", type=int, default=392)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory.json"))
    parser.add_argument("--window", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep-all", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.window:
        run_window(args)
        return
    console = Console()
    if not args.checkpoint.exists():
        console.print(f"making {args.checkpoint}")
        write_random_checkpoint(args.checkpoint, ModelConfig.vggt_1b())

    runs = [measure(args, n, keep_all) for keep_all in (False, True) for n in args.frames]
    slopes = {}
    for keep_all in (False, True):
        chosen = [run for run in runs if run["keep_all"] == keep_all]
        slope, _ = np.polyfit([r["frames"] for r in chosen], [r["peak_mib"] for r in chosen], 1)
        slopes["keep_all" if keep_all else "qvggt"] = float(slope)

    result = {
        "height": args.height,
        "width": args.width,
        "file_mib": args.checkpoint.stat().st_size / MIB,
        **activations_mib(args.height, args.width),
        "growth_mib_per_frame": slopes,
        "runs": runs,
    }
    show(result, console)
    write_results(args.output, result)
    console.print(f"wrote {args.output}")


def activations_mib(height: int, width: int) -> dict[str, float]:
    """Return MiB of a frame's block outputs: of four in bfloat16, and of all in float32."""
    config = ModelConfig.vggt_1b()
    patches = (height // config.patch_size) * (width // config.patch_size)
    tokens = patches + config.num_special_tokens
    return {
        "four_layers_mib": 4 * patches * 2 * config.embed_dim * 2 / MIB,
        "all_layers_mib": config.depth * tokens * 2 * config.embed_dim * 4 / MIB,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print a table of the windows, and the growth per frame."""
    size = f"{result['height']}x{result['width']}"
    table = Table(title=f"VGGT-1B shape, INT4, bfloat16, {size}")
    for heading in ("", "frames", "peak MiB", "seconds"):
        table.add_column(heading, justify="left" if not heading else "right")
    for run in result["runs"]:
        label = "all 24 blocks kept, float32" if run["keep_all"] else "qvggt"
        table.add_row(label, str(run["frames"]), f"{run['peak_mib']:.0f}", f"{run['seconds']:.1f}")
    console.print(table)
    growth, four = result["growth_mib_per_frame"], result["four_layers_mib"]
    file_mib, loaded = result["file_mib"], result["runs"][0]["loaded_mib"]
    console.print(
        f"file {file_mib:.0f} MiB, loaded {loaded:.0f} MiB resident "
        f"({loaded / file_mib:.3f} of the file)\n"
        f"growth per frame: qvggt {growth['qvggt']:.1f} MiB ({growth['qvggt'] / four:.2f} times "
        f"the four kept layers, {four:.1f} MiB), all blocks kept {growth['keep_all']:.1f} MiB "
        f"(of which {result['all_layers_mib']:.1f} MiB are the blocks)"
    )


if __name__ == "__main__":
    main()
