"""The node's floor plan on ROS: its QoS, for who comes late, and its reason where there is none."""

from __future__ import annotations

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from robot import NAMESPACE, robot, ros_class
from support.nav2_rules import check_map
from support.recordings import (
    ROOM_HIGH,
    ROOM_LOW,
    M,
    camera_info_message,
    header,
    world_from_camera,
)

from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, quaternion

# As the static layer subscribes.
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


def odometry_of_camera(index: int):
    """Odometry whose child is the camera's own frame, so that no transform is needed."""
    pose = world_from_camera(index)
    x, y, z = pose[:3, 3].tolist()
    qx, qy, qz, qw = quaternion(pose[:3, :3]).tolist()
    zero = M.Vector3(x=0.0, y=0.0, z=0.0)
    return M.Odometry(
        header=header(index, "odom"),
        child_frame_id="camera_optical_frame",
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


def test_the_floor_plan_is_there_for_a_static_layer_that_comes_late():
    with robot(
        knows_the_room=True,
        occupancy_grid=True,
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
            it.publish("odom", odometry_of_camera(index), "Odometry")
            it.film([index])
        it.spin_until(lambda: it.received["map_grid"])
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
        assert len(off) > 30
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
