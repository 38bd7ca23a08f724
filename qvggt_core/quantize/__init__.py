"""Quantization: a full-precision checkpoint in, a checkpoint in integers out."""

from qvggt_core.quantize.calibrate import CalibrationOptions
from qvggt_core.quantize.calibration_inputs import CalibrationSet, windows_of_frames
from qvggt_core.quantize.pipeline import QuantizationSettings, quantize_checkpoint
from qvggt_core.quantize.plan import (
    PRESETS,
    Plan,
    Precision,
    Rule,
    load_plan,
    parse_precision,
)
from qvggt_core.quantize.quantization_report import LayerReport, QuantizationReport
from qvggt_core.quantize.recipes import RECIPES, Recipe
from qvggt_core.quantize.stored_size import PartSize, planned_sizes

__all__ = [
    "PRESETS",
    "RECIPES",
    "CalibrationOptions",
    "CalibrationSet",
    "LayerReport",
    "PartSize",
    "Plan",
    "Precision",
    "QuantizationReport",
    "QuantizationSettings",
    "Recipe",
    "Rule",
    "load_plan",
    "parse_precision",
    "planned_sizes",
    "quantize_checkpoint",
    "windows_of_frames",
]
