"""Consoles of the commands that write where a test can read."""

import pytest

from qvggt_ros.cli import console


@pytest.fixture(autouse=True)
def _fresh_consoles(monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(console, "out", Console(width=200))
    monkeypatch.setattr(console, "err", Console(width=200, stderr=True))
