"""Similarity of patches is what the first global block attends by, and asks for training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_network import ENCODED, STACK, open_state

from qvggt_core.errors import CheckpointError
from qvggt_core.model import VGGT
from qvggt_core.model.matching import patch_similarity
from qvggt_core.stream import TorchNetwork

MATCHING = replace(ENCODED, matching=True)
ROWS, COLUMNS = 3, 4


def network(config=MATCHING):
    made = VGGT(config).eval()
    made.load_state_dict(open_state(config))
    return made


def attention_by_torch(made, tokens):
    """Mean over heads of the log attention of the first global block, (S P, S P), by PyTorch."""
    seen = []
    block = made.aggregator.global_blocks[0].attn
    original = block.project
    block.project = lambda *args: seen.append(original(*args)) or seen[-1]
    try:
        with torch.inference_mode():
            made.aggregator(tokens[None], ROWS, COLUMNS)
    finally:
        del block.project
    query, key, _ = seen[0]
    special = made.config.num_special_tokens
    query, key = (each[0, :, special:].flatten(0, 1).movedim(1, 0) for each in (query, key))
    logits = query @ key.mT / query.shape[-1] ** 0.5
    return logits.log_softmax(dim=-1).mean(dim=0)


def test_it_is_the_attention_of_the_first_global_block_but_for_a_constant_of_each_patch():
    torch.manual_seed(1)
    made = network()
    with torch.inference_mode():
        tokens = made.encode(torch.rand(3, 3, ROWS * 14, COLUMNS * 14))
        entering = made.forward_tokens(tokens[None], ROWS * 14, COLUMNS * 14).entering
    found = patch_similarity(made, entering[0], ROWS, COLUMNS)
    assert found.shape == (3, 3, 12, 12)
    flat = found.transpose(1, 2).reshape(36, 36)
    wanted = attention_by_torch(made, tokens)
    difference = flat - wanted
    assert torch.allclose(difference, difference[:, :1].expand_as(difference), atol=1e-4)
    assert wanted.std(dim=1).min() > 1e-3, "attention that is flat shows nothing"


@pytest.mark.parametrize("newest", [None, 1])
def test_a_stream_s_predictions_say_how_alike_patches_of_all_views_are(newest):
    pictures = np.random.default_rng(1).integers(0, 256, (3, 42, 56, 3), dtype=np.uint8)
    made = network()
    found = {}
    for asked in (True, False):
        running = TorchNetwork(made, with_matches=asked)
        assert running.finds_matches == asked
        tokens = [running.encode(picture) for picture in pictures]
        found[asked] = running.predict(tokens, 42, 56, newest)
    assert found[False].similarity is None
    assert np.array_equal(found[True].depth, found[False].depth)
    wanted = attention_by_torch(made, torch.stack(tokens))
    difference = found[True].similarity.swapaxes(1, 2).reshape(36, 36) - wanted.numpy()
    assert np.ptp(difference, axis=1).max() < 1e-4


def test_others_do_not_say_it():
    running = TorchNetwork(network(ENCODED))
    tokens = running.encode(np.zeros((42, 56, 3), np.uint8))
    assert not running.finds_matches
    assert running.predict([tokens], 42, 56).similarity is None


def test_a_network_that_was_not_trained_to_match_is_refused():
    made = network(ENCODED)
    with pytest.raises(CheckpointError, match="was not trained to match"):
        patch_similarity(made, torch.zeros(2, 12, 64), ROWS, COLUMNS)


def test_a_stack_has_no_blocks_to_match_by():
    with pytest.raises(CheckpointError, match="a stack has none"):
        replace(STACK, matching=True)
