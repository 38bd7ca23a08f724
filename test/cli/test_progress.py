"""What the commands show while they work: bars on a terminal, and no thread off one."""

from __future__ import annotations

import threading

import pytest

from qvggt_ros.cli import console


def test_bars_of_one_work_stand_below_each_other_once_they_begin(capsys):
    with console.progresses() as add:
        search = add("looking for the focal length", "steps")
        add("never begun", "things")
        images = add("reconstructing", "images")
        for done in range(3):
            search(done, 2)
        images(5, 9)
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("looking for the focal length")
    assert "2/2 steps" in first
    assert second.startswith("reconstructing")
    assert "5/9 images" in second


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_thread_moves_them_on_a_terminal_only(monkeypatch, is_terminal):
    terminal = console.Terminal(width=200, stderr=True, force_terminal=is_terminal)
    monkeypatch.setattr(console, "err", terminal)
    before = threading.active_count()
    with console.progresses() as add:
        add("looking for the focal length", "steps")(1, 2)
        assert (threading.active_count() > before) == is_terminal
