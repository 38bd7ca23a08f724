"""Places on the earth in local metres."""

import numpy as np
import pytest

from qvggt_core.geometry.geodetic import LocalTangentPlane, earth_centred


def test_a_place_is_where_the_epsg_guidance_note_has_it():
    """IOGP publication 373-7-2, section 4.1.1: 53 48 33.820 N, 2 07 46.380 E, 73.0 m."""
    latitude, longitude = 53 + 48 / 60 + 33.820 / 3600, 2 + 7 / 60 + 46.380 / 3600
    found = earth_centred(latitude, longitude, 73.0)
    np.testing.assert_allclose(found, [3771793.968, 140253.342, 5124304.349], atol=2e-3)


@pytest.mark.parametrize(
    ("moved", "axis"), [((0.001, 0.0, 0.0), 1), ((0.0, 0.001, 0.0), 0), ((0.0, 0.0, 50.0), 2)]
)
def test_north_east_and_up_are_axes_of_their_own(moved, axis):
    home = (47.4, 8.5, 400.0)
    plane = LocalTangentPlane(*home)
    np.testing.assert_allclose(plane.position(*home), np.zeros(3), atol=1e-6)
    there = plane.position(*np.add(home, moved))
    # Lengths of a degree there by the series of the ellipsoid (NIMA TR8350.2).
    phi = np.radians(home[0])
    north = 111132.92 - 559.82 * np.cos(2 * phi) + 1.175 * np.cos(4 * phi)
    east = 111412.84 * np.cos(phi) - 93.5 * np.cos(3 * phi)
    expected = np.zeros(3)
    expected[axis] = {0: 0.001 * east, 1: 0.001 * north, 2: 50.0}[axis]
    np.testing.assert_allclose(there, expected, atol=0.02)
