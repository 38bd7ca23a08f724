"""What a recipe can ask for: the shared steps of quantization as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Linear = Literal["qkv", "proj", "fc1", "fc2"]
"""The four linears of a transformer block."""

TokenView = Literal["counted", "limited", "filtered"]
"""What statistics see of camera and register tokens: all of them; each brought down to the mean
length of the image tokens where it is longer; none of them (QVGGT, section 3.3)."""


@dataclass(frozen=True)
class Scaling:
    """Factors s on a linear's inputs: y = (W diag(s)) (diag(s)^-1 x), the inverse folded away.

    The inverse goes into the LayerNorm before qkv and fc1, into the value rows of qkv before
    proj, and stays explicit before fc2 and after a rotation.

    Attributes:
        method: "search": s = mean|x|^alpha, the alpha of least loss (AWQ, Lin et al.);
            "smooth": s = max|x|^a / max|w|^(1-a) (SmoothQuant, Xiao et al.).
        linears: which linears are scaled.
        candidates: alphas of the search, evenly in [0, 1].
        balance: a of smoothing.
        task_candidates: 0 chooses by the linear's own reconstruction; n evaluates the n best
            of those by what the network's heads say (QVGGT, section 3.4).
        targets: what heads are compared with: "teacher", the full-precision network's outputs,
            or "truth" where the calibration set has it, the teacher's elsewhere.
    """

    method: Literal["search", "smooth"] = "search"
    linears: tuple[Linear, ...] = ("qkv", "proj", "fc1", "fc2")
    candidates: int = 20
    balance: float = 0.5
    task_candidates: int = 0
    targets: Literal["teacher", "truth"] = "teacher"


@dataclass(frozen=True)
class LearnedClipping:
    """Ranges of weights and activations, and scales, trained block by block (QuantVGGT).

    Attributes:
        epochs: passes over the calibration windows.
        windows: windows in a step.
        clip_rate: learning rate of the ranges.
        scale_rate: learning rate of the scales.
    """

    epochs: int = 15
    windows: int = 4
    clip_rate: float = 1e-2
    scale_rate: float = 1e-3


@dataclass(frozen=True)
class Recipe:
    """A way to quantize.

    Attributes:
        name: what the command line and a checkpoint's metadata call it.
        precision: bits of weights and activations where the user asks for none, e.g. "w4a16".
        rotation: whether inputs are rotated by a Hadamard transform.
        scaling: factors on inputs, or None.
        clip_search: whether each group's range is searched for the least output error.
        learned_clipping: training of ranges, or None.
        rounding: "nearest" or "gptq".
        token_views: what statistics see of the special tokens of each frame. With several, the
            heads judge factors and ranges from each; the last is the yardstick of
            reconstruction, and holds alone where no head is asked.
        compensation: principal directions K of the camera compensation token, 0 for none.
        compensation_judged: whether the token stays only if the heads lose less with it on the
            images that candidates are judged on; needs task candidates.
    """

    name: str
    precision: str = "w4a16"
    rotation: bool = False
    scaling: Scaling | None = None
    clip_search: bool = False
    learned_clipping: LearnedClipping | None = None
    rounding: Literal["nearest", "gptq"] = "nearest"
    token_views: tuple[TokenView, ...] = ("counted",)
    compensation: int = 0
    compensation_judged: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether images are needed."""
        return bool(
            self.scaling
            or self.clip_search
            or self.learned_clipping
            or self.compensation
            or self.rounding == "gptq"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, for JSON."""
        return asdict(self)
