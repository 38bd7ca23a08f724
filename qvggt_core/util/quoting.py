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
