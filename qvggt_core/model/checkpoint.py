"""Checkpoint files: VGGT-1B's `model.pt` and `model.safetensors`, and our own 4-bit files.

Files are read memory-mapped and tensor by tensor, so that a network is never held twice.
Nothing is unpickled but tensors (`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import (
    INTEGER_LAYOUTS,
    LAYOUT,
    Int4Linear,
    IntegerLinear,
    PackedLinear,
    PackingError,
    fastest_dtype,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qvggt_core.errors import CheckpointError
from qvggt_core.model.config import EncoderConfig, ModelConfig, scaled_taps
from qvggt_core.model.vggt import VGGT

FORMAT_VERSION = "1"
SHIPPED_MODEL = "qvggt-small-int4.safetensors"

_FORMAT_KEY = "qvggt_format"
_CONFIG_KEY = "config"
_ZIP_MAGIC = b"PK\x03\x04"
_SHOWN = 3
"""Differences named in an error, per kind: the first ones tell which network a file is of."""

_WEIGHT = ".weight"
_QUANTIZED = ".qweight"
_SCALES = ".scales"
_INPUT_SCALE = ".input_scale"
_ZEROS = ".zeros"
PACKED_EXTRAS = (_SCALES, _INPUT_SCALE, _ZEROS, ".clip")
"""Endings of what a packed linear has beside its words and its bias."""

WEIGHTS_PER_WORD: Mapping[torch.dtype, int] = {torch.int16: 4, torch.uint8: 2, torch.int8: 1}
"""Weights in a packed word, by the dtype of the words."""

_COMPENSATION = "camera_head.cict_token"
_INTEGER_LAYOUTS = "integer_layouts"
_DESCRIBED = ("weight_bits", "activation_bits", "rotation")
LINEARS_KEY = "linears"
"""Metadata entry that says of packed linears what their tensors do not."""


class Checkpoint:
    """An open checkpoint file: names and shapes at once, tensors when they are asked for.

    Attributes:
        path: the file.
        metadata: what the file says of itself (empty for files of other origin).
        config: sizes of the network, from the metadata or, failing that, from the shapes.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
    ) -> None:
        self.path = path
        self.metadata = dict(metadata)
        self._shapes = dict(shapes)
        self._read = read
        self.config = self._config()

    def names(self) -> list[str]:
        """Return the entries' names, sorted."""
        return sorted(self._shapes)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an entry."""
        return self._shapes[name]

    def tensor(self, name: str) -> Tensor:
        """Return an entry on the host, backed by the file where it can be.

        Raises:
            CheckpointError: the entry's bytes cannot be read.
        """
        try:
            return self._read(name)
        except (SafetensorError, RuntimeError, OSError, KeyError) as error:
            raise CheckpointError(f"{self.path}: cannot read {name}: {error}") from error

    def sha256(self) -> str:
        """Return the hash of the file's bytes, hexadecimal."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
        return digest.hexdigest()

    def _config(self) -> ModelConfig:
        version = self.metadata.get(_FORMAT_KEY)
        if version is None:
            return config_from_shapes(self.path, self._shapes)
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.path} has format version {version!r}, this qvggt reads "
                f"{FORMAT_VERSION!r}: install the release that wrote it, or quantize again"
            )
        try:
            return ModelConfig.from_dict(json.loads(self.metadata[_CONFIG_KEY]))
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: its description of the network cannot be read: {error!r}"
            ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a `.safetensors` file or a PyTorch `.pt` file (zip format), memory-mapped.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or of no VGGT.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(_ZIP_MAGIC))
    except OSError as error:
        raise CheckpointError(f"cannot open the checkpoint {path}: {error.strerror}") from error
    return _open_torch(path) if magic == _ZIP_MAGIC else _open_safetensors(path)


def _open_safetensors(path: Path) -> Checkpoint:
    try:
        file = safe_open(path, framework="pt", device="cpu")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is no complete .safetensors file and no "
            f"PyTorch zip file: {error}; download or quantize it again"
        ) from error
    return Checkpoint(path, file.metadata() or {}, shapes, file.get_tensor)


