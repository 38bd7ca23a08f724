"""Loads a network for inference, with the parts that are wanted."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from qvggt_kernels import PackingError, fastest_dtype
from torch import Tensor, nn

from qvggt_core.errors import CheckpointError
from qvggt_core.model.camera_head import CameraHead
from qvggt_core.model.checkpoint import Checkpoint, read_checkpoint
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.packed_format import (
    INPUT_SCALE_SUFFIX,
    SCALES_SUFFIX,
    WORDS_SUFFIX,
    ZEROS_SUFFIX,
    empty_packed_linear,
    linear_descriptions,
)
from qvggt_core.model.published_names import UNUSED_PREFIXES
from qvggt_core.model.vggt import VGGT
from qvggt_core.util.quoting import short

_COMPENSATION = "camera_head.cict_token"
_SHOWN = 3
"""Differences named in an error, per kind: the first ones show which network a file is of."""
_OPTIONAL_PREFIXES = (*UNUSED_PREFIXES, "depth_head.", "point_head.", "camera_encoder.")

logger = logging.getLogger(__name__)


def load_model(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    heads: Collection[str] = ("camera", "depth"),
) -> VGGT:
    """Load a network for inference.

    Args:
        path: a full-precision or 4-bit checkpoint; entries that no part of the network has (track
            head, Gaussian head) are skipped.
        device: where the network runs.
        dtype: compute dtype; None takes the one that is fastest on the device.
        heads: which of "camera", "depth", "points", "rays" and "conditioning" are wanted; others
            are not loaded.

    Raises:
        CheckpointError: the file is of no known network, or does not fit; names the first
            differences.
    """
    device = torch.device(device)
    dtype = dtype or fastest_dtype(device)
    checkpoint = read_checkpoint(path)
    for assumption in checkpoint.assumptions:
        logger.warning("%s: assumed that %s; state it in a config.json beside it", path, assumption)
    model = _empty_network(checkpoint, heads, dtype)
    expected = model.state_dict()
    check_entries(checkpoint, {name: tuple(entry.shape) for name, entry in expected.items()})
    model.load_state_dict(_tensors(checkpoint, expected, device), assign=True)
    # Once more for what the meta device does not carry over: buffers.
    return model.to_compute(dtype).to(device).eval().requires_grad_(False)


def _empty_network(checkpoint: Checkpoint, heads: Collection[str], dtype: torch.dtype) -> VGGT:
    """Return the network that a file describes, without memory for its tensors."""
    try:
        with torch.device("meta"):
            model = VGGT(with_heads(checkpoint.config, heads))
            _replace_packed_linears(model, checkpoint)
            return model.to_compute(dtype)
    except CheckpointError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Sizes that are each within bounds, and of which no layer can be built.
        raise CheckpointError(
            f"{checkpoint.path}: no network can be built of the sizes that it describes: "
            f"{short(error)}"
        ) from error


def with_heads(config: ModelConfig, heads: Collection[str]) -> ModelConfig:
    """Return the sizes of a network without the optional parts that are not wanted."""
    return replace(
        config,
        depth_head=config.depth_head and "depth" in heads,
        point_head=config.point_head and "points" in heads,
        ray_head=config.ray_head and "rays" in heads,
        camera_encoder=config.camera_encoder and "conditioning" in heads,
    )


def _tensors(
    checkpoint: Checkpoint, expected: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """Return the network's tensors as it wants them, in memory of their own."""
    # PyTorch's files are read through a mapping that goes when this returns: else the file's
    # pages would stay resident beside their copies.
    temporary = read_checkpoint(checkpoint.path)
    state = {}
    for name, entry in expected.items():
        layout = torch.channels_last if _is_channels_last(entry) else torch.contiguous_format
        _check_dtype(checkpoint, name, entry.dtype)
        source = temporary.tensor(name)
        state[name] = source.to(device, entry.dtype, memory_format=layout)
    return state


