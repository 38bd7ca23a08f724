"""How a network computes: what trades memory or accuracy for speed, beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReferenceView = Literal["saddle_balanced", "saddle_sim_range", "first", "middle"]
"""How Depth Anything 3 chooses the view of a window that its poses refer to."""


@dataclass(frozen=True)
class ComputeSettings:
    """Set for all parts of a network by `VGGT.configure`; used while no gradient is recorded.

    Attributes:
        mlp_rows: tokens per slice of an MLP, which bounds its hidden activations; the default is
            about two frames of 392x518, wide enough for a dense GEMM.
        dense_pixels: pixels that a dense head decodes at once, in whole frames; the default is
            about one image of 518x518.
        attention: "auto" is PyTorch's in the compute dtype; "int8" multiplies queries and keys
            as 8-bit integers; "plain" is softmax between two matrix products, also while gradients
            are recorded, which trains short windows on a CPU twice as fast.
        linears: how 4-bit linears of encoder and aggregator multiply: "float" in the compute
            dtype, "int8" with weight rows and tokens rounded to 8-bit integers, "fp8" to 8-bit
            floats. The camera head, whose small translations matter, keeps to "float".
        reference_view: how a network that chooses its reference view does so, see
            `reference_view.choose_reference`; others always take the first.
    """

    mlp_rows: int = 2048
    dense_pixels: int = 1 << 18
    attention: Literal["auto", "int8", "plain"] = "auto"
    linears: Literal["float", "int8", "fp8"] = "float"
    reference_view: ReferenceView = "saddle_balanced"
