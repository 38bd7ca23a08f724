"""Weights in two files with an index, as hubs have large ones."""

from collections.abc import Iterable


def two_shards(names: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the names of the weights by file, and the file by name, as the index has it."""
    ordered = sorted(names)
    half = len(ordered) // 2
    parts = {
        "model-00001-of-00002.safetensors": ordered[:half],
        "model-00002-of-00002.safetensors": ordered[half:],
    }
    return parts, {name: file for file, chosen in parts.items() for name in chosen}
