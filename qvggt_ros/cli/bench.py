"""`qvggt bench`: speed and memory on this machine, side by side, with raw results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qvggt_core.errors import BenchmarkError
from qvggt_ros.cli import console


def bench(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the results.")],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="4-bit checkpoint (w4a16). [default: random weights of VGGT-1B's shape, "
            "742 MB, written into the output directory]"
        ),
    ] = None,
    cases: Annotated[
        str,
        typer.Option(help="Any of linears, blocks, parts, network, stream, memory."),
    ] = "memory,linears,blocks,parts,network,stream",
    frames: Annotated[
        str, typer.Option(help="Windows' sizes. [default: 2 on a CPU, 1,2,4,8,16,30 on a GPU]")
    ] = "",
    sizes: Annotated[
        str,
        typer.Option(
            help="Images, HEIGHTxWIDTH. [default: 392x518 on a CPU; 294x518, 392x518, 518x518 on "
            "a GPU; the network's own for others than VGGT-1B]"
        ),
    ] = "",
    contenders: Annotated[
        list[str] | None, typer.Option("--contender", help="May be repeated; all if not given.")
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(help="Clone of github.com/facebookresearch/vggt to compare with."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    clock: Annotated[
        str,
        typer.Option(help="wall, cpu (fair with one thread on a busy machine), cuda; auto."),
    ] = "auto",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Of interleaved timing.")] = 5,
    threads: Annotated[
        int, typer.Option(min=0, max=256, help="Of the CPU; 0 is PyTorch's choice.")
    ] = 0,
    window: Annotated[int, typer.Option(help="Views of the sliding window.")] = 8,
    stride: Annotated[int, typer.Option(help="New views per run of it.")] = 1,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="For each comparison, after which no round begins.")
    ] = 10.0,
) -> None:
    """Measure kernels, blocks, the whole network and sliding windows; write JSON and Markdown."""
    import torch

    from qvggt_core.measure.bench import run
    from qvggt_core.measure.bench_request import Request
    from qvggt_core.measure.candidates import CONTENDERS
    from qvggt_core.measure.tables import as_markdown
    from qvggt_core.model import ModelConfig, read_checkpoint
    from qvggt_core.quantize.random_checkpoint import write_random_checkpoint
    from qvggt_core.stream.load_network import device_of

    where = torch.device(device_of(device))
    output.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        checkpoint = output / "vggt-1b-random-int4.safetensors"
        if not checkpoint.exists():
            with console.err.status(f"writing {checkpoint}"):
                write_random_checkpoint(checkpoint, ModelConfig.vggt_1b())
    is_gpu = where.type == "cuda"
    config = read_checkpoint(checkpoint).config
    usual_frames = "1,2,4,8,16,30" if is_gpu else "2"
    usual = "294x518,392x518,518x518" if is_gpu else "392x518"
    if config.img_size != ModelConfig.vggt_1b().img_size:
        usual = f"{config.img_size * 3 // 4}x{config.img_size}"
    if clock == "auto":
        clock = "cuda" if is_gpu else "wall"
    if clock not in ("wall", "cpu", "cuda") or (clock == "cuda" and not is_gpu):
        raise BenchmarkError(f"clock {clock} on {where}: choose wall or cpu, or cuda on a GPU")
    request = Request(
        checkpoint=checkpoint,
        cases=tuple(_words(cases)),
        contenders=tuple(contenders or CONTENDERS),
        frames=tuple(_number(word) for word in _words(frames or usual_frames)),
        sizes=tuple(_size(word) for word in _words(sizes or usual)),
        device=where,
        clock=clock,  # type: ignore[arg-type]
        rounds=rounds,
        threads=threads or torch.get_num_threads(),
        window=window,
        stride=stride,
        minutes=minutes,
        original=original,
    )
    with console.err.status("measuring") as status:
        results = run(request, lambda what: status.update(f"measuring {what}"))
    table = as_markdown(results)
    for name, text in (("bench.json", json.dumps(results, indent=1) + "\n"), ("bench.md", table)):
        (output / name).write_text(text, encoding="utf-8")
    console.out.print(table, markup=False, highlight=False, soft_wrap=True)
    console.out.print(f"wrote {output / 'bench.json'}", soft_wrap=True, highlight=False)


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
