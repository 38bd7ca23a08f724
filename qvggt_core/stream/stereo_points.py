"""Distances in metres of followed points, from a second camera at a known place beside the first.

Both images are turned so that a point lies in one row of both (Fusiello, Trucco, Verri, "A compact
algorithm for rectification of stereo pairs", MVA 2000). Block matching at half the size
(Hirschmueller, PAMI 2008, as OpenCV has it) finds about where a point is in the other one, flow
forth and back where exactly. How points lie beside their rows shows how the second camera is turned
from where it should be, which would make all distances wrong alike.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera, rectification_map
from qvggt_core.stream.map_keyframes import ray_sigma
from qvggt_core.stream.map_points import MeasuredPoints
from qvggt_core.stream.tracks import Tracks, flow

# The two images have at most so many columns.
_WIDTH = 640
# The line between the cameras may be this far, as a cosine, out of the images' planes, and the
# images' planes this far, as a cosine, out of each other.
_MOST_AHEAD, _LEAST_ALIKE = 0.7, 0.7
# Share of the first image's rays that the second one must see at a great distance.
_LEAST_OVERLAP = 0.2
_FARTHEST_RAY = 2.0
# Disparities that are looked for, as a share of the columns: also those behind infinity, where a
# wrong transform puts what is far away.
_LARGEST, _BEHIND = 0.25, 0.04
_BLOCK = 5
_MATCHER: dict[str, int] = {
    **{"blockSize": _BLOCK, "P1": 8 * _BLOCK**2, "P2": 32 * _BLOCK**2},
    **{"disp12MaxDiff": 1, "uniquenessRatio": 10, "speckleWindowSize": 60, "speckleRange": 2},
    "mode": cv2.StereoSGBM_MODE_SGBM_3WAY,
}
_FLOW_WINDOW, _FLOW_LEVELS, _ROUND_TRIP = (15, 15), 1, 0.5
_FEWEST = 30
# Pixels by which a point may be outside of its row, beside what a turn of the camera does.
_ROW_TOLERANCE = 1.0
# A turn of the second camera from where its transform has it: what is clear, in standard
# deviations, and what is more than a good calibration leaves, in pixels.
_CLEAR, _MOST_TURNED = 5.0, 0.75
# Before anything is seen, rows may be off by a turn of so many radians, and by a part of the
# disparity, for a line between the cameras that has another direction.
_TURN_PRIOR, _LINE_PRIOR = 0.05, 0.05
_PRIOR_PIXELS = 0.5
_ROW_NOISE = 0.1
_ITERATIONS = 4
# Where more of the points than this are behind infinity, by so many pixels, the transform is not
# that of these images.
_MOST_BEHIND, _CLEARLY = 0.15, 1.0
_LEAST_DISPARITY = 1.0
# What a calibration that is good leaves between the two images, pixels.
_CALIBRATED = 0.15


class StereoPair:
    """Two cameras whose images can be laid side by side, row by row.

    Attributes:
        problem: why they cannot, for an operator; empty if they can.
        is_contradicted: whether the last images have the cameras elsewhere than they are known to
            be.
    """

    def __init__(self, first: Camera, other: Camera, other_from_first: NDArray[np.float64]) -> None:
        """Plan how images are turned.

        Args:
            first: camera whose points are followed.
            other: the second camera.
            other_from_first: (4, 4), metres, optical axes.
        """
        self.problem = ""
        self.is_contradicted = False
        rotation = other_from_first[:3, :3]
        centre = -rotation.T @ other_from_first[:3, 3]
        self._baseline = float(np.linalg.norm(centre))
        ahead = np.array([0.0, 0.0, 1.0])
        middle = ahead + rotation.T @ ahead
        along = centre / self._baseline
        if ahead @ rotation.T @ ahead < _LEAST_ALIKE or abs(along @ ahead) > _MOST_AHEAD:
            self.problem = "the cameras do not look to the same side from beside each other"
            return
        forward = middle - (middle @ along) * along
        forward /= np.linalg.norm(forward)
        self._turn = np.stack([along, np.cross(forward, along), forward])
        self._plan(first, other, rotation)

    def _plan(self, first: Camera, other: Camera, rotation: NDArray[np.float64]) -> None:
        """Choose the two images to make, which have one pinhole matrix."""
        low, high = _seen(first, self._turn)
        low_other, high_other = _seen(other, self._turn @ rotation.T)
        both = np.prod(np.maximum(np.minimum(high, high_other) - np.maximum(low, low_other), 0.0))
        if both < _LEAST_OVERLAP * np.prod(high - low):
            self.problem = "the cameras' images do not overlap"
            return
        scale = min(1.0, _WIDTH / first.width)
        size = scale * float(first.intrinsics[0, 0]) * (high - low)
        shrink = min(1.0, 1.5 * _WIDTH / float(size.max()))
        self.focal = shrink * scale * float(first.intrinsics[0, 0])
        width, height = (max(32, int(np.ceil(each * shrink))) for each in size)
        matrix = np.array([[self.focal, 0, 0], [0, self.focal, 0], [0, 0, 1.0]])
        matrix[:2, 2] = -low * self.focal - 0.5
        self._centre = matrix[:2, 2]
        self._maps = [
            rectification_map(camera, matrix, width, height, turn)
            for camera, turn in ((first, self._turn), (other, self._turn @ rotation.T))
        ]
        disparities = max(16, int(np.ceil(_LARGEST * width / 2 / 16)) * 16)
        self._least = -int(np.ceil(_BEHIND * width / 2))
        self._matcher = cv2.StereoSGBM.create(
            minDisparity=self._least,
            numDisparities=disparities - self._least // 16 * 16,
            **_MATCHER,
        )

    def measure(
        self, first: NDArray[np.uint8], other: NDArray[np.uint8], tracks: Tracks
    ) -> MeasuredPoints | str:
        """Return the distances of points in the first image, or why there are none.

        Args:
            first: (H, W, 3) uint8 RGB.
            other: (H', W', 3) uint8 RGB, of the same time.
            tracks: points in the first image.
        """
        left, right = (
            np.asarray(
                cv2.remap(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), *maps, cv2.INTER_LINEAR),
                np.uint8,
            )
            for image, maps in zip((first, other), self._maps, strict=True)
        )
        rays = np.column_stack([tracks.rays, np.ones(len(tracks.rays))]) @ self._turn.T
        rays = rays[:, :2] / rays[:, 2:]
        start = (rays * self.focal + self._centre).astype(np.float32)
        index, moved = _matched(start, left, right, self._matcher, self._least)
        if len(index) < _FEWEST:
            return "the two cameras have too few points in common"
        problem, in_row, common = _judged(rays[index], moved, self.focal)
        self.is_contradicted = bool(problem)
        if problem:
            return problem
        near = in_row & (moved[:, 0] >= _LEAST_DISPARITY)
        index, disparity = index[near], moved[near, 0]
        if len(index) < _FEWEST:
            return "what both cameras see is too far away for the distance between them"
        # Along a ray of this length at a depth of 1.
        length = np.linalg.norm(np.column_stack([rays[index], np.ones(len(index))]), axis=1)
        per_pixel = 1.0 / (self.focal * self._baseline)
        pixels = ray_sigma(tracks.focal) * tracks.focal
        return MeasuredPoints(
            tracks.ids[index],
            disparity * per_pixel / length,
            pixels * per_pixel / length,
            length,
            common * per_pixel,
        )


def _seen(camera: Camera, turn: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Return the least and largest x / z and y / z that an image shows, after a turn (3, 3)."""
    across = np.linspace(0.0, camera.width - 1.0, 17)
    down = np.linspace(0.0, camera.height - 1.0, 17)
    pixels = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    rays = np.column_stack([camera.rays(pixels), np.ones(len(pixels))]) @ turn.T
    rays = rays[rays[:, 2] > 1.0 / _FARTHEST_RAY / 10.0]
    flat = (rays[:, :2] / rays[:, 2:]).clip(-_FARTHEST_RAY, _FARTHEST_RAY)
    return flat.min(axis=0), flat.max(axis=0)