def _open_torch(path: Path) -> Checkpoint:
    state = torch_entries(path)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Checkpoint(path, {}, shapes, state.__getitem__)


def torch_entries(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a PyTorch `.pt` file, memory-mapped; nothing else is unpickled.

    Raises:
        CheckpointError: the file cannot be read, or holds no named tensors.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as tensors: "
            f"{str(error).splitlines()[0]}; it is truncated, or holds more than weights"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def load_model(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    heads: Collection[str] = ("camera", "depth"),
) -> VGGT:
    """Load a network for inference.

    Args:
        path: a full-precision or 4-bit checkpoint; the track head's entries are skipped.
        device: where the network runs.
        dtype: compute dtype; None takes the one that is fastest on the device.
        heads: which of "camera", "depth", "points" are wanted; others are not loaded.

    Raises:
        CheckpointError: the file is not a VGGT's, or does not fit; names the first differences.
    """
    device = torch.device(device)
    dtype = dtype or fastest_dtype(device)
    checkpoint = read_checkpoint(path)
    config = replace(
        checkpoint.config,
        depth_head=checkpoint.config.depth_head and "depth" in heads,
        point_head=checkpoint.config.point_head and "points" in heads,
    )
    with torch.device("meta"):
        model = VGGT(config)
        _quantize_structure(model, checkpoint)
        model.to_compute(dtype)
    expected = model.state_dict()
    _check(checkpoint, {name: tuple(entry.shape) for name, entry in expected.items()})
    model.load_state_dict(_tensors(checkpoint, expected, device), assign=True)
    # Once more for what the meta device does not carry over: buffers.
    return model.to_compute(dtype).to(device).eval().requires_grad_(False)


def _tensors(
    checkpoint: Checkpoint, expected: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """Return the network's tensors as it wants them, backed by the file where nothing changes."""
    # What has to be converted is read through a mapping of its own, which goes when this
    # returns: else the file's pages would stay resident beside their converted copies.
    passing = read_checkpoint(checkpoint.path)
    state = {}
    for name, entry in expected.items():
        layout = torch.channels_last if _is_channels_last(entry) else torch.contiguous_format
        if device.type == "cpu" and layout == torch.contiguous_format:
            tensor = checkpoint.tensor(name)
            if tensor.dtype == entry.dtype:
                state[name] = tensor
                continue
        source = passing.tensor(name)
        state[name] = source.to(device, entry.dtype, memory_format=layout)
        if device.type == "cpu" and state[name].data_ptr() == source.data_ptr():
            state[name] = source.clone()
    return state


def _is_channels_last(entry: Tensor) -> bool:
    return entry.dim() == 4 and entry.is_contiguous(memory_format=torch.channels_last)


def _quantize_structure(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Replace the linears that the file holds in integers, leaving them empty."""
    _check_layouts(checkpoint)
    descriptions = _linear_descriptions(checkpoint)
    for name in checkpoint.names():
        if not name.endswith(_QUANTIZED):
            continue
        path = name.removesuffix(_QUANTIZED)
        parent_path, _, leaf = path.rpartition(".")
        try:
            parent = model.get_submodule(parent_path)
            linear = getattr(parent, leaf)
        except AttributeError:
            continue  # a head that was not asked for; `_check` names what is truly foreign
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(f"{checkpoint.path}: {path} is quantized but is no linear layer")
        if path + _SCALES not in checkpoint:
            raise CheckpointError(f"{checkpoint.path}: {path} has {_QUANTIZED} but no {_SCALES}")
        try:
            shapes = {
                suffix.removeprefix("."): checkpoint.shape(path + suffix)
                for suffix in (_SCALES, _INPUT_SCALE, _ZEROS)
                if path + suffix in checkpoint
            }
            quantized = empty_packed_linear(linear, shapes, descriptions.get(path, {}))
        except (PackingError, TypeError) as error:
            raise CheckpointError(f"{checkpoint.path}: {path}: {error}") from error
        setattr(parent, leaf, quantized)
    if _COMPENSATION in checkpoint:
        (width,) = checkpoint.shape(_COMPENSATION) or (0,)
        model.get_submodule("camera_head").register_buffer("cict_token", torch.zeros(width))


def empty_packed_linear(
    linear: nn.Linear, shapes: Mapping[str, Sequence[int]], description: Mapping[str, int]
) -> PackedLinear:
    """Return the packed layer that takes a linear's place, to be filled by its tensors.

    Args:
        linear: what it stands for.
        shapes: of the packed layer's tensors, by their own names.
        description: what `describe_linears` said of it.

    Raises:
        PackingError: the tensors and the description are of no packed layer.
    """
    extras: dict[str, Any] = {
        **description,
        "bias": linear.bias is not None,
        "input_scale": "input_scale" in shapes,
    }
    if "weight_bits" in description:
        return IntegerLinear(linear.in_features, linear.out_features, **extras)
    groups = shapes["scales"][-1]
    if linear.in_features % groups:
        raise PackingError(f"{groups} groups of scales for {linear.in_features} inputs")
    return Int4Linear(
        linear.in_features,
        linear.out_features,
        group_size=linear.in_features // groups,
        zeros="zeros" in shapes,
        **extras,
    )


def _check_layouts(checkpoint: Checkpoint) -> None:
    said = [checkpoint.metadata.get("layout", LAYOUT)]
    said += filter(None, checkpoint.metadata.get(_INTEGER_LAYOUTS, "").split(" "))
    for layout in said:
        if layout not in (LAYOUT, *INTEGER_LAYOUTS.values()):
            raise CheckpointError(
                f"{checkpoint.path} packs its weights as {layout!r}, this qvggt reads {LAYOUT!r} "
                f"and {', '.join(INTEGER_LAYOUTS.values())}: install the release that wrote it, "
                "or quantize again"
            )


def _linear_descriptions(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Return what the file says of its packed linears beyond their tensors, by path."""
    try:
        found = json.loads(checkpoint.metadata.get(LINEARS_KEY, "{}"))
        return {
            path: {key: int(value) for key, value in description.items() if key in _DESCRIBED}
            for path, description in found.items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its description of packed linears cannot be read: {error!r}"
        ) from error


def describe_linears(linears: Mapping[str, PackedLinear]) -> dict[str, str]:
    """Return the metadata that a file needs to be loaded with these packed linears."""
    descriptions = {}
    for path, linear in linears.items():
        description = {"rotation": linear.rotation} if linear.rotation else {}
        if isinstance(linear, IntegerLinear):
            description |= {
                "weight_bits": linear.weight_bits,
                "activation_bits": linear.activation_bits,
            }
        if description:
            descriptions[path] = description
    bits = {d["weight_bits"] for d in descriptions.values() if "weight_bits" in d}
    metadata = {"layout": LAYOUT}
    if bits:
        metadata[_INTEGER_LAYOUTS] = " ".join(INTEGER_LAYOUTS[b] for b in sorted(bits))
    if descriptions:
        metadata[LINEARS_KEY] = json.dumps(descriptions, sort_keys=True)
    return metadata


def _check(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> None:
    unused = ("track_head.", "depth_head.", "point_head.")
    missing = sorted(name for name in expected if name not in checkpoint)
    unexpected = [
        name for name in checkpoint.names() if name not in expected and not name.startswith(unused)
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
            f"{checkpoint.path} does not hold the VGGT that its sizes promise: {'; '.join(parts)}"
        )


def config_from_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read the sizes of a VGGT of other origin off its shapes.

    Head widths of encoder (64) and the number of camera heads (the aggregator's) are the
    family's; shapes do not tell them.
    """

    def count(prefix: str) -> int:
        return len({n.removeprefix(prefix).split(".")[0] for n in shapes if n.startswith(prefix)})

    try:
        embed_dim = shapes["aggregator.camera_token"][-1]
        depth = count("aggregator.frame_blocks.")
        num_heads = embed_dim // shapes["aggregator.frame_blocks.0.attn.q_norm.weight"][0]
        encoder, img_size = None, 518
        patch = "aggregator.patch_embed.proj.weight"
        if patch not in shapes:
            patch = "aggregator.patch_embed.patch_embed.proj.weight"
            tokens, width = shapes["aggregator.patch_embed.pos_embed"][1:]
            encoder = EncoderConfig(width, count("aggregator.patch_embed.blocks."), width // 64)
            img_size = round((tokens - 1) ** 0.5) * shapes[patch][-1]
        head = "depth_head" if "depth_head.norm.weight" in shapes else "point_head"
        features, channels = 256, (256, 512, 1024, 1024)
        if f"{head}.norm.weight" in shapes:
            features = shapes[f"{head}.scratch.layer1_rn.weight"][0]
            first, second, third, fourth = (
                shapes[f"{head}.projects.{i}.weight"][0] for i in range(4)
            )
            channels = (first, second, third, fourth)
        return ModelConfig(
            img_size=img_size,
            patch_size=shapes[patch][-1],
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_register_tokens=shapes["aggregator.register_token"][2],
            encoder=encoder,
            camera_trunk_depth=count("camera_head.trunk."),
            camera_num_heads=num_heads,
            dpt_features=features,
            dpt_out_channels=channels,
            taps=scaled_taps(depth),
            depth_head="depth_head.norm.weight" in shapes,
            point_head="point_head.norm.weight" in shapes,
        )
    except (KeyError, IndexError, ZeroDivisionError) as error:
        shown = ", ".join(sorted(shapes)[:_SHOWN]) or "none"
        raise CheckpointError(
            f"{path} holds no VGGT: looked for {error} among its {len(shapes)} entries, "
            f"the first of which are: {shown}"
        ) from error


def save_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a `.safetensors` checkpoint, whole or not at all.

    Args:
        path: the file; replaced if it is there.
        state: named tensors of a VGGT, 4-bit linears as `X.qweight` and `X.scales`.
        config: sizes of the network.
        metadata: what else the file says of itself (recipe, licence, ...).
    """
    path = Path(path)
    header = {
        **(metadata or {}),
        _FORMAT_KEY: FORMAT_VERSION,
        _CONFIG_KEY: json.dumps(config.to_dict(), sort_keys=True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(descriptor)
    try:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in state.items()},
            temporary,
            metadata=header,
        )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def shipped_checkpoint() -> Path:
    """Return the small network that comes with the package.

    Raises:
        CheckpointError: this installation carries none.
    """
    path = Path(__file__).parents[1] / "models" / SHIPPED_MODEL
    if not path.is_file():
        raise CheckpointError(
            f"this installation carries no network ({path} is missing): "
            "name one with the parameter checkpoint"
        )
    return path


PARTS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("aggregator.patch_embed.",),
    "frame blocks": ("aggregator.frame_blocks.",),
    "global blocks": ("aggregator.global_blocks.",),
    "special tokens": ("aggregator.camera_token", "aggregator.register_token"),
    "camera head": ("camera_head.",),
    "depth head": ("depth_head.",),
    "point head": ("point_head.",),
    "track head": ("track_head.",),
}
"""Parts of a VGGT and the prefixes of their entries' names."""


def part_sizes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return, per part of a VGGT, its number of weights and its bytes in the file."""
    sizes = {}
    for part, prefixes in PARTS.items():
        weights = stored = 0
        for name in checkpoint.names():
            if name.startswith(prefixes):
                tensor = checkpoint.tensor(name)
                stored += tensor.numel() * tensor.element_size()
                if name.endswith(_QUANTIZED):
                    weights += WEIGHTS_PER_WORD.get(tensor.dtype, 1) * tensor.numel()
                elif not name.endswith(PACKED_EXTRAS):
                    weights += tensor.numel()
        if stored:
            sizes[part] = (weights, stored)
    return sizes
