"""What attention starts with, so that a network can match images before it has learned anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvggt_core.model import VGGT
from qvggt_core.model.aggregator import Aggregator
from qvggt_core.model.blocks import Attention, Block
from qvggt_core.model.camera_head import CameraHead
from qvggt_core.model.encoder import Encoder
from qvggt_core.model.matching import global_block

_SIGN = 4.0
"""What a patch holds of the direction that sets frames apart, where its channels have about 1."""

_PLACE = 0.5
"""Of the same, what a patch's distance from the middle adds, per patch."""

_CARRY = 2.6
"""Gain of the places that attention brings along, about half of which goes to the right patch."""


def start_attention(network: VGGT, blocks: tuple[int, ...], heads: int) -> None:
    """Start matching, the view of the first frame and, with an encoder, places; all in place.

    Args:
        network: at its random start.
        blocks: numbers of the global blocks that match.
        heads: how many of their heads look into the first frame.
    """
    start_matching(network, blocks)
    start_first_frame(network, blocks, heads)
    assert isinstance(network.aggregator, Aggregator)
    if isinstance(network.aggregator.patch_embed, Encoder):
        start_places(network, blocks, heads)


@torch.no_grad()
def start_matching(network: VGGT, blocks: tuple[int, ...]) -> None:
    """Start global blocks so that like attends to like, and encoders with places, in place.

    Queries equal keys, and the channels that the rotary embedding turns fastest count less, since
    they set patches apart that have moved. The encoder's position embedding starts as sines and
    cosines of row and column, so that what is attended to brings along where it is.
    """
    config = network.config
    dim, heads = config.embed_dim, config.num_heads
    for index in blocks:
        attention = global_block(network, index).attn
        assert attention.q_norm is not None
        assert attention.k_norm is not None
        weight = attention.qkv.weight
        nn.init.orthogonal_(weight[:dim])
        weight[dim : 2 * dim] = weight[:dim]
        gain = _rotary_gain(dim // heads).to(weight)
        attention.q_norm.weight.copy_(gain)
        attention.k_norm.weight.copy_(gain)
    aggregator, head = network.aggregator, network.camera_head
    assert isinstance(aggregator, Aggregator)
    assert isinstance(head, CameraHead)
    # Camera tokens near zero would be blown up by the head's normalisation, with their gradients.
    for token in (aggregator.camera_token, aggregator.register_token):
        nn.init.normal_(token, std=0.3)
    # Quaternions near zero have no direction, and gradients that drown all others.
    head.pose_branch.fc2.bias[6:] = torch.tensor([0.4, 0.35, 0.35])
    encoder = aggregator.patch_embed
    if isinstance(encoder, Encoder):
        side = config.img_size // config.patch_size
        encoder.pos_embed[:, 1:] = _sine_positions(side, dim).to(encoder.pos_embed)


@torch.no_grad()
def start_first_frame(network: VGGT, blocks: tuple[int, ...], heads: int) -> None:
    """Start global blocks so that all frames look into the first, which is the world, in place.

    A patch is most like itself, and like attends to like; but what a later frame has to know is
    where the first one shows its patches. The first register token says by its sign whether its
    frame is the first; a head of the first frame block gathers it; the keys of the first heads of
    `blocks` hold it in a channel that the rotary embedding hardly turns, and queries ask for it.

    Args:
        network: whose blocks they are.
        blocks: numbers of the global blocks.
        heads: how many of their heads look into the first frame.
    """
    aggregator = network.aggregator
    assert isinstance(aggregator, Aggregator)
    gathering = aggregator.frame_blocks[0]
    assert isinstance(gathering, Block)
    attention = gathering.attn
    dim, width = network.config.embed_dim, network.config.embed_dim // network.config.num_heads
    asked, sign = _directions(dim, 2)
    # Equal shares of both directions: what normalisation makes of each.
    length = (0.5 * dim) ** 0.5
    aggregator.register_token[0, 0, 0] = asked + sign
    aggregator.register_token[0, 1, 0] = asked - sign
    channel = width // 4 - 1
    _ask(attention, channel, asked / length * 6.0, heads=1, strength=14.0)
    attention.qkv.weight[2 * dim] = sign / length
    attention.qkv.bias[2 * dim] = 0.0
    # The head gives about half of its attention to the register.
    attention.proj.weight[:, 0] = 2.0 * _SIGN * sign / gathering.ls1.gamma
    for index in blocks:
        _ask(global_block(network, index).attn, channel, 1.7 * sign, heads=heads, strength=10.0)


def _ask(
    attention: Attention, channel: int, direction: Tensor, *, heads: int, strength: float
) -> None:
    """Let the first heads' queries all look for keys that point along a direction (dim,)."""
    assert attention.q_norm is not None
    dim = len(direction)
    width = dim // attention.num_heads
    for head in range(attention.num_heads):
        row = head * width + channel
        attention.qkv.weight[row] = 0.0
        attention.qkv.weight[dim + row] = direction if head < heads else 0.0
        attention.qkv.bias[[row, dim + row]] = 0.0
    attention.q_norm.bias[channel] = strength


@torch.no_grad()
def start_places(network: VGGT, blocks: tuple[int, ...], heads: int) -> None:
    """Start with row and column in channels of their own, and carry them along matches, in place.

    The encoder adds them along two directions that nothing else writes to before the last of
    `blocks`. In those global blocks one pair of value channels reads them, and writes what it finds
    to two further directions: a patch then holds where it is and where the first frame shows it.

    Args:
        network: whose blocks they are.
        blocks: numbers of the global blocks.
        heads: how many of their heads carry places along.
    """
    aggregator = network.aggregator
    assert isinstance(aggregator, Aggregator)
    encoder = aggregator.patch_embed
    assert isinstance(encoder, Encoder)
    kept = _directions(network.config.embed_dim, 2 + 2 * len(blocks))
    own, carried = kept[:2], kept[2:].unflatten(0, (-1, 2))
    others = torch.eye(len(kept.T)) - kept.T @ kept
    last = max(blocks) + 1
    for block in [*encoder.blocks, *aggregator.frame_blocks[:last]]:
        _write_only(block, others)
    for block in [*encoder.blocks, aggregator.frame_blocks[0]]:
        _read_only(block.attn.qkv, others)
        _read_only(block.mlp.fc1, others)
    for block in aggregator.global_blocks[:last]:
        _write_only(block, others)
    for index, directions in zip(blocks, carried, strict=True):
        attention = global_block(network, index).attn
        # Which patches are alike is for what they show to say.
        attention.qkv.weight[: 2 * len(others)] = attention.qkv.weight[: 2 * len(others)] @ others
        _carry(global_block(network, index), own, directions, heads)
    _add_places(encoder, own, others, _PLACE * _spread(aggregator, encoder))


def _carry(block: Block, own: Tensor, carried: Tensor, heads: int) -> None:
    """Let a global block write what it attends to along two directions (2, dim) to two others."""
    attention = block.attn
    dim = own.shape[1]
    width = dim // attention.num_heads
    for head in range(heads):
        for axis in range(2):
            channel = head * width + 1 + axis
            attention.qkv.weight[2 * dim + channel] = own[axis]
            attention.qkv.bias[2 * dim + channel] = 0.0
            attention.proj.weight[:, channel] = _CARRY / heads * carried[axis] / block.ls1.gamma


def _add_places(encoder: Encoder, own: Tensor, others: Tensor, per_patch: float) -> None:
    """Add how far from the middle a patch is along two directions (2, dim), which are its alone."""
    patches = encoder.patch_embed.proj
    assert patches.bias is not None
    patches.weight.copy_((others @ patches.weight.flatten(1)).view_as(patches.weight))
    patches.bias.copy_(others @ patches.bias)
    side = encoder.side
    offset = per_patch * (torch.arange(side) - 0.5 * (side - 1))
    grid = (encoder.pos_embed[0, 1:] @ others).unflatten(0, (side, side))
    grid = grid + offset[:, None, None] * own[0] + offset[None, :, None] * own[1]
    encoder.pos_embed[0, 1:] = grid.flatten(0, 1)


def _read_only(linear: nn.Linear, others: Tensor) -> None:
    """Let a linear read only what a projection (dim, dim) leaves."""
    linear.weight.copy_(linear.weight @ others)


def _write_only(block: nn.Module, others: Tensor) -> None:
    """Let a block write only along what a projection (dim, dim) leaves."""
    assert isinstance(block, Block)
    for linear, scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
        projected = others / scale.gamma[:, None] * scale.gamma
        linear.weight.copy_(projected @ linear.weight)
        linear.bias.copy_(projected @ linear.bias)


def _spread(aggregator: Aggregator, encoder: Encoder) -> float:
    """Return the deviation of a patch token's channels before the encoder's last norm."""
    side = encoder.side * encoder.patch_size
    noise = torch.rand(4, 3, side // 16, side // 16)
    x = encoder.enter(aggregator.normalise(F.interpolate(noise, (side, side), mode="bilinear")))
    for block in encoder.blocks:
        x = block(x)
    return float(x[:, :, encoder.num_special_tokens :].std(dim=-1).mean())


def _directions(dim: int, count: int) -> Tensor:
    """Return orthonormal directions (count, dim) without the mean that normalisation takes away."""
    drawn = torch.randn(dim, count)
    return torch.linalg.qr(drawn - drawn.mean(dim=0)).Q.T.contiguous()


def _rotary_gain(width: int) -> Tensor:
    """Return the gain of each channel of a head (width,), by how fast RoPE turns it."""
    quarter = width // 4
    frequency = 100.0 ** -(torch.arange(quarter) / quarter)
    return torch.where(frequency > 0.35, 0.3, 1.3).repeat(4)


def _sine_positions(side: int, dim: int) -> Tensor:
    """Return (side * side, dim) sines and cosines of row and column, a fifth strong."""
    count = dim // 4
    cycles = torch.logspace(-2, 2, count, base=2.0)
    phase = 2 * torch.pi * cycles * ((torch.arange(side) + 0.5) / side)[:, None]
    waves = torch.cat([phase.sin(), phase.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return 0.2 * torch.cat([rows, columns], dim=-1).reshape(side * side, -1)
