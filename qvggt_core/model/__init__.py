"""VGGT: the network, its sizes and its checkpoints."""

from qvggt_core.model.config import EncoderConfig, ModelConfig, scaled_taps
from qvggt_core.model.pose_encoding import decode_pose, encode_pose
from qvggt_core.model.vggt import HEADS, VGGT, Prediction

__all__ = [
    "HEADS",
    "VGGT",
    "EncoderConfig",
    "ModelConfig",
    "Prediction",
    "decode_pose",
    "encode_pose",
    "scaled_taps",
]
