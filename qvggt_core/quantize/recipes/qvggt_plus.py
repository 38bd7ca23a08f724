"""The best combination of the others' parts by our own measurements, see docs/quantization.md."""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(
    name="qvggt+",
    scaling=Scaling(task_candidates=4, targets="teacher"),
    clip_search=True,
    rounding="gptq",
    token_filter=True,
)
