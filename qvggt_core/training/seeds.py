"""Which seeds are for training and which for evaluation: even and odd, so that none is both."""

from __future__ import annotations

from qvggt_core.errors import TrainingError

_LARGEST = 2**40


def training_seed(index: int) -> int:
    """Return the `index`-th seed of the training split (even numbers)."""
    return _checked(2 * index, index)


def evaluation_seed(index: int) -> int:
    """Return the `index`-th seed of the evaluation split (odd numbers)."""
    return _checked(2 * index + 1, index)


def _checked(seed: int, index: int) -> int:
    if not 0 <= index < _LARGEST:
        raise TrainingError(f"seed index {index} is out of range: use 0 to {_LARGEST - 1}")
    return seed
