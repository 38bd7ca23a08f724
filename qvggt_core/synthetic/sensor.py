"""What a real camera does to a clean image: exposure, white balance, noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return windows as a camera with its own exposure and noise would have seen them.

    Args:
        images: (B, S, 3, H, W) uint8.
        rng: decides everything.

    Returns:
        (B, S, 3, H, W) float32 in [0, 1].
    """
    batch, frames, channels, height, width = images.shape
    gain = np.exp(
        rng.normal(0.0, 0.12, size=(batch, 1, 1, 1, 1))
        + rng.normal(0.0, 0.04, size=(batch, frames, 1, 1, 1))
        + rng.normal(0.0, 0.03, size=(batch, 1, channels, 1, 1))
    )
    strength = rng.uniform(0.0, 0.03, size=(batch, 1, 1, 1, 1))
    noise = rng.standard_normal((batch, frames, 1, height, width), dtype=np.float32)
    clean = images.float() * torch.from_numpy(gain / 255.0).float()
    return (clean + torch.from_numpy(strength).float() * torch.from_numpy(noise)).clamp(0.0, 1.0)


def expose(
    image: NDArray[np.uint8], gain: float, noise: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) with its values scaled and Gaussian noise added.

    Args:
        image: uint8.
        gain: factor on the values.
        noise: standard deviation, as a share of the full range.
        rng: decides the noise.
    """
    values = image * gain + 255.0 * noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
