"""Recordings for tests: a room with a camera in it, whose images, depth and poses are exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, quaternion, transform
from qvggt_core.stream.frame import WindowPrediction
from qvggt_ros.io.messages import TYPES, rosbags_messages, rosbags_typestore

M = rosbags_messages()
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 100_000_000
WIDTH, HEIGHT, PATCH = 56, 42, 14
INTRINSICS = np.array([[44.0, 0.0, 28.0], [0.0, 44.0, 21.0], [0.0, 0.0, 1.0]])
ROOM_LOW, ROOM_HIGH = np.array([-1.0, -3.0, -1.2]), np.array([6.0, 3.0, 1.8])


def stamp_of(index: int) -> int:
    return START_NS + index * PERIOD_NS


def world_from_camera(index: int) -> np.ndarray:
    """An arc to the right through the room, looking a little to the left."""
    yaw = 0.5 - 0.05 * index
    rotation = np.array(
        [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]]
    )
    position = [0.12 * index, 0.8 * np.sin(0.12 * index), 0.02 * index]
    return transform(rotation, np.array(position)) @ FLU_FROM_OPTICAL


def ray_cast(pose: np.ndarray, intrinsics: np.ndarray, width: int, height: int):
    """Return image (uint8 RGB) and depth of the room: the distance to the nearest wall ahead."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(intrinsics).T
    directions = rays @ pose[:3, :3].T
    walls = np.where(directions > 0, ROOM_HIGH, ROOM_LOW)
    parallel = directions == 0
    distances = (walls - pose[:3, 3]) / np.where(parallel, 1.0, directions)
    distances[parallel] = np.inf
    axis = distances.argmin(axis=-1)
    depth = distances.min(axis=-1)
    points = pose[:3, 3] + depth[..., None] * directions
    checks = (np.floor(points * 2.0 + 1e-6).sum(axis=-1) % 2)[..., None]
    tint = np.array([[200, 120, 90], [90, 160, 200], [150, 150, 110]])[axis]
    image = tint * (0.65 + 0.35 * checks)
    return image.astype(np.uint8), depth.astype(np.float32)


class RoomNetwork:
    """A network that knows the room; frames are numbered in the order of their encoding.

    Each window comes in its own gauge: another unit, the first camera as its world.
    """

    image_width = WIDTH
    patch_size = PATCH

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, image: np.ndarray) -> int:
        assert image.dtype == np.uint8
        self.encoded += 1
        return self.encoded - 1

    def predict(
        self, tokens: Sequence[int], height: int, width: int, newest: int | None = None
    ) -> WindowPrediction:
        unit = 0.5 + 0.1 * tokens[0]
        first = world_from_camera(tokens[0])
        camera_from_first = np.stack([inverse(world_from_camera(t)) @ first for t in tokens])
        camera_from_first[:, :3, 3] *= unit
        intrinsics = INTRINSICS * np.array([[width / WIDTH], [height / HEIGHT], [1.0]])
        depth = np.stack(
            [ray_cast(world_from_camera(t), intrinsics, width, height)[1] for t in tokens]
        )
        return WindowPrediction(
            camera_from_world=camera_from_first,
            intrinsics=np.repeat(intrinsics[None], len(tokens), axis=0),
            depth=(unit * depth).astype(np.float32),
            confidence=(1.0 + 5.0 / depth).astype(np.float32),
        )


def header(index: int, frame_id: str = "camera_optical_frame", stamp_ns: int | None = None) -> Any:
    seconds, nanosec = divmod(stamp_of(index) if stamp_ns is None else stamp_ns, 10**9)
    return M.Header(stamp=M.Time(sec=seconds, nanosec=nanosec), frame_id=frame_id)


def image_message(index: int, **changes: Any) -> Any:
    pixels, _ = ray_cast(world_from_camera(index), INTRINSICS, WIDTH, HEIGHT)
    fields = {
        "header": header(index),
        "height": HEIGHT,
        "width": WIDTH,
        "encoding": "rgb8",
        "is_bigendian": 0,
        "step": 3 * WIDTH,
        "data": pixels.reshape(-1),
    }
    return M.Image(**{**fields, **changes})


