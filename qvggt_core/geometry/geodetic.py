"""Places on the earth as metres about one of them (WGS 84)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_EQUATOR_M = 6_378_137.0
_FLATTENING = 1.0 / 298.257_223_563
_ECCENTRICITY_SQUARED = _FLATTENING * (2.0 - _FLATTENING)


def earth_centred(latitude: float, longitude: float, altitude: float) -> NDArray[np.float64]:
    """Return a place as (3,) metres from the earth's centre, z to the north pole.

    Args:
        latitude: degrees, north positive.
        longitude: degrees, east positive.
        altitude: metres above the ellipsoid.
    """
    phi, lam = np.radians([latitude, longitude])
    radius = _EQUATOR_M / np.sqrt(1.0 - _ECCENTRICITY_SQUARED * np.sin(phi) ** 2)
    across = (radius + altitude) * np.cos(phi)
    up = ((1.0 - _ECCENTRICITY_SQUARED) * radius + altitude) * np.sin(phi)
    return np.array([across * np.cos(lam), across * np.sin(lam), up])


class LocalTangentPlane:
    """Metres east, north and up of a first place."""

    def __init__(self, latitude: float, longitude: float, altitude: float) -> None:
        """Take the place that is the origin; see `earth_centred`."""
        self._origin = earth_centred(latitude, longitude, altitude)
        phi, lam = np.radians([latitude, longitude])
        self._local_from_earth = np.array(
            [
                [-np.sin(lam), np.cos(lam), 0.0],
                [-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)],
                [np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)],
            ]
        )

    def position(self, latitude: float, longitude: float, altitude: float) -> NDArray[np.float64]:
        """Return a place as (3,) metres east, north and up of the origin."""
        return self._local_from_earth @ (
            earth_centred(latitude, longitude, altitude) - self._origin
        )
