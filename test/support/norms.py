"""Layer norms by NumPy, and what they are given."""

from __future__ import annotations

import numpy as np
import torch

from support.weights import normal


def gains(width, dtype=torch.float32, seed=0):
    """Return a gain near one and a bias near zero."""
    return 1 + 0.1 * normal(width, dtype=dtype, seed=seed), 0.1 * normal(
        width, dtype=dtype, seed=seed + 1
    )


def normalised(x, weight, bias, eps):
    """The layer norm in float64, by NumPy."""
    x, weight, bias = (part.double().numpy() for part in (x, weight, bias))
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias
