"""Round to nearest: every number on its own, no calibration."""

from qvggt_core.quantize.recipes.recipe import Recipe

RECIPE = Recipe(name="rtn")
