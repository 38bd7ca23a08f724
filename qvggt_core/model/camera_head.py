"""Camera tokens to pose encodings, by refinement iterations that share their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model.blocks import Block, Mlp
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.pose_encoding import SIZE

_ADAPTIVE_NORM_EPS = 1e-6


class CameraHead(nn.Module):
    """VGGT's camera head, under its checkpoint names.

    Attributes:
        cict_token: (2C,) camera information compensation token that joins the camera tokens of
            every window (QVGGT, section 3.3), or None.
    """

    cict_token: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = 2 * config.embed_dim
        self.iterations = config.camera_iterations
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.ModuleList(
            Block(dim, config.camera_num_heads, config.mlp_ratio, layer_scale=config.layer_scale)
            for _ in range(config.camera_trunk_depth)
        )
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, SIZE))
        self.embed_pose = nn.Linear(SIZE, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.pose_branch = Mlp(dim, dim // 2, SIZE)
        self.register_buffer("cict_token", None)

    def forward(self, camera_tokens: Tensor) -> list[Tensor]:
        """Map camera tokens (B, S, 2C) to one pose encoding (B, S, 9) per iteration."""
        if self.cict_token is None:
            return self._refine(camera_tokens)
        compensation = self.cict_token.expand(len(camera_tokens), 1, -1)
        encodings = self._refine(torch.cat([camera_tokens, compensation], dim=1))
        return [encoding[:, :-1] for encoding in encodings]

    def _refine(self, camera_tokens: Tensor) -> list[Tensor]:
        tokens = self.token_norm(camera_tokens)
        adapted = F.layer_norm(tokens, tokens.shape[-1:], eps=_ADAPTIVE_NORM_EPS)
        raw = torch.zeros_like(self.empty_pose_tokens)
        estimate = self.empty_pose_tokens.expand(*tokens.shape[:2], -1)
        encodings = []
        for _ in range(self.iterations):
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(estimate)).chunk(3, dim=-1)
            x = (gate * (adapted * (1 + scale) + shift) + tokens)[:, None]
            for block in self.trunk:
                x = block(x)
            # The recurrence runs on the plain sum; only what is returned is activated.
            # Each iteration learns its own step: no gradient flows through earlier ones.
            raw = raw.detach() + self.pose_branch(self.trunk_norm(x[:, 0]))
            estimate = raw.detach()
            encodings.append(torch.cat([raw[..., :7], F.relu(raw[..., 7:])], dim=-1))
        return encodings
