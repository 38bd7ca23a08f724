"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked, e.g. "camera matrix".
        level: a problem keeps something from working or makes results wrong; a warning makes
            it slower, less accurate or fragile.
        found: the state, with its values.
        advice: what to do about it; never empty unless the level is ok.
    """

    name: str
    level: Level
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.level is not Level.OK and not self.advice:
            raise ValueError(f"{self.name}: a {self.level.value} without advice")


def ok(name: str, found: str, advice: str = "") -> Finding:
    """Return a finding that is as it must be."""
    return Finding(name, Level.OK, found, advice)


def warn(name: str, found: str, advice: str) -> Finding:
    """Return a finding that makes qvggt slower, less accurate or fragile."""
    return Finding(name, Level.WARN, found, advice)


def warn_if(condition: bool, name: str, found: str, trouble: str, advice: str) -> Finding:
    """Return a warning `found: trouble` if the condition holds, else that it is as it must be."""
    return warn(name, f"{found}: {trouble}", advice) if condition else ok(name, found)


def problem(name: str, found: str, advice: str) -> Finding:
    """Return a finding that keeps something from working, or makes results wrong."""
    return Finding(name, Level.PROBLEM, found, advice)
