"""The node's floor plan on ROS: its QoS, for who comes late, and its reason where there is none."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs an installed ROS 2, see docs/ros.md")

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from robot import NAMESPACE, robot, ros_class
from support.nav2_rules import check_map
from support.recordings import (
    ROOM_HIGH,
    ROOM_LOW,
    camera_info_message,
    odometry_message,
    world_from_camera,
)

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse

# As the static layer subscribes.
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


def test_the_floor_plan_is_there_for_a_static_layer_that_comes_late():
    with robot(
        knows_the_room=True,
        occupancy_grid=True,
        grid_period_s=0.0,
        grid_resolution=0.1,  # its depth images are 56 pixels wide
        min_odometry_distance=1.5,
        window_size=3,
        window_stride=1,
    ) as it:
        assert it.node.start()
        it.listen("map_grid", "OccupancyGrid", LATCHED)
        it.listen("/diagnostics", "DiagnosticArray")
        (offered,) = it.peer.get_publishers_info_by_topic(f"{NAMESPACE}/map_grid")
        assert offered.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        assert offered.qos_profile.reliability == ReliabilityPolicy.RELIABLE
        it.publish("camera_info", camera_info_message(0), "CameraInfo")
        it.film(range(3))
        it.spin_until(lambda: any("not in metres" in reason for reason in reasons(it)))
        for index in range(3, 24):
            # Of the camera's own frame, so that no transform is needed.
            odometry = odometry_message(index, world_from_camera(index), "camera_optical_frame")
            it.publish("odom", odometry, "Odometry")
            it.film([index])
        it.spin_until(lambda: any(100 in message.data for message in it.received["map_grid"]))
        it.spin_until(lambda: "published" in reasons(it))
        late: list = []
        it.peer.create_subscription(
            ros_class("OccupancyGrid"), f"{NAMESPACE}/map_grid", late.append, LATCHED
        )
        it.spin_until(lambda: late)
        values = check_map(late[-1])
        assert late[-1].header.frame_id == "map"
        assert set(np.unique(values)) == {-1, 0, 100}
        # The first camera is 1.2 m over the room's floor.
        assert abs(late[-1].info.origin.position.z + 1.2) < 0.15
        off = distance_to_walls(late[-1].info, values)
        assert len(off) > 15
        assert np.quantile(off, 0.9) < 0.2, "what is occupied are the walls"


def distance_to_walls(info, values: np.ndarray) -> np.ndarray:
    """Distances in metres of the middles of occupied cells to the nearest wall of the room."""
    rows, columns = np.nonzero(values == 100)
    x = info.origin.position.x + (columns + 0.5) * info.resolution
    y = info.origin.position.y + (rows + 0.5) * info.resolution
    room_from_map = world_from_camera(0) @ inverse(FLU_FROM_OPTICAL)
    x, y = (room_from_map @ [x, y, 0 * x, 0 * x + 1])[:2]
    ends = [x - ROOM_LOW[0], x - ROOM_HIGH[0], y - ROOM_LOW[1], y - ROOM_HIGH[1]]
    return np.abs(ends).min(axis=0)


def test_without_the_parameter_none_is_offered():
    with robot() as it:
        assert it.node.start()
        assert not it.peer.get_publishers_info_by_topic(f"{NAMESPACE}/map_grid")


def reasons(it) -> list[str]:
    return [
        pair.value
        for message in it.received["/diagnostics"]
        for status in message.status
        for pair in status.values
        if pair.key == "map_grid"
    ]
