"""Messages that are wrong in every way, made from a seed, and a session that must tolerate them."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImage

from qvggt_core.errors import RecordingError
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Reconstructor
from qvggt_core.stream.frame import WindowPrediction
from qvggt_ros.io.conversions import frames_of, read_transform, stamp_ns
from qvggt_ros.io.tf_tree import TransformTree
from qvggt_ros.publishing import Driver
from qvggt_ros.session import ReconstructionSession
from support.recordings import HEIGHT, WIDTH, M, RoomNetwork, header, stamp_of
from support.recordings import camera_info_message as usual_info
from support.recordings import image_message as usual_image

ENCODINGS = (
    *("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "rgb16", "bgr16", "rgba16", "bgra16", "mono16"),
    *("8UC1", "8UC3", "8UC4", "16UC1", "16UC3", "32FC1", "64FC1", "8SC1", "32SC3"),
    *("yuv422", "yuv422_yuy2", "uyvy", "yuyv", "yuy2", "nv12", "nv21", "nv24", "yuv420", "yv12"),
    *("bayer_rggb8", "bayer_bggr16", "bayer_gbrg8", "bayer_grbg16", "i420"),
    *("", " RGB8 ", "rgb8\0", "\x1b[31mrgb8", "x" * 5000, "é", "<script>", "%s%n", "'; DROP"),
)
FORMATS = ("jpeg", "png", "rgb8; jpeg compressed bgr8", "bayer_rggb8; jpeg compressed mono8")
FORMATS += ("16UC1; compressedDepth", "mono16; png compressed", "", "\0", "tiff", "x" * 3000)
SIZES = (0, 1, 2, 3, 7, 42, 56, 100, 640, 16385, 2**31, 2**32 - 1)
NUMBERS = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-320, 1e-200, 1e300, -1e300)
NUMBERS += (1e9, 1e-9, 0.5, 44.0, 1e38, 4e38)
FRAMES = ("camera_optical_frame", "base_link", "odom", "", "/", "/camera", "a" * 4000, "\n", "é")
MODELS = ("plumb_bob", "rational_polynomial", "equidistant", "", "fisheye", "\x1b]0;x\x07")
SECONDS = (0, -(2**31), 2**31 - 1, 1, 1_700_000_000)


def _stamp(rng: random.Random, index: int) -> int:
    """A stamp in the order of time, or nearly, or anything."""
    kind = rng.random()
    if kind < 0.8:
        return stamp_of(index)
    if kind < 0.9:
        return stamp_of(max(0, index + rng.randint(-40, 40)))
    return rng.choice(SECONDS) * 10**9 + rng.choice((0, 1, 999_999_999))


def _header(rng: random.Random, index: int) -> Any:
    frame = FRAMES[0] if rng.random() < 0.85 else rng.choice(FRAMES)
    made = header(index, frame, _stamp(rng, index))
    if rng.random() < 0.05:
        made.stamp.nanosec = rng.choice((10**9, 2**32 - 1))
    return made


def _image(rng: random.Random, index: int) -> Any:
    message = usual_image(index, header=_header(rng, index))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        kind = rng.randrange(6)
        if kind == 0:
            message.encoding = rng.choice(ENCODINGS)
        elif kind == 1:
            message.width = rng.choice(SIZES)
        elif kind == 2:
            message.height = rng.choice(SIZES)
        elif kind == 3:
            message.step = rng.choice((*SIZES, 3 * WIDTH + 5, 2 * WIDTH, WIDTH))
        elif kind == 4:
            message.is_bigendian = rng.choice((0, 1, 255))
        else:
            length = rng.choice((0, 1, 100, 3 * WIDTH * HEIGHT - 1, 6 * WIDTH * HEIGHT))
            message.data = np.frombuffer(rng.randbytes(length), np.uint8)
    if rng.random() < 0.1:
        value = rng.choice((0, 255, 128))
        message.data = np.full(message.data.shape, value, np.uint8)
    return message


def _compressed(rng: random.Random, index: int) -> Any:
    pixels = usual_image(index).data.reshape(HEIGHT, WIDTH, 3)
    picture = PilImage.fromarray(pixels).convert(rng.choice(("RGB", "L", "1", "RGBA", "CMYK")))
    kind = rng.choice(("JPEG", "PNG", "GIF", "BMP"))
    if kind == "JPEG" and picture.mode in ("1", "RGBA"):
        picture = picture.convert("RGB")
    if kind in ("PNG", "BMP", "GIF") and picture.mode == "CMYK":
        picture = picture.convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, format=kind)
    data = bytearray(stream.getvalue())
    change = rng.randrange(4)
    if change == 0:
        del data[rng.randrange(len(data)) :]
    elif change == 1:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    octets = np.frombuffer(bytes(data), np.uint8)
    return M.CompressedImage(header=_header(rng, index), format=rng.choice(FORMATS), data=octets)


def _camera_info(rng: random.Random, index: int) -> Any:
    message = usual_info(index, header=_header(rng, index))
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        kind = rng.randrange(7)
        if kind == 0:
            message.k = message.k.copy()
            message.k[rng.randrange(9)] = rng.choice(NUMBERS)
        elif kind == 1:
            message.p = message.p.copy()
            message.p[rng.randrange(12)] = rng.choice(NUMBERS)
        elif kind == 2:
            length = rng.choice((0, 1, 4, 5, 8, 12, 14, 100))
            message.d = np.array([rng.choice((*NUMBERS, 0.1, -0.1)) for _ in range(length)])
        elif kind == 3:
            message.distortion_model = rng.choice(MODELS)
        elif kind == 4:
            message.width, message.height = rng.choice(SIZES), rng.choice(SIZES)
        elif kind == 5:
            message.binning_x, message.binning_y = rng.choice(SIZES), rng.choice(SIZES)
        else:
            sizes = {name: rng.choice(SIZES) for name in ("x_offset", "y_offset")}
            sizes |= {name: rng.choice(SIZES) for name in ("height", "width")}
            message.roi = M.RegionOfInterest(**sizes, do_rectify=rng.random() < 0.5)
    return message


def _numbers(rng: random.Random, usual: Sequence[float]) -> list[float]:
    numbers = list(usual)
    for _ in range(rng.choice((0, 0, 1, 2, 7))):
        numbers[rng.randrange(len(numbers))] = rng.choice(NUMBERS)
    return numbers


def _odometry(rng: random.Random, index: int) -> Any:
    x, y, z, *q = _numbers(rng, (0.1 * index, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    zero = M.Vector3(x=0.0, y=0.0, z=0.0)
    return M.Odometry(
        header=_header(rng, index),
        child_frame_id=rng.choice(FRAMES),
        pose=M.PoseWithCovariance(
            pose=M.Pose(
                position=M.Point(x=x, y=y, z=z),
                orientation=M.Quaternion(**dict(zip("xyzw", q, strict=True))),
            ),
            covariance=np.array([rng.choice(NUMBERS)] * 36),
        ),
        twist=M.TwistWithCovariance(
            twist=M.Twist(linear=zero, angular=zero), covariance=np.zeros(36)
        ),
    )


def _transform(rng: random.Random, index: int) -> Any:
    x, y, z, *q = _numbers(rng, (0.1 * index, 0.0, 0.3, 0.0, 0.0, 0.0, 1.0))
    return M.TransformStamped(
        header=header(index, rng.choice(FRAMES), _stamp(rng, index)),
        child_frame_id=rng.choice(FRAMES),
        transform=M.Transform(
            translation=M.Vector3(x=x, y=y, z=z),
            rotation=M.Quaternion(**dict(zip("xyzw", q, strict=True))),
        ),
    )


class RandomNetwork(RoomNetwork):
    """A room's network whose answers depend on a generator of random numbers."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng


