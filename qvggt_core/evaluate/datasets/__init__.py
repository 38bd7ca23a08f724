"""The data sets of the papers, read in their makers' own layouts."""

from qvggt_core.evaluate.datasets.co3d import Co3d
from qvggt_core.evaluate.datasets.euroc import Euroc
from qvggt_core.evaluate.datasets.nrgbd import Nrgbd
from qvggt_core.evaluate.datasets.realestate10k import RealEstate10k
from qvggt_core.evaluate.datasets.scene import (
    Contents,
    Dataset,
    PosedFrame,
    PosedScene,
    group_of,
)
from qvggt_core.evaluate.datasets.seven_scenes import SevenScenes
from qvggt_core.evaluate.datasets.tum import TumRgbd

__all__ = [
    "Co3d",
    "Contents",
    "Dataset",
    "Euroc",
    "Nrgbd",
    "PosedFrame",
    "PosedScene",
    "RealEstate10k",
    "SevenScenes",
    "TumRgbd",
    "group_of",
]
