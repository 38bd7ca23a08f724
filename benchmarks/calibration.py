"""Time and memory of calibrating a VGGT-1B-shaped network with random weights, block by block.

Weights are random (time and memory do not depend on them), images are a synthetic flight. The
network is mapped from its file: `peak_rss` counts the file's pages that were touched, which the
kernel may drop at any time, `peak_anonymous` the memory that is really taken.

    python benchmarks/calibration.py --recipe qvggt --images 4 --width 56

The time of one judgement by the heads, of which a task-aware search makes one per candidate,
linear and batch, is measured from the middle of the network beside it. An interrupted run goes
on when the same command is run again; its processor time counts what came before.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from qvggt_core.measure.provenance import write_results
from qvggt_core.measure.rss import status_mib
from qvggt_core.model import VGGT, ModelConfig, load_model, read_checkpoint, save_checkpoint
from qvggt_core.quantize import (
    RECIPES,
    CalibrationOptions,
    CalibrationSet,
    QuantizationSettings,
    quantize_checkpoint,
)
from qvggt_core.quantize.blockwise import BlockwiseRunner
from qvggt_core.quantize.calibration_sources import synthetic_world
from qvggt_core.quantize.sampling import choose_windows


def make_checkpoint(path: Path) -> None:
    """Write a float32 checkpoint with VGGT-1B's names and shapes and random weights."""
    config = ModelConfig.vggt_1b()
    with torch.device("meta"):
        shapes = {name: entry.shape for name, entry in VGGT(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        fan_in = shape[1:].numel() if len(shape) > 1 else 1
        state[name] = torch.randn(shape, generator=generator) / max(fan_in, 1) ** 0.5
    save_checkpoint(path, state, config, {"licence": "random weights"})


class MemoryWatch(threading.Thread):
    """Samples this process's memory, in MiB, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_anonymous = 0.0
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample twice a second."""
        while not self._stopped.wait(0.5):
            self.peak_anonymous = max(self.peak_anonymous, status_mib("RssAnon"))

    def stop(self) -> None:
        """End sampling."""
        self._stopped.set()
        self.join()


class Spent:
    """Processor time of a run, over its interruptions."""

    def __init__(self, file: Path, settings: dict) -> None:
        self._file, self._settings, self._before = file, settings, 0.0
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["settings"] == settings:
                self._before = stored["processor_seconds"]
        self._started = time.process_time()

    def note(self) -> float:
        """Write down, and return, what was spent until now, in seconds."""
        spent = self._before + time.process_time() - self._started
        stored = {"settings": self._settings, "processor_seconds": spent}
        self._file.write_text(json.dumps(stored), encoding="utf-8")
        return spent


def judgement_seconds(source: Path, data: CalibrationSet) -> float:
    """Return the processor time of running to the heads once, from the middle of the network."""
    model = load_model(source, dtype=torch.float32, heads=("camera", "depth", "points"))
    runner = BlockwiseRunner(model, data.images[:1], batch=1, judged=1)
    while runner.position < len(runner.sites) // 2:
        runner.advance()
    runner.predict(0)
    used = time.process_time()
    runner.predict(0)
    return time.process_time() - used


def main() -> None:
    """Quantize and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="qvggt+")
    parser.add_argument("--precision", default=None)
    parser.add_argument("--task-candidates", type=int, default=None)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--width", type=int, default=56)
    parser.add_argument("--judged-images", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("out/vggt-1b-random"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/calibration.json"))
    args = parser.parse_args()
    console = Console()
    torch.set_num_threads(args.threads)
    source = args.folder / "vggt-1b-random.safetensors"
    if not source.exists():
        make_checkpoint(source)
    height = max(14, round(0.75 * args.width / 14) * 14)
    clips = -(-args.images // args.frames)
    world = synthetic_world("studio", args.frames, clips, height, args.width)
    data = choose_windows(world, args.images, "random", 0)
    result = measured(args, source, data, console)
    result["judgement_seconds"] = judgement_seconds(source, data)
    write_results(args.output, result)
    console.print(f"wrote {args.output}")


def measured(
    args: argparse.Namespace, source: Path, data: CalibrationSet, console: Console
) -> dict[str, Any]:
    """Return time, memory and errors of a calibration."""
    recipe = RECIPES[args.recipe]
    if args.task_candidates is not None and recipe.scaling is not None:
        scaling = replace(recipe.scaling, task_candidates=args.task_candidates)
        recipe = replace(recipe, scaling=scaling)
    watch = MemoryWatch()
    watch.start()
    started = time.perf_counter()
    settings = {"recipe": recipe.to_dict(), "images": data.sha256(), "judged": args.judged_images}
    spent = Spent(args.folder / "spent.json", json.loads(json.dumps(settings)))

    def progress(index: int, total: int, name: str) -> None:
        console.print(f"{spent.note():7.0f} s  {index}/{total} {name}", highlight=False)

    report = quantize_checkpoint(
        read_checkpoint(source),
        args.folder / "vggt-1b-quantized.safetensors",
        QuantizationSettings(recipe=recipe, precision=args.precision),
        data=data,
        options=CalibrationOptions(judged_images=args.judged_images),
        workspace=args.folder / "partial",
        progress=progress,
    )
    wall, processor = time.perf_counter() - started, spent.note()
    (args.folder / "spent.json").unlink()
    peak_rss = status_mib("VmHWM")
    watch.stop()
    errors = [layer.output_error for layer in report.layers if layer.output_error is not None]
    return {
        "recipe": recipe.to_dict(),
        "calibration": data.describe(),
        "source_bytes": source.stat().st_size,
        "target_bytes": report.file_bytes,
        "linears": len(report.layers),
        "mean_output_error": sum(errors) / max(len(errors), 1),
        "wall_seconds": wall,
        "processor_seconds": processor,
        "resumed_blocks": report.resumed_blocks,
        "peak_rss_gib": peak_rss / 1024,
        "peak_anonymous_gib": watch.peak_anonymous / 1024,
    }


if __name__ == "__main__":
    main()
