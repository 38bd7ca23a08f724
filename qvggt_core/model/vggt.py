"""VGGT: images of one window in, cameras, depth and points out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from qvggt_kernels import Int4Linear
from torch import Tensor, nn

from qvggt_core.model.aggregator import Aggregator
from qvggt_core.model.blocks import Attention, Mlp
from qvggt_core.model.camera_head import CameraHead
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.dense_head import DenseHead
from qvggt_core.model.settings import ComputeSettings

HEADS = ("camera", "depth", "points")


@dataclass(frozen=True)
class Prediction:
    """What VGGT says of B windows of S frames, in the network's own unit of length.

    Attributes:
        pose_encodings: (B, S, 9) per refinement iteration, the last is the result; see
            `decode_pose`. The world is the first frame's camera.
        depth: (B, D, H, W) of the last D frames (all, unless fewer are asked for) along the
            optical axis, positive; None if not asked for.
        depth_confidence: (B, D, H, W), above 1.
        points: (B, D, H, W, 3) in the world; None if not asked for.
        points_confidence: (B, D, H, W), above 1.
    """

    pose_encodings: tuple[Tensor, ...] = ()
    depth: Tensor | None = None
    depth_confidence: Tensor | None = None
    points: Tensor | None = None
    points_confidence: Tensor | None = None


class VGGT(nn.Module):
    """Visual Geometry Grounded Transformer (Wang et al., CVPR 2025), without its track head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config)
        self.depth_head = DenseHead(config, out_channels=2) if config.depth_head else None
        self.point_head = DenseHead(config, out_channels=4) if config.point_head else None

    def forward(self, images: Tensor, heads: Collection[str] = HEADS) -> Prediction:
        """Reconstruct windows of RGB images (B, S, 3, H, W) in [0, 1]."""
        height, width = images.shape[-2:]
        return self.forward_tokens(self.encode(images), height, width, heads)

    def encode(self, images: Tensor) -> Tensor:
        """Map RGB images (..., 3, H, W) in [0, 1] to patch tokens (..., P, C), frame by frame."""
        return self.aggregator.encode(images)

    def forward_tokens(
        self,
        tokens: Tensor,
        height: int,
        width: int,
        heads: Collection[str] = HEADS,
        newest: int | None = None,
    ) -> Prediction:
        """Reconstruct windows from the tokens that `encode` made of their frames.

        Heads that the network does not have are left out of the prediction.

        Args:
            tokens: (B, S, P, C).
            height: of the images, pixels.
            width: of the images, pixels.
            heads: which to run.
            newest: run the dense heads for so many last frames alone; None for all.
        """
        patch = self.config.patch_size
        grid = (height // patch, width // patch)
        patches, camera = self.aggregator(tokens, *grid, newest)
        return self.decode(patches, camera, *grid, heads)

    def decode(
        self,
        patches: tuple[Tensor, ...],
        camera: Tensor,
        rows: int,
        columns: int,
        heads: Collection[str] = HEADS,
    ) -> Prediction:
        """Let the heads read what the aggregator left, see `AggregatedTokens`."""
        poses: tuple[Tensor, ...] = ()
        depth = depth_confidence = points = points_confidence = None
        if "camera" in heads:
            head_dtype = self.camera_head.token_norm.weight.dtype
            poses = tuple(self.camera_head(camera.to(head_dtype)))
        if "depth" in heads and self.depth_head is not None:
            raw = self.depth_head(patches, rows, columns)
            depth, depth_confidence = raw[:, :, 0].exp(), 1 + raw[:, :, 1].exp()
        if "points" in heads and self.point_head is not None:
            raw = self.point_head(patches, rows, columns)
            coordinates = raw[:, :, :3]
            points = coordinates.abs().expm1().copysign(coordinates).movedim(2, -1)
            points_confidence = 1 + raw[:, :, 3].exp()
        return Prediction(poses, depth, depth_confidence, points, points_confidence)

    def configure(self, settings: ComputeSettings) -> VGGT:
        """Tell every part how to compute, in place.

        The camera head, a few tokens whose precision everything hangs on, keeps its attention.
        """
        for module in self.modules():
            if isinstance(module, (Attention, DenseHead, Mlp)):
                module.settings = settings
        for module in self.aggregator.modules():
            if isinstance(module, Int4Linear):
                module.arithmetic = settings.linears
        for module in self.camera_head.modules():
            if isinstance(module, Attention):
                module.settings = replace(settings, attention="auto")
        return self

    def to_compute(self, dtype: torch.dtype) -> VGGT:
        """Bring the network to its compute dtype, in place.

        Encoder, aggregator and dense heads run in `dtype`; the camera head, whose small
        translations 16 bits would round away, and the dense heads' last convolution stay in
        float32.
        """
        self.to(dtype)
        self.camera_head.float()
        for head in (self.depth_head, self.point_head):
            if head is not None:
                head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                head.scratch.output_conv2[2].float()
        return self

    def initialise(self) -> VGGT:
        """Draw the weights for training from the global generator, in place."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("camera_token", "register_token", "cls_token", "register_tokens")):
                nn.init.normal_(parameter, std=1e-6)
            elif name.endswith("pos_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)
        return self