def camera_info_message(index: int, **changes: Any) -> Any:
    fields = {
        "header": header(index),
        "height": HEIGHT,
        "width": WIDTH,
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": INTRINSICS.ravel(),
        "r": np.eye(3).ravel(),
        "p": np.hstack([INTRINSICS, np.zeros((3, 1))]).ravel(),
        "binning_x": 0,
        "binning_y": 0,
        "roi": M.RegionOfInterest(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    }
    return M.CameraInfo(**{**fields, **changes})


def pose_message(index: int) -> Any:
    from scipy.spatial.transform import Rotation

    pose = world_from_camera(index)
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
    return M.PoseStamped(
        header=header(index, "map"),
        pose=M.Pose(
            position=M.Point(**dict(zip("xyz", pose[:3, 3].tolist(), strict=True))),
            orientation=M.Quaternion(x=x, y=y, z=z, w=w),
        ),
    )


def transform_message(parent: str, child: str, parent_from_child: np.ndarray, index: int) -> Any:
    """A tf2_msgs/TFMessage of one transform (4, 4)."""
    x, y, z = parent_from_child[:3, 3].tolist()
    qx, qy, qz, qw = quaternion(parent_from_child[:3, :3]).tolist()
    return M.TFMessage(
        transforms=[
            M.TransformStamped(
                header=header(index, parent),
                child_frame_id=child,
                transform=M.Transform(
                    translation=M.Vector3(x=x, y=y, z=z),
                    rotation=M.Quaternion(x=qx, y=qy, z=qz, w=qw),
                ),
            )
        ]
    )


def odometry_message(index: int, odom_from_child: np.ndarray, child: str = "base_link") -> Any:
    """Odometry that stands still where it is."""
    x, y, z = odom_from_child[:3, 3].tolist()
    qx, qy, qz, qw = quaternion(odom_from_child[:3, :3]).tolist()
    zero = M.Vector3(x=0.0, y=0.0, z=0.0)
    return M.Odometry(
        header=header(index, "odom"),
        child_frame_id=child,
        pose=M.PoseWithCovariance(
            pose=M.Pose(
                position=M.Point(x=x, y=y, z=z),
                orientation=M.Quaternion(x=qx, y=qy, z=qz, w=qw),
            ),
            covariance=np.zeros(36),
        ),
        twist=M.TwistWithCovariance(
            twist=M.Twist(linear=zero, angular=zero), covariance=np.zeros(36)
        ),
    )


Entry = tuple[str, str, int, Any]
"""Topic, name of the message type, receive time in nanoseconds, message."""


def room_entries(
    frames: int, image: Callable[[int], Any] = image_message, image_type: str = "Image"
) -> list[Entry]:
    """Images, calibration and true poses of a flight through the room."""
    topic = "/camera/image_raw" + ("/compressed" if image_type == "CompressedImage" else "")
    entries: list[Entry] = []
    for index in range(frames):
        received = stamp_of(index) + 1_000_000
        entries += [
            ("/ground_truth/pose", "PoseStamped", received, pose_message(index)),
            (topic, image_type, received, image(index)),
            ("/camera/camera_info", "CameraInfo", received, camera_info_message(index)),
        ]
    return entries


def write_recording(path: Path, entries: Sequence[Entry], storage: str = "mcap") -> Path:
    typestore = rosbags_typestore()
    connections: dict[str, Any] = {}
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        for topic, name, received_ns, message in entries:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, TYPES[name], typestore=typestore)
            data = typestore.serialize_cdr(message, TYPES[name])
            writer.write(connections[topic], received_ns, data)
    return path


def read_recording(path: Path) -> dict[str, list[tuple[int, bytes, Any]]]:
    """Return (bag time, CDR bytes, message) per topic."""
    found: dict[str, list[tuple[int, bytes, Any]]] = {}
    with AnyReader([path]) as reader:
        for connection in reader.connections:
            found[connection.topic] = []
        for connection, received_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            found[connection.topic].append((received_ns, bytes(data), message))
    return found


class RecognisingNetwork(RoomNetwork):
    """The room's network for many recordings: a frame is known by its image, not by its turn."""

    def __init__(self, frames: int = 40) -> None:
        super().__init__()
        self._known = {
            ray_cast(world_from_camera(index), INTRINSICS, WIDTH, HEIGHT)[0].tobytes(): index
            for index in range(frames)
        }

    def encode(self, image: np.ndarray) -> int:
        # A live network runs once on black images, before any comes.
        return self._known[image.tobytes()] if image.any() else 0


def load_room_network(parameters: Any) -> Any:
    """Stands in for `load_network`, in this process or in another one."""
    from qvggt_core.stream.load_network import LoadedNetwork

    return LoadedNetwork(RecognisingNetwork(), parameters, {"file": "room"})


def load_mortal_network(parameters: Any) -> Any:
    """Like the former, but its process dies at the second frame of a recording, without a word."""
    import os

    from qvggt_core.stream.load_network import LoadedNetwork

    class Mortal(RecognisingNetwork):
        def encode(self, image: np.ndarray) -> int:
            index = super().encode(image)
            if index == 13:
                os._exit(9)
            return index

    return LoadedNetwork(Mortal(), parameters, {"file": "room"})
