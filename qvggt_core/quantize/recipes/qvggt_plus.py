"""QVGGT+: AWQ's factors and ranges, then GPTQ's rounding, over all tokens.

The best combination by our own measurements (docs/quantization.md): factors and rounding mend
different errors, and each token that is left out of the statistics is one that rounding makes
no effort for. Filtering, compensation and the task-aware search are left out because they
gained nothing there.
"""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(
    name="qvggt+",
    scaling=Scaling(),
    clip_search=True,
    rounding="gptq",
)
