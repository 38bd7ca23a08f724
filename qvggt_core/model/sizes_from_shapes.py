"""The sizes of a network of other origin, from the shapes of its entries and its `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from qvggt_core.errors import CheckpointError
from qvggt_core.model.config import EncoderConfig, ModelConfig, StackConfig, scaled_taps
from qvggt_core.model.published_sizes import DEPTH_ANYTHING_3
from qvggt_core.util.files import read_bounded_text
from qvggt_core.util.quoting import short

Shapes = Mapping[str, tuple[int, ...]]

CONFIG_NAME = "config.json"
_MAX_CONFIG_BYTES = 1 << 20
_SHOWN = 3
_STATED = ("img_size", "taps", "camera_num_heads", "camera_iterations")
"""Sizes that shapes do not show and a `config.json` may state."""


class Sizes(NamedTuple):
    """Sizes of a network, and which of them are assumptions.

    Attributes:
        config: the sizes.
        assumptions: what neither shapes nor `config.json` show, in words.
    """

    config: ModelConfig
    assumptions: tuple[str, ...] = ()


def sizes_from_shapes(path: Path, shapes: Shapes, stated: Mapping[str, Any]) -> Sizes:
    """Return the sizes of a network.

    Args:
        path: of the checkpoint, for errors.
        shapes: of its entries, by our names.
        stated: content of the `config.json` beside it; empty without one.

    Raises:
        CheckpointError: the entries are of no known network, or sizes are missing that cannot be
            assumed.
    """
    try:
        if "aggregator.blocks.0.norm1.weight" in shapes:
            return Sizes(_stack(shapes, stated))
        return _vggt(shapes, stated)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        shown = ", ".join(sorted(shapes)[:_SHOWN]) or "none"
        raise CheckpointError(
            f"{path} holds no VGGT and no Depth Anything 3: looked for {error} among its "
            f"{len(shapes)} entries, the first of which are: {shown}"
        ) from error


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a hub folder; empty without one.

    Raises:
        CheckpointError: it is there and cannot be read: what it states would be guessed.
    """
    path = folder / CONFIG_NAME
    try:
        content = json.loads(read_bounded_text(path, _MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a link to nothing: mend it, or take it away"
            ) from error
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {short(error)}; mend it, or take it away if the weights "
            "beside it need none"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not names with values: mend it, or take it "
            "away if the weights beside it need none"
        )
    return content


def _count(shapes: Shapes, prefix: str) -> int:
    return len({n.removeprefix(prefix).split(".")[0] for n in shapes if n.startswith(prefix)})


def _dense_sizes(shapes: Shapes, head: str) -> dict[str, Any]:
    if f"{head}.projects.0.weight" not in shapes:
        return {}
    return {
        "dpt_features": shapes[f"{head}.scratch.layer1_rn.weight"][0],
        "dpt_out_channels": tuple(shapes[f"{head}.projects.{i}.weight"][0] for i in range(4)),
    }


def _vggt(shapes: Shapes, stated: Mapping[str, Any]) -> Sizes:
    embed_dim = shapes["aggregator.camera_token"][-1]
    depth = _count(shapes, "aggregator.frame_blocks.")
    num_heads = embed_dim // shapes["aggregator.frame_blocks.0.attn.q_norm.weight"][0]
    encoder, img_size = None, 518
    patch = "aggregator.patch_embed.proj.weight"
    if patch not in shapes:
        patch = "aggregator.patch_embed.patch_embed.proj.weight"
        tokens, width = shapes["aggregator.patch_embed.pos_embed"][1:]
        # Heads of DINOv2 are 64 wide.
        encoder = EncoderConfig(
            width, _count(shapes, "aggregator.patch_embed.blocks."), width // 64
        )
        img_size = round((tokens - 1) ** 0.5) * shapes[patch][-1]
    has = {head: f"{head}_head.norm.weight" in shapes for head in ("depth", "point")}
    with_scale_token = "aggregator.scale_token" in shapes
    config = ModelConfig(
        img_size=img_size,
        patch_size=shapes[patch][-1],
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_register_tokens=shapes["aggregator.register_token"][2],
        scale_token=with_scale_token,
        # LingBot-Map, the one network with scale tokens, gives poses so.
        camera_to_world=with_scale_token,
        encoder=encoder,
        camera_trunk_depth=_count(shapes, "camera_head.trunk."),
        camera_num_heads=num_heads,
        taps=scaled_taps(depth),
        depth_head=has["depth"],
        point_head=has["point"],
        **_dense_sizes(shapes, "depth_head" if has["depth"] else "point_head"),
    )
    known = {key: stated[key] for key in _STATED if key in stated}
    if isinstance(known.get("taps"), list):
        known["taps"] = tuple(known["taps"])
    try:
        config = replace(config, **known)
    except CheckpointError as error:
        raise CheckpointError(f"its {CONFIG_NAME} names sizes that do not go: {error}") from None
    return Sizes(config, _assumptions(config, known))


