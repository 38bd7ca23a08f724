"""The original VGGT, imported from wherever its user keeps it: the baseline of all comparisons.

It is `facebookresearch/vggt`, which is not part of qvggt and has a licence of its own. Beside what
qvggt needs, importing it takes the package einops.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qvggt_core.errors import BenchmarkError
from qvggt_core.model import ModelConfig


class _NothingIsDrawn(TorchFunctionMode):
    """Skips the random initialisation of a network that gets its weights right after."""

    _skipped = frozenset(
        {"uniform_", "normal_", "trunc_normal_", "erfinv_", "mul_", "add_", "clamp_"}
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in self._skipped:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_original(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the original network, in float32, with the given weights and without its track head.

    Args:
        path: the clone's directory, the one that holds the package `vggt`.
        config: must be VGGT-1B's: the original takes no other sizes.
        state: float32 tensors by checkpoint name; shared, not copied.

    Raises:
        BenchmarkError: it is not there, cannot be imported, or has other weights.
    """
    if not (path / "vggt" / "models" / "vggt.py").is_file():
        raise BenchmarkError(
            f"{path} holds no vggt/models/vggt.py: clone "
            "https://github.com/facebookresearch/vggt and name the clone's directory"
        )
    if config != ModelConfig.vggt_1b():
        raise BenchmarkError(
            "the original VGGT has the sizes of VGGT-1B with all heads alone, and this checkpoint "
            "has others: leave --original or --checkpoint out"
        )
    with _import_from(path):
        try:
            network = importlib.import_module("vggt.models.vggt").VGGT
        except ImportError as error:
            raise BenchmarkError(
                f"the original VGGT in {path} cannot be imported: {error}; install what is "
                "missing (einops, huggingface_hub) beside qvggt"
            ) from error
        with _NothingIsDrawn():
            model = network(enable_track=False)
    missing, unexpected = model.load_state_dict(dict(state), strict=False, assign=True)
    if missing or unexpected:
        raise BenchmarkError(
            f"the original VGGT in {path} has other weights: {len(missing)} are missing "
            f"({missing[:2]}), {len(unexpected)} unknown ({unexpected[:2]})"
        )
    return model.eval().requires_grad_(False)


def prediction_of(output: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return depth (B, S, H, W) and the pose encodings (B, S, 9) of the original's output."""
    return {"depth": output["depth"][..., 0], "pose": output["pose_enc"]}


@contextmanager
def _import_from(path: Path) -> Iterator[None]:
    sys.path.insert(0, str(path.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(path.resolve()))
