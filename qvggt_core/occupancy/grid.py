"""The floor plan itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNKNOWN, FREE, OCCUPIED = -1, 0, 100
"""Values of a cell. Nothing between free and occupied: Nav2's static layer takes 1 to 99 for free
as it comes, and only 100 for an obstacle."""


@dataclass(frozen=True)
class OccupancyGrid:
    """Cells of a plane over the ground.

    Attributes:
        cells: (H, W) int8, rows along the map's y, columns along its x.
        resolution: side of a cell in metres.
        origin: (3,) outer corner of the first cell in the map; x and y are whole numbers of
            cells, z is the ground below the camera.
    """

    cells: NDArray[np.int8]
    resolution: float
    origin: NDArray[np.float64]