def _assumptions(config: ModelConfig, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what was assumed of a VGGT that is not VGGT-1B's size."""
    full = ModelConfig.vggt_1b()
    if (config.embed_dim, config.depth) == (full.embed_dim, full.depth):
        return ()
    assumed = {
        "taps": f"the dense heads read blocks {config.taps}",
        "camera_num_heads": f"the camera head's blocks have {config.camera_num_heads} heads",
    }
    return tuple(text for name, text in assumed.items() if name not in known)


def _stack(shapes: Shapes, stated: Mapping[str, Any]) -> ModelConfig:
    dim = shapes["aggregator.cls_token"][-1]
    depth = _count(shapes, "aggregator.blocks.")
    hidden, inner = (shapes[f"aggregator.blocks.0.mlp.{fc}.weight"] for fc in ("fc1", "fc2"))
    start = next(
        (i for i in range(depth) if f"aggregator.blocks.{i}.attn.q_norm.weight" in shapes), None
    )
    has_cameras = "camera_head.fc_t.weight" in shapes
    return ModelConfig(
        img_size=504,
        patch_size=shapes["aggregator.patch_embed.proj.weight"][-1],
        embed_dim=dim,
        depth=depth,
        # Heads of DINOv2 are 64 wide.
        num_heads=dim // 64,
        num_register_tokens=0,
        encoder=None,
        stack=StackConfig(start, "swiglu" if hidden[0] == 2 * inner[1] else "gelu"),
        position_grid=round((shapes["aggregator.pos_embed"][1] - 1) ** 0.5),
        camera_head="decoder" if has_cameras else "none",
        camera_encoder="camera_encoder.token_norm.weight" in shapes,
        camera_to_world=has_cameras,
        taps=_stack_taps((dim, depth, start), stated),
        depth_head="depth_head.projects.0.weight" in shapes,
        point_head=False,
        ray_head="depth_head.scratch.refinenet1_aux.out_conv.weight" in shapes,
        sky_head="depth_head.scratch.sky_output_conv2.0.weight" in shapes,
        **_dense_sizes(shapes, "depth_head"),
    )


def _stack_taps(
    size: tuple[int, int, int | None], stated: Mapping[str, Any]
) -> tuple[int, int, int, int]:
    """Return the blocks that the dense head reads, which no shape shows."""
    layers = _stated_layers(stated)
    if layers is None:
        dim, depth, start = size
        same = [
            config.taps
            for config in DEPTH_ANYTHING_3.values()
            if config.stack is not None
            and (config.embed_dim, config.depth, config.stack.alternate_from) == size
        ]
        if not same:
            raise CheckpointError(
                f"it is a Depth Anything 3 of {depth} blocks of width {dim} that alternate "
                f"from block {start}, which is none of the published ones, and no {CONFIG_NAME} "
                "beside it names the blocks that the head reads (config.net.out_layers)"
            )
        return same[0]
    if len(layers) != 4 or not all(type(layer) is int for layer in layers):
        raise CheckpointError(
            f"its {CONFIG_NAME} names the out_layers {short(layers)}: they must be 4 whole numbers"
        )
    first, second, third, fourth = layers
    return first, second, third, fourth


def _stated_layers(stated: Mapping[str, Any]) -> Sequence[int] | None:
    config = stated.get("config", stated)
    net = config.get("net") if isinstance(config, dict) else None
    if isinstance(net, dict) and isinstance(net.get("out_layers"), list):
        return net["out_layers"]
    known = DEPTH_ANYTHING_3.get(str(stated.get("model_name", "")))
    return None if known is None else known.taps
