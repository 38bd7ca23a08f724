"""Which patches of one view show what the patches of another view show."""

from __future__ import annotations

import torch
from torch import Tensor

from qvggt_core.errors import CheckpointError
from qvggt_core.model.aggregator import Aggregator
from qvggt_core.model.blocks import Block, RotaryTable
from qvggt_core.model.vggt import VGGT


@torch.inference_mode()
def patch_similarity(network: VGGT, tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Return how alike the patches of S views are, (S, S, P, P) float32.

    Entry (i, j, p, q) is the logarithm, but for a constant of (i, p), of the attention that patch
    p of view i pays to patch q of view j in the first global block, the mean of its heads.

    Args:
        network: whose first global block was trained to match.
        tokens: (S, P, C), see `VGGT.encode`.
        rows: of patches.
        columns: of patches.

    Raises:
        CheckpointError: the network was not trained to match.
    """
    aggregator = network.aggregator
    if not network.config.matching or not isinstance(aggregator, Aggregator):
        raise CheckpointError(
            "the network was not trained to match views: choose poses_from camera_head, or a "
            "checkpoint whose configuration says matching"
        )
    rope = aggregator.rope(rows, columns, tokens.device)
    x = aggregator.frame_step(aggregator.enter(tokens[None]), 0, rope).x
    return similarity_of_entering(network, x, rope)[0]


def similarity_of_entering(network: VGGT, x: Tensor, rope: RotaryTable) -> Tensor:
    """Return the same for all tokens (B, S, N, C) that enter the first global block.

    Args:
        network: that was trained to match.
        x: special tokens and patches of B windows of S views.
        rope: tables of all their places.

    Returns:
        (B, S, S, P, P) float32.
    """
    config, aggregator = network.config, network.aggregator
    assert isinstance(aggregator, Aggregator)
    block = aggregator.global_blocks[0]
    assert isinstance(block, Block)
    query, key, _ = block.attn.project(block.norm1(x), rope)
    # Heads side by side: one product is the sum over all of them.
    query, key = (
        each[:, :, config.num_special_tokens :].flatten(3).flatten(1, 2).float()
        for each in (query, key)
    )
    scale = (config.embed_dim // config.num_heads) ** -0.5 / config.num_heads
    views, patches = x.shape[1], x.shape[2] - config.num_special_tokens
    product = scale * query @ key.mT
    return product.view(-1, views, patches, views, patches).transpose(2, 3).contiguous()
