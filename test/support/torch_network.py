"""A small VGGT with random weights as the network of a stream, and images for it."""

from dataclasses import replace

import numpy as np
import torch

from qvggt_core.model import VGGT, EncoderConfig
from qvggt_core.stream import TorchNetwork
from support.small_network import TINY

SMALL = replace(
    TINY, embed_dim=32, encoder=EncoderConfig(32, 1, 2), camera_num_heads=2, dpt_features=8
)


def network(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = VGGT(replace(SMALL, **changes)).initialise()
    return TorchNetwork(model.to_compute(dtype)), model


def images(count, height=42, width=56):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
