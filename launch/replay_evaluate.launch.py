"""Plays a recording to the live node, records what it publishes, and evaluates it.

    ros2 launch qvggt_ros replay_evaluate.launch.py bag:=recording/ output:=result/

`result/report.html` shows it; `result/bag` holds what the node published.
"""

import signal
from pathlib import Path

from ament_index_python.packages import get_package_prefix, get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import matches_action
from launch.events.process import ProcessExited, SignalProcess
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PACKAGE = "qvggt_ros"
SHARE = Path(get_package_share_directory(PACKAGE))
QVGGT = str(Path(get_package_prefix(PACKAGE)) / "lib" / PACKAGE / "qvggt")
OUTPUTS = ("pose", "odometry", "depth/image", "depth/camera_info", "confidence", "points", "path")

ARGUMENTS = (
    # name, default, description
    ("bag", None, "Recording (rosbag2) with images and ground truth."),
    ("output", "qvggt_result", "Directory to make."),
    ("ground_truth", "", "Topic or file; found by its name if not given."),
    ("settle_s", "5.0", "Seconds to wait for the node when the recording has ended."),
    ("bag_rate", "1.0", "Speed of the recording."),
    ("namespace", "qvggt", "Namespace of the node and its topics."),
)
"""All other arguments are those of reconstruct.launch.py."""


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what is started with them."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, default, description in ARGUMENTS
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: LaunchConfiguration(name).perform(context) for name, *_ in ARGUMENTS}
    bag = Path(given["bag"]).expanduser()
    if not bag.exists():
        # Here, before the recorder is started, or it would outlive the launch.
        raise RuntimeError(f"bag:={given['bag']}: there is no such file or directory")
    namespace = given["namespace"].strip("/")
    output = Path(given["output"]).expanduser()
    live = output.with_name(output.name + ".live")
    for path in (output, live):
        if path.exists():
            raise RuntimeError(f"{path} exists: choose another output, or remove it")
    topics = [f"/{namespace}/{topic}" for topic in OUTPUTS]
    recorder = ExecuteProcess(
        cmd=["ros2", "bag", "record", "-s", "mcap", "-o", str(live), *topics, "/diagnostics"],
        name="qvggt_recorder",
        output="log",
    )
    collector = ExecuteProcess(
        cmd=[
            *(QVGGT, "collect", str(live), "--recording", str(bag), "-o", str(output)),
            *("--namespace", namespace),
        ],
        output="screen",
    )
    truth = ["--ground-truth", given["ground_truth"]] if given["ground_truth"] else []
    evaluation = ExecuteProcess(cmd=[QVGGT, "evaluate", str(output), *truth], output="screen")

    def is_player(action: LaunchDescriptionEntity) -> bool:
        # A process's name ends with its number in the launch.
        return (getattr(action, "name", "") or "").startswith("qvggt_bag_player")

    stop_recorder = EmitEvent(
        event=SignalProcess(signal_number=signal.SIGINT, process_matcher=matches_action(recorder))
    )
    return [
        recorder,
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(SHARE / "launch/reconstruct.launch.py")),
            launch_arguments={
                "bag": str(bag),
                "bag_rate": given["bag_rate"],
                "namespace": namespace,
            }.items(),
        ),
        _after(is_player, [TimerAction(period=float(given["settle_s"]), actions=[stop_recorder])]),
        _after(recorder, [collector]),
        _after(collector, [evaluation]),
        _after(evaluation, [Shutdown(reason="the evaluation is done")]),
    ]


def _after(action: object, then: list[LaunchDescriptionEntity]) -> RegisterEventHandler:
    """Start something when a process has ended well; end everything when it has not."""

    def react(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if context.is_shutdown:
            return []
        if event.returncode:
            reason = f"{event.cmd[0]} ended with {event.returncode}"
            return [LogInfo(msg=reason), Shutdown(reason=reason)]
        return then

    return RegisterEventHandler(OnProcessExit(target_action=action, on_exit=react))
