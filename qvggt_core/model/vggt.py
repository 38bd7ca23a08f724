"""The network: images of one window in, cameras, depth and points out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from qvggt_kernels import Int4Linear
from torch import Tensor, nn

from qvggt_core.errors import CheckpointError
from qvggt_core.model.aggregator import Aggregator
from qvggt_core.model.blocks import Attention, Mlp
from qvggt_core.model.camera_decoder import CameraDecoder
from qvggt_core.model.camera_encoder import CameraEncoder
from qvggt_core.model.camera_head import CameraHead
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.dense_head import DenseHead
from qvggt_core.model.interleaved import InterleavedAggregator
from qvggt_core.model.pose_encoding import invert_pose
from qvggt_core.model.settings import ComputeSettings

HEADS = ("camera", "depth", "points")
_DRAWN_TOKENS = ("camera_token", "register_token", "scale_token", "cls_token", "register_tokens")


@dataclass(frozen=True)
class Prediction:
    """Geometry of B windows of S frames, in the network's own unit of length.

    Attributes:
        pose_encodings: (B, S, 9) world-to-camera per refinement iteration, the last is the
            result; see `decode_pose`. The world of VGGT is the first frame's camera, that of
            Depth Anything 3 about the reference view's.
        depth: (B, D, H, W) of the last D frames (all, unless fewer are asked for) along the
            optical axis, positive; None if not asked for. Of a network for single images, times
            focal length in pixels over 300 it is metres.
        depth_confidence: (B, D, H, W), above 1; None without such an output.
        points: (B, D, H, W, 3) in the world; None if not asked for.
        points_confidence: (B, D, H, W), above 1.
        sky: (B, D, H, W), above 0.3 where the sky is seen; None without such an output.
        rays: (B, D, h, w, 6) directions and origins of the pixels' rays, 8 by 8 of them a patch;
            None without such an output.
        rays_confidence: (B, D, h, w), above 1.
        entering: (B, S, P, C) what shows which patches match, see `patch_similarity`; None of a
            network that was not trained to match.
    """

    pose_encodings: tuple[Tensor, ...] = ()
    depth: Tensor | None = None
    depth_confidence: Tensor | None = None
    points: Tensor | None = None
    points_confidence: Tensor | None = None
    sky: Tensor | None = None
    rays: Tensor | None = None
    rays_confidence: Tensor | None = None
    entering: Tensor | None = None


class VGGT(nn.Module):
    """A feed-forward network for the geometry of several views.

    Visual Geometry Grounded Transformer (Wang et al., CVPR 2025) without its track head, and
    Depth Anything 3 (Lin et al., 2025) without its Gaussian head, as the configuration says.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        is_stack = config.stack is not None
        self.aggregator = InterleavedAggregator(config) if is_stack else Aggregator(config)
        self.camera_head: CameraHead | CameraDecoder | None = None
        if config.camera_head == "iterative":
            self.camera_head = CameraHead(config)
        elif config.camera_head == "decoder":
            self.camera_head = CameraDecoder(config)
        self.camera_encoder = CameraEncoder(config) if config.camera_encoder else None
        self.depth_head: DenseHead | None = None
        if config.depth_head:
            channels = 1 if config.sky_head else 2
            self.depth_head = DenseHead(config, channels, rays=config.ray_head)
        self.point_head = DenseHead(config, out_channels=4) if config.point_head else None

    def forward(self, images: Tensor, heads: Collection[str] = HEADS) -> Prediction:
        """Reconstruct windows of RGB images (B, S, 3, H, W) in [0, 1]."""
        height, width = images.shape[-2:]
        return self.forward_tokens(self.encode(images), height, width, heads)

    def encode(self, images: Tensor) -> Tensor:
        """Map RGB images (..., 3, H, W) in [0, 1] to tokens (..., P', C), frame by frame.

        P' is the number of patches and `config.encoded_extra_tokens`.
        """
        return self.aggregator.encode(images)

    def condition(
        self, tokens: Tensor, camera_from_world: Tensor, intrinsics: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return encoded views that carry their known cameras, for `forward_tokens`.

        Args:
            tokens: (B, S, P', C), see `encode`.
            camera_from_world: (B, S, 3, 4), see `normalise_cameras`.
            intrinsics: (B, S, 3, 3) in pixels.
            size: height and width of the images, pixels.

        Raises:
            CheckpointError: the network has no camera encoder.
        """
        if self.camera_encoder is None:
            raise CheckpointError(
                "the network takes no known cameras: it has no camera encoder (condition_on)"
            )
        dtype = self.camera_encoder.token_norm.weight.dtype
        cameras = self.camera_encoder(camera_from_world.to(dtype), intrinsics.to(dtype), *size)
        return torch.cat([cameras.to(tokens.dtype)[:, :, None], tokens[:, :, 1:]], dim=2)

    def forward_tokens(
        self,
        tokens: Tensor,
        height: int,
        width: int,
        heads: Collection[str] = HEADS,
        newest: int | None = None,
        conditioned: bool = False,
    ) -> Prediction:
        """Reconstruct windows from the tokens that `encode` made of their frames.

        Heads that the network does not have are left out of the prediction.

        Args:
            tokens: (B, S, P', C), see `encode`.
            height: of the images, pixels.
            width: of the images, pixels.
            heads: which to run.
            newest: run the dense heads for so many last frames alone; None for all.
            conditioned: the tokens come from `condition`.
        """
        patch = self.config.patch_size
        grid = (height // patch, width // patch)
        if conditioned:
            assert isinstance(self.aggregator, InterleavedAggregator)
            found = self.aggregator(tokens, *grid, newest, conditioned)
        else:
            found = self.aggregator(tokens, *grid, newest)
        prediction = self.decode(found.patches, found.camera, *grid, heads)
        return replace(prediction, entering=found.entering)

    def decode(
        self,
        patches: tuple[Tensor, ...],
        camera: Tensor | None,
        rows: int,
        columns: int,
        heads: Collection[str] = HEADS,
    ) -> Prediction:
        """Run the heads on what the aggregator left, see `AggregatedTokens`."""
        prediction = Prediction()
        if "camera" in heads and self.camera_head is not None and camera is not None:
            dtype = next(self.camera_head.parameters()).dtype
            poses = self.camera_head(camera.to(dtype))
            if self.config.camera_to_world:
                poses = [invert_pose(pose) for pose in poses]
            prediction = replace(prediction, pose_encodings=tuple(poses))
        if "depth" in heads and self.depth_head is not None:
            prediction = self._with_depth(prediction, patches, rows, columns)
        if "points" in heads and self.point_head is not None:
            raw = self.point_head(patches, rows, columns).values
            coordinates = raw[:, :, :3]
            points = coordinates.abs().expm1().copysign(coordinates).movedim(2, -1)
            confidence = 1 + raw[:, :, 3].exp()
            prediction = replace(prediction, points=points, points_confidence=confidence)
        return prediction

    def _with_depth(
        self, prediction: Prediction, patches: tuple[Tensor, ...], rows: int, columns: int
    ) -> Prediction:
        assert self.depth_head is not None
        values, rays = self.depth_head(patches, rows, columns)
        depth, second = values[:, :, 0].exp(), values[:, :, 1]
        if self.config.sky_head:
            return replace(prediction, depth=depth, sky=second.relu())
        prediction = replace(prediction, depth=depth, depth_confidence=1 + second.exp())
        if rays is None:
            return prediction
        coordinates, confidence = rays[:, :, :6].movedim(2, -1), 1 + rays[:, :, 6].exp()
        return replace(prediction, rays=coordinates, rays_confidence=confidence)

    def configure(self, settings: ComputeSettings) -> VGGT:
        """Set how every part computes, in place.

        The camera head, a few tokens whose precision everything hangs on, keeps its attention.
        """
        for module in self.modules():
            if isinstance(module, (Attention, DenseHead, Mlp, InterleavedAggregator)):
                module.settings = settings
        for module in self.aggregator.modules():
            if isinstance(module, Int4Linear):
                module.arithmetic = settings.linears
        for part in (self.camera_head, self.camera_encoder):
            for module in part.modules() if part is not None else ():
                if isinstance(module, Attention):
                    module.settings = replace(settings, attention="auto")
        return self

    def to_compute(self, dtype: torch.dtype) -> VGGT:
        """Bring the network to its compute dtype, in place.

        Encoder, aggregator and dense heads run in `dtype`; the camera head and the camera
        encoder, whose small translations 16 bits would round away, and the dense heads' last
        convolutions stay in float32.
        """
        self.to(dtype)
        for part in (self.camera_head, self.camera_encoder):
            if part is not None:
                part.float()
        for head in (self.depth_head, self.point_head):
            if head is not None:
                head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                head.scratch.float_outputs()
        return self

    def initialise(self) -> VGGT:
        """Draw the weights for training from the global generator, in place."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(_DRAWN_TOKENS):
                nn.init.normal_(parameter, std=1e-6)
            elif name.endswith("pos_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)
        return self
