"""Starts the reconstruction node; with `bag:=PATH` it plays a recording to it.

    ros2 launch qvggt_ros reconstruct.launch.py image_topic:=/camera/image_raw
    ros2 launch qvggt_ros reconstruct.launch.py bag:=recording/ publish_tf:=map_to_odom rviz:=true

An argument that is given wins over `params_file`, which wins over `preset`.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_topic_name import validate_topic_name

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PACKAGE = "qvggt_ros"
NODE = "reconstruct"
MAX_DEPTH = 20
SHARE = Path(get_package_share_directory(PACKAGE))
PRESETS = tuple(sorted(path.stem for path in (SHARE / "config/presets").glob("*.yaml")))
BOOLEAN = ("true", "false")
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

ARGUMENTS = (
    # name, default, choices, description
    ("image_topic", "", None, "Images; /camera/image_raw if not given, or found in the bag."),
    ("camera_info_topic", "", None, "Their CameraInfo; beside the images if not given."),
    ("mask_topic", "", None, "mono8 images, non-zero where the scene stands still; optional."),
    ("odom_topic", "", None, "nav_msgs/Odometry that gives the scale; /odom, or found in the bag."),
    ("fix_topic", "", None, "sensor_msgs/NavSatFix for the scale; /fix, or found in the bag."),
    ("range_topic", "", None, "sensor_msgs/Range for the scale; /range, or found in the bag."),
    ("imu_topic", "", None, "sensor_msgs/Imu for the vertical; /imu, or found in the bag."),
    ("cameras", "", None, "A rig's cameras, as front,left: images of /front/image_raw and so on."),
    ("image_transport", "", ("", "raw", "compressed"), "raw if not given, or as in the bag."),
    ("checkpoint", "", None, "Network file; the small network that ships if not given."),
    ("params_file", "", None, "Parameters, as config/reconstruct.yaml."),
    ("preset", "", ("", *PRESETS), f"Parameters for a use: {', '.join(PRESETS)}."),
    ("publish_tf", "", None, "none, world_to_camera, map_to_odom or odom_to_base; see params."),
    ("namespace", "qvggt", None, "Namespace of the node and its topics."),
    ("use_sim_time", "", ("", *BOOLEAN), "Time from /clock; true with a bag if not given."),
    ("autostart", "", ("", *BOOLEAN), "Configure and activate the node; true if not given."),
    ("rviz", "false", BOOLEAN, "Start RViz with pose, path, depth and cloud."),
    ("rviz_frame", "map", None, "Fixed frame of RViz; qvggt_unscaled while no scale is known."),
    ("bag", "", None, "Recording (rosbag2) to play once the node is active."),
    ("bag_rate", "1.0", None, "Speed of the recording."),
    ("bag_loop", "false", BOOLEAN, "Play the recording again and again."),
    ("log_level", "info", LOG_LEVELS, "How much the node logs."),
)


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what is started with them."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    name, default_value=default, description=description, choices=choices
                )
                for name, default, choices, description in ARGUMENTS
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: LaunchConfiguration(name).perform(context) for name, *_ in ARGUMENTS}
    for name in ("bag", "params_file", "checkpoint"):
        given[name] = str(Path(given[name]).expanduser()) if given[name] else ""
    _check(given)
    bag = given["bag"]
    found = _topics_of(given) if bag else {}
    use_sim_time = given["use_sim_time"] or ("true" if bag else "")

    image = given["image_topic"] or found.get("image") or "/camera/image_raw"
    transport = given["image_transport"] or ("compressed" if _is_compressed(image) else "")
    cameras = _names(given["cameras"]) if given["cameras"] else []
    texts = {
        "checkpoint": given["checkpoint"],
        "publish_tf": given["publish_tf"],
        "image_transport": transport,
    }
    switches = {"autostart": given["autostart"], "use_sim_time": use_sim_time}
    # What was not given is not passed: it would overrule the parameter file.
    overrides = {
        **{name: value for name, value in texts.items() if value},
        **{name: value == "true" for name, value in switches.items() if value},
        **({"cameras": cameras} if cameras else {}),
    }
    node = LifecycleNode(
        package=PACKAGE,
        executable="reconstruct",
        name=NODE,
        namespace=given["namespace"],
        output="screen",
        parameters=[
            str(SHARE / "config/reconstruct.yaml"),
            *([str(SHARE / f"config/presets/{given['preset']}.yaml")] if given["preset"] else []),
            *([given["params_file"]] if given["params_file"] else []),
            *([overrides] if overrides else []),
        ],
        remappings=_remappings(given, found, image, cameras),
        arguments=["--ros-args", "--log-level", given["log_level"]],
    )
    actions: list[LaunchDescriptionEntity] = [node]
    if bag:
        actions += _play(bag, found["play"], given, node)
    if given["rviz"] == "true":
        actions.append(_rviz(given, use_sim_time == "true"))
    return actions


def _remappings(
    given: dict[str, str], found: dict[str, Any], image: str, cameras: list[str]
) -> list[tuple[str, str]]:
    return [
        *(_rig(cameras) if cameras else _camera(image, given["camera_info_topic"], found)),
        *([("mask", given["mask_topic"])] if given["mask_topic"] else []),
        ("odom", given["odom_topic"] or found.get("odometry") or "/odom"),
        *(
            (name, given[f"{name}_topic"] or found.get(name) or f"/{name}")
            for name in ("fix", "range", "imu")
        ),
    ]


def _check(given: dict[str, str]) -> None:
    """Refuse what cannot work before anything is started, or it would outlive the launch."""
    for name in ("bag", "params_file"):
        if given[name] and not Path(given[name]).exists():
            raise RuntimeError(f"{name}:={given[name]}: there is no such file or directory")
    if given["params_file"]:
        _check_parameters(Path(given["params_file"]), given["namespace"])
    for name, value in given.items():
        if value and name.endswith("_topic"):
            _check_topic(f"{name}:={value}", value)
    for camera in _names(given["cameras"]) if given["cameras"] else []:
        _check_topic(f"cameras:={given['cameras']}", f"/{camera}/image_raw")
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", given["bag_rate"]) or not float(given["bag_rate"]):
        raise RuntimeError(f"bag_rate:={given['bag_rate']} is no number above 0")
    if given["bag"] and given["cameras"]:
        raise RuntimeError("cameras and bag cannot be combined: play the recording yourself")
    if given["rviz"] == "true":
        try:
            get_package_prefix("rviz2")
        except PackageNotFoundError:
            raise RuntimeError(
                "rviz:=true, but rviz2 is not installed: apt install ros-$ROS_DISTRO-rviz2"
            ) from None


def _check_topic(what: str, topic: str) -> None:
    try:
        validate_topic_name(topic)
    except InvalidTopicNameException as error:
        raise RuntimeError(f"{what} is no name of a topic: {error}") from None


def _check_parameters(path: Path, namespace: str) -> None:
    """Refuse a file of which nothing is for the node: ROS would ignore it without a word."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RuntimeError(f"params_file:={path} cannot be read as YAML: {error}") from None
    node = "/".join(["", *namespace.strip("/").split("/"), NODE]).replace("//", "/")
    keys = [key for key, values in _nodes(content) if isinstance(values, dict)]
    if not any(_pattern(key).fullmatch(node) for key in keys):
        raise RuntimeError(
            f"params_file:={path} has parameters for {', '.join(keys) or 'no node'}, none for "
            f"{node}: write them under /**: ros__parameters:"
        )