class GuessingNetwork(RandomNetwork):
    """A network that knows nothing: most windows are plausible, some hold what no camera sees."""

    def predict(
        self, tokens: Sequence[int], height: int, width: int, newest: int | None = None
    ) -> WindowPrediction:
        count = len(tokens)
        poses = np.tile(np.eye(4), (count, 1, 1))
        poses[:, 0, 3] = -0.1 * np.array(tokens)
        focal = 0.8 * width
        matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        found = WindowPrediction(
            camera_from_world=poses,
            intrinsics=np.tile(matrix, (count, 1, 1)),
            depth=np.full((count, height, width), 2.0, np.float32),
            confidence=np.full((count, height, width), 3.0, np.float32),
        )
        if self._rng.random() < 0.4:
            self._spoil(found)
        return found

    def _spoil(self, found: WindowPrediction) -> None:
        rng = self._rng
        values: np.ndarray = getattr(
            found, rng.choice(("camera_from_world", "intrinsics", "depth", "confidence"))
        )
        flat = values.reshape(-1)
        largest = float(np.finfo(values.dtype).max)
        value = rng.choice(NUMBERS)
        value = max(-largest, min(value, largest)) if math.isfinite(value) else value
        flat[:: rng.choice((1, 2, 7, 50))] = value


KINDS = {
    "image": _image,
    "compressed": _compressed,
    "camera info": _camera_info,
    "odometry": _odometry,
    "transform": _transform,
}


