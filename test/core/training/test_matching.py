"""Correspondences against hand-computed projections; their loss; attention that starts to match."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.small_network import TINY

from qvggt_core.model import VGGT, EncoderConfig
from qvggt_core.training.attention_start import start_matching
from qvggt_core.training.matching import (
    Correspondences,
    correspondences,
    draw_pairs,
    log_attention,
    matched_share,
    matching_loss,
)
from qvggt_core.training.windows import Windows

HEIGHT, WIDTH, PATCH, FOCAL = 32, 48, 8, 40.0
ROWS, COLUMNS = HEIGHT // PATCH, WIDTH // PATCH


def network(**sizes: Any) -> VGGT:
    torch.manual_seed(0)
    config = replace(TINY, img_size=WIDTH, patch_size=PATCH, encoder=EncoderConfig(64, 1, 2))
    return VGGT(replace(config, **sizes)).initialise()


def wall(shift: float, distance: float = 2.0) -> Windows:
    """Two cameras before a wall at a distance, the second `shift` metres to the right."""
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = shift
    intrinsics = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])
    return Windows(
        images=torch.zeros(1, 2, 3, HEIGHT, WIDTH, dtype=torch.uint8),
        depth=torch.full((1, 2, HEIGHT, WIDTH), distance),
        world_from_camera=poses,
        intrinsics=intrinsics.double().repeat(1, 2, 1, 1),
    )


def between(windows: Windows) -> Correspondences:
    return correspondences(windows, PATCH, torch.tensor([[0, 0, 1]]))


def test_a_camera_that_moves_right_sees_a_wall_move_left_by_focal_length_over_distance():
    shift_in_patches = FOCAL * 0.4 / 2.0 / PATCH
    found = between(wall(0.4))
    place = found.place[0].reshape(ROWS, COLUMNS, 2)
    # Pixel 4 is the middle pixel of a patch, an eighth of a half patch right of its centre.
    off_centre = 0.5 / PATCH
    rows, columns = np.mgrid[:ROWS, :COLUMNS] + off_centre
    np.testing.assert_allclose(place[..., 0], rows, atol=1e-5)
    np.testing.assert_allclose(place[..., 1], columns - shift_in_patches, atol=1e-5)


def test_patches_that_leave_the_image_are_not_visible():
    found = between(wall(0.4))
    visible = found.visible[0].reshape(ROWS, COLUMNS)
    assert not visible[:, 0].any()
    assert visible[:, 1:].all()


def test_patches_behind_something_nearer_are_not_visible():
    windows = wall(0.0)
    windows.depth[0, 1, :, : WIDTH // 2] = 1.0
    visible = between(windows).visible[0].reshape(ROWS, COLUMNS)
    assert not visible[:, : COLUMNS // 2].any()
    assert visible[:, COLUMNS // 2 :].all()


def test_patches_in_the_sky_are_not_visible():
    windows = wall(0.0)
    windows.depth[0, 0, : HEIGHT // 2] = torch.nan
    visible = between(windows).visible[0].reshape(ROWS, COLUMNS)
    assert not visible[: ROWS // 2].any()
    assert visible[ROWS // 2 :].all()


def test_pairs_are_ordered_distinct_and_of_two_different_frames():
    pairs = draw_pairs(3, 4, 100, torch.Generator().manual_seed(0))
    assert len({tuple(pair) for pair in pairs.tolist()}) == 3 * 4 * 3
    assert (pairs[:, 1] != pairs[:, 2]).all()
    assert len(draw_pairs(3, 4, 5, torch.Generator().manual_seed(0))) == 5


def test_half_of_the_pairs_look_into_the_first_frame():
    pairs = draw_pairs(3, 8, 20, torch.Generator().manual_seed(0))
    assert int((pairs[:, 2] == 0).sum()) == 10
    of_two = draw_pairs(4, 2, 6, torch.Generator().manual_seed(0))
    assert int((of_two[:, 2] == 0).sum()) == 3
    assert len(of_two) == 6


def test_even_attention_has_the_entropy_of_all_patches_and_true_attention_almost_none():
    found = between(wall(8.0 / FOCAL * 2.0 * 2))
    even = torch.zeros(1, 2, ROWS * COLUMNS, ROWS * COLUMNS)
    assert matching_loss(even.log_softmax(-1), found, ROWS, COLUMNS) == pytest.approx(
        np.log(ROWS * COLUMNS)
    )
    true = even.clone()
    centre = found.place.round().long()
    index = (centre[..., 0] * COLUMNS + centre[..., 1]).clamp(min=0)
    true.scatter_(3, index[:, None, :, None].expand(1, 2, -1, 1), 20.0)
    # An eighth of the target lies on neighbours, since pixel 4 is not quite the centre.
    assert matching_loss(true.log_softmax(-1), found, ROWS, COLUMNS) < 2.6
    wrong = true.roll(1, dims=3)
    assert matching_loss(wrong.log_softmax(-1), found, ROWS, COLUMNS) > 5.0


def test_hidden_patches_do_not_count():
    found = between(wall(0.4))
    logits = torch.zeros(1, 1, ROWS * COLUMNS, ROWS * COLUMNS)
    noisy = torch.where(found.visible[:, None, :, None], logits, 9.0 * torch.randn_like(logits))
    assert matching_loss(noisy, found, ROWS, COLUMNS) == matching_loss(logits, found, ROWS, COLUMNS)


def test_the_attention_is_that_of_the_block_itself_over_one_frame_or_into_the_first_over_all():
    model = network().eval()
    aggregator = model.aggregator
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    block = aggregator.global_blocks[0]
    tokens = torch.randn(1, 2, ROWS * COLUMNS, 64)
    rope = aggregator.rope(ROWS, COLUMNS, tokens.device)
    original = block.attn.project

    def project(x: torch.Tensor, table: object) -> tuple[torch.Tensor, ...]:
        query, key, value = original(x, table)
        seen.append((query, key))
        return query, key, value

    block.attn.project = project
    state = aggregator.frame_step(aggregator.enter(tokens), 0, rope)
    entering = state.x[:, :, model.config.num_special_tokens :]
    aggregator.global_step(state, 0, rope)
    query, key = (part[0, :, model.config.num_special_tokens :] for part in seen[0])
    into_second = torch.einsum("phd,qhd->hpq", query[0], key[1]) / 32**0.5
    into_all = torch.einsum("phd,sqhd->hpsq", query[1], key) / 32**0.5
    block.attn.project = original
    found = correspondences(wall(0.0), PATCH, torch.tensor([[0, 0, 1], [0, 1, 0]]))
    shares = log_attention(model, 0, entering, ROWS, COLUMNS, found).exp()
    torch.testing.assert_close(shares[0], into_second.softmax(dim=-1))
    torch.testing.assert_close(
        shares[1], into_all.flatten(2).softmax(-1).unflatten(2, (2, -1))[:, :, 0]
    )


def test_a_started_block_attends_to_the_patch_that_looks_alike():
    """Before any step, a shifted copy is found; without the start it is not."""
    found = between(wall(2.0 * PATCH / FOCAL * 2.0))
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(ROWS, COLUMNS, 64, generator=generator)
    second = torch.cat([first[:, 2:], first[:, :2]], dim=1)
    tokens = torch.stack([first, second]).reshape(1, 2, ROWS * COLUMNS, 64)
    losses = []
    for started in (False, True):
        model = network()
        if started:
            start_matching(model, (0,))
        shares = log_attention(model, 0, tokens, ROWS, COLUMNS, found)
        losses.append(float(matching_loss(shares, found, ROWS, COLUMNS).detach()))
    chance = np.log(ROWS * COLUMNS)
    assert losses[0] > 0.9 * chance
    assert losses[1] < 0.5 * chance


def test_the_start_leaves_other_blocks_alone():
    plain, started = network(), network()
    start_matching(started, (0,))
    for index in (1, 2, 3):
        torch.testing.assert_close(
            started.aggregator.global_blocks[index].attn.qkv.weight,
            plain.aggregator.global_blocks[index].attn.qkv.weight,
        )


def test_the_share_of_matches_is_of_patches_that_are_seen_and_that_attention_finds() -> None:
    """Noise that moved is found by a started network; noise that changed is not."""
    generator = torch.Generator().manual_seed(2)
    windows = wall(2.0 * PATCH / FOCAL * 2.0)
    noise = torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    windows.images[0, 0] = noise
    windows.images[0, 1] = noise.roll(-2 * PATCH, dims=2)
    model = network()
    start_matching(model, (0,))
    assert matched_share(model, windows) > 0.9
    windows.images[0, 1] = torch.randint(0, 256, noise.shape, generator=generator)
    assert matched_share(model, windows) < 0.6
