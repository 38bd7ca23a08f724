"""The colour of points on textured surfaces: procedural patterns, posters and photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from qvggt_core.errors import ParameterError
from qvggt_core.synthetic.world import TEXTURE_KINDS, Texture

_NOISE_SIZE = 256
_FINE_CELLS = 128
_FINE_STEPS = 4


class PhotographTable:
    """Tiles of photographs at all sizes from their own down to one pixel."""

    def __init__(self, tiles: NDArray[np.uint8], device: str | torch.device = "cpu") -> None:
        """Take tiles (N, side, side, 3), sRGB; the side is a power of two."""
        level = torch.from_numpy(np.array(tiles)).to(device)
        self._side = level.shape[1]
        levels, first, row = [], [], 0
        while True:
            first.append(row)
            levels.append(level.reshape(-1, 3))
            row += len(levels[-1])
            if level.shape[1] == 1:
                break
            pooled = F.avg_pool2d(level.movedim(-1, 1).float(), 2)
            level = pooled.round().to(torch.uint8).movedim(1, -1)
        self._values = torch.cat(levels)
        self._first = torch.tensor(first, device=device)
        self._linear = (torch.arange(256, device=device) / 255.0) ** 2.2

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self._values[: int(self._first[1])]) // self._side**2

    def lookup(self, tile: Tensor, within: Tensor, width: Tensor) -> Tensor:
        """Return linear colour (N, 3).

        Args:
            tile: (N,) number.
            within: (N, 2) place in the tile in [0, 1], to the right and upwards.
            width: (N,) of the ray as a share of the tile's side, which chooses the size.
        """
        level = (width * self._side).clamp(min=1.0).log2().round().long()
        level = level.clamp(max=len(self._first) - 1)
        side = self._side >> level
        column = torch.minimum((within[:, 0] * side).long(), side - 1)
        row = torch.minimum(((1.0 - within[:, 1]) * side).long(), side - 1)
        index = self._first[level] + (tile * side + row) * side + column
        return self._linear[self._values[index].long()]


class TextureColours:
    """Colours of points on numbered surfaces."""

    def __init__(
        self,
        textures: Sequence[Texture],
        device: torch.device,
        photographs: PhotographTable | None = None,
    ) -> None:
        """Take the textures of all surfaces, and photographs if any of them shows one."""
        self._table = _texture_table(textures, device)
        self._photographs = photographs
        self._noise, self._fine = _noise_tables(device)

    def colour(self, surface: Tensor, uv: Tensor, face: Tensor, width: Tensor) -> Tensor:
        """Return linear colour (N, 3) of surface points that rays of a width in metres hit."""
        table = self._table
        period, seed = table.period[surface], table.seed[surface] + 37 * face
        kind = table.kind[surface]
        cell = uv / period[:, None]
        blend = torch.zeros_like(period)
        for number, name in enumerate(TEXTURE_KINDS):
            rows = torch.nonzero(kind == number)[:, 0]
            if len(rows) and name not in ("poster", "photo"):
                blend[rows] = self._pattern(name, cell[rows], seed[rows])
        colour = torch.lerp(table.first[surface], table.second[surface], blend[:, None])
        rows = torch.nonzero(kind == TEXTURE_KINDS.index("poster"))[:, 0]
        if len(rows):
            colour[rows] = self._poster(cell[rows], seed[rows])
        rows = torch.nonzero(kind == TEXTURE_KINDS.index("photo"))[:, 0]
        if len(rows):
            colour[rows] = self._photo(surface[rows], cell[rows], face[rows], width[rows])
        fine = self._fine_noise(uv * 14.0, seed) + 0.5 * self._fine_noise(uv * 47.0, seed + 5)
        return colour * (1.0 + table.grain[surface] * (fine - 0.75))[:, None]

    def _pattern(self, name: str, cell: Tensor, seed: Tensor) -> Tensor:
        """Return where between the two colours a point lies, in [0, 1]."""
        if name == "noise":
            coarse = self._value_noise(cell, seed) + 0.5 * self._value_noise(3.1 * cell, seed + 9)
            return ((coarse / 1.5 - 0.5) * 2.5 + 0.5).clamp(0.0, 1.0)
        if name == "fractal":
            total = self._value_noise(cell, seed)
            for octave in (1, 2, 3, 4):
                finer = self._value_noise(2.03**octave * cell, seed + 9 * octave)
                total = total + 0.6**octave * finer
            return ((total / 2.3 - 0.5) * 2.2 + 0.5).clamp(0.0, 1.0)
        if name == "checker":
            half = (2.0 * cell).floor()
            return (half[:, 0] + half[:, 1]).remainder(2.0)
        if name == "stripes":
            return (cell[:, 0].frac().abs() < 0.5).float()
        row = (4.0 * cell[:, 1]).floor()
        along = 2.0 * cell[:, 0] + 0.5 * row.remainder(2.0)
        mortar = (along.remainder(1.0) < 0.08) | ((4.0 * cell[:, 1]).remainder(1.0) < 0.14)
        tint = 0.5 * self._lookup(along.floor(), row, seed)
        return torch.where(mortar, 1.0, tint)

    def _poster(self, cell: Tensor, seed: Tensor) -> Tensor:
        """Return colour (N, 3): cells of one colour with a disc, a bar or a corner of another."""
        x, y = cell.floor().unbind(dim=1)
        within = cell - cell.floor() - 0.5
        shape = self._lookup(x, y, seed + 3)
        disc = within.square().sum(-1) < 0.12
        bar = within[:, 0].abs() < 0.16
        corner = within.sum(-1) > 0.0
        drawn = torch.where(shape < 0.4, disc, torch.where(shape < 0.7, bar, corner))
        ground = [self._lookup(x, y, seed + 11 * (i + 1)) for i in range(3)]
        figure = [self._lookup(x, y, seed + 11 * (i + 4)) for i in range(3)]
        return torch.where(drawn[:, None], torch.stack(figure, -1), torch.stack(ground, -1))

    def _photo(self, surface: Tensor, cell: Tensor, face: Tensor, width: Tensor) -> Tensor:
        """Return colour (N, 3) of photographs, mirrored at their edges."""
        if self._photographs is None:
            raise ParameterError(
                "the world has photographs on its surfaces: give the scene their table, or make "
                "the world without"
            )
        table, photographs = self._table, self._photographs
        seed = table.seed[surface]
        shift = 0.37 * torch.stack([seed & 7, seed >> 3 & 7], dim=1) + 0.61 * face[:, None]
        within = ((cell + shift).remainder(2.0) - 1.0).abs()
        colour = photographs.lookup(table.tile[surface], within, width / table.period[surface])
        # Colours change places, so that one photograph makes several.
        swapped = ((seed >> 6) % 4 == 0)[:, None]
        colour = torch.where(swapped, colour.flip(1), colour)
        return colour * 1.3 * table.first[surface]

    def _lookup(self, x: Tensor, y: Tensor, seed: Tensor) -> Tensor:
        """Return the noise table's value in [0, 1] of whole-numbered cells."""
        column = (x.int() + 31 * seed) & (_NOISE_SIZE - 1)
        row = (y.int() + 17 * seed + (seed >> 3)) & (_NOISE_SIZE - 1)
        return self._noise.index_select(0, row * _NOISE_SIZE + column)

    def _fine_noise(self, uv: Tensor, seed: Tensor) -> Tensor:
        """Return smooth noise in [0, 1], one cell per unit, in steps of a quarter of a cell."""
        size = _FINE_STEPS * _FINE_CELLS
        x, y = (uv * _FINE_STEPS).int().unbind(dim=1)
        column = (x + 31 * seed) & (size - 1)
        row = (y + 17 * seed) & (size - 1)
        return self._fine.index_select(0, row * size + column)

    def _value_noise(self, uv: Tensor, seed: Tensor) -> Tensor:
        """Return smooth noise in [0, 1], one lattice cell per unit."""
        base = uv.floor()
        part = uv - base
        part = part * part * (3.0 - 2.0 * part)
        x, y = base.unbind(dim=1)
        low = torch.lerp(self._lookup(x, y, seed), self._lookup(x + 1, y, seed), part[:, 0])
        high = torch.lerp(
            self._lookup(x, y + 1, seed), self._lookup(x + 1, y + 1, seed), part[:, 0]
        )
        return torch.lerp(low, high, part[:, 1])


