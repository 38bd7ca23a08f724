"""Clouds and floor plans against the rules of Nav2's layers, with config/nav2.yaml's parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader
from support import box_scene as scene
from support.nav2_rules import (
    FREE,
    LETHAL,
    NO_INFORMATION,
    check_cloud,
    check_header,
    check_map,
    marked,
    static_costs,
)
from support.recordings import (
    M,
    RoomNetwork,
    camera_info_message,
    image_message,
    odometry_message,
    read_recording,
    stamp_of,
    world_from_camera,
    write_recording,
)
from support.replays import replay

from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import Losses, Reconstruction, Scale, Up
from qvggt_ros.publishing import Driver
from qvggt_ros.session import ReconstructionSession

BOX = ((2.0, -0.5, 0.0), (2.6, 0.5, 0.6))
CONFIG = yaml.safe_load((Path(__file__).parents[2] / "config" / "nav2.yaml").read_text())
LOCAL = CONFIG["local_costmap"]["local_costmap"]["ros__parameters"]
GLOBAL = CONFIG["global_costmap"]["global_costmap"]["ros__parameters"]


class BoxReconstructor:
    """Answers each frame with the exact geometry of a box on a floor."""

    def __init__(self, **fields: object) -> None:
        self.fields = fields
        self.boxes = [BOX]
        self.losses = Losses()
        self.sensors = SimpleNamespace()

    def add(self, frame, *others) -> tuple[Reconstruction, ...]:
        geometry = scene.frame(0, scene.pose(0, 0), self.boxes)
        view = replace(geometry.view, stamp_ns=frame.stamp_ns, frame_id=frame.frame_id)
        return (scene.reconstruction(replace(geometry, view=view), **self.fields),)

    def flush(self) -> tuple[Reconstruction, ...]:
        return ()

    def reset(self, reason: str) -> None:
        pass


def published(frames: int = 12, reconstructor=None, **parameters: object):
    outbox: list[tuple[str, object]] = []
    driver = Driver(M, lambda topic, message, stamp: outbox.append((topic, message)))
    session = ReconstructionSession(
        reconstructor or BoxReconstructor(),
        Parameters(occupancy_grid=True, grid_period_s=0.3, **parameters),
        driver,
    )
    for index in range(frames):
        session.on_image(image_message(index))
    session.finish()
    return session, lambda topic: [message for name, message in outbox if name == topic]


def cell(message, x: float, y: float) -> tuple[int, int]:
    origin, side = message.info.origin.position, message.info.resolution
    return int((y - origin.y) // side), int((x - origin.x) // side)


def test_the_static_layer_takes_the_map_and_sees_obstacles_free_space_and_the_unknown():
    _, of = published()
    newest = of("map_grid")[-1]
    costs = static_costs(check_map(newest), GLOBAL)
    assert costs[cell(newest, 2.02, 0.0)] == LETHAL
    assert costs[cell(newest, 1.5, 0.0)] == FREE
    assert costs[cell(newest, 3.5, 0.0)] == NO_INFORMATION
    assert newest.info.origin.position.z == pytest.approx(-scene.CAMERA_HEIGHT, abs=0.01)
    assert newest.info.resolution == pytest.approx(GLOBAL["resolution"])


def test_no_value_lies_between_free_and_occupied():
    # A static layer takes 1 to 99 for free, as it comes.
    _, of = published()
    assert set(np.unique(check_map(of("map_grid")[-1]))) == {-1, 0, 100}


def test_maps_are_in_the_map_frame_with_stamps_of_images_that_grow():
    _, of = published()
    messages = of("map_grid")
    stamps = [check_header(message.header) for message in messages]
    assert stamps == sorted(set(stamps))
    assert set(stamps) <= {stamp_of(index) for index in range(12)}
    assert stamps[-1] == stamp_of(11), "the last frames are in it when all ends"
    assert len(stamps) <= 6, "one in grid_period_s"
    assert {message.header.frame_id for message in messages} == {GLOBAL["global_frame"]}


def test_the_voxel_layer_marks_the_box_and_nothing_else():
    _, of = published()
    layer = LOCAL["voxel_layer"]
    source = layer["qvggt"]
    cloud, pose = of("points")[-1], of("pose")[-1].pose
    assert cloud.header.frame_id == of("depth/image")[-1].header.frame_id, (
        "its origin is the camera"
    )
    points = check_cloud(cloud)
    map_from_camera = scene.pose(0, 0)
    assert pose.position.z == pytest.approx(0.0)
    origin = np.array([0.0, 0.0, scene.CAMERA_HEIGHT])
    on_floor = points @ map_from_camera[:3, :3].T + origin
    chosen = marked(on_floor, origin, layer, source)
    obstacles = on_floor[chosen]
    assert len(obstacles) > 200
    low, high = np.array(BOX)
    assert ((obstacles > low - 0.03) & (obstacles < high + 0.03)).all()
    # A column needs mark_threshold voxels: the front of the box has them.
    front = obstacles[np.abs(obstacles[:, 0] - 2.0) < 0.02]
    layers = np.floor((front[:, 2] - layer["origin_z"]) / layer["z_resolution"])
    assert len(np.unique(layers)) > layer["mark_threshold"]


def test_the_clearing_source_has_the_floor_where_a_box_was():
    reconstructor = BoxReconstructor()
    reconstructor.boxes = []
    _, of = published(reconstructor=reconstructor)
    points = check_cloud(of("points")[-1]) @ scene.pose(0, 0)[:3, :3].T
    height = points[:, 2] + scene.CAMERA_HEIGHT
    layer = LOCAL["voxel_layer"]
    clear, mark = layer["qvggt_free"], layer["qvggt"]
    assert (height < mark["min_obstacle_height"]).all(), "alone, the marking source would not clear"
    within = (height >= clear["min_obstacle_height"]) & (height <= clear["max_obstacle_height"])
    assert within.all()


def test_clouds_have_the_stamps_of_their_images():
    _, of = published()
    stamps = [check_header(message.header) for message in of("points")]
    assert stamps == [stamp_of(index) for index in range(12)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"scale": Scale()}, "not in metres"), ({"up": Up()}, "which way is up")],
)
def test_without_metres_or_up_there_is_no_map_and_diagnostics_have_the_reason(fields, reason):
    session, of = published(reconstructor=BoxReconstructor(**fields))
    assert not of("map_grid")
    status = session.status()
    assert reason in status.values["map_grid"]
    assert reason in status.message
    assert status.level == "WARN"


def test_with_a_map_diagnostics_say_that_it_is_published():
    session, _ = published()
    assert session.status().values["map_grid"] == "published"
    assert session.status().level == "OK"


def test_without_the_parameter_there_is_none():
    outbox: list[str] = []
    driver = Driver(M, lambda topic, message, stamp: outbox.append(topic))
    session = ReconstructionSession(BoxReconstructor(), Parameters(), driver)
    session.on_image(image_message(0))
    assert "map_grid" not in outbox
    assert "map_grid" not in session.status().values


# The file


def test_the_configuration_names_our_topics_and_what_nav2_s_defaults_would_drop():
    layer = LOCAL["voxel_layer"]
    assert set(LOCAL["plugins"]) <= set(LOCAL)
    assert set(GLOBAL["plugins"]) <= set(GLOBAL)
    assert layer["z_voxels"] <= 16
    top = layer["origin_z"] + layer["z_voxels"] * layer["z_resolution"]
    for name in layer["observation_sources"].split():
        source = layer[name]
        assert source["topic"] == "/qvggt/points"
        assert source["data_type"] == "PointCloud2"
        assert source["min_obstacle_height"] < source["max_obstacle_height"]
    mark = layer["qvggt"]
    assert mark["marking"]
    assert 0 < mark["min_obstacle_height"] < mark["max_obstacle_height"] <= top
    assert mark["obstacle_max_range"] < mark["raytrace_max_range"]
    assert layer["qvggt_free"]["clearing"]
    assert not layer["qvggt_free"]["marking"]
    static = GLOBAL["static_layer"]
    assert static["map_topic"] == "/qvggt/map_grid"
    assert static["map_subscribe_transient_local"]
    assert GLOBAL["unknown_cost_value"] == np.int8(-1).view(np.uint8)
    assert Parameters().points_frame == "camera"
    assert GLOBAL["global_frame"] == Parameters().map_frame
    assert LOCAL["global_frame"] == Parameters().odom_frame
    assert GLOBAL["robot_base_frame"] == Parameters().base_frame


# Recordings


def replayed(directory: Path, **parameters: object) -> Path:
    """A recording with odometry through the room, replayed; return the recording that came out."""
    entries = [
        entry
        for index in range(24)
        for entry in (
            ("/image", "Image", stamp_of(index), image_message(index)),
            ("/camera_info", "CameraInfo", stamp_of(index), camera_info_message(index)),
            ("/odom", "Odometry", stamp_of(index), odometry_of(index)),
        )
    ]
    bag = write_recording(directory / "room", entries)
    settings = {"confirm": False, "refine": False, "window_size": 3, "window_stride": 1}
    known = Parameters(min_odometry_distance=1.5, **settings, **parameters)
    replay(bag, directory / "out", RoomNetwork(), known, report=False)
    return directory / "out" / "bag"


def odometry_of(index: int):
    return odometry_message(index, world_from_camera(index), "camera_optical_frame")


def test_a_replay_records_the_floor_plan_latched(tmp_path: Path) -> None:
    bag = replayed(tmp_path, occupancy_grid=True)
    with AnyReader([bag]) as reader:
        (connection,) = (c for c in reader.connections if c.topic == "/qvggt/map_grid")
        (qos,) = connection.ext.offered_qos_profiles
        assert (qos.durability.name, qos.reliability.name) == ("TRANSIENT_LOCAL", "RELIABLE")
    messages = read_recording(bag)["/qvggt/map_grid"]
    values = check_map(messages[-1][2])
    assert (values == 0).any()
    assert (values == 100).any()


def test_without_the_parameter_a_replay_has_no_such_topic(tmp_path: Path) -> None:
    assert "/qvggt/map_grid" not in read_recording(replayed(tmp_path))
