"""Consoles of the commands that write where a test can read."""

import pytest

from qvggt_ros.cli import console


@pytest.fixture(autouse=True)
def _fresh_consoles(monkeypatch):
    monkeypatch.setattr(console, "out", console.Terminal(width=200))
    monkeypatch.setattr(console, "err", console.Terminal(width=200, stderr=True))