def _nodes(content: Any, above: str = "") -> list[tuple[str, Any]]:
    """Return the nodes that a parameter file names, with their parameters."""
    found = []
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == "ros__parameters":
            found.append((above, value))
        elif above.count("/") < MAX_DEPTH:
            found += _nodes(value, f"{above}/{str(key).strip('/')}")
    return found


def _pattern(key: str) -> re.Pattern[str]:
    """Return what the key of a parameter file matches: `*` is one name, `**` are any number."""
    parts = {"*": "/[^/]+", "**": "(/[^/]+)*"}
    return re.compile("".join(parts.get(n, "/" + re.escape(n)) for n in key.split("/")[1:]))


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise RuntimeError(f"cameras:={text} names no camera")
    return names


def _camera(image: str, info: str, found: dict[str, str]) -> list[tuple[str, str]]:
    info = info or found.get("camera_info") or _beside(image, "camera_info")
    return [("image", image.removesuffix("/compressed")), ("camera_info", info)]


def _rig(cameras: list[str]) -> list[tuple[str, str]]:
    return [
        remapping
        for name in cameras
        for remapping in (
            (f"{name}/image", f"/{name}/image_raw"),
            (f"{name}/camera_info", f"/{name}/camera_info"),
        )
    ]


def _topics_of(given: dict[str, str]) -> dict[str, Any]:
    """Return what the `qvggt` command, in the environment of the package, finds in the bag."""
    command = [str(Path(get_package_prefix(PACKAGE)) / "lib" / PACKAGE / "qvggt"), "topics"]
    for option, value in (
        ("--image-topic", given["image_topic"]),
        ("--camera-info-topic", given["camera_info_topic"]),
        ("--namespace", given["namespace"]),
    ):
        command += [option, value] if value else []
    done = subprocess.run(
        [*command, "--json", given["bag"]], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def _is_compressed(image_topic: str) -> bool:
    return image_topic.endswith("/compressed")


def _beside(image_topic: str, name: str) -> str:
    return f"{image_topic.removesuffix('/compressed').rpartition('/')[0]}/{name}"


def _play(
    bag: str, topics: list[str], given: dict[str, str], node: LifecycleNode
) -> list[LaunchDescriptionEntity]:
    # What a former run of the node published must not mix with what this one does.
    command = ["ros2", "bag", "play", bag, "--topics", *topics]
    command += ["--clock", "100", "--rate", given["bag_rate"]]
    command += ["--loop"] if given["bag_loop"] == "true" else []
    player = ExecuteProcess(cmd=command, name="qvggt_bag_player", output="log")
    return [
        # What is played before the node listens would be lost; an activation later on is another's.
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node, goal_state="active", entities=[player], handle_once=True
            )
        ),
        RegisterEventHandler(OnProcessExit(target_action=player, on_exit=_log_the_end)),
        RegisterEventHandler(OnProcessExit(target_action=node, on_exit=_end_with_the_node)),
    ]


def _log_the_end(event: ProcessExited, context: LaunchContext) -> list[LogInfo]:
    if context.is_shutdown:
        return []
    how = "has ended" if event.returncode == 0 else f"could not be played ({event.returncode})"
    return [LogInfo(msg=f"the recording {how}; Ctrl-C ends the node")]


def _end_with_the_node(event: ProcessExited, context: LaunchContext) -> list[Shutdown]:
    return [] if context.is_shutdown else [Shutdown(reason="the node has ended")]


def _rviz(given: dict[str, str], use_sim_time: bool) -> Node:
    return Node(
        package="rviz2",
        executable="rviz2",
        output="log",
        arguments=["-d", str(SHARE / "config/qvggt.rviz"), "-f", given["rviz_frame"]],
        parameters=[{"use_sim_time": use_sim_time}],
    )
