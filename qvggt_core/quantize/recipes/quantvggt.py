"""QuantVGGT: rotation, then smoothing, then learned ranges, for integer activations.

Weights have a scale per output, activations one per token. The rotation before proj is folded
into the value rows of qkv, head by head; elsewhere it is a fast Walsh-Hadamard transform.
"""

from qvggt_core.quantize.recipes.recipe import LearnedClipping, Recipe, Scaling

RECIPE = Recipe(
    name="quantvggt",
    precision="w4a4",
    rotation=True,
    scaling=Scaling(method="smooth", balance=0.5),
    learned_clipping=LearnedClipping(),
)
