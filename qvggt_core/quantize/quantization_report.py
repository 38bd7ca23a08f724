"""The report of a quantization: every layer, every part, and what was calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qvggt_core.quantize.plan import Precision
from qvggt_core.quantize.stored_size import PartSize


@dataclass(frozen=True)
class LayerReport:
    """One weight in integers.

    Attributes:
        name: of the weight in the full-precision checkpoint.
        shape: (N, K).
        precision: bits, columns per scale, and activations.
        bits_per_weight: everything that the packed layer adds included.
        relative_error: |W - W_hat| / |W|, Frobenius norms, rotation and factors applied; 0 for
            an all-zero weight.
        output_error: root of the share of the output's energy that rounding costs on the
            calibration images; None where nothing was calibrated.
        alpha: exponent of the factors that a search chose, or None.
    """

    name: str
    shape: tuple[int, int]
    precision: Precision
    bits_per_weight: float
    relative_error: float
    output_error: float | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class QuantizationReport:
    """The result of `quantize_checkpoint`.

    Attributes:
        target: the file that was written.
        file_bytes: its size.
        plan: name of the plan.
        recipe: name of the recipe.
        calibration: the images, see `CalibrationSet.describe`; None without calibration.
        parts: weights and bytes of each part of the network.
        layers: the weights in integers, in the checkpoint's order.
        dropped: tensors of heads that were left out.
        unused_rules: globs of the plan that decided over no tensor.
        notes: decisions of calibration that depended on the data, as sentences.
        resumed_blocks: blocks that an interrupted run had finished.
        calibration_seconds: time that calibration took in this run.
    """

    target: Path
    file_bytes: int
    plan: str
    recipe: str
    calibration: Mapping[str, Any] | None
    parts: Mapping[str, PartSize]
    layers: tuple[LayerReport, ...]
    dropped: int
    unused_rules: tuple[str, ...]
    notes: tuple[str, ...] = ()
    resumed_blocks: int = 0
    calibration_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        data = asdict(self)
        data["target"] = str(self.target)
        data["parts"] = {part: size._asdict() for part, size in self.parts.items()}
        for layer in data["layers"]:
            layer["precision"] = Precision(*layer["precision"])._asdict()
        return data
