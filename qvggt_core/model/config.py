"""Sizes of a VGGT: one dataclass describes VGGT-1B, its small relatives and our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qvggt_core.errors import CheckpointError


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the DINOv2-style image encoder (ViT with registers)."""

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a VGGT; the defaults are VGGT-1B's.

    Attributes:
        img_size: image width that the network was trained at, pixels.
        patch_size: side of a patch, pixels.
        embed_dim: token width C of the aggregator; the heads see 2C (frame and global halves).
        depth: number of frame blocks, and of global blocks.
        num_heads: attention heads of an aggregator block.
        mlp_ratio: hidden width of every MLP over its token width.
        num_register_tokens: register tokens per frame, beside one camera token.
        layer_scale: initial LayerScale of aggregator and camera blocks (training only).
        encoder: image encoder, or None for a convolutional patch embedding.
        camera_trunk_depth: blocks of the camera head.
        camera_num_heads: attention heads of a camera block.
        camera_iterations: refinement iterations of the camera head.
        dpt_features: channels of the dense heads' fusion stages.
        dpt_out_channels: channels of the dense heads' four reassembled scales.
        taps: the four blocks, 0-based, whose patch tokens the dense heads read.
        depth_head: whether the network has a depth head.
        point_head: whether the network has a point head.
    """

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 4
    layer_scale: float = 0.01
    encoder: EncoderConfig | None = EncoderConfig()
    camera_trunk_depth: int = 4
    camera_num_heads: int = 16
    camera_iterations: int = 4
    dpt_features: int = 256
    dpt_out_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    taps: tuple[int, int, int, int] = (4, 11, 17, 23)
    depth_head: bool = True
    point_head: bool = True

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 4:
            raise CheckpointError(
                f"embed_dim {self.embed_dim} over {self.num_heads} heads leaves no head width "
                "that 2D RoPE can halve twice: choose a multiple of 4 per head"
            )
        if 2 * self.embed_dim % self.camera_num_heads:
            raise CheckpointError(
                f"camera tokens of width {2 * self.embed_dim} do not divide into "
                f"{self.camera_num_heads} heads"
            )
        if list(self.taps) != sorted(set(self.taps)) or not (
            self.taps[0] >= 0 and self.taps[-1] == self.depth - 1
        ):
            raise CheckpointError(
                f"taps {self.taps} of {self.depth} blocks: they must rise and end at the last block"
            )

    @property
    def num_special_tokens(self) -> int:
        """Tokens of a frame before its patch tokens: camera and registers."""
        return 1 + self.num_register_tokens

    @classmethod
    def vggt_1b(cls) -> ModelConfig:
        """Return the sizes of facebook/VGGT-1B without its track head."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Return the sizes that `to_dict` wrote.

        Raises:
            CheckpointError: a size is unknown or the sizes contradict each other.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise CheckpointError(
                f"the network's description has unknown sizes {unknown}: "
                "it was made by a newer qvggt, or is none of ours"
            )
        data = dict(values)
        for name in ("dpt_out_channels", "taps"):
            if name in data:
                data[name] = tuple(data[name])
        if data.get("encoder") is not None:
            data["encoder"] = EncoderConfig(**data["encoder"])
        try:
            return cls(**data)
        except TypeError as error:
            raise CheckpointError(f"the network's description is wrong: {error}") from error


def scaled_taps(depth: int) -> tuple[int, int, int, int]:
    """Return the taps at the relative depths of VGGT-1B's 4/11/17/23 of 24 blocks."""
    taps = [max(0, round((tap + 1) * depth / 24) - 1) for tap in (4, 11, 17, 23)]
    return taps[0], taps[1], taps[2], taps[3]
