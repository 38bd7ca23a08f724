"""The description of a recipe: the shared steps of quantization as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from qvggt_core.errors import QuantizationError
from qvggt_core.quantize.block_linears import Linear

TokenView = Literal["all", "clamped", "excluded"]
"""Camera and register tokens in the statistics of a linear's input: as they are; each scaled down
to the mean length of the image tokens where it is longer; left out (QVGGT, section 3.3)."""

_TOKEN_VIEWS = get_args(TokenView)


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
            of those by the loss of the network's heads (QVGGT, section 3.4).
        targets: of the heads: "teacher", the full-precision network's outputs,
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
        name: on the command line and in a checkpoint's metadata.
        precision: bits of weights and activations unless the user chooses others, e.g. "w4a16".
        rotation: whether inputs are rotated by a Hadamard transform.
        scaling: factors on inputs, or None.
        clip_search: whether each group's range is searched for the least output error.
        learned_clipping: training of ranges, or None.
        rounding: "nearest" or "gptq".
        token_views: the special tokens of each frame in the statistics. With several, factors
            and ranges from each are compared by the heads' loss; the last is the baseline of
            reconstruction, and the only one where no loss of the heads is computed.
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
    token_views: tuple[TokenView, ...] = ("all",)
    compensation: int = 0
    compensation_judged: bool = False

    def __post_init__(self) -> None:
        unknown = [view for view in self.token_views if view not in _TOKEN_VIEWS]
        if unknown or not self.token_views:
            raise QuantizationError(
                f"token views {list(self.token_views)} of the recipe {self.name}: give one or more "
                f"of {', '.join(_TOKEN_VIEWS)}"
            )

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
