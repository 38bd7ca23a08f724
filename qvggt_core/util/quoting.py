"""Values and messages of other origin, quoted in errors at a bounded length."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

_MOST_CHARACTERS = 240
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = 6
_SHORT.maxlevel = 3


def short(value: object) -> str:
    """Return a value's representation, cut where it is long."""
    return cut(_SHORT.repr(value))


def cut(text: object) -> str:
    """Return a text, or an error's message, cut where it is long."""
    whole = str(text)
    return whole if len(whole) <= _MOST_CHARACTERS else f"{whole[:_MOST_CHARACTERS]}..."


def listed(names: Iterable[str], most: int = 20) -> str:
    """Return names in their order, so many at most, and how many more there are."""
    found = sorted(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more or "none"


def visible(text: str) -> str:
    """Return a text whose control characters, but ends of lines and tabs, are written out.

    Names from recordings and graphs must not move a terminal's cursor or turn its text around.
    """
    if text.isprintable():
        return text
    return "".join(
        sign
        if sign.isprintable() or sign in "\n\t"
        else sign.encode("unicode_escape", "surrogatepass").decode("ascii")
        for sign in text
    )
