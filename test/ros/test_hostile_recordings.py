"""A damaged recording is reconstructed as far as it goes, with a warning, or refused in words."""

from __future__ import annotations

import random

import pytest
from support.figures import outcome
from support.hostile_recordings import DAMAGES, damaged, make_bases, read_through, reconstruct

KINDS = ("mcap", "sqlite3", "without chunks", "in chunks")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_recordings_are_read_or_refused(kind, damage, bases, tmp_path):
    """Longer: `python -m torture.recordings`."""
    for seed in range(4):
        rng = random.Random(f"{kind} {damage} {seed}")
        recording = damaged(bases[kind], tmp_path / "in", damage, rng)
        text = outcome(lambda: read_through(recording))  # noqa: B023
        assert text.strip()
        assert len(text) < 4000


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_recordings_are_reconstructed_or_refused(kind, bases, tmp_path):
    damage = {"mcap": "flips", "sqlite3": "zeros"}.get(kind, "cut")
    recording = damaged(bases[kind], tmp_path / "in", damage, random.Random(kind))
    wrong = []
    outcome(lambda: wrong.extend(reconstruct(recording, tmp_path / "out", random.Random(kind))))
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_whole_recordings_are_reconstructed(kind, bases, tmp_path):
    """The same without damage: none of the above is refused for another reason."""
    wrong = []
    run = lambda: wrong.extend(reconstruct(bases[kind], tmp_path / "out", random.Random(1)))  # noqa: E731
    assert outcome(run) == "a result"
    assert wrong == []
