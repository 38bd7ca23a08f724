"""What flows through a reconstruction: frames in, views through the network, geometry out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import transform
from qvggt_core.stream.corrected_path import KeyframeCorrections

Array64 = NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """One image as the camera gave it.

    Attributes:
        stamp_ns: capture time in integer nanoseconds, as in the message header.
        image: (H, W, 3) uint8, RGB.
        camera: calibration of the image, or None when nothing is known of it.
        frame_id: name of the camera's optical frame.
        source: name of the camera among those of a rig; empty where there is one.
        mask: (H, W) uint8, 0 where the image shows what does not stand still, as the robot's own
            body; None where nothing is known.
    """

    stamp_ns: int
    image: NDArray[np.uint8]
    camera: Camera | None = None
    frame_id: str = ""
    source: str = ""
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class View:
    """One image as the network sees it: rectified, resized, cropped.

    Attributes:
        stamp_ns: capture time of the frame that it came from.
        image: (H, W, 3) uint8, RGB; H and W are multiples of the network's patch size.
        intrinsics: (3, 3) float64 pinhole matrix of `image` in pixels, or None if unknown.
        frame_id: name of the camera's optical frame.
        source: name of the camera among those of a rig; empty where there is one.
        mask: (H, W) bool, false where the image shows what does not stand still; None if unknown.
    """

    stamp_ns: int
    image: NDArray[np.uint8]
    intrinsics: NDArray[np.float64] | None = None
    frame_id: str = ""
    source: str = ""
    mask: NDArray[np.bool_] | None = None

    def static(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a depth image (H, W) with NaN where the mask says that something moves."""
        return depth if self.mask is None else np.where(self.mask, depth, np.float32(np.nan))


@dataclass(frozen=True)
class WindowPrediction:
    """What the network predicted for one window of S views, in the window's own gauge.

    The gauge is a similarity: the world is the first view's camera, the unit of length is
    the network's own. Arrays live on the host.

    Attributes:
        camera_from_world: (S, 4, 4) float64, optical axes.
        intrinsics: (S, 3, 3) float64 in pixels, as predicted.
        depth: (D, H, W) float32 of the last D views along the optical axis, positive, in the
            window's unit.
        confidence: (D, H, W) float32, above 1, larger is better; comparable within a window. Where
            matches gave the depth, 1 + 1 / sigma of its logarithm.
        world_points: (D, H, W, 3) float32 in the window's world, or None without a point head.
        metres_per_unit: length of the window's unit where known cameras gave it, else None.
        is_solved: whether poses and depth were made to agree with matches between the images: of
            distances they say nothing then that points followed in the images do not.
        similarity: (S, S, P, P) float32 how alike the views' patches are, see `patch_similarity`;
            None where it is not asked for or the network was not trained to match.
    """

    camera_from_world: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    world_points: NDArray[np.float32] | None = None
    metres_per_unit: float | None = None
    is_solved: bool = False
    similarity: NDArray[np.float32] | None = None

    def metres_per_map_unit(self, map_units: float | None) -> float | None:
        """Return the length of the map's unit, None if it is not known.

        Args:
            map_units: map units per unit of the window, None if unknown.
        """
        if self.metres_per_unit is None or map_units is None:
            return None
        return self.metres_per_unit / map_units


@dataclass(frozen=True)
class FollowedPoints:
    """Where points were followed to in a view, and where the map and the pose put them.

    Attributes:
        pixels: (N, 2) float32 in the view, centres at integers.
        expected: (N, 2) float32 likewise.
    """

    pixels: NDArray[np.float32]
    expected: NDArray[np.float32]


@dataclass(frozen=True)
class PlacedView:
    """Where a view was taken, and its depth.

    The map's unit is the metre once the scale is known, before that the network's own.

    Attributes:
        map_from_camera: (4, 4) float64; the map is z-up, the camera optical.
        depth: (H, W) float32 along the optical axis in the map's unit; NaN where invalid.
        confidence: (H, W) float32 of the prediction, lower where no point supports it.
        is_lost: whether the pose is only the last known one.
        covariance: (6, 6) of position and rotation along the map's axes; None where it is only
            known for the window, see `Reconstruction.position_sigma`.
        motion_covariance: (6, 6) of translation and rotation since the frame before, in the
            camera's frame; None as above.
        followed: points that gave the pose; None where the network did.
    """

    map_from_camera: NDArray[np.float64]
    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    is_lost: bool = False
    covariance: NDArray[np.float64] | None = None
    motion_covariance: NDArray[np.float64] | None = None
    followed: FollowedPoints | None = None


@dataclass(frozen=True, kw_only=True)
class FrameGeometry(PlacedView):
    """The geometry of one view in the map.

    Attributes:
        view: the view.
        intrinsics: (3, 3) float64 in pixels, of `view.image` and of `depth`.
        is_keyframe: whether the view stays in the window.
    """

    view: View
    intrinsics: NDArray[np.float64]
    is_keyframe: bool = True

    def scaled(self, factor: float) -> FrameGeometry:
        """Return the geometry in another unit of length, about the map's origin."""
        pose = self.map_from_camera.copy()
        pose[:3, 3] *= factor
        return replace(
            self,
            map_from_camera=pose,
            depth=np.float32(factor) * self.depth,
            covariance=_scaled(self.covariance, factor),
            motion_covariance=_scaled(self.motion_covariance, factor),
        )

    def turned(self, rotation: NDArray[np.float64]) -> FrameGeometry:
        """Return the geometry in a map turned by a rotation (3, 3) about its origin."""
        return self.moved(transform(rotation, np.zeros(3)))

    def moved(self, new_from_map: NDArray[np.float64]) -> FrameGeometry:
        """Return the geometry in another map, to which a rigid transform (4, 4) leads."""
        both = np.kron(np.eye(2), new_from_map[:3, :3])
        covariance = None if self.covariance is None else both @ self.covariance @ both.T
        placed = new_from_map @ self.map_from_camera
        return replace(self, map_from_camera=placed, covariance=covariance)


