"""The reconstruction as a DDS participant: what `node.py` is where ROS is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qvggt_core.errors import ParameterError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import LoadedNetwork, load_network
from qvggt_ros.drivers.dds.participant import LOOPBACK, Participant, Publisher
from qvggt_ros.drivers.live_session import LiveReconstruction
from qvggt_ros.io.messages import TYPES, rosbags_messages
from qvggt_ros.publishing import LATCHED_OUTPUTS, Driver, outputs_of

_SPIN_S = 0.1
_STOP_TIMEOUT_S = 1.0
_SAVE_TIMEOUT_S = 60.0
# The worker takes the newest image alone; more are kept so that it counts what it drops.
_IMAGES_KEPT = 8
_DIAGNOSTICS_KEPT = 10
# As the broadcaster of tf2.
_TRANSFORMS_KEPT = 100


@dataclass(frozen=True)
class Inputs:
    """Names of the topics that are subscribed to.

    Attributes:
        image: sensor_msgs/Image, or sensor_msgs/CompressedImage if it ends in /compressed.
        camera_info: its sensor_msgs/CameraInfo.
        odometry: nav_msgs/Odometry of the robot, a source of the scale.
        fix: sensor_msgs/NavSatFix, another one.
    """

    image: str
    camera_info: str
    odometry: str
    fix: str = "/fix"


class DdsNode:
    """Images in, pose, odometry, depth, clouds and path out, over DDS.

    Topics, types and quality of service are those of the ROS node; tf2, services and rigs of
    several cameras are not here.

    Attributes:
        inputs: the topics that are subscribed to.
        parameters: the effective ones.
        facts: names and values about the network.
    """

    def __init__(
        self,
        parameters: Parameters,
        inputs: Inputs,
        *,
        namespace: str = "qvggt",
        domain_id: int = 0,
        interface: str = LOOPBACK,
        load: Callable[[Parameters], LoadedNetwork] = load_network,
    ) -> None:
        """Load the network, join the domain, and subscribe.

        Args:
            parameters: how to reconstruct.
            inputs: the topics to subscribe to.
            namespace: precedes the outputs.
            domain_id: as ROS_DOMAIN_ID.
            interface: name or address of the network interface; loopback by default.
            load: loads the network that the parameters name.

        Raises:
            QvggtError: a parameter, the checkpoint, a name or the interface is refused.
        """
        if len(parameters.cameras) > 1:
            raise ParameterError(
                f"cameras {parameters.cameras}: the images of a rig are put together by the ROS "
                "node alone (`ros2 launch qvggt_ros reconstruct.launch.py`); name one camera here"
            )
        if parameters.publish_tf in ("map_to_odom", "odom_to_base"):
            raise ParameterError(
                f"publish_tf {parameters.publish_tf} needs the robot's transforms, which the ROS "
                "node alone has; choose none or world_to_camera here"
            )
        self.inputs = inputs
        self._closed = False
        self._participant = Participant(
            "reconstruct", namespace=namespace, domain_id=domain_id, interface=interface
        )
        self._publishers = self._publish(parameters, namespace)
        self._diagnostics = self._participant.publisher(
            "/diagnostics", TYPES["DiagnosticArray"], depth=_DIAGNOSTICS_KEPT
        )
        try:
            self._live = LiveReconstruction(
                parameters,
                Driver(rosbags_messages(), self._emit, wanted=self._is_wanted, now_ns=time.time_ns),
                name=f"{namespace.strip('/')}/reconstruct".lstrip("/"),
                rectified=parameters.cameras if "image_rect" in inputs.image else (),
                load=load,
            )
            self._subscribe(parameters.cameras[0])
        except BaseException:
            self._participant.close()
            raise
        self.parameters, self.facts = self._live.parameters, self._live.facts

    def run(self, stop: Callable[[], bool], show: Callable[[Any], None]) -> None:
        """Reconstruct until `stop` returns true.

        Args:
            stop: called ten times a second and after each message.
            show: called with each DiagnosticArray, which is published too.
        """
        period = self.parameters.diagnostics_period_s
        due = time.monotonic() + period
        while not stop():
            self._participant.spin(min(_SPIN_S, max(0.0, due - time.monotonic())))
            if time.monotonic() >= due:
                due = time.monotonic() + period
                state = self.diagnostics()
                self._diagnostics.publish(state)
                show(state)

    def diagnostics(self) -> Any:
        """Return diagnostic_msgs/DiagnosticArray of the state."""
        return self._live.diagnostics(self._what_is_missing())

    def save_map(self) -> tuple[Path, int]:
        """Write the map as PLY; return the file and its number of points.

        Raises:
            RecordingError: there is no map, or it cannot be written.
        """
        return self._live.save_map().result(_SAVE_TIMEOUT_S)

    def close(self) -> bool:
        """Leave the domain and release the network; return whether its thread ended in time."""
        ended = self._live.close(_STOP_TIMEOUT_S)
        # A window that is still being worked on has no one to go to.
        self._closed = True
        self._participant.close()
        return ended

    def _publish(self, parameters: Parameters, namespace: str) -> dict[str, Publisher]:
        below = f"/{namespace.strip('/')}".rstrip("/")
        return {
            topic: self._participant.publisher(
                "/tf" if topic == "tf" else f"{below}/{topic}",
                TYPES[type_name],
                latched=topic in LATCHED_OUTPUTS,
                depth=_TRANSFORMS_KEPT if topic == "tf" else 1,
            )
            for topic, type_name in outputs_of(parameters).items()
            if topic != "tf" or parameters.publish_tf != "none"
        }

    def _subscribe(self, camera: str) -> None:
        live, inputs, subscribe = self._live, self.inputs, self._participant.subscribe
        image_type = "CompressedImage" if inputs.image.endswith("/compressed") else "Image"
        self._images = subscribe(
            inputs.image,
            TYPES[image_type],
            lambda message: live.on_images({camera: message}),
            refuse=partial(live.on_unreadable, is_image=True),
            depth=_IMAGES_KEPT,
        )
        subscribe(
            inputs.camera_info,
            TYPES["CameraInfo"],
            lambda message: live.on_camera_info(message, camera),
            refuse=live.on_unreadable,
        )
        for topic, name, take in (
            (inputs.odometry, "Odometry", live.on_odometry),
            (inputs.fix, "NavSatFix", live.on_fix),
        ):
            subscribe(topic, TYPES[name], take, refuse=live.on_unreadable)

    def _is_wanted(self, topic: str) -> bool:
        if self._closed or topic not in self._publishers:
            return False
        return self._publishers[topic].subscribers > 0

    def _emit(self, topic: str, message: Any, stamp_ns: int) -> None:
        self._publishers[topic].publish(message)

    def _what_is_missing(self) -> str:
        if self._images.publishers:
            return f"{self.inputs.image} has a publisher that sends nothing"
        return (
            f"no one publishes {self.inputs.image} in this domain and on this interface; a ROS 2 "
            "of default settings is on the network's, not on loopback"
        )
