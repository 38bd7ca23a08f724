"""YAML from anywhere: bounded in size, depth and expansion, with one kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qvggt_core.util.files import read_bounded_text
from qvggt_core.util.quoting import cut, short

MOST_BYTES = 1 << 18
"""Longest document: a parameter file has a few kilobytes."""

_MOST_DEPTH = 32
_MOST_VALUES = 100_000
_MOST_REASONS = 8


class _Loader(yaml.SafeLoader):
    """Refuses deep nesting."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {_MOST_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _expanded(node: Any, sizes: dict[int, int]) -> int:
    """Return the values of a document with every alias written out: of a bomb, a great many."""
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_VALUES + 1  # what a node that holds itself counts
        children = node.value if isinstance(node.value, list) else []
        parts = [part for child in children for part in _parts(child)]
        sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in parts)
    return sizes[id(node)]


def _parts(child: Any) -> tuple[Any, ...]:
    return child if isinstance(child, tuple) else (child,)


def load_yaml(text: str) -> Any:
    """Return the content of a document.

    Raises:
        ValueError: it is too long, too deep or too large with its aliases written out, is not
            YAML, or a value is not of its tag (a date in month 13).
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES} characters")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES} values")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        # PyYAML's constructors raise what Python's types raise on a value of another tag.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it is not YAML: {cut(reason)}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path) -> Any:
    """Return the content of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file or no text, see also `load_yaml`.
    """
    return load_yaml(read_bounded_text(path, MOST_BYTES))


def reasons(error: ValidationError) -> str:
    """Return what a schema refuses, value by value."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'document'}: {item['msg']}, found "
        f"{short(item['input'])}"
        for item in error.errors()[:_MOST_REASONS]
    )
