"""SmoothQuant (Xiao et al., ICML 2023): difficulty moved from activations to weights, W8A8.

Factors a = 0.5 on the linears behind a LayerNorm, as published; proj and fc2 are left alone.
"""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(
    name="smoothquant",
    precision="w8a8",
    scaling=Scaling(method="smooth", linears=("qkv", "fc1"), balance=0.5),
)
