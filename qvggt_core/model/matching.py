"""Which patches of one view show what the patches of another view show."""

from __future__ import annotations

import torch
from torch import Tensor

from qvggt_core.errors import CheckpointError
from qvggt_core.model.aggregator import Aggregator
from qvggt_core.model.blocks import Block
from qvggt_core.model.vggt import VGGT


def global_block(network: VGGT, index: int) -> Block:
    """Return a block of the aggregator that attends across frames."""
    assert isinstance(network.aggregator, Aggregator)
    block = network.aggregator.global_blocks[index]
    assert isinstance(block, Block)
    return block


def patch_attention(
    network: VGGT, index: int, entering: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Return queries and keys (B, S, P, H, D) of patches in a global block.

    Args:
        network: whose block it is.
        index: number of the global block.
        entering: (B, S, P, C) patch tokens that enter it.
        rows: of patches.
        columns: of patches.
    """
    block, special = global_block(network, index), network.config.num_special_tokens
    cos, sin = network.aggregator.rope(rows, columns, entering.device)
    query, key, _ = block.attn.project(block.norm1(entering), (cos[special:], sin[special:]))
    return query, key


@torch.inference_mode()
def patch_similarity(network: VGGT, entering: Tensor, rows: int, columns: int) -> Tensor:
    """Return how alike the patches of S views are, (S, S, P, P) float32.

    Entry (i, j, p, q) is the logarithm, but for a constant of (i, p), of the attention that patch
    p of view i pays to patch q of view j in the first global block, the mean of its heads.

    Args:
        network: whose first global block was trained to match.
        entering: (S, P, C) patch tokens that enter that block, see `Prediction`.
        rows: of patches.
        columns: of patches.

    Raises:
        CheckpointError: the network was not trained to match.
    """
    if not network.config.matching:
        raise CheckpointError(
            "the network was not trained to match views: choose poses_from camera_head, or a "
            "checkpoint whose configuration says matching"
        )
    return window_similarity(network, entering[None], rows, columns)[0]


def window_similarity(network: VGGT, entering: Tensor, rows: int, columns: int) -> Tensor:
    """Return the same for B windows, (B, S, S, P, P), of tokens (B, S, P, C)."""
    config = network.config
    # Heads side by side: one product is the sum over all of them.
    query, key = (
        each.flatten(3).flatten(1, 2).float()
        for each in patch_attention(network, 0, entering, rows, columns)
    )
    scale = (config.embed_dim // config.num_heads) ** -0.5 / config.num_heads
    views, patches = entering.shape[1:3]
    product = scale * query @ key.mT
    return product.view(-1, views, patches, views, patches).transpose(2, 3).contiguous()
