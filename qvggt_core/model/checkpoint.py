"""Checkpoints: VGGT-1B and Depth Anything 3 as they are published, and our own 4-bit files.

Files are read tensor by tensor, so that a network is never held twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qvggt_core.errors import CheckpointError
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.published_names import own_names
from qvggt_core.model.sizes_from_shapes import Sizes, read_config_json, sizes_from_shapes
from qvggt_core.model.weight_files import Weights, open_weights
from qvggt_core.model.weight_source import source_metadata
from qvggt_core.util.quoting import short

FORMAT_VERSION = "1"
SHIPPED_MODEL = "qvggt-places-int4.safetensors"

_FORMAT_KEY = "qvggt_format"
_CONFIG_KEY = "config"
_AWQ_SUFFIX = ".scaled_zeros"
_LINGBOT_LICENCE = (
    "open question: the authors of LingBot-Map have not answered which licence its weights have"
)


class Checkpoint:
    """An open checkpoint: names and shapes at once, tensors when they are asked for.

    Attributes:
        path: the file, index or folder that was named.
        files: the files that it is made of.
        metadata: what the file describes of itself (empty for files of other origin).
        config: sizes of the network, from the metadata or, failing that, from the shapes and a
            `config.json` beside the file.
        assumptions: sizes that nothing shows and that were assumed, in words.
    """

    def __init__(self, path: Path, weights: Weights) -> None:
        self.path = path
        self.files = weights.files
        self.metadata = dict(weights.metadata)
        self._weights = weights
        self._published = own_names(path, weights.shapes)
        self._shapes = {ours: weights.shapes[name] for ours, name in self._published.items()}
        self.config, self.assumptions = self._sizes()
        if _FORMAT_KEY not in self.metadata:
            self.metadata |= source_metadata(self.files[0])
            if self.config.scale_token:
                self.metadata["licence"] = _LINGBOT_LICENCE

    def names(self) -> list[str]:
        """Return the entries' names, sorted."""
        return sorted(self._shapes)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an entry."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of an entry, without reading it."""
        return self._weights.dtype(self._published[name])

    def tensor(self, name: str) -> Tensor:
        """Return an entry on the host, in memory of its own.

        Raises:
            CheckpointError: the entry's bytes cannot be read, or the file was changed meanwhile.
        """
        try:
            return self._weights.read(self._published[name])
        except (SafetensorError, RuntimeError, OSError, KeyError) as error:
            raise CheckpointError(f"{self.path}: cannot read {name}: {error}") from error

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def sha256(self) -> str:
        """Return the hash of the files' bytes, one after the other, hexadecimal."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()

    def _sizes(self) -> Sizes:
        version = self.metadata.get(_FORMAT_KEY)
        if version is None:
            self._refuse_awq()
            stated = read_config_json(self.files[0].parent)
            return sizes_from_shapes(self.path, self._shapes, stated)
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.path} has format version {short(version)}, this qvggt reads "
                f"{FORMAT_VERSION!r}: install the release that wrote it, or quantize again"
            )
        try:
            return Sizes(ModelConfig.from_dict(json.loads(self.metadata[_CONFIG_KEY])))
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}: its description of the network cannot be read: {short(error)}"
            ) from error

    def _refuse_awq(self) -> None:
        if any(name.endswith(_AWQ_SUFFIX) for name in self._shapes):
            raise CheckpointError(
                f"{self.path} is packed in AWQ's layout, as QVGGT released it: convert it first, "
                f"`qvggt import {self.path.name} -o FILE.safetensors`"
            )


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a `.safetensors` or PyTorch `.pt` file, an index of shards, or a folder with either.

    Raises:
        CheckpointError: it is missing, truncated, not a checkpoint, or of no known network.
    """
    path = Path(path)
    return Checkpoint(path, open_weights(path))


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
        metadata: what else describes the file (recipe, licence, ...).
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
