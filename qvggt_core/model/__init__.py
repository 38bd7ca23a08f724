"""The network, its sizes and its checkpoints."""

from qvggt_core.model.checkpoint import (
    Checkpoint,
    read_checkpoint,
    save_checkpoint,
    shipped_checkpoint,
)
from qvggt_core.model.config import EncoderConfig, ModelConfig, StackConfig, scaled_taps
from qvggt_core.model.load import load_model
from qvggt_core.model.packed_format import describe_linears
from qvggt_core.model.part_sizes import part_sizes
from qvggt_core.model.pose_encoding import decode_pose, encode_pose
from qvggt_core.model.settings import ComputeSettings
from qvggt_core.model.vggt import HEADS, VGGT, Prediction

__all__ = [
    "HEADS",
    "VGGT",
    "Checkpoint",
    "ComputeSettings",
    "EncoderConfig",
    "ModelConfig",
    "Prediction",
    "StackConfig",
    "decode_pose",
    "describe_linears",
    "encode_pose",
    "load_model",
    "part_sizes",
    "read_checkpoint",
    "save_checkpoint",
    "scaled_taps",
    "shipped_checkpoint",
]
