"""QVGGT's released checkpoints (`model-v2.pt`, AWQ's packed layout) in our own format.

The layout, of a weight with N rows and K columns in unsigned 4-bit numbers u:

    scales, scaled_zeros: (>= K/g, N) float16; w = u * scale + scaled_zero, zero points
        z = -scaled_zero / scale are whole numbers
    qweight: (N/4, K) int16. Within every 32 columns, column 8 d + 2 r + e goes to place
        8 r + 4 e + d (d, r in 0..3, e in 0..1). Rows go in fours: for each 64 columns, the 64
        numbers of each of the four rows follow one another, and four neighbours share a word,
        the first in the lowest bits.

The compensation token comes as `cict_token`; factors before fc2 as `mlp.act.scales`, by which
activations are divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from qvggt_kernels import GROUP_SIZES, LAYOUT, Int4Linear
from torch import Tensor

from qvggt_core.errors import CheckpointError, QuantizationError
from qvggt_core.model import describe_linears, read_checkpoint, save_checkpoint
from qvggt_core.model.sizes_from_shapes import sizes_from_shapes
from qvggt_core.model.weight_files import torch_entries
from qvggt_core.quantize.plan import PRESETS
from qvggt_core.quantize.target import check_target

_ROWS, _STRIDE, _SHUFFLED = 4, 64, 32
_TOKENS = ("camera_head.cict_token", "cict_token")
_AUXILIARY = ("cict_topk", "unquantized_patch_start_idx", *_TOKENS)
_PREFIX = "model."
_FACTORS = ".act.scales"


def unpack_awq(qweight: Tensor) -> Tensor:
    """Return the numbers (N, K) uint8 in [0, 15] of packed words (N/4, K) int16.

    Raises:
        QuantizationError: the words are not of this layout.
    """
    if qweight.dtype != torch.int16 or qweight.dim() != 2 or qweight.shape[1] % _STRIDE:
        raise QuantizationError(
            f"packed words are {tuple(qweight.shape)} {qweight.dtype}, not (N/4, K) int16 with K a "
            f"multiple of {_STRIDE}"
        )
    quarter, columns = qweight.shape
    words = qweight.view(quarter, columns // _STRIDE, _STRIDE)
    numbers = torch.stack([(words >> 4 * place) & 15 for place in range(4)], dim=-1)
    # 64 words of 4 numbers are 4 rows of 64 numbers.
    rows = numbers.reshape(quarter, columns // _STRIDE, _ROWS, _STRIDE).transpose(1, 2)
    shuffled = rows.reshape(quarter * _ROWS, columns // _SHUFFLED, _SHUFFLED)
    return shuffled[:, :, _places()].reshape(quarter * _ROWS, columns).to(torch.uint8)


def _places() -> Tensor:
    """Return where each of 32 columns is found."""
    column = torch.arange(_SHUFFLED)
    d, r, e = column // 8, column % 8 // 2, column % 2
    return 8 * r + 4 * e + d


def import_awq_linear(
    qweight: Tensor,
    scales: Tensor,
    scaled_zeros: Tensor,
    input_scale: Tensor | None = None,
) -> Int4Linear:
    """Return our layer of one released weight.

    Numbers and zero points carry over exactly, scales are rounded to bfloat16 (at most one
    part in 256 each).

    Args:
        qweight: (N/4, K) int16.
        scales: (>= K/g, N) float16, padded with rows of zeros; the others show the number of
            columns g that share a scale.
        scaled_zeros: the same shape.
        input_scale: (K,) factors on the input, or None.

    Raises:
        QuantizationError: shapes do not fit together, or a zero point is no number of 0..15.
    """
    u = unpack_awq(qweight)
    rows, columns = u.shape
    for name, tensor in (("scales", scales), ("scaled_zeros", scaled_zeros)):
        _check_numbers(name, tensor)
        if tensor.dim() != 2 or tensor.shape[1] != rows or tensor.shape != scales.shape:
            raise QuantizationError(
                f"{name} are {tuple(tensor.shape)}, a weight of {rows}x{columns} needs "
                f"(groups, {rows}) of both"
            )
    groups, repeats = _groups(scales, columns)
    scales = scales[:groups].repeat_interleave(repeats, dim=0)
    scaled_zeros = scaled_zeros[:groups].repeat_interleave(repeats, dim=0)
    steps = scales.t().float()
    zeros = -scaled_zeros.t().float() / torch.where(steps == 0, 1, steps)
    whole = zeros.round()
    # float16 holds a product of 15 and a scale to a relative 2^-11.
    if not (zeros - whole).abs().max() <= 0.05 or whole.min() < 0 or whole.max() > 15:
        raise QuantizationError(
            f"zero points range over [{float(zeros.min()):.3f}, {float(zeros.max()):.3f}] and are "
            "no whole numbers of 0 to 15: the file is of another format"
        )
    symmetric = bool((whole == 8).all())
    return Int4Linear.from_quantized(
        u.to(torch.int8) - 8,
        steps.to(torch.bfloat16).contiguous(),
        zeros=None if symmetric else whole.to(torch.uint8).contiguous(),
        input_scale=input_scale,
    )


def _groups(scales: Tensor, columns: int) -> tuple[int, int]:
    """Return the number of groups, and how many of ours each of them is."""
    groups = int((scales != 0).any(dim=1).sum())
    padded = groups == 0 or bool((scales[groups:] != 0).any())
    size = 0 if padded or columns % groups else columns // groups
    if size in GROUP_SIZES:
        return groups, 1
    # One scale for more columns than our widest group has: the same scale for several of ours.
    ours = next((each for each in sorted(GROUP_SIZES, reverse=True) if size and not size % each), 0)
    if not ours:
        raise QuantizationError(
            f"{groups} of {len(scales)} rows of scales are not zero, for {columns} columns: "
            f"groups of {size or 'no whole number of'} columns are none of {GROUP_SIZES} or a "
            "multiple of them"
        )
    return groups, size // ours


def import_released(
    source: Path, target: Path, base: Path | None = None, licence: str | None = None
) -> int:
    """Convert a released checkpoint.

    Args:
        source: `model-v2.pt`.
        target: `.safetensors` file to write.
        base: full-precision VGGT-1B, for a source that holds its quantized blocks alone.
        licence: of the base weights; None writes "unknown".

    Returns:
        The number of 4-bit linears.

    Raises:
        CheckpointError: a file cannot be read or is no such checkpoint.
        QuantizationError: a packed weight is not of the layout.
    """
    check_target(target, (source, *([] if base is None else [base])))
    released = _entries(source)
    state: dict[str, Tensor] = {}
    linears: dict[str, Int4Linear] = {}
    packed = {n.removesuffix(".qweight") for n in released if n.endswith(".qweight")}
    if not packed:
        raise CheckpointError(f"{source} has no packed weights (.qweight): nothing to convert")
    for path in sorted(packed):
        linears[path] = layer = _linear(source, released, path)
        for key, tensor in layer.state_dict().items():
            state[f"{path}.{key}"] = tensor
    for name, tensor in released.items():
        path = name.rpartition(".")[0]
        if path in packed and name != f"{path}.bias":
            continue
        if name.endswith((_FACTORS, *_AUXILIARY)) or name.startswith("track_head."):
            continue
        state[name] = _stored(name, tensor)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for path, layer in linears.items():
        shapes[f"{path}.weight"] = (layer.out_features, layer.in_features)
    if base is not None:
        original = read_checkpoint(base)
        for name in original.names():
            if name not in shapes and not name.startswith("track_head."):
                state[name] = _stored(name, original.tensor(name))
                shapes[name] = tuple(state[name].shape)
    config = sizes_from_shapes(source, shapes, {}).config
    token = next((released[name] for name in _TOKENS if name in released), None)
    if token is not None:
        _check_numbers("the compensation token", token)
        state["camera_head.cict_token"] = token.flatten().float()
    metadata = {
        **describe_linears(linears),
        "layout": LAYOUT,
        "recipe": "imported from QVGGT",
        "group_size": " ".join(sorted({str(each.group_size) for each in linears.values()})),
        "base_model": source.name,
        "licence": licence or "unknown",
    }
    save_checkpoint(target, state, config, metadata)
    return len(linears)


def _linear(source: Path, released: Mapping[str, Tensor], path: str) -> Int4Linear:
    name = path.removesuffix(".fc2") + _FACTORS
    factors = released.get(name) if path.endswith(".fc2") else None
    try:
        qweight = released[f"{path}.qweight"]
        columns = qweight.shape[-1] if qweight.dim() else 0
        return import_awq_linear(
            qweight,
            released[f"{path}.scales"],
            released[f"{path}.scaled_zeros"],
            None if factors is None else _input_scale(name, factors, columns),
        )
    except KeyError as error:
        raise CheckpointError(f"{source}: {path} has no {error}") from None
    except QuantizationError as error:
        raise QuantizationError(f"{source}: {path}: {error}") from None


def _entries(source: Path) -> dict[str, Tensor]:
    if not source.is_file():
        raise CheckpointError(f"there is no file {source}")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in torch_entries(source).items()}


def _check_numbers(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
        raise QuantizationError(
            f"{name} ({tensor.dtype}) must be finite floating-point numbers: the file is damaged "
            "or of another format"
        )


def _input_scale(name: str, factors: Tensor, columns: int) -> Tensor:
    """Return factors on the input of a linear of so many columns: the file has their inverse."""
    _check_numbers(name, factors)
    if factors.numel() != columns or (factors == 0).any():
        raise QuantizationError(
            f"{name} {tuple(factors.shape)} must be {columns} numbers, none of them 0"
        )
    return 1 / factors.flatten().float()


def _stored(name: str, tensor: Tensor) -> Tensor:
    """Return an entry in the precision in which our own quantization keeps it."""
    if not tensor.is_floating_point():
        return tensor
    _check_numbers(name, tensor)
    is_fine = PRESETS["uniform"].precision(name, tensor.shape).bits == 32
    return tensor.to(torch.float32 if is_fine else torch.bfloat16)
