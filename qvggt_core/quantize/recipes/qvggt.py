"""QVGGT's three ideas, each where it lowers the heads' loss: token filter, compensation, scales.

The best alphas of each linear are chosen by camera, depth and point losses and by the geometry's
consistency (section 3.4). What differs from the paper, which `qvggt-paper` follows: statistics
without the special tokens (section 3.3) are candidates beside statistics in which special tokens
are clamped to the length of image tokens; a compensation token of K = 32 principal directions
stays if the heads' loss is lower with it; and the targets of the heads are the full-precision
network's outputs, which gave no worse results than ground truth. The selective plan is a plan.
"""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(
    name="qvggt",
    scaling=Scaling(task_candidates=4, targets="teacher"),
    clip_search=True,
    token_views=("excluded", "clamped"),
    compensation=32,
    compensation_judged=True,
)
