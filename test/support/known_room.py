"""A room with exact depth, flights through it, and a network that knows both but not its gauge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, transform
from qvggt_core.stream import Frame, WindowPrediction

WIDTH, HEIGHT, PATCH = 112, 84, 14
INTRINSICS = np.array([[80.0, 0, 55.5], [0, 80.0, 41.5], [0, 0, 1]])
CAMERA = Camera(WIDTH, HEIGHT, INTRINSICS)

LOW, HIGH = np.array([-30.0, -4.0, -1.5]), np.array([30.0, 4.0, 2.0])
_WAVES = np.random.default_rng(7).normal(0, 6.0, (40, 3))
_PHASES = np.random.default_rng(8).uniform(0, 2 * np.pi, (3, 40))


def depth_of(world_from_camera: np.ndarray) -> np.ndarray:
    """Return the exact depth image (H, W) of a camera inside the room."""
    return _hit(world_from_camera)[0].astype(np.float32)


def image_of(world_from_camera: np.ndarray, zoom: int = 1) -> np.ndarray:
    """Return the image (zoom H, zoom W, 3) uint8 of a camera inside the room."""
    _, points = _hit(world_from_camera, zoom)
    waves = np.cos(points[..., None, :] @ _WAVES.T + _PHASES[:, :])
    return np.clip(128 + 9 * waves.sum(axis=-1), 0, 255).astype(np.uint8)


def camera_of(zoom: int) -> Camera:
    """Return the calibration of enlarged images."""
    matrix = INTRINSICS.copy()
    matrix[:2] *= zoom
    matrix[:2, 2] += 0.5 * (zoom - 1)
    return Camera(zoom * WIDTH, zoom * HEIGHT, matrix)


def _hit(world_from_camera: np.ndarray, zoom: int = 1) -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(zoom * WIDTH), np.arange(zoom * HEIGHT))
    columns, rows = (columns + 0.5) / zoom - 0.5, (rows + 0.5) / zoom - 0.5
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    # The third coordinate is 1, so that the length of a ray is the depth of its end.
    rays = pixels @ np.linalg.inv(INTRINSICS).T @ world_from_camera[:3, :3].T
    centre = world_from_camera[:3, 3]
    with np.errstate(divide="ignore"):
        depth = np.max([(LOW - centre) / rays, (HIGH - centre) / rays], axis=0).min(axis=-1)
    return depth, centre + depth[..., None] * rays


def flight(centres: np.ndarray, yaw_pitch_roll: np.ndarray) -> np.ndarray:
    """Return world_from_camera (N, 4, 4), optical, from body centres and angles in radians."""
    body = Rotation.from_euler("ZYX", yaw_pitch_roll).as_matrix()
    return np.stack(
        [transform(r, c) @ FLU_FROM_OPTICAL for r, c in zip(body, centres, strict=True)]
    )


def straight(count: int = 40) -> np.ndarray:
    """Return a straight flight of 0.25 m a frame without any turn."""
    x = -8 + 0.25 * np.arange(count)
    return flight(np.stack([x, 0 * x, 0 * x], axis=1), np.zeros((count, 3)))


def pure_rotation(count: int = 40) -> np.ndarray:
    """Return a camera that turns by 10 degrees a frame on the spot."""
    angles = np.zeros((count, 3))
    angles[:, 0] = np.radians(10) * np.arange(count)
    return flight(np.zeros((count, 3)), angles)


def hover(count: int = 40) -> np.ndarray:
    """Return a camera that stands still."""
    return flight(np.zeros((count, 3)), np.zeros((count, 3)))


def loop(count: int = 41) -> np.ndarray:
    """Return a circle of 2 m radius, looking ahead, that ends where it began."""
    angle = np.linspace(0, 2 * np.pi, count)
    centres = 2 * np.stack([np.cos(angle), np.sin(angle), 0.2 * np.sin(2 * angle)], axis=1)
    return flight(centres, np.stack([angle + np.pi / 2, 0.1 * np.sin(angle), 0 * angle], axis=1))


FLIGHTS = {"straight": straight, "pure_rotation": pure_rotation, "hover": hover, "loop": loop}


@dataclass(frozen=True)
class Noise:
    """How wrong the network is.

    Attributes:
        angle: degrees by which each view's rotation is off, per axis.
        centre: metres by which each view's centre is off, per axis.
        view_scale: share by which all depths of a view are off.
        pixel: share by which each depth is off.
        outliers: share of pixels whose depth is wrong by a factor between 0.2 and 5.
        wrong_pose: index in the window of a view whose pose is wrong by metres and radians.
    """

    angle: float = 0.0
    centre: float = 0.0
    view_scale: float = 0.0
    pixel: float = 0.0
    outliers: float = 0.0
    wrong_pose: int | None = None


USUAL = Noise(angle=0.2, centre=0.01, view_scale=0.01, pixel=0.03, outliers=0.2)


@dataclass(frozen=True)
class Window:
    """A window in a gauge of its own, and the gauge."""

    prediction: WindowPrediction
    metres_per_unit: float


def cut_window(
    poses: np.ndarray, depths: Sequence[np.ndarray], rng: np.random.Generator, noise: Noise
) -> Window:
    """Return the views with these poses as a network would: noisy, in a random gauge."""
    count = len(poses)
    unit = float(np.exp(rng.uniform(np.log(0.2), np.log(5.0))))
    gauge = transform(Rotation.random(random_state=rng).as_matrix(), rng.normal(0, 10, 3))
    noisy = poses.copy()
    turns = Rotation.from_rotvec(np.radians(noise.angle) * rng.normal(size=(count, 3)))
    noisy[:, :3, :3] = poses[:, :3, :3] @ turns.as_matrix()
    noisy[:, :3, 3] += noise.centre * rng.normal(size=(count, 3))
    if noise.wrong_pose is not None and noise.wrong_pose < count:
        noisy[noise.wrong_pose, :3, :3] = Rotation.random(random_state=rng).as_matrix()
        noisy[noise.wrong_pose, :3, 3] += rng.normal(0, 3, 3)
    window_from_camera = gauge @ noisy
    window_from_camera[:, :3, 3] /= unit
    depth = np.stack(depths) / unit
    depth *= np.exp(noise.view_scale * rng.normal(size=(count, 1, 1)))
    depth *= np.exp(noise.pixel * rng.normal(size=depth.shape))
    wrong = rng.random(depth.shape) < noise.outliers
    depth[wrong] *= np.exp(rng.uniform(-np.log(5), np.log(5), wrong.sum()))
    # A network knows only half of its outliers.
    confidence = 1 + np.exp(rng.normal(1, 0.3, depth.shape))
    confidence[wrong & (rng.random(depth.shape) < 0.5)] = 1.1
    return Window(
        WindowPrediction(
            camera_from_world=inverse(window_from_camera),
            intrinsics=np.tile(INTRINSICS, (count, 1, 1)),
            depth=depth.astype(np.float32),
            confidence=confidence.astype(np.float32),
        ),
        unit,
    )


@dataclass
class KnowingNetwork:
    """A `Network` that looks its images up; it counts what it was asked for."""

    poses: np.ndarray
    noise: Noise = Noise()
    seed: int = 0
    image_width: int = WIDTH
    patch_size: int = PATCH
    encoded: list[int] = field(default_factory=list)
    windows: list[list[int]] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    spoil: dict[int, str] = field(default_factory=dict)
    """Runs, by number, whose prediction is spoilt: "depth" of the oldest view that has it, or
    all "poses"."""

    def encode(self, image: np.ndarray) -> int:
        """Return the index that `frames` wrote into the image's first pixels."""
        index = int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])
        self.encoded.append(index)
        return index

    def predict(
        self, tokens: Sequence[int], height: int, width: int, newest: int | None = None
    ) -> WindowPrediction:
        """Return what `cut_window` makes of the views."""
        assert (height, width) == (HEIGHT, WIDTH)
        rng = np.random.default_rng([self.seed, *tokens])
        poses = self.poses[list(tokens)]
        window = cut_window(poses, [depth_of(pose) for pose in poses], rng, self.noise)
        spoil = self.spoil.get(len(self.windows))
        last = slice(None if newest is None else len(tokens) - newest, None)
        if spoil == "depth":
            window.prediction.depth[last][0] *= 3
        if spoil == "poses":
            window.prediction.camera_from_world[:] = np.nan
        self.windows.append(list(tokens))
        self.units.append(window.metres_per_unit)
        return replace(
            window.prediction,
            depth=window.prediction.depth[last],
            confidence=window.prediction.confidence[last],
        )


def frames(poses: np.ndarray, period_s: float = 0.1, pictures: bool = False) -> list[Frame]:
    """Return a frame per pose; its first pixels carry its index for `KnowingNetwork`."""
    result = []
    for index, pose in enumerate(poses):
        image = image_of(pose) if pictures else np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        image[0, 0] = (index // 256, index % 256, 0)
        result.append(Frame(1_000_000_000 + round(index * period_s * 1e9), image, CAMERA, "camera"))
    return result