def _scaled(covariance: NDArray[np.float64] | None, factor: float) -> NDArray[np.float64] | None:
    if covariance is None:
        return None
    unit = np.repeat([factor, 1.0], 3)
    return covariance * np.outer(unit, unit)


class ScaleState(str, Enum):
    """How well the map's unit is known."""

    UNKNOWN = "unknown"
    ESTIMATING = "estimating"
    METRIC = "metric"
    STALE = "stale"


@dataclass(frozen=True)
class Scale:
    """How long one unit of the map is, who says so, and how sure that is.

    Attributes:
        metres_per_unit: metres in one unit of the segment's map, where the camera is now; None
            while it is unknown or only estimated.
        source: "unknown", "parameter", or the source with the largest weight: "odometry", "gps",
            "range", "altitude", "baseline", "camera height", "metric depth", "odometry as input",
            "saved map".
        stamp_ns: capture time of the image at which it was last confirmed; None if never.
        state: how well it is known; if not given, metric with a length and unknown without.
        sigma: standard deviation of its logarithm, what the sources get wrong all the time
            included; None while nothing is known.
        sources: names of all that have a part in it.
        note: what is wrong with sources, for an operator; empty if nothing is.
    """

    metres_per_unit: float | None = None
    source: str = "unknown"
    stamp_ns: int | None = None
    state: ScaleState | None = None
    sigma: float | None = None
    sources: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.state is None:
            known = self.metres_per_unit is not None
            object.__setattr__(self, "state", ScaleState.METRIC if known else ScaleState.UNKNOWN)


@dataclass(frozen=True)
class Up:
    """Which way is up in a map, and what that stands on.

    Attributes:
        direction: (3,) unit, along the map's axes as its first camera gave them.
        source: "imu", "ground plane", or "first camera": taken to be level.
        sigma: standard deviation of it in radians; None where it is only taken to be so.
    """

    direction: NDArray[np.float64] = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))
    source: str = "first camera"
    sigma: float | None = None


class Verdict(str, Enum):
    """What the images say of a window."""

    CONFIRMED = "confirmed"
    UNDECIDED = "undecided"
    CONTRADICTED = "contradicted"


@dataclass(frozen=True)
class Confirmation:
    """A verdict, and the numbers that it comes from. Lengths are shares of the image's width.

    Attributes:
        verdict: of the window as predicted, before any refinement.
        reason: what it comes from, for an operator, in a few words.
        followed: median number of points that two views share.
        motion: median motion of the points between two views.
        parallax: what is left of it once the best rotation is taken out.
        residual: median distance between where the points are and where the prediction puts them.
    """

    verdict: Verdict
    reason: str
    followed: int = 0
    motion: float = 0.0
    parallax: float = 0.0
    residual: float = 0.0

    @property
    def ratio(self) -> float:
        """Residual as a share of the motion; 0 where nothing moves."""
        return self.residual / self.motion if self.motion > 0.0 else 0.0


@dataclass
class Losses:
    """What a reconstruction has no geometry for, so far.

    Attributes:
        gated: number of frames that got no geometry: dropped by a reset, with the stamp of their
            predecessor, or the network failed.
        withheld: number of frames whose geometry the images contradict, and that were kept back.
        not_finite: number of windows for which the network gave poses that are not finite.
    """

    gated: int = 0
    withheld: int = 0
    not_finite: int = 0


@dataclass(frozen=True)
class LoopStatus:
    """What has become of places that are seen again.

    Attributes:
        keyframes: number of keyframes that are kept.
        accepted: number of loops accepted so far.
        rejected: number of pairs of keyframes rejected so far, by reason.
        shift: how far the last correction moved the camera, in the map's unit.
        turn: how far it turned it, radians.
        localisation: whether the camera was found in a loaded map, in words; empty without one.
        is_in_loaded_map: whether it was.
    """

    keyframes: int = 0
    accepted: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    shift: float = 0.0
    turn: float = 0.0
    localisation: str = ""
    is_in_loaded_map: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """What one run of the network adds to the map.

    Attributes:
        segment: number of the map; it grows when a window cannot be joined to what was before.
        frames: geometry of the views that are new, in order of time, one per view.
        scale: the map's unit.
        window_size: number of views that the network saw.
        position_sigma: how far, in the map's unit, the shared views disagree on where the window
            lies; what a window adds to the uncertainty of positions.
        rotation_sigma: the same for its orientation, in radians.
        seconds: wall time per step ("encode", "network", "align").
        events: sentences for the operator, such as why a new segment began.
        confirmation: what the images say of the window as predicted; None where it was not asked.
        up: which way is up, along the axes that the segment's first camera gave; the frames' map
            is turned so that this is z.
        map_from_odometry: (4, 4) rigid; what loops did to the frames' poses. Without it they go
            on continuously.
        odometry_segment: number of the segment as it began, before a loop joined it to another;
            None where `segment` says it.
        loops: what has become of places that are seen again; None where none are looked for.
        corrections: of all keyframes, where they changed.
    """

    segment: int
    frames: tuple[FrameGeometry, ...]
    scale: Scale = field(default_factory=Scale)
    window_size: int = 0
    position_sigma: float = 0.0
    rotation_sigma: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    confirmation: Confirmation | None = None
    up: Up = field(default_factory=Up)
    map_from_odometry: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    odometry_segment: int | None = None
    loops: LoopStatus | None = None
    corrections: KeyframeCorrections | None = None
