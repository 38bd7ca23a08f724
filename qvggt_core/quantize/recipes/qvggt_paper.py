"""QVGGT as its paper describes it: special tokens excluded, the compensation token always set.

Ground truth is the target where the calibration set has it. Two things are ours: the heads' loss
decides among the four alphas of least reconstruction error, not all twenty, and ranges are
searched. Where special tokens become outliers in one block only, excluding them breaks that
block: see `qvggt` and docs/quantization.md.
"""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(
    name="qvggt-paper",
    scaling=Scaling(task_candidates=4, targets="truth"),
    clip_search=True,
    token_views=("excluded",),
    compensation=32,
)
