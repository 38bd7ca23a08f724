"""Recipes: how the integers of a plan are computed, each a description in its own file.

A recipe selects among the shared steps, which are always taken in this order, block by block of
the network (`qvggt_core.quantize.calibrate`):

    rotate -> scale -> clip -> round

Which weights are integers, of how many bits, is decided by the plan. To add a recipe, describe it
in a file of its own and name it in `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Mapping

from qvggt_core.quantize.recipes import (
    awq,
    gptq,
    quantvggt,
    qvggt,
    qvggt_paper,
    qvggt_plus,
    rtn,
    smoothquant,
)
from qvggt_core.quantize.recipes.recipe import LearnedClipping, Recipe, Scaling

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        rtn.RECIPE,
        smoothquant.RECIPE,
        gptq.RECIPE,
        awq.RECIPE,
        qvggt.RECIPE,
        qvggt_paper.RECIPE,
        quantvggt.RECIPE,
        qvggt_plus.RECIPE,
    )
}
"""Recipes by the name that the command line and a checkpoint's metadata use."""

__all__ = ["RECIPES", "LearnedClipping", "Recipe", "Scaling"]
