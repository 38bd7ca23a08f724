"""Checkpoints of QVGGT's released layout that are wrong, made from a seed, and their import."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from qvggt_core.model import load_model
from qvggt_core.quantize.awq_import import import_released
from support.released import initial_state, released_file

_PACKED = (".qweight", ".scales", ".scaled_zeros")
_NAMES = ("", "..", "a\n", "x" * 5000, "aggregator.frame_blocks.99.attn.qkv.qweight")
_DTYPES = (
    *(torch.int32, torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.bool),
    torch.float8_e4m3fn,
)


@lru_cache
def right() -> dict[str, torch.Tensor]:
    """Return the entries of a released checkpoint of a small network."""
    blocks = ("aggregator.frame_blocks.1", "camera_head.trunk.0")
    extra = {
        "cict_token": torch.randn(256),
        "cict_topk": torch.tensor(32),
        "aggregator.frame_blocks.1.mlp.act.scales": torch.linspace(0.5, 2, 512),
    }
    names = [f"{block}.{linear}" for block in blocks for linear in ("attn.qkv", "mlp.fc2")]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        released_file(path, initial_state(), names, extra)
        return torch.load(path, weights_only=True)


def wrong(rng: random.Random) -> dict[str, Any]:
    """Return such entries, of which one or two are wrong."""
    entries: dict[str, Any] = dict(right())
    for _ in range(rng.choice((1, 1, 2))):
        packed = [name for name in entries if name.endswith(_PACKED)]
        name = rng.choice(packed if rng.random() < 0.7 else list(entries))
        if isinstance(entries[name], torch.Tensor) and entries[name].untyped_storage().nbytes():
            _spoil(entries, name, rng)
    return entries


def _spoil(entries: dict[str, Any], name: str, rng: random.Random) -> None:
    tensor = entries.pop(name)
    place = rng.randrange(max(1, min(tensor.numel(), 1 << 30)))
    spoilt = tensor.float().flatten()[:place].clone() if rng.random() < 0.1 else tensor
    changes = (
        lambda: None,
        lambda: _with(tensor, place, rng.choice((float("nan"), float("inf"), -1e30))),
        lambda: torch.zeros_like(tensor),
        lambda: tensor.to(rng.choice(_DTYPES)),
        lambda: tensor[: max(0, tensor.shape[0] - rng.choice((1, 3)))] if tensor.dim() else tensor,
        lambda: torch.tensor(1.0),
        lambda: tensor[None],
        lambda: tensor.t() if tensor.dim() == 2 else tensor,
        lambda: tensor.flatten()[:0],
        lambda: tensor[..., ::2] if tensor.dim() else tensor,
        lambda: torch.zeros(1, dtype=tensor.dtype).expand(1 << 40),
        lambda: tensor.to("meta"),
        lambda: [1, 2],
        lambda: spoilt,
    )
    made = rng.choice(changes)()
    if made is not None:
        entries[rng.choice(_NAMES) if rng.random() < 0.05 else name] = made


def _with(tensor: torch.Tensor, place: int, value: float) -> torch.Tensor:
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point:
        return tensor
    changed = tensor.clone()
    changed.view(-1)[place] = value
    return changed


def import_and_load(entries: dict[str, Any], folder: Path) -> None:
    """Import a checkpoint and load what came of it, whose weights must be numbers.

    Raises:
        QvggtError: it is refused.
    """
    source, target = folder / "released.pt", folder / "imported.safetensors"
    torch.save(entries, source)
    target.unlink(missing_ok=True)
    import_released(source, target, licence="Apache-2.0")
    state = load_model(target, dtype=torch.float32).state_dict()
    odd = [n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    assert not odd, f"imported, and not finite: {odd}"
