"""QVGGT's three ideas, each where the heads agree: filtered tokens, compensation, judged scales.

The best alphas of each linear are judged by camera, depth and point losses and by the geometry's
consistency (section 3.4). What differs from the paper, whose letter is `qvggt-paper`: statistics
that leave the special tokens out (section 3.3) are candidates beside statistics in which special
tokens count, but for no more than image tokens do; a compensation token of K = 32 principal
directions stays if the heads lose less with it; and the heads should say what full precision
says, which ground truth did not better. The selective plan is the plan's business.
"""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(
    name="qvggt",
    scaling=Scaling(task_candidates=4, targets="teacher"),
    clip_search=True,
    token_views=("filtered", "limited"),
    compensation=32,
    compensation_judged=True,
)
