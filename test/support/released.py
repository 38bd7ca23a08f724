"""Files in the layout of QVGGT's released checkpoints, packed here as its format describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qvggt_core.model import VGGT
from support.small_network import TINY

SMALL = replace(
    TINY, img_size=518, embed_dim=128, camera_num_heads=2, camera_iterations=4, point_head=True
)


def initial_state() -> dict[str, torch.Tensor]:
    """Return the weights of a small network before any training."""
    torch.manual_seed(0)
    return VGGT(SMALL).initialise().state_dict()


def packed_as_awq(u: np.ndarray) -> torch.Tensor:
    """Pack (N, K) numbers of 0..15 number by number, as the format's description reads."""
    rows, columns = u.shape
    shuffled = np.empty_like(u)
    for column in range(columns):
        base, place = column // 32 * 32, column % 32
        d, r, e = place // 8, place % 8 // 2, place % 2
        shuffled[:, base + 8 * r + 4 * e + d] = u[:, column]
    words = np.zeros((rows // 4, columns), np.uint16)
    for four in range(rows // 4):
        for stretch in range(columns // 64):
            line = np.concatenate(
                [shuffled[4 * four + row, 64 * stretch : 64 * stretch + 64] for row in range(4)]
            )
            for word in range(64):
                value = 0
                for place in range(4):
                    value |= int(line[4 * word + place]) << 4 * place
                words[four, 64 * stretch + word] = value
    return torch.from_numpy(words.view(np.int16))


def released_weight(
    rows: int, columns: int, seed: int = 0, symmetric: bool = False, size: int = 128
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return numbers, steps, scaled zero points, and the weight (rows, columns) that they are."""
    rng = np.random.default_rng(seed)
    u = rng.integers(0, 16, (rows, columns))
    groups = columns // size
    padded = -(-groups // 8) * 8
    steps, zeros = np.zeros((padded, rows), np.float16), np.zeros((padded, rows))
    steps[:groups] = rng.uniform(0.001, 0.02, (groups, rows))
    zeros[:groups] = 8 if symmetric else rng.integers(3, 13, (groups, rows))
    scaled = (-steps.astype(np.float32) * zeros).astype(np.float16)
    per_column = np.repeat(np.arange(groups), size)
    weight = u * steps.astype(np.float64)[per_column].T + scaled.astype(np.float64)[per_column].T
    return u, torch.from_numpy(steps), torch.from_numpy(scaled), torch.from_numpy(weight)


def released_file(
    path: Path,
    state: Mapping[str, torch.Tensor],
    quantized: Sequence[str],
    extra: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Write a released checkpoint: `quantized` weights packed, the rest in float16."""
    entries, exact = {}, {name: tensor.clone() for name, tensor in state.items()}
    for number, name in enumerate(quantized):
        rows, columns = state[f"{name}.weight"].shape
        u, steps, scaled, weight = released_weight(rows, columns, seed=number)
        entries |= {
            f"{name}.qweight": packed_as_awq(u),
            f"{name}.scales": steps,
            f"{name}.scaled_zeros": scaled,
        }
        exact[f"{name}.weight"] = weight.float()
    for name, tensor in state.items():
        if f"{name.removesuffix('.weight')}.qweight" not in entries:
            entries[name] = tensor.half()
    torch.save({**entries, **extra}, path)
    return exact
