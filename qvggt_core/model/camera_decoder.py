"""Camera tokens to pose encodings in one pass (Depth Anything 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.config import ModelConfig


class CameraDecoder(nn.Module):
    """Depth Anything 3's camera decoder, under its checkpoint names; views are independent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = 2 * config.embed_dim
        self.backbone = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()
        )
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2))

    def forward(self, camera_tokens: Tensor) -> list[Tensor]:
        """Map camera tokens (B, S, 2C) to a list of one pose encoding (B, S, 9)."""
        x = self.backbone(camera_tokens)
        fov = F.relu(self.fc_fov(x))
        return [torch.cat([self.fc_t(x), self.fc_qvec(x), fov], dim=-1)]
