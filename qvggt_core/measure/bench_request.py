"""The request to `bench.run`: what to measure, and on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure.candidates import CONTENDERS
from qvggt_core.measure.timing import Clock
from qvggt_core.model import read_checkpoint

CASES = ("memory", "linears", "blocks", "parts", "network", "stream")
"""In the order in which they run: what this process holds later would be missing to memory."""

_MOST_PIXELS = 1 << 22
_MOST_FRAMES = 256


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        checkpoint: 4-bit file of precision w4a16; speed does not depend on its values.
        cases: of `CASES`.
        contenders: of `CONTENDERS`.
        frames: windows' sizes, for networks and memory.
        sizes: (height, width) of images in pixels.
        device: on which it runs.
        clock: see `timing.measure`.
        rounds: of interleaved timing.
        threads: of the CPU.
        window: of the stream.
        stride: of the stream.
        minutes: wall time of one case after which no further round begins.
        original: clone of facebookresearch/vggt, or None.
    """

    checkpoint: Path
    cases: tuple[str, ...] = CASES
    contenders: tuple[str, ...] = CONTENDERS
    frames: tuple[int, ...] = (2,)
    sizes: tuple[tuple[int, int], ...] = ((392, 518),)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clock: Clock = "wall"
    rounds: int = 5
    threads: int = 1
    window: int = 8
    stride: int = 1
    minutes: float = 10.0
    original: Path | None = None

    def check(self) -> None:
        """Check that all of it can be measured.

        Raises:
            BenchmarkError: a case or contender is unknown, or a size is out of range.
        """
        patch = read_checkpoint(self.checkpoint).config.patch_size
        for given, known in ((self.cases, CASES), (self.contenders, CONTENDERS)):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise BenchmarkError(f"{unknown} are not among {', '.join(known)}")
        for height, width in self.sizes:
            if height % patch or width % patch or not 0 < height * width <= _MOST_PIXELS:
                raise BenchmarkError(
                    f"images of {height}x{width} do not fit: sides are multiples of {patch}, and "
                    f"there are at most {_MOST_PIXELS} pixels"
                )
        for frames in (*self.frames, self.window):
            if not 0 < frames <= _MOST_FRAMES:
                raise BenchmarkError(f"{frames} frames: give 1 to {_MOST_FRAMES}")
