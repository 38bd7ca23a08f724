"""`qvggt bench`: speed and memory on this machine, side by side, with raw results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvggt_core.errors import BenchmarkError
from qvggt_core.util.files import write_atomically
from qvggt_core.util.options import option
from qvggt_ros.cli import console
from qvggt_ros.cli.options import OutputDirectory

if TYPE_CHECKING:
    from qvggt_core.measure.bench_request import Request

_FILES = ("bench.json", "bench.md")


@dataclass(frozen=True)
class BenchOptions:
    """What `qvggt bench` measures, and how long."""

    cases: str = option(
        "memory,linears,blocks,parts,network,stream",
        "Any of linears, blocks, parts, network, stream, memory.",
    )
    frames: str = option("", "Windows' sizes. [default: 2 on a CPU, 1,2,4,8,16,30 on a GPU]")
    sizes: str = option(
        "",
        "Images, HEIGHTxWIDTH. [default: 392x518 on a CPU; 294x518, 392x518, 518x518 on a GPU; the "
        "network's own for others than VGGT-1B]",
    )
    contenders: tuple[str, ...] = option((), "May be repeated; all if not given.", "--contender")
    original: Path | None = option(
        None, "Clone of github.com/facebookresearch/vggt to compare with."
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    clock: str = option("auto", "wall, cpu (fair with one thread on a busy machine), cuda; auto.")
    rounds: int = option(5, "Of interleaved timing.", min=1, max=1000)
    threads: int = option(0, "Of the CPU; 0 is PyTorch's choice.", min=0, max=256)
    window: int = option(8, "Views of the sliding window.")
    stride: int = option(1, "New views per run of it.")
    minutes: float = option(10.0, "For each comparison, after which no round begins.", min=0.01)

    def request(self, checkpoint: Path) -> Request:
        """Return what to measure of a checkpoint on this machine.

        Raises:
            BenchmarkError: the clock does not fit the device, or a number cannot be read.
            ParameterError: the device is not there.
        """
        import torch

        from qvggt_core.measure.bench_request import Request
        from qvggt_core.measure.candidates import CONTENDERS
        from qvggt_core.model import ModelConfig, read_checkpoint
        from qvggt_core.stream.load_network import device_of

        where = torch.device(device_of(self.device))
        is_gpu = where.type == "cuda"
        config = read_checkpoint(checkpoint).config
        frames = self.frames or ("1,2,4,8,16,30" if is_gpu else "2")
        usual = "294x518,392x518,518x518" if is_gpu else "392x518"
        if config.img_size != ModelConfig.vggt_1b().img_size:
            usual = f"{config.img_size * 3 // 4}x{config.img_size}"
        clock = self.clock
        if clock == "auto":
            clock = "cuda" if is_gpu else "wall"
        if clock not in ("wall", "cpu", "cuda") or (clock == "cuda" and not is_gpu):
            raise BenchmarkError(f"clock {clock} on {where}: choose wall or cpu, or cuda on a GPU")
        return Request(
            checkpoint=checkpoint,
            cases=tuple(_words(self.cases)),
            contenders=self.contenders or tuple(CONTENDERS),
            frames=tuple(_number(word) for word in _words(frames)),
            sizes=tuple(_size(word) for word in _words(self.sizes or usual)),
            device=where,
            clock=clock,  # type: ignore[arg-type]
            rounds=self.rounds,
            threads=self.threads or torch.get_num_threads(),
            window=self.window,
            stride=self.stride,
            minutes=self.minutes,
            original=self.original,
        )


def bench(
    output: OutputDirectory,
    options: BenchOptions,
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="4-bit checkpoint (w4a16). [default: random weights of VGGT-1B's shape, "
            "742 MB, written into the output directory]"
        ),
    ] = None,
) -> None:
    """Measure kernels, blocks, the whole network and sliding windows; write JSON and Markdown."""
    from qvggt_core.measure.bench import run
    from qvggt_core.measure.tables import as_markdown
    from qvggt_core.model import ModelConfig
    from qvggt_core.quantize.random_checkpoint import write_random_checkpoint
    from qvggt_core.util.output_files import directory_of, json_with

    directory_of(output, _FILES, json_with("machine"))
    if checkpoint is None:
        checkpoint = output / "vggt-1b-random-int4.safetensors"
        if not checkpoint.exists():
            with console.err.status(f"writing {checkpoint}"):
                write_random_checkpoint(checkpoint, ModelConfig.vggt_1b())

    def keep(results: dict[str, Any]) -> None:
        texts = (json.dumps(results, indent=1) + "\n", as_markdown(results))
        for name, text in zip(_FILES, texts, strict=True):
            write_atomically(output / name, text)

    with console.err.status("measuring") as status:
        request = options.request(checkpoint)
        results = run(request, lambda what: status.update(f"measuring {what}"), keep)
    keep(results)
    table = as_markdown(results)
    console.out.print(table, markup=False, highlight=False, soft_wrap=True)
    console.wrote(output / "bench.json")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(word: str) -> int:
    if not word.isdigit():
        raise BenchmarkError(f"--frames {word}: write whole numbers, as 1,2,8")
    return int(word)


def _size(word: str) -> tuple[int, int]:
    height, times, width = word.partition("x")
    if not (times and height.isdigit() and width.isdigit()):
        raise BenchmarkError(f"--sizes {word}: write HEIGHTxWIDTH in pixels, as 392x518")
    return int(height), int(width)
