"""GPTQ (Frantar et al., ICLR 2023): columns are rounded in turn, the rest makes up for it."""

from qvggt_core.quantize.recipes.recipe import Recipe

RECIPE = Recipe(name="gptq", rounding="gptq")
