"""The packed layout: what the words hold, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qvggt_kernels import GROUP_SIZES, PackingError, group_size_of, pack, unpack

ALL_NUMBERS = list(range(-8, 8))


def sizes(test):
    """Run a test with weights of random sizes."""
    drawn = given(
        rows=st.integers(1, 9),
        groups=st.integers(1, 4),
        group_size=st.sampled_from(GROUP_SIZES),
        seed=st.integers(0, 2**31),
    )
    return settings(max_examples=60, deadline=None)(drawn(test))


def numbers(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=generator)


@sizes
def test_unpacking_gives_back_what_was_packed(rows, groups, group_size, seed):
    q = numbers(rows, groups * group_size, seed)
    packed = pack(q, group_size)
    assert packed.shape == (rows, groups, group_size // 4)
    assert packed.nbytes * 2 == q.nbytes
    assert torch.equal(unpack(packed, group_size), q)


@sizes
def test_any_words_are_valid_and_packing_gives_them_back(rows, groups, group_size, seed):
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(
        -(2**15), 2**15, (rows, groups, group_size // 4), dtype=torch.int16, generator=generator
    )
    assert torch.equal(pack(unpack(words, group_size), group_size), words)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_the_layout_is_the_documented_one(group_size):
    """Holds files written today readable: bits 4i..4i+3 of lane j are column g/4*i + j."""
    q = numbers(3, 2 * group_size)
    words = pack(q, group_size).numpy().view(np.uint16)
    lanes = group_size // 4
    for n in range(3):
        for k in range(2 * group_size):
            plane, lane = divmod(k % group_size, lanes)
            nibble = (int(words[n, k // group_size, lane]) >> 4 * plane) & 15
            assert nibble == int(q[n, k]) + 8


def test_every_number_survives_in_every_plane():
    q = torch.tensor(ALL_NUMBERS * 8, dtype=torch.int8).view(1, 128)
    for shift in range(16):
        rolled = q.roll(shift, dims=1)
        assert torch.equal(unpack(pack(rolled, 128), 128), rolled)


@pytest.mark.parametrize(
    ("q", "group_size", "message"),
    [
        (torch.zeros(2, 100, dtype=torch.int8), 32, "100 columns do not divide into groups of 32"),
        (torch.zeros(2, 96, dtype=torch.int8), 48, "group size 48 is not one of"),
        (torch.full((2, 32), 8, dtype=torch.int8), 32, r"range over \[8, 8\]"),
        (torch.full((2, 32), -9, dtype=torch.int8), 32, r"range over \[-9, -9\]"),
        (torch.zeros(2, 32), 32, "float32, not"),
        (torch.zeros(32, dtype=torch.int8), 32, r"\(32,\)"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_its_value(q, group_size, message):
    with pytest.raises(PackingError, match=message):
        pack(q, group_size)


def test_words_of_another_group_size_are_refused():
    with pytest.raises(PackingError, match=r"not \(N, K/64, 16\)"):
        unpack(pack(numbers(2, 128), 128), 64)


def test_group_size_is_read_off_the_shapes():
    for group_size in GROUP_SIZES:
        packed = pack(numbers(2, 256), group_size)
        scales = torch.ones(2, 256 // group_size, dtype=torch.bfloat16)
        assert group_size_of(packed, scales) == group_size


@pytest.mark.parametrize(
    ("words", "scales", "message"),
    [
        (torch.zeros(2, 1, 32), torch.ones(2, 1), "not .N, K/g, g/4. int16"),
        (torch.zeros(2, 1, 32, dtype=torch.int16), torch.ones(2, 1), "float32, not .2, 1."),
        (
            torch.zeros(2, 1, 32, dtype=torch.int16),
            torch.ones(2, 2, dtype=torch.bfloat16),
            r"scales are \(2, 2\)",
        ),
        (
            torch.zeros(2, 1, 12, dtype=torch.int16),
            torch.ones(2, 1, dtype=torch.bfloat16),
            "group size 48",
        ),
    ],
)
def test_words_and_scales_that_do_not_fit_are_refused(words, scales, message):
    with pytest.raises(PackingError, match=message):
        group_size_of(words, scales)
