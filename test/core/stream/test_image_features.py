"""Corners lie where they are."""

import numpy as np
import pytest

from qvggt_core.stream.image_features import features_of


@pytest.mark.parametrize("size", [1.5, 3.0, 6.0], ids=lambda size: f"{size} pixels")
def test_spots_are_found_where_they_are_whatever_their_size(size):
    """OpenCV's own places are off by a quarter of a pixel both ways, as a wrong camera would be."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:240, :320]
    grid = np.stack(np.meshgrid(np.arange(40, 300, 40), np.arange(40, 220, 40)), -1).reshape(-1, 2)
    places = grid + rng.uniform(-0.5, 0.5, grid.shape)
    image = np.full((240, 320), 80.0)
    for x, y in places:
        image += 120.0 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2.0 * size**2))
    found = features_of(np.rint(image).astype(np.uint8), 400).pixels.astype(np.float64)
    apart = found[:, None] - places
    nearest = np.linalg.norm(apart, axis=2).argmin(axis=0)
    off = apart[nearest, np.arange(len(places))]
    assert np.abs(off).max() < 0.2
    assert np.abs(off.mean(axis=0)).max() < 0.05
