"""The best that can be done: the scale of a simulated flight by one who knows all its noises.

The same measurements that `MetricScale` was given, and beside them what no estimator on a robot
has: how fast the unit walks, how noisy the source is, how often it is wrong, and by how much its
clock is late. What is left of the error is the noise's.

    single lengths   the exact posterior on a grid of a random walk seen with gross errors
    odometry         an extended Kalman filter over the steps: scale, and the turn of both worlds
    altitude         least squares over the heights, the scale of each step unknown
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation
from scipy.special import ndtr

from qvggt_core.stream import MetricScale

# The grid of logarithms of the unit.
_CELL, _REACH = 0.0005, 1.5
_TURN_SIGMA = 0.2
_ROUNDS = 6
# Heights further back are of no use: the unit has walked by more than they show.
_HEIGHTS = 400


@dataclass(frozen=True)
class Noises:
    """What is known of a simulation.

    Attributes:
        walk: standard deviation of the unit's logarithm after a metre.
        ratio: the same of a single length's.
        wrong: share of the single lengths that are off by up to a factor of e.
        step: standard deviation of one image's step of odometry per axis, metres.
        turn: the same of the turn about z in one image's time, radians.
        height: the same of a height, metres.
        samples: of odometry in one image's time.
    """

    walk: float
    ratio: float
    wrong: float
    step: float
    turn: float
    height: float
    samples: int


class Noted(MetricScale):
    """A scale that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.odometry: list[NDArray[np.float64]] = []
        self.heights: list[float] = []
        self.ratios: list[tuple[int, float]] = []

    def add_odometry(
        self, stamp_ns: int, position: NDArray[np.float64], *, of_camera: bool = True
    ) -> None:
        """Take a position of the camera."""
        self.odometry.append(position)
        super().add_odometry(stamp_ns, position, of_camera=of_camera)

    def add_altitude(self, stamp_ns: int, metres: float) -> None:
        """Take a height."""
        self.heights.append(metres)
        super().add_altitude(stamp_ns, metres)

    def observe_ratio(
        self,
        stamp_ns: int,
        metres_per_unit: float,
        sigma: float,
        source: str,
        common: float = 0.0,
    ) -> str | None:
        """Take the length of a unit by one image."""
        self.ratios.append((stamp_ns, metres_per_unit))
        return super().observe_ratio(stamp_ns, metres_per_unit, sigma, source, common)


def bound(
    given: Noted,
    places: NDArray[np.float64],
    steps: NDArray[np.float64],
    period_ns: int,
    noises: Noises,
) -> float | None:
    """Return the best estimate of the unit's logarithm at the last image; None of other sources.

    Args:
        given: what was measured up to some later image.
        places: (N, 3) of the camera in the map.
        steps: (N,) metres that the camera came since the image before.
        period_ns: between two images; the samples of odometry and heights divide it evenly.
        noises: of the simulation.
    """
    count = len(steps)
    if given.odometry:
        positions = np.array(given.odometry[:: noises.samples])[:count]
        count = len(positions)
        return by_odometry(positions, places[:count], steps[:count], noises)
    if given.heights:
        climbs = np.diff(places[:, 2], prepend=places[0, 2])
        return by_heights(np.array(given.heights[:count]), climbs, steps, noises)
    images = [round(stamp / period_ns) for stamp, _ in given.ratios]
    there = sum(image < count for image in images)
    if there == 0:
        return None
    ratios = [ratio for _, ratio in given.ratios[:there]]
    return by_ratios(images[:there], ratios, steps, noises)


def by_ratios(
    images: list[int], ratios: list[float], steps: NDArray[np.float64], noises: Noises
) -> float:
    """Return the logarithm of the unit at the last image by single lengths, the median.

    Args:
        images: (M,) of which image each length is, in order.
        ratios: (M,) metres per unit.
        steps: (N,) metres that the camera came since the image before.
        noises: of the simulation.
    """
    logs = np.log(ratios)
    values = float(np.median(logs)) + np.arange(-_REACH, _REACH, _CELL)
    along = np.cumsum(steps)
    density = _filtered(values, along[images], logs, float(along[-1]), noises)
    total = np.cumsum(density)
    return float(np.interp(0.5, total / total[-1], values))


