"""Files appear whole or not at all."""

from itertools import pairwise
from pathlib import Path

import pytest

from qvggt_core.util.files import atomic_path, write_atomically
from qvggt_core.util.tables import markdown_table
from qvggt_core.util.thinning import ThinnedStream, spread_indices


def test_a_file_is_written_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "ä")
    write_atomically(tmp_path / "a", b"\x00")
    assert (tmp_path / "a").read_bytes() == b"\x00"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def write_half(path: Path) -> None:
    with atomic_path(path) as partial:
        partial.write_text("half")
        raise RuntimeError


def test_a_failure_leaves_the_former_content(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (1000, 7), (7, 1)])
def test_indices_are_spread_with_both_ends_among_them(count: int, most: int) -> None:
    found = spread_indices(count, most).tolist()
    assert found == sorted(set(found))
    assert len(found) == min(count, most)
    if count and most > 1:
        assert (found[0], found[-1]) == (0, count - 1)
        steps = [b - a for a, b in pairwise(found)]
        assert max(steps, default=1) - min(steps, default=1) <= 1


@pytest.mark.parametrize("length", [0, 1, 10, 11, 500])
def test_a_stream_keeps_every_nth_item_within_its_bound(length: int) -> None:
    stream: ThinnedStream[int] = ThinnedStream(10)
    for item in range(length):
        stream.add(item)
        assert len(stream.kept) <= 10
    if length:
        step = stream.kept[1] - stream.kept[0] if len(stream.kept) > 1 else 1
        assert stream.kept == list(range(0, length, step))
        assert len(stream.kept) > min(length, 10) // 2


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert markdown_table(["a"], [["b|c"]]) == ["| a |", "|---|", "| b\\|c |"]
