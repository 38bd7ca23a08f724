"""Sizes of a network: one dataclass describes VGGT-1B, Depth Anything 3 and our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from qvggt_core.errors import CheckpointError
from qvggt_core.model.config_bounds import check_values
from qvggt_core.util.quoting import short


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the DINOv2-style image encoder (ViT with registers)."""

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16

    def __post_init__(self) -> None:
        check_values(self)
        if self.embed_dim % self.num_heads:
            raise CheckpointError(
                f"an encoder of width {self.embed_dim} does not divide into {self.num_heads} heads"
            )


@dataclass(frozen=True)
class StackConfig:
    """One DINOv2 ViT that is encoder and aggregator in one (Depth Anything 3, section 3).

    Attributes:
        alternate_from: first block of the alternation: from there on odd blocks attend across the
            window and even ones within a frame, and a frame's tokens depend on the others. None
            for a network that sees one image at a time.
        feed_forward: "gelu" for two linears with a GELU between them, "swiglu" for a gated pair.
    """

    alternate_from: int | None = 4
    feed_forward: Literal["gelu", "swiglu"] = "gelu"

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a network; the defaults are VGGT-1B's.

    Attributes:
        img_size: image width that the network was trained at, pixels.
        patch_size: side of a patch, pixels.
        embed_dim: token width C of the aggregator; the heads see 2C (frame and global halves),
            those of a network for single images C.
        depth: number of frame blocks, and of global blocks; of a stack, number of blocks.
        num_heads: attention heads of an aggregator block.
        mlp_ratio: hidden width of every MLP over its token width.
        num_register_tokens: register tokens per frame, beside one camera token.
        scale_token: whether a scale token per frame follows the registers (LingBot-Map).
        layer_scale: initial LayerScale of aggregator and camera blocks (training only).
        encoder: image encoder, or None for a convolutional patch embedding; no part of a stack.
        stack: one ViT in place of encoder, frame and global blocks; None for VGGT's layout.
        position_grid: side of the grid that a stack's position embedding was learned on, patches.
        camera_head: "iterative" refines poses with a trunk of blocks (VGGT), "decoder" gives them
            in one pass (Depth Anything 3), "none" leaves them out.
        camera_encoder: whether known cameras can be given to the network as tokens.
        camera_trunk_depth: blocks of the camera head, and of the camera encoder.
        camera_num_heads: attention heads of a camera block.
        camera_iterations: refinement iterations of the camera head.
        camera_to_world: whether the camera head's poses are camera-to-world.
        dpt_features: channels of the dense heads' fusion stages.
        dpt_out_channels: channels of the dense heads' four reassembled scales.
        taps: the four blocks, 0-based, whose patch tokens the dense heads read.
        depth_head: whether the network has a depth head.
        point_head: whether the network has a point head.
        ray_head: whether the depth head has a second branch for rays.
        sky_head: whether the depth head has a branch for the sky in place of a confidence.
        matching: whether the first global block was trained to find, by its attention, where the
            patches of one view are seen in another, see `patch_similarity`.
    """

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_register_tokens: int = 4
    scale_token: bool = False
    layer_scale: float = 0.01
    encoder: EncoderConfig | None = EncoderConfig()
    stack: StackConfig | None = None
    position_grid: int = 37
    camera_head: Literal["iterative", "decoder", "none"] = "iterative"
    camera_encoder: bool = False
    camera_trunk_depth: int = 4
    camera_num_heads: int = 16
    camera_iterations: int = 4
    camera_to_world: bool = False
    dpt_features: int = 256
    dpt_out_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    taps: tuple[int, int, int, int] = (4, 11, 17, 23)
    depth_head: bool = True
    point_head: bool = True
    ray_head: bool = False
    sky_head: bool = False
    matching: bool = False

    def __post_init__(self) -> None:
        check_values(self)
        if self.img_size < self.patch_size:
            raise CheckpointError(
                f"images of {self.img_size} pixels hold no patch of {self.patch_size}"
            )
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 4:
            raise CheckpointError(
                f"embed_dim {self.embed_dim} over {self.num_heads} heads leaves no head width "
                "that 2D RoPE can halve twice: choose a multiple of 4 per head"
            )
        if self.camera_head == "iterative" and 2 * self.embed_dim % self.camera_num_heads:
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
        if self.stack is not None:
            self._check_stack(self.stack)

    def _check_stack(self, stack: StackConfig) -> None:
        if self.matching:
            raise CheckpointError("matching is of VGGT's global blocks: a stack has none")
        start = stack.alternate_from
        if start is None:
            if self.camera_head != "none" or self.camera_encoder:
                raise CheckpointError(
                    "a stack without alternation sees one image at a time: it has no cameras"
                )
            return
        if not 1 < start < self.depth:
            raise CheckpointError(
                f"an alternation from block {start} of {self.depth}: it must begin behind the "
                "second block and before the last"
            )
        within = [tap for tap in self.taps if tap <= start or tap % 2 == 0]
        if within:
            raise CheckpointError(
                f"taps {within} of a stack that alternates from block {start} read no block that "
                "attends across the window: those are odd"
            )

    @property
    def num_special_tokens(self) -> int:
        """Tokens of a frame before its patch tokens: camera, registers, scale."""
        if self.stack is not None:
            return 1
        return 1 + self.num_register_tokens + self.scale_token

    @property
    def encoded_extra_tokens(self) -> int:
        """Tokens that are kept of an encoded frame beside its patch tokens."""
        return int(self.stack is not None)

    @property
    def is_single_view(self) -> bool:
        """Whether the network sees one image at a time and gives no cameras."""
        return self.stack is not None and self.stack.alternate_from is None

    @property
    def tap_width(self) -> int:
        """Width of the tokens that the dense heads read."""
        return self.embed_dim if self.is_single_view else 2 * self.embed_dim

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
            CheckpointError: a size is unknown, not of its kind or out of bounds, or the sizes
                contradict each other.
        """
        if not isinstance(values, Mapping):
            raise CheckpointError(
                f"the network's description is a {type(values).__name__}, not sizes by name"
            )
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(name) for name in set(values) - known)
        if unknown:
            raise CheckpointError(
                f"the network's description has unknown sizes {short(unknown)}: "
                "it was made by a newer qvggt, or is none of ours"
            )
        data = dict(values)
        for name in ("dpt_out_channels", "taps"):
            if isinstance(data.get(name), list):
                data[name] = tuple(data[name])
        try:
            for name, kind in (("encoder", EncoderConfig), ("stack", StackConfig)):
                if isinstance(data.get(name), Mapping):
                    data[name] = kind(**data[name])
            return cls(**data)
        except TypeError as error:
            raise CheckpointError(f"the network's description is wrong: {error}") from error


def scaled_taps(depth: int) -> tuple[int, int, int, int]:
    """Return the taps at the relative depths of VGGT-1B's 4/11/17/23 of 24 blocks."""
    taps = [max(0, round((tap + 1) * depth / 24) - 1) for tap in (4, 11, 17, 23)]
    return taps[0], taps[1], taps[2], taps[3]