def _check_dtype(checkpoint: Checkpoint, name: str, wanted: torch.dtype) -> None:
    """Raise if an entry's numbers are of a kind that a network would compute nonsense with."""
    found = checkpoint.dtype(name)
    if found == wanted or (found.is_floating_point and wanted.is_floating_point):
        return
    what = "such numbers" if wanted.is_floating_point else "packed weights"
    advice = "take the full-precision file" if wanted.is_floating_point else "quantize again"
    raise CheckpointError(
        f"{checkpoint.path}: {name} is {found}, not {wanted}: {what} are never converted; {advice}"
    )


def _is_channels_last(entry: Tensor) -> bool:
    return entry.dim() == 4 and entry.is_contiguous(memory_format=torch.channels_last)


def _replace_packed_linears(model: VGGT, checkpoint: Checkpoint) -> None:
    """Replace the linears that the file holds in integers, leaving them empty."""
    try:
        descriptions = linear_descriptions(checkpoint.metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    for name in checkpoint.names():
        if not name.endswith(WORDS_SUFFIX):
            continue
        path = name.removesuffix(WORDS_SUFFIX)
        parent_path, _, leaf = path.rpartition(".")
        try:
            parent = model.get_submodule(parent_path)
            linear = getattr(parent, leaf)
        except AttributeError:
            continue  # a head that is not wanted; `check_entries` names what is truly foreign
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(f"{checkpoint.path}: {path} is quantized but is no linear layer")
        if path + SCALES_SUFFIX not in checkpoint:
            raise CheckpointError(
                f"{checkpoint.path}: {path} has {WORDS_SUFFIX} but no {SCALES_SUFFIX}"
            )
        try:
            shapes = {
                suffix.removeprefix("."): checkpoint.shape(path + suffix)
                for suffix in (SCALES_SUFFIX, INPUT_SCALE_SUFFIX, ZEROS_SUFFIX)
                if path + suffix in checkpoint
            }
            packed = empty_packed_linear(linear, shapes, descriptions.get(path, {}))
        except (PackingError, TypeError) as error:
            raise CheckpointError(f"{checkpoint.path}: {path}: {error}") from error
        setattr(parent, leaf, packed)
    if _COMPENSATION in checkpoint:
        shape, width = checkpoint.shape(_COMPENSATION), 2 * checkpoint.config.embed_dim
        if shape != (width,) or not isinstance(model.camera_head, CameraHead):
            raise CheckpointError(
                f"{checkpoint.path}: its compensation token is {shape}, a camera head that refines "
                f"poses takes ({width},)"
            )
        model.camera_head.register_buffer("cict_token", torch.zeros(width))


def check_complete(checkpoint: Checkpoint, heads: Collection[str]) -> None:
    """Check that a full-precision file has every entry of its network with these heads.

    Raises:
        CheckpointError: names the first differences.
    """
    expected = _empty_network(checkpoint, heads, torch.float32).state_dict()
    check_entries(checkpoint, {name: tuple(entry.shape) for name, entry in expected.items()})
    for name, entry in expected.items():
        _check_dtype(checkpoint, name, entry.dtype)


def check_entries(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file has the entries of a network, and no foreign ones.

    Args:
        checkpoint: the file.
        expected: shapes of the network's entries, by our names.

    Raises:
        CheckpointError: names the first differences of each kind.
    """
    missing = sorted(name for name in expected if name not in checkpoint)
    unexpected = [
        name
        for name in checkpoint.names()
        if name not in expected and not name.startswith(_OPTIONAL_PREFIXES)
    ]
    wrong = [
        f"{name} is {checkpoint.shape(name)}, not {shape}"
        for name, shape in sorted(expected.items())
        if name in checkpoint and checkpoint.shape(name) != shape
    ]
    if missing or unexpected or wrong:
        parts = [
            f"{len(found)} {kind}, first: {', '.join(found[:_SHOWN])}"
            for kind, found in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", wrong),
            )
            if found
        ]
        raise CheckpointError(
            f"{checkpoint.path} does not hold the network that its sizes promise: "
            f"{'; '.join(parts)}"
        )