def _filtered(
    values: NDArray[np.float64],
    places: NDArray[np.float64],
    logs: NDArray[np.float64],
    end: float,
    noises: Noises,
) -> NDArray[np.float64]:
    """Return how likely each value is at a place `end`, by what was seen on the way there."""
    density = np.ones_like(values)
    for number, (place, seen) in enumerate(zip(places, logs, strict=True)):
        off = seen - values
        right = np.exp(-0.5 * (off / noises.ratio) ** 2) / (noises.ratio * np.sqrt(2 * np.pi))
        wrong = 0.5 * (ndtr((off + 1.0) / noises.ratio) - ndtr((off - 1.0) / noises.ratio))
        density = density * ((1.0 - noises.wrong) * right + noises.wrong * wrong)
        following = places[number + 1] if number + 1 < len(places) else end
        walked = noises.walk * np.sqrt(abs(following - place)) / _CELL
        density /= density.sum()
        if walked > 0.0:
            density = gaussian_filter1d(density, walked, mode="nearest")
    return density


def by_odometry(
    positions: NDArray[np.float64],
    places: NDArray[np.float64],
    steps: NDArray[np.float64],
    noises: Noises,
) -> float:
    """Return the logarithm of the unit at the last image.

    Args:
        positions: (N, 3) of odometry at the images, metres, its clock put right.
        places: (N, 3) of the camera in the map.
        steps: (N,) metres that the camera came since the image before.
        noises: of the simulation.
    """
    shown, seen = np.diff(positions, axis=0), np.diff(places, axis=0)
    rough = np.linalg.norm(shown[:10], axis=1).sum() / np.linalg.norm(seen[:10], axis=1).sum()
    log_scale, rotation = float(np.log(rough)), Rotation.identity()
    covariance = np.diag([1.0, *[_TURN_SIGMA**2] * 3])
    for step, metres, way in zip(seen, shown, steps[1:], strict=True):
        covariance[0, 0] += noises.walk**2 * way
        covariance[3, 3] += noises.turn**2
        expected = np.exp(log_scale) * rotation.apply(step)
        x, y, z = expected
        jacobian = np.column_stack([expected, -np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])])
        innovation = jacobian @ covariance @ jacobian.T + noises.step**2 * np.eye(3)
        gain = np.linalg.solve(innovation, jacobian @ covariance).T
        change = gain @ (metres - expected)
        log_scale += float(change[0])
        rotation = Rotation.from_rotvec(change[1:]) * rotation
        covariance = (np.eye(4) - gain @ jacobian) @ covariance
    return log_scale


def by_heights(
    heights: NDArray[np.float64],
    climbs: NDArray[np.float64],
    steps: NDArray[np.float64],
    noises: Noises,
) -> float:
    """Return the logarithm of the unit at the last image.

    Args:
        heights: (N,) metres.
        climbs: (N,) of the camera in the map since the image before.
        steps: (N,) metres that the camera came since the image before.
        noises: of the simulation.
    """
    heights, climbs, steps = (each[-_HEIGHTS:] for each in (heights, climbs, steps))
    count = len(heights)
    rise = np.cumsum(np.concatenate([[0.0], climbs[1:]]))
    slope = np.polyfit(rise, heights, 1)[0]
    logs, start = np.full(count, np.log(max(slope, 1e-3))), float(heights[0])
    tie = 1.0 / (noises.walk**2 * np.maximum(steps[1:], 1e-6))
    prior = np.diag([*tie, 0.0]) + np.diag([0.0, *tie]) - np.diag(tie, 1) - np.diag(tie, -1)
    below = np.tri(count)
    below[:, 0] = 0.0
    for _ in range(_ROUNDS):
        grown = np.exp(logs) * climbs
        grown[0] = 0.0
        left = heights - start - np.cumsum(grown)
        jacobian = np.column_stack([below * grown, np.ones(count)])
        information = jacobian.T @ jacobian / noises.height**2
        information[:count, :count] += prior
        information[range(count), range(count)] += 1e-4
        gradient = jacobian.T @ left / noises.height**2
        gradient[:count] -= prior @ logs
        change = np.linalg.solve(information, gradient)
        logs, start = logs + np.clip(change[:count], -0.5, 0.5), start + float(change[count])
    return float(logs[-1])