@dataclass(frozen=True)
class _TextureTable:
    kind: Tensor
    first: Tensor
    second: Tensor
    period: Tensor
    seed: Tensor
    grain: Tensor
    tile: Tensor


def _texture_table(textures: Sequence[Texture], device: torch.device) -> _TextureTable:
    def floats(values: list[object]) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float32), device=device)

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return _TextureTable(
        kind=integers([TEXTURE_KINDS.index(t.kind) for t in textures]),
        first=floats([t.first for t in textures]),
        second=floats([t.second for t in textures]),
        period=floats([t.period for t in textures]),
        seed=integers([t.seed for t in textures]),
        grain=floats([t.grain for t in textures]),
        tile=integers([t.tile for t in textures]),
    )


def _noise_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    # One pair of tables for all worlds; textures differ by where they read them.
    rng = np.random.default_rng(20250101)
    values = torch.from_numpy(rng.random(_NOISE_SIZE * _NOISE_SIZE, dtype=np.float32))
    cells = torch.from_numpy(rng.random((_FINE_CELLS, _FINE_CELLS), dtype=np.float32))
    wrapped = torch.nn.functional.pad(cells[None, None], (1, 1, 1, 1), mode="circular")
    smooth = torch.nn.functional.interpolate(wrapped, scale_factor=_FINE_STEPS, mode="bicubic")
    fine = smooth[0, 0, _FINE_STEPS:-_FINE_STEPS, _FINE_STEPS:-_FINE_STEPS].clamp(0.0, 1.0)
    return values.to(device), fine.reshape(-1).to(device)
