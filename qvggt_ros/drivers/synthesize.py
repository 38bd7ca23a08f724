"""A rosbag2 of a flight through a synthetic world, with exact ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import Writer

from qvggt_core.errors import ParameterError
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, quaternion, transform
from qvggt_core.synthetic.flight import exposure_poses, fly
from qvggt_core.synthetic.lens import Lens, LensChoice
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.render import Scene
from qvggt_core.synthetic.sensor import expose
from qvggt_core.util.directories import OutputKind, new_output
from qvggt_core.util.yaml_text import read_yaml
from qvggt_ros.drivers.bag_writer import BAG_VERSION, STORAGES, addressable, is_plain
from qvggt_ros.io.conversions import header
from qvggt_ros.io.messages import LATCHED, Messages, rosbags_messages, rosbags_typestore

_EPOCH_NS = 1_700_000_000_000_000_000
_BASE_FRAME = "base_link"
_CAMERA_FRAME = "camera_optical_frame"
_RIGHT_FRAME = "right_optical_frame"
# plumb_bob k1 k2 p1 p2 k3 of a wide lens.
_DISTORTION = (-0.22, 0.06, 0.001, -0.0005, 0.0)
# Rays per pixel beside the one through its centre; each has an instant of the exposure.
_SAMPLES = 4
_SUFFIXES = ("mcap", "db3", "db3-wal", "db3-shm", "db3-journal")
_OTHER_NAME = "recording"
_MARK = ("qvggt", "synthetic")
"""What metadata.yaml has in its custom data, so that a recording of ours is recognised."""

# The camera sits 10 cm ahead of and 5 cm above the robot's base.
_BASE_FROM_CAMERA = transform(FLU_FROM_OPTICAL[:3, :3], np.array([0.1, 0.0, 0.05]))


@dataclass(frozen=True)
class SyntheticBag:
    """What was written.

    Attributes:
        path: directory of the bag.
        frames: number of images.
        path_length: metres that the camera travelled.
        topics: topic names in the bag.
    """

    path: Path
    frames: int
    path_length: float
    topics: tuple[str, ...]


@dataclass(frozen=True)
class ImageFlaws:
    """In what images differ from what a perfect camera sees.

    Attributes:
        distortion: whether image and depth are those of a lens with plumb_bob distortion.
        noise: standard deviation of the images' noise, as a share of the full range.
        exposure: relative standard deviation of the slow changes of exposure.
        shutter: how long an exposure lasts, as a share of the time between images; what moves
            meanwhile is blurred. Poses and depth are those of its middle.
    """

    distortion: bool = False
    noise: float = 0.01
    exposure: float = 0.05
    shutter: float = 0.1

    def check(self) -> None:
        """Raise ParameterError if a value is out of range."""
        if not 0.0 <= self.shutter <= 1.0:
            raise ParameterError(
                f"a shutter of {self.shutter}: choose 0 to 1 of the time between images"
            )


@dataclass(frozen=True)
class BagOptions:
    """What is flown through, and how the camera sees it.

    Attributes:
        world: family, see `make_world`.
        flight: kind, see `fly`.
        seed: of the flight, the noise and the drift.
        world_seed: of the world's layout.
        frames: number of images.
        step: metres between images.
        jitter: strength of the 6-DoF jitter, see `fly`; a "hover" without any stands still.
        baseline: metres from the camera to a second one, to the right of it and with the same
            lens; 0 for one camera alone.
        lens: size and field of view of the images.
        flaws: of the images.
        rate_hz: images per second.
        compressed: whether images are PNG instead of raw.
        storage: "mcap" or "sqlite3".
    """

    world: str = "room"
    flight: str = "orbit"
    seed: int = 0
    world_seed: int = 0
    frames: int = 80
    step: float = 0.08
    jitter: float = 1.0
    baseline: float = 0.0
    lens: LensChoice = field(default_factory=LensChoice)
    flaws: ImageFlaws = field(default_factory=ImageFlaws)
    rate_hz: float = 10.0
    compressed: bool = False
    storage: str = "mcap"

    def check(self) -> None:
        """Raise ParameterError if a value is out of range."""
        if self.storage not in STORAGES:
            known = ", ".join(STORAGES)
            raise ParameterError(f"there is no storage {self.storage!r}; known: {known}")
        if not 0 < self.rate_hz <= 1000:
            raise ParameterError(f"{self.rate_hz} Hz: the rate must be above 0 and at most 1000 Hz")
        if not 0.0 <= self.baseline <= 10.0:
            raise ParameterError(f"a baseline of {self.baseline:g} m: choose 0 to 10 m")
        self.flaws.check()


def write_bag(output: Path, options: BagOptions, *, overwrite: bool = False) -> SyntheticBag:
    """Render a flight and write it as a rosbag2, whole or not at all.

    Equal options give equal bytes.

    Topics: /camera/image_raw (rgb8; with `compressed` /camera/image_raw/compressed, PNG),
    /camera/camera_info, /camera/depth (32FC1 metres, NaN in the sky), /ground_truth/pose (the
    optical camera in `map`), /odom (the base in `odom`, from integrated, noisy steps), /tf
    (odom to base_link) and /tf_static (base_link to the camera's optical frame). With a baseline
    also /right/image_raw (or compressed) and /right/camera_info, whose P has it, as /tf_static.

    Args:
        output: directory to create.
        options: the flight and the camera.
        overwrite: whether a former synthetic recording at `output` is replaced.

    Raises:
        ParameterError: an option is unknown or out of range, or no such flight fits.
        OutputError: `output` exists and is not to be replaced, or is nothing of our making.
    """
    options.check()
    camera = options.lens.lens(_DISTORTION if options.flaws.distortion else ())
    scene = Scene(make_world(options.world, options.world_seed))
    poses = fly(
        scene.world,
        options.flight,
        options.frames,
        options.seed,
        step=options.step,
        jitter=options.jitter,
    )
    messages = rosbags_messages()
    typestore = rosbags_typestore()
    topics: dict[str, Any] = {}
    with new_output(output, _SYNTHETIC_BAG, overwrite=overwrite, keep_unfinished=False) as partial:
        # A recording's files are named after its directory.
        name = output.resolve().name
        bag = partial / (name if is_plain(name) else _OTHER_NAME)
        with (
            addressable(bag) as path,
            Writer(path, version=BAG_VERSION, storage_plugin=STORAGES[options.storage]) as writer,
        ):
            writer.set_custom_data(*_MARK)
            for topic, stamp, message in _messages(messages, scene, camera, poses, options):
                if topic not in topics:
                    topics[topic] = writer.add_connection(
                        topic,
                        message.__msgtype__,
                        typestore=typestore,
                        offered_qos_profiles=LATCHED if topic == "/tf_static" else (),
                    )
                data = typestore.serialize_cdr(message, message.__msgtype__)
                writer.write(topics[topic], stamp, data)
        for file in bag.iterdir():
            file.rename(partial / file.name)
        bag.rmdir()
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    return SyntheticBag(output, options.frames, float(steps.sum()), tuple(topics))


def _messages(
    messages: Messages, scene: Scene, camera: Lens, poses: NDArray, options: BagOptions
) -> Iterator[tuple[str, int, Any]]:
    """Yield (topic, stamp, message) in the order of time."""
    rng = np.random.default_rng([8, options.seed])
    odometry = _drifting(poses @ inverse(_BASE_FROM_CAMERA), rng)
    gains = _slow_gains(len(poses), options.flaws.exposure, rng)
    beside = transform(np.eye(3), np.array([options.baseline, 0.0, 0.0]))
    static = [_transform(messages, _EPOCH_NS, _BASE_FRAME, _CAMERA_FRAME, _BASE_FROM_CAMERA)]
    if options.baseline:
        static.append(_transform(messages, _EPOCH_NS, _CAMERA_FRAME, _RIGHT_FRAME, beside))
    yield "/tf_static", _EPOCH_NS, messages.TFMessage(transforms=static)
    # Its noise is its own: without it the first camera's images are the same.
    rng_right = np.random.default_rng([9, options.seed])
    for index, pose in enumerate(poses):
        stamp = _EPOCH_NS + round(index * 1e9 / options.rate_hz)
        exposed = exposure_poses(poses, index, options.flaws.shutter, _SAMPLES)
        colour, depth = camera.picture(scene, pose, _SAMPLES, exposed)
        colour = expose(colour, gains[index], options.flaws.noise, rng)
        yield from _pictures(messages, stamp, camera, colour, options)
        if options.baseline:
            there, _ = camera.picture(scene, pose @ beside, _SAMPLES, exposed @ beside)
            there = expose(there, gains[index], options.flaws.noise, rng_right)
            yield from _pictures(messages, stamp, camera, there, options, _RIGHT_FRAME)
        yield "/camera/depth", stamp, _image(messages, stamp, depth, "32FC1")
        yield (
            "/ground_truth/pose",
            stamp,
            messages.PoseStamped(header=header(messages, stamp, "map"), pose=_pose(messages, pose)),
        )
        yield "/odom", stamp, _odometry(messages, stamp, odometry, index, options.rate_hz)
        moved = _transform(messages, stamp, "odom", _BASE_FRAME, odometry[index])
        yield "/tf", stamp, messages.TFMessage(transforms=[moved])


def _pictures(
    messages: Messages,
    stamp: int,
    camera: Lens,
    colour: NDArray[np.uint8],
    options: BagOptions,
    frame: str = _CAMERA_FRAME,
) -> Iterator[tuple[str, int, Any]]:
    """Yield the calibration and the image of one camera."""
    name, baseline = ("/right", options.baseline) if frame == _RIGHT_FRAME else ("/camera", 0.0)
    yield f"{name}/camera_info", stamp, _camera_info(messages, stamp, camera, frame, baseline)
    if options.compressed:
        yield f"{name}/image_raw/compressed", stamp, _png(messages, stamp, colour, frame)
    else:
        yield f"{name}/image_raw", stamp, _image(messages, stamp, colour, "rgb8", frame)


def _is_marked(directory: Path) -> bool:
    try:
        metadata = read_yaml(directory / "metadata.yaml")
        return _MARK[0] in (metadata["rosbag2_bagfile_information"]["custom_data"] or {})
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _entries(directory: Path) -> list[Path]:
    """Return the files of a recording in a directory, and of one in the making below it."""
    found = [Path("metadata.yaml")]
    # While it is made or replaced, the directory has a suffix, or is within the output.
    output = directory.name.removesuffix(".partial").removesuffix(".former")
    for name in (directory.name, output or directory.parent.name, _OTHER_NAME):
        found += [Path(f"{name}.{each}") for each in _SUFFIXES]
        found += [Path(name), Path(name) / "metadata.yaml"]
        found += [Path(name) / f"{name}.{each}" for each in _SUFFIXES]
    found = [path for path in dict.fromkeys(found) if path != Path()]
    return [path for path in found if (directory / path).exists()]


_SYNTHETIC_BAG = OutputKind("synthetic recording", _entries, _is_marked)


def _drifting(world_from_base: NDArray, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return odometry from the first pose on: each step with a bias and noise of its own."""
    bias = rng.normal(0.0, 0.01)
    odom_from_base = [np.eye(4)]
    for step in inverse(world_from_base[:-1]) @ world_from_base[1:]:
        turn = np.radians(0.1) * rng.standard_normal() + np.radians(0.03)
        yaw = np.array(
            [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
        )
        noisy = step.copy()
        noisy[:3, 3] = step[:3, 3] * (1.0 + bias + 0.01 * rng.standard_normal(3))
        noisy[:3, :3] = step[:3, :3] @ yaw
        odom_from_base.append(odom_from_base[-1] @ noisy)
    return np.stack(odom_from_base)


def _slow_gains(frames: int, spread: float, rng: np.random.Generator) -> NDArray[np.float64]:
    phase = rng.uniform(0.0, 2.0 * np.pi)
    return np.exp(np.sqrt(2.0) * spread * np.sin(phase + 0.15 * np.arange(frames)))


def _pose(messages: Messages, a_from_b: NDArray) -> Any:
    x, y, z, w = (float(v) for v in quaternion(a_from_b[:3, :3]))
    px, py, pz = (float(v) for v in a_from_b[:3, 3])
    return messages.Pose(
        position=messages.Point(x=px, y=py, z=pz),
        orientation=messages.Quaternion(x=x, y=y, z=z, w=w),
    )


def _transform(messages: Messages, stamp: int, parent: str, child: str, a_from_b: NDArray) -> Any:
    pose = _pose(messages, a_from_b)
    return messages.TransformStamped(
        header=header(messages, stamp, parent),
        child_frame_id=child,
        transform=messages.Transform(
            translation=messages.Vector3(x=pose.position.x, y=pose.position.y, z=pose.position.z),
            rotation=pose.orientation,
        ),
    )


def _odometry(messages: Messages, stamp: int, odometry: NDArray, index: int, rate: float) -> Any:
    types = rosbags_typestore().types
    before = odometry[max(index - 1, 0)]
    velocity = inverse(before)[:3, :3] @ (odometry[index][:3, 3] - before[:3, 3]) * rate
    covariance = np.diag([1e-4] * 6).reshape(-1)
    twist = types["geometry_msgs/msg/Twist"](
        linear=messages.Vector3(x=velocity[0], y=velocity[1], z=velocity[2]),
        angular=messages.Vector3(x=0.0, y=0.0, z=0.0),
    )
    return messages.Odometry(
        header=header(messages, stamp, "odom"),
        child_frame_id=_BASE_FRAME,
        pose=types["geometry_msgs/msg/PoseWithCovariance"](
            pose=_pose(messages, odometry[index]), covariance=covariance
        ),
        twist=types["geometry_msgs/msg/TwistWithCovariance"](twist=twist, covariance=covariance),
    )


def _image(
    messages: Messages, stamp: int, pixels: NDArray, encoding: str, frame: str = _CAMERA_FRAME
) -> Any:
    pixels = np.ascontiguousarray(pixels)
    return messages.with_octets(
        messages.Image,
        pixels,
        header=header(messages, stamp, frame),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0],
    )


def _png(messages: Messages, stamp: int, colour: NDArray[np.uint8], frame: str) -> Any:
    _, data = cv2.imencode(".png", colour[..., ::-1])
    return messages.with_octets(
        messages.CompressedImage,
        data.reshape(-1),
        header=header(messages, stamp, frame),
        format="rgb8; png compressed bgr8",
    )


def _camera_info(messages: Messages, stamp: int, camera: Lens, frame: str, baseline: float) -> Any:
    k = camera.intrinsics
    projection = np.concatenate([k, [[-baseline * k[0, 0]], [0.0], [0.0]]], axis=1)
    return messages.CameraInfo(
        header=header(messages, stamp, frame),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=messages.doubles(np.array(camera.distortion or (0.0,) * 5)),
        k=messages.doubles(k.reshape(-1)),
        r=messages.doubles(np.eye(3).reshape(-1)),
        p=messages.doubles(projection.reshape(-1)),
        binning_x=0,
        binning_y=0,
        roi=messages.RegionOfInterest(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    )