class Hostile:
    """A session with a driver, and what it was sent.

    Attributes:
        session: the session.
        images: image messages that it was given.
        wrong: what it published that is no geometry.
    """

    def __init__(self, rng: random.Random, *, live: bool) -> None:
        self.images = 0
        self.wrong: list[str] = []
        self._tree = TransformTree()
        self._rng = rng
        parameters = Parameters(
            confirm=rng.random() < 0.3,
            refine=rng.random() < 0.3,
            window_size=4,
            window_stride=rng.choice((1, 2)),
            rectify=rng.random() < 0.7,
            use_camera_intrinsics=rng.random() < 0.5,
        )
        self.session = ReconstructionSession(
            Reconstructor(GuessingNetwork(rng), parameters),
            parameters,
            Driver(M, self._check, lookup=self._lookup),
            rectified=("",) if rng.random() < 0.2 else (),
            live=live,
        )

    def send(self, kind: str, index: int) -> None:
        """Make a message and hand it over."""
        message = KINDS[kind](self._rng, index)
        if kind in ("image", "compressed"):
            self.images += 1
            self.session.on_image(message)
        elif kind == "camera info":
            self.session.on_camera_info(message)
        elif kind == "odometry":
            self.session.on_odometry(message)
        else:
            self._take_transform(message)

    def unaccounted(self) -> int:
        """End the stream; return images that no counter has."""
        self.session.finish()
        self.session.reset("the end")  # what still waits behind a window that was no use
        counters = self.session.counters
        before = sum(
            count
            for reason, count in counters.rejected.items()
            if not reason.startswith(("odometry: ", "calibration: "))
        )
        done = counters.published + counters.losses.gated + counters.losses.withheld
        assert counters.received == self.images, (counters.received, self.images)
        return self.images - before - done

    def _take_transform(self, message: Any) -> None:
        parent, child = frames_of(message)
        try:
            pose = read_transform(message)
            self._tree.add(parent, child, stamp_ns(message), pose, static=False)
        except RecordingError:
            pass

    def _lookup(self, target: str, source: str, stamp: int) -> Any:
        try:
            found = self._tree.track(target, source, [stamp])
        except RecordingError:
            return None
        return found.poses[0] if len(found) else None

    def _check(self, topic: str, message: Any, stamp: int) -> None:
        """Hold that what leaves is geometry: finite, or NaN where depth is invalid."""
        if topic in ("depth/image", "confidence"):
            values = message.data.view(np.float32)
            bad = np.isinf(values).any()
            bad |= topic == "depth/image" and bool((values <= 0).any())
        elif topic == "points":
            values = message.data.view(np.float32).reshape(-1, message.point_step // 4)
            bad = not np.isfinite(values[:, [0, 1, 2, 4]]).all()
        elif topic == "depth/camera_info":
            bad = not np.isfinite(message.k).all() or message.k[0] <= 0
        else:
            bad = not _all_finite(message)
        if bad:
            self.wrong.append(f"{topic} of {stamp}")


def _all_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, np.ndarray):
        return bool(np.isfinite(value).all())
    if isinstance(value, list | tuple):
        return all(_all_finite(each) for each in value)
    if hasattr(value, "__dataclass_fields__"):
        return all(_all_finite(each) for each in vars(value).values())
    return True
