"""QVGGT: AWQ's scaling, with filtered tokens, compensation, and a search that asks the heads.

Statistics see image tokens only (section 3.3), a compensation token of K = 32 principal
directions joins the camera tokens where the heads agree that it helps, and the best alphas of
each linear are judged by camera, depth and point losses and by the geometry's consistency
(section 3.4). What they should say is what full precision says; the paper takes ground truth
where there is some, which did no better here. The selective plan is the plan's business, and
filtered tokens need it (docs/quantization.md).
"""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(
    name="qvggt",
    scaling=Scaling(task_candidates=4, targets="teacher"),
    clip_search=True,
    token_filter=True,
    compensation=32,
    compensation_judged=True,
)