def _matched(
    start: NDArray[np.float32],
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    matcher: cv2.StereoSGBM,
    least: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return which points (N, 2) of the left image are found in the right one, and how far off."""
    half = [
        cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for image in (left, right)
    ]
    rough = matcher.compute(*half).astype(np.float32) / 16.0
    columns, rows = np.rint(0.5 * start - 0.25).astype(np.int64).T
    inside = (columns >= 0) & (rows >= 0) & (columns < rough.shape[1]) & (rows < rough.shape[0])
    index = np.flatnonzero(inside)
    shift = 2.0 * rough[rows[index], columns[index]]
    index, shift = index[shift >= 2 * least], shift[shift >= 2 * least]
    if len(index) == 0:
        return index, np.empty((0, 2))
    points = start[index]
    guess = points - np.column_stack([shift, np.zeros_like(shift)])
    there, found = flow(left, right, points, guess, _FLOW_WINDOW, _FLOW_LEVELS)
    back, returned = flow(right, left, there, points, _FLOW_WINDOW, _FLOW_LEVELS)
    good = found & returned & (np.linalg.norm(back - points, axis=1) <= _ROUND_TRIP)
    return index[good], (points - there)[good].astype(np.float64)


def _judged(
    rays: NDArray[np.float64], moved: NDArray[np.float64], focal: float
) -> tuple[str, NDArray[np.bool_], float]:
    """Return why matches are not believed, which lie in their rows, and the common error.

    A turn of the second camera moves points across their rows too, most of all far from the
    middle of the image. So the rows show how well the turn is known that adds to all disparities.

    Args:
        rays: (N, 2) x / z and y / z of the points, turned into their rows.
        moved: (N, 2) columns and rows from the second image to the first, pixels.
        focal: pixels per unit of `rays`.

    Returns:
        The reason, or an empty text; (N,); and pixels by which all disparities may be off alike.
    """
    x, y = (rays - np.column_stack([moved[:, 0] / focal, np.zeros(len(rays))])).T
    # d row / d (turn about x, y, z; rise and advance of the second camera by its distance).
    columns = [-(1.0 + y * y), x * y, x, moved[:, 0] / focal, -y * moved[:, 0] / focal]
    slopes = focal * np.column_stack(columns)
    prior = np.diag([_TURN_PRIOR**-2.0] * 3 + [_LINE_PRIOR**-2.0] * 2)
    found, off = np.zeros(5), -moved[:, 1]
    noise = 1.4826 * float(np.median(np.abs(off)))
    for _ in range(_ITERATIONS):
        rest = off - slopes @ found
        noise = max(_ROW_NOISE, 1.4826 * float(np.median(np.abs(rest))))
        weights = 1.0 / (1.0 + (rest / (2.0 * noise)) ** 2) / noise**2
        covariance = np.linalg.inv((slopes * weights[:, None]).T @ slopes + prior)
        found = covariance @ (slopes * weights[:, None]).T @ off
    in_row = np.abs(off - slopes @ found) <= _ROW_TOLERANCE
    turn, sigma = found[:3], np.sqrt(np.diag(covariance)[:3])
    if np.count_nonzero(in_row) < max(_FEWEST, 0.5 * len(in_row)):
        return (
            "what both cameras see does not lie in rows: are the images of one time?",
            in_row,
            0.0,
        )
    if ((np.abs(turn) > _CLEAR * sigma) & (focal * np.abs(turn) > _MOST_TURNED)).any():
        angle = float(np.degrees(np.linalg.norm(turn)))
        problem = (
            f"what both cameras see is as if one were turned by {angle:.1f} deg from what TF or "
            "CameraInfo has, or the images not of one time"
        )
        return problem, in_row, 0.0
    if np.mean(moved[in_row, 0] < -_CLEARLY) > _MOST_BEHIND:
        problem = (
            "what both cameras see would lie behind infinity: is the transform between them the "
            "wrong way round, or one camera the other?"
        )
        return problem, in_row, 0.0
    known = 1.0 / np.sqrt(_PRIOR_PIXELS**-2.0 + (focal * sigma[1]) ** -2.0)
    seen = focal * turn[1] if abs(turn[1]) > 2.0 * sigma[1] else 0.0
    return "", in_row, max(_CALIBRATED, float(np.hypot(known, seen)))
