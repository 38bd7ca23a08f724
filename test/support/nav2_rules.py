"""The rules by which Nav2's costmap layers take or drop a message, as its sources have them.

Of nav2_costmap_2d (static_layer.cpp, observation_buffer.cpp, obstacle_layer.cpp, voxel_layer.cpp)
and nav2_util (validate_messages.hpp), releases Humble to Kilted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NO_INFORMATION, LETHAL, FREE = 255, 254, 0
_FLOAT32 = 7


def check_header(header: Any) -> int:
    """Hold a header to what transforms need; return its stamp in nanoseconds."""
    assert header.frame_id, "a header without a frame is malformed"
    assert not header.frame_id.startswith("/"), "tf2 knows no leading slash"
    assert 0 <= header.stamp.nanosec < 10**9
    stamp = header.stamp.sec * 10**9 + header.stamp.nanosec
    assert stamp > 0, "a stamp of zero is the newest transform, not this message's"
    return stamp


def check_map(message: Any) -> np.ndarray:
    """Hold an OccupancyGrid to `validateMsg` and to the alignment of costmaps; return (H, W)."""
    check_header(message.header)
    info = message.info
    assert info.width > 0
    assert info.height > 0
    assert np.isfinite(info.resolution)
    assert info.resolution > 0
    position, q = info.origin.position, info.origin.orientation
    assert np.isfinite([position.x, position.y, position.z]).all()
    assert abs(q.x**2 + q.y**2 + q.z**2 + q.w**2 - 1) < 1e-4
    assert (q.x, q.y, q.z) == (0, 0, 0), "costmaps have no rotation, and take none"
    for at in (position.x, position.y):
        off = abs(np.fmod(at, info.resolution))
        assert min(off, info.resolution - off) < 1e-5, "not aligned with the resolution"
    assert len(message.data) == info.width * info.height
    values = np.array(message.data, np.int8)
    assert values.min() >= -1
    assert values.max() <= 100
    return values.reshape(info.height, info.width)


def static_costs(values: np.ndarray, costmap: dict[str, Any]) -> np.ndarray:
    """Return what a static layer makes of a map's values, by a costmap's parameters."""
    octets = values.astype(np.int8).view(np.uint8).astype(int)
    threshold = np.clip(costmap["lethal_cost_threshold"], 0, 100)
    unknown = NO_INFORMATION if costmap["track_unknown_space"] else FREE
    rest = FREE if costmap["trinary_costmap"] else octets / threshold * LETHAL
    costs = np.where(octets >= threshold, LETHAL, rest)
    return np.where(octets == costmap["unknown_cost_value"], unknown, costs)


def check_cloud(message: Any) -> np.ndarray:
    """Hold a PointCloud2 to what iterators over x, y, z as floats need; return (N, 3)."""
    check_header(message.header)
    fields = {field.name: field for field in message.fields}
    for name in "xyz":
        assert fields[name].datatype == _FLOAT32, "a PointCloud2Iterator<float> reads it"
        assert fields[name].count == 1
    assert not message.is_bigendian
    assert message.row_step == message.point_step * message.width
    assert len(message.data) == message.row_step * message.height
    octets = np.frombuffer(bytes(message.data), np.uint8).reshape(-1, message.point_step)
    columns = [octets[:, fields[name].offset :][:, :4].copy().view("<f4") for name in "xyz"]
    points = np.concatenate(columns, axis=1)
    assert np.isfinite(points).all(), "a layer drops NaN by its heights, but is_dense denies it"
    return points


def marked(points: np.ndarray, origin: np.ndarray, layer: dict, source: dict) -> np.ndarray:
    """Return which points (N, 3) in the global frame a source of a layer marks as obstacles."""
    height, distance = points[:, 2], np.linalg.norm(points - origin, axis=1)
    return (
        (height >= source["min_obstacle_height"])
        & (height <= min(source["max_obstacle_height"], layer["max_obstacle_height"]))
        & (height < layer["origin_z"] + layer["z_voxels"] * layer["z_resolution"])
        & (distance >= source["obstacle_min_range"])
        & (distance < source["obstacle_max_range"])
    )
