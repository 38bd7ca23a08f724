"""A small VGGT with random weights as the network of a stream, and images for it."""

import numpy as np
import torch

from qvggt_core.model import VGGT, EncoderConfig, ModelConfig
from qvggt_core.stream import TorchNetwork

SMALL = {
    "img_size": 56,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "encoder": EncoderConfig(32, 1, 2),
    "camera_trunk_depth": 1,
    "camera_num_heads": 2,
    "dpt_features": 8,
    "dpt_out_channels": (8, 8, 8, 8),
    "taps": (0, 1, 2, 3),
    "point_head": False,
}


def network(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = VGGT(ModelConfig(**{**SMALL, **changes})).initialise()
    return TorchNetwork(model.to_compute(dtype)), model


def images(count, height=42, width=56):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
