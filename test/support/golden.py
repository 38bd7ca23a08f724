"""Golden figures of the original networks: weights and images drawn from names and shapes alone."""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch

PARITY = Path(__file__).parents[1] / "core" / "model" / "parity"


def golden_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights that the golden figures stand on, drawn from a parameter's name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    *_, module, leaf = ("", *name.split("."))
    if leaf == "gamma":
        return 0.3 + 0.1 * values
    if leaf == "weight" and "norm" in module:
        return 1.0 + 0.1 * values
    if leaf == "bias":
        return 0.1 * values
    if leaf == "weight" and len(shape) >= 2:
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.5 * values


def golden_images(frames: int, height: int, width: int) -> torch.Tensor:
    s, c, y, x = np.ogrid[:frames, :3, :height, :width]
    wave = np.sin(0.11 * (c + 1) * x + 0.3 * s) * np.cos(0.07 * (c + 2) * y - 0.2 * s)
    return torch.from_numpy((0.5 + 0.5 * wave).astype(np.float32))


def assert_matches(actual: torch.Tensor, golden: dict, what: str) -> None:
    actual = actual.detach().double()
    assert list(actual.shape) == golden["shape"], what
    tolerance = 5e-5 * max(1.0, golden["rms"])
    picked = actual.flatten()[golden["indices"]].numpy()
    np.testing.assert_allclose(picked, golden["values"], rtol=0, atol=tolerance, err_msg=what)
    assert abs(actual.mean().item() - golden["mean"]) <= tolerance, what
    assert abs(actual.std(correction=0).item() - golden["std"]) <= tolerance, what
