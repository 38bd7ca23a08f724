"""Values and messages of other origin, quoted in errors at a bounded length."""

from __future__ import annotations

import reprlib

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
