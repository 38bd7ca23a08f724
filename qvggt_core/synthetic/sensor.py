"""What a real camera does to a clean image: exposure, white balance, noise."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


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


def photograph(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return windows as many kinds of cameras would have stored them.

    Beyond `augment`: contrast curve, saturation, a darker rim, blur of lens or focus, noise in
    colour, and the blocks of JPEG, all of them drawn for each window, in part for each frame.
    Argument and result have the shapes and types of `augment`.
    """
    batch, frames, channels, height, width = images.shape

    def draw(low: float, high: float, *shape: int) -> Tensor:
        size = shape + (1,) * (5 - len(shape))
        return torch.from_numpy(rng.uniform(low, high, size=size).astype(np.float32))

    x = (images.float() + 1.0) / 256.0
    x = x ** draw(-0.35, 0.35, batch).exp()
    grey = x.mean(dim=2, keepdim=True)
    x = grey + (x - grey) * draw(0.2, 1.4, batch)
    x = x * (draw(-0.4, 0.35, batch) + draw(-0.1, 0.1, batch, frames)).exp()
    x = x * draw(-0.08, 0.08, batch, 1, channels).exp()
    y, z = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    x = x * (1.0 - draw(0.0, 0.2, batch) * (y.square() + z.square()))
    flat = x.flatten(0, 1)
    for index in range(batch):
        if rng.random() < 0.4:
            window = slice(index * frames, (index + 1) * frames)
            flat[window] = _blurred(flat[window], float(rng.uniform(0.3, 1.0)))
    x = flat.unflatten(0, (batch, frames))
    shape = (batch, frames, channels, height, width)
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    x = (x + draw(0.0, 0.03, batch) * noise).clamp(0.0, 1.0)
    for index in range(batch):
        if rng.random() < 0.4:
            x[index] = _compressed(x[index], int(rng.integers(40, 96)))
    return x


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Return images (N, 3, H, W) behind a Gaussian of `sigma` pixels."""
    taps = torch.exp(-0.5 * (torch.arange(-2, 3) / sigma).square())
    taps = (taps / taps.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    across = F.conv2d(padded, taps, groups=images.shape[1])
    return F.conv2d(across, taps.mT, groups=images.shape[1])


def _compressed(images: Tensor, quality: int) -> Tensor:
    """Return images (N, 3, H, W) in [0, 1] after JPEG of a quality."""
    stored = []
    for image in (images.movedim(1, -1) * 255.0).round().to(torch.uint8).numpy():
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        stored.append(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8))
    return torch.from_numpy(np.stack(stored)).movedim(-1, 1).float() / 255.0


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
