"""What the ROS layer costs alone: message to picture, geometry to messages, beside the naive way.

Both ways run in turn in one process, and the ratio is the median over rounds. With an installed
ROS (sourced) the classes are rclpy's, elsewhere rosbags'.

    python benchmarks/ros_layer.py
"""

from __future__ import annotations

import argparse
import struct
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.measure.provenance import write_results
from qvggt_core.stream.frame import FrameGeometry, View
from qvggt_core.stream.frame_cloud import frame_cloud
from qvggt_ros.io import conversions, images
from qvggt_ros.io.messages import Messages, available_messages

HEIGHT, WIDTH = 480, 640
STAMP = 1_700_000_000_123_456_789
Way = Callable[[], Any]


def geometry() -> FrameGeometry:
    """Return a frame of 640x480 pixels, nearly all of them valid: a cloud of 300,000 points."""
    rng = np.random.default_rng(0)
    depth = np.linspace(1, 5, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    return FrameGeometry(
        view=View(STAMP, rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), None, "camera"),
        map_from_camera=np.eye(4),
        intrinsics=np.array([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]]),
        depth=depth,
        confidence=rng.uniform(1, 9, (HEIGHT, WIDTH)).astype(np.float32),
    )


def image_fields(messages: Messages, encoding: str, pixel_bytes: int) -> dict[str, Any]:
    """Return the fields of an Image but its octets."""
    header = conversions.header(messages, STAMP, "camera")
    size = {"height": HEIGHT, "width": WIDTH, "step": pixel_bytes * WIDTH}
    return {"header": header, "encoding": encoding, "is_bigendian": 0, **size}


def picture_message(messages: Messages, picture: np.ndarray) -> Any:
    """Return an rgb8 Image."""
    return messages.with_octets(messages.Image, picture, **image_fields(messages, "rgb8", 3))


def naive_picture(message: Any) -> np.ndarray:
    """Return the picture through Python numbers."""
    return np.array(list(message.data), dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)


def naive_depth(messages: Messages, frame: FrameGeometry) -> Any:
    """Return the depth image, its octets given to the constructor as rclpy's users do."""
    octets = frame.depth.tobytes()
    data = list(octets) if messages.installed else np.array(list(octets), np.uint8)
    return messages.Image(data=data, **image_fields(messages, "32FC1", 4))


def packed_colors(cloud: Cloud) -> np.ndarray:
    """Return (N,) uint32 0x00RRGGBB."""
    colors = cloud.colors.astype(np.uint32)
    return (colors[:, 0] << 16) | (colors[:, 1] << 8) | colors[:, 2]


def point_fields(messages: Messages) -> list[Any]:
    """Return the fields of a point, all float32."""
    return [
        messages.PointField(name=name, offset=4 * i, datatype=7, count=1)
        for i, name in enumerate(("x", "y", "z", "rgb", "confidence"))
    ]


def structured_cloud(messages: Messages, cloud: Cloud) -> Any:
    """Return the cloud as sensor_msgs_py makes it of a structured array."""
    from sensor_msgs_py.point_cloud2 import create_cloud, dtype_from_fields

    fields = point_fields(messages)
    points = np.empty(len(cloud), dtype_from_fields(fields))
    for axis, name in enumerate("xyz"):
        points[name] = cloud.positions[:, axis]
    points["rgb"] = packed_colors(cloud).view(np.float32)
    points["confidence"] = cloud.confidence
    return create_cloud(conversions.header(messages, STAMP, "camera"), fields, points)


def naive_cloud(messages: Messages, cloud: Cloud) -> Any:
    """Return the cloud of a list of tuples."""
    rgb = packed_colors(cloud)
    fields = point_fields(messages)
    tuples = [
        (x, y, z, color, sure)
        for (x, y, z), color, sure in zip(
            cloud.positions, rgb.view(np.float32), cloud.confidence, strict=True
        )
    ]
    header = conversions.header(messages, STAMP, "camera")
    if messages.installed:
        from sensor_msgs_py.point_cloud2 import create_cloud

        return create_cloud(header, fields, tuples)
    data = b"".join(struct.pack("<fffff", *point) for point in tuples)
    return messages.PointCloud2(
        header=header,
        height=1,
        width=len(tuples),
        fields=fields,
        is_bigendian=False,
        point_step=20,
        row_step=20 * len(tuples),
        data=np.frombuffer(data, np.uint8),
        is_dense=True,
    )


def compare(ours: Way, naive: Way, rounds: int) -> dict[str, float]:
    """Run both in turn; return milliseconds of each and their ratio, medians over rounds."""
    times = np.empty((rounds, 2))
    for way in (ours, naive):
        way()
    for index in range(rounds):
        for column, way in enumerate((ours, naive)):
            before = time.perf_counter()
            way()
            times[index, column] = 1e3 * (time.perf_counter() - before)
    return {
        "ours_ms": float(np.median(times[:, 0])),
        "other_ms": float(np.median(times[:, 1])),
        "ratio": float(np.median(times[:, 1] / times[:, 0])),
    }


def main() -> None:
    """Measure, print a table and write the raw results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    messages = available_messages()
    family = "rclpy" if messages.installed else "rosbags"
    frame = geometry()
    cloud = frame_cloud(frame, max_depth_edge=1.0)
    picture = picture_message(messages, frame.view.image)
    ways: dict[str, tuple[Way, Way]] = {
        "Image rgb8 640x480 to picture": (
            lambda: images.decode_image(picture),
            lambda: naive_picture(picture),
        ),
        "depth to Image 32FC1 640x480": (
            lambda: conversions.depth_message(messages, frame),
            lambda: naive_depth(messages, frame),
        ),
        f"cloud to PointCloud2, {len(cloud):,} points": (
            lambda: conversions.cloud_message(messages, cloud, STAMP, "camera"),
            lambda: naive_cloud(messages, cloud),
        ),
    }
    if messages.installed:
        ways[f"the same beside sensor_msgs_py, structured, {len(cloud):,} points"] = (
            lambda: conversions.cloud_message(messages, cloud, STAMP, "camera"),
            lambda: structured_cloud(messages, cloud),
        )
    rows = {name: compare(ours, naive, args.rounds) for name, (ours, naive) in ways.items()}
    table = Table(title=f"ROS layer, message classes of {family}")
    for heading in ("what", "ours, ms", "other way, ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.3g}" for key in ("ours_ms", "other_ms", "ratio")))
    Console().print(table)
    output = args.output or Path(__file__).parent / f"results/ros_layer_{family}.json"
    facts = {"messages": family, "rounds": args.rounds}
    try:
        facts["rclpy"] = version("rclpy") if messages.installed else None
    except PackageNotFoundError:
        facts["rclpy"] = "unknown"
    write_results(output, {**facts, "rows": rows})
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
