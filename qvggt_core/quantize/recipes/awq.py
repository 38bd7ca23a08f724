"""AWQ (Lin et al., MLSys 2024): columns that meet large inputs get finer steps.

Statistics are of all tokens, the alpha of each linear is the one of least reconstruction error
on a grid of 20, ranges are searched; fc2, whose factors no layer before can carry, has them
explicitly, as AWQ's scaled activations do.
"""

from qvggt_core.quantize.recipes.recipe import Recipe, Scaling

RECIPE = Recipe(name="awq", scaling=Scaling(), clip_search=True)
