"""Finished blocks of a calibration on disk, from which an interrupted run continues."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from qvggt_kernels import PackedLinear
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qvggt_core.errors import QuantizationError
from qvggt_core.model import describe_linears
from qvggt_core.model.packed_format import LINEARS_KEY, empty_packed_linear
from qvggt_core.quantize.block_calibration import LinearReport
from qvggt_core.quantize.block_linears import packed_linears, replace_linear
from qvggt_core.quantize.blockwise import BlockSite
from qvggt_core.util.files import atomic_path, write_atomically

logger = logging.getLogger(__name__)

_RUN = "run.json"
_OWN = re.compile(r"run\.json|(aggregator|camera_\w+)\.[\w.]+\.safetensors|\..+\.tmp")


def fingerprint(facts: Iterable[str]) -> str:
    """Return a hash of everything that a run's results depend on."""
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


class CalibrationStore:
    """A directory of finished blocks of one run; those of another run in it are deleted."""

    def __init__(self, directory: Path | None, run_fingerprint: str) -> None:
        """Open a directory; None keeps nothing.

        Raises:
            QuantizationError: the directory holds files that no calibration has written.
        """
        self._directory = directory
        self._fingerprint = run_fingerprint
        if directory is None:
            return
        _check_own(directory)
        run = directory / _RUN
        try:
            same = json.loads(run.read_text(encoding="utf-8"))["fingerprint"] == run_fingerprint
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            same = False
        if not same:
            others = len(list(directory.glob("*.safetensors"))) if directory.exists() else 0
            if others:
                logger.warning(
                    "%s holds %d finished block(s) of a calibration with other settings, images "
                    "or weights: they are deleted, and all blocks are calibrated",
                    directory,
                    others,
                )
            remove_blocks(directory)
            directory.mkdir(parents=True)
            write_atomically(run, json.dumps({"fingerprint": run_fingerprint}))

    def read(self, site: BlockSite) -> list[LinearReport] | None:
        """Replace a block's entries by its finished ones; None if there are none, or damaged."""
        path = self._path(site)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["block"] != self._identity(site):
                raise ValueError("it is of another block or run")
            if metadata["sha256"] != _sha256(state, metadata["reports"]):
                raise ValueError("its bytes have changed since it was written")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("%s cannot be used (%s): the block is calibrated again", path, error)
            return None
        descriptions = json.loads(metadata.get(LINEARS_KEY, "{}"))
        device = next(site.block.parameters()).device
        for name in [n for n in state if n.endswith(".qweight")]:
            leaf_path = name.removesuffix(".qweight")
            linear = site.block.get_submodule(leaf_path)
            assert isinstance(linear, nn.Linear)
            packed = _empty_packed(linear, leaf_path, state, descriptions.get(leaf_path, {}))
            replace_linear(site.block, leaf_path, packed)
        site.block.load_state_dict({n: t.to(device) for n, t in state.items()}, assign=True)
        site.block.requires_grad_(False)
        return [LinearReport(**report) for report in json.loads(metadata["reports"])]

    def write(self, site: BlockSite, reports: list[LinearReport]) -> None:
        """Write a finished block, whole or not at all."""
        path = self._path(site)
        if path is None:
            return
        state = {name: tensor.contiguous() for name, tensor in site.block.state_dict().items()}
        text = json.dumps([asdict(report) for report in reports])
        metadata = {
            **describe_linears(packed_linears(site.block)),
            "block": self._identity(site),
            "reports": text,
            "sha256": _sha256(state, text),
        }
        with atomic_path(path) as temporary:
            save_file(state, temporary, metadata)

    def _identity(self, site: BlockSite) -> str:
        return f"{self._fingerprint} {site.path}"

    def _path(self, site: BlockSite) -> Path | None:
        return None if self._directory is None else self._directory / f"{site.path}.safetensors"


def remove_blocks(directory: Path) -> None:
    """Delete the finished blocks of a calibration and their directory.

    Raises:
        QuantizationError: the directory holds files that no calibration has written.
    """
    _check_own(directory)
    if directory.exists():
        shutil.rmtree(directory)


def _check_own(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise QuantizationError(f"{directory} is in the way of the calibration: it is a file")
    entries = sorted(directory.iterdir()) if directory.exists() else []
    foreign = [each.name for each in entries if not _OWN.fullmatch(each.name)]
    if foreign:
        raise QuantizationError(
            f"{directory} is where this calibration keeps its finished blocks, and holds "
            f"{len(foreign)} other file(s), first: {foreign[0]}; move them, or choose another "
            "output"
        )


def _sha256(state: Mapping[str, Tensor], reports: str) -> str:
    digest = hashlib.sha256(reports.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def _empty_packed(
    linear: nn.Linear, path: str, state: dict[str, Tensor], description: dict
) -> PackedLinear:
    shapes = {
        name.rpartition(".")[2]: tensor.shape
        for name, tensor in state.items()
        if name.startswith(path + ".")
    }
    return empty_packed_linear(linear, shapes, description)
