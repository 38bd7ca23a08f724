"""Quantization: a full-precision checkpoint in, a 4-bit checkpoint out."""

from qvggt_core.quantize.pipeline import LayerReport, QuantizationReport, quantize_checkpoint
from qvggt_core.quantize.plan import PRESETS, Plan, Precision, Rule, load_plan
from qvggt_core.quantize.recipes import RECIPES, Recipe
from qvggt_core.quantize.size import PartSize, planned_sizes

__all__ = [
    "PRESETS",
    "RECIPES",
    "LayerReport",
    "PartSize",
    "Plan",
    "Precision",
    "QuantizationReport",
    "Recipe",
    "Rule",
    "load_plan",
    "planned_sizes",
    "quantize_checkpoint",
]
