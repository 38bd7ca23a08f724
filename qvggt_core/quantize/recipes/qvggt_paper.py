"""QVGGT to the letter of its paper: special tokens never count, the compensation token is set.

Ground truth is the target where the calibration set has it. Two things are ours: the heads judge
the four alphas of least reconstruction error, not all twenty, and ranges are searched. Where
special tokens become outliers in one block only, filtering them breaks that block: see `qvggt`
and docs/quantization.md.
"""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(
    name="qvggt-paper",
    scaling=Scaling(task_candidates=4, targets="truth"),
    clip_search=True,
    token_views=("filtered",),
    compensation=32,
)
