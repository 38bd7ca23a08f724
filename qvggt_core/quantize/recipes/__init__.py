"""Recipes: how the numbers of a 4-bit weight are chosen.

A recipe is a function

    recipe(name, weight, group_size, statistics) -> (q, scales)

    name: of the weight in the checkpoint, e.g. "aggregator.frame_blocks.0.attn.qkv.weight"
    weight: (N, K) floating, on the host
    group_size: columns per scale g; it divides K
    statistics: what calibration saw at this linear's input, named tensors with K in their
        last dimension, e.g. the mean magnitude per column; None where nothing was calibrated
    q: (N, K) int8 in [-8, 7]
    scales: (N, K/g) bfloat16; the weight becomes q * scale

Which weights it is asked about, and in which groups, is the plan's business; packing and
writing is the pipeline's. A recipe that needs statistics raises QuantizationError without
them. To add one, write its file and name it in `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from qvggt_core.quantize.recipes import rtn

Statistics = Mapping[str, Tensor]
Recipe = Callable[[str, Tensor, int, Statistics | None], tuple[Tensor, Tensor]]

RECIPES: Mapping[str, Recipe] = {"rtn": rtn.recipe}
"""Recipes by the name that the command line and a checkpoint's metadata use."""
