"""The stream: frames in, geometry in one map out."""

from typing import TYPE_CHECKING

from qvggt_core.stream.align import Alignment, Anchor, Similarity, align
from qvggt_core.stream.depth_scale import valid_depth
from qvggt_core.stream.frame import (
    Confirmation,
    Frame,
    FrameGeometry,
    Reconstruction,
    Scale,
    Verdict,
    View,
    WindowPrediction,
)
from qvggt_core.stream.keyframes import KeyframeDecision, KeyframeGate
from qvggt_core.stream.metric_scale import MetricScale
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_core.util.late_imports import late_imports

if TYPE_CHECKING:
    from qvggt_core.stream.deferred import DeferredReconstructor
    from qvggt_core.stream.network import Network, TorchNetwork
    from qvggt_core.stream.reconstructor import Reconstructor

__all__ = [
    "Alignment",
    "Anchor",
    "Confirmation",
    "DeferredReconstructor",
    "Frame",
    "FrameGeometry",
    "KeyframeDecision",
    "KeyframeGate",
    "MetricScale",
    "Network",
    "Preprocessor",
    "Reconstruction",
    "Reconstructor",
    "Scale",
    "Similarity",
    "TorchNetwork",
    "Verdict",
    "View",
    "WindowPrediction",
    "align",
    "valid_depth",
]

__getattr__ = late_imports(
    __name__,
    {
        "DeferredReconstructor": "deferred",
        "Network": "network",
        "Reconstructor": "reconstructor",
        "TorchNetwork": "network",
    },
)
