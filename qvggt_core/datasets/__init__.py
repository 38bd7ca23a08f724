"""The data sets of the papers, read in their makers' own layouts."""

from qvggt_core.datasets.co3d import Co3d
from qvggt_core.datasets.euroc import Euroc
from qvggt_core.datasets.nrgbd import Nrgbd
from qvggt_core.datasets.realestate10k import RealEstate10k
from qvggt_core.datasets.scene import (
    Contents,
    Dataset,
    PosedFrame,
    PosedScene,
    group_of,
)
from qvggt_core.datasets.seven_scenes import SevenScenes
from qvggt_core.datasets.tum import TumRgbd

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
