"""The ROS 2 node: a managed node around `LiveReconstruction`, and the only user of rclpy."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import rclpy
from message_filters import ApproximateTimeSynchronizer, SimpleFilter
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

from qvggt_core.errors import ParameterError, QvggtError
from qvggt_core.optional import import_optional
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import LoadedNetwork, load_network
from qvggt_ros.drivers.live_session import LiveReconstruction
from qvggt_ros.drivers.node_parameters import declare_all, refusal, unknown_parameters
from qvggt_ros.drivers.node_services import NodeServices
from qvggt_ros.drivers.node_transforms import Transforms
from qvggt_ros.io.messages import Messages, installed_messages
from qvggt_ros.publishing import LATCHED_OUTPUTS, Driver, outputs_of

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# One place for images: what waits longer than until the next one comes is old.
_IMAGE_QOS = QoSProfile(
    depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT
)
_OUTPUT_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED_QOS = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
_BOND_TOPIC = "/bond"
_STOP_TIMEOUT_S = 0.5
_SPIN_S = 0.5
# A window that was begun before a clean-up; a configure waits for its end.
_FORMER_TIMEOUT_S = 60.0
_QUIET_S = 5.0


class ReconstructNode(LifecycleNode):
    """Images in, pose, odometry, depth, clouds and path out.

    configure loads the network and lets it run once; activate subscribes; deactivate
    unsubscribes and forgets the map; cleanup releases the network. Callbacks only hand over: all
    work is done by one thread, which takes the newest image when it is free.
    """

    def __init__(
        self, load: Callable[[Parameters], LoadedNetwork] = load_network, **options: Any
    ) -> None:
        """Declare the parameters.

        Args:
            load: loads the network that the parameters name.
            options: for `rclpy.lifecycle.LifecycleNode`.

        Raises:
            ParameterError: a parameter that was given is refused.
        """
        super().__init__("reconstruct", **options)
        self._messages: Messages = installed_messages()
        self._load_network = load
        self._live: LiveReconstruction | None = None
        self._former: LiveReconstruction | None = None
        self._publishers_of: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._diagnostics: Any = None
        self._timer: Any = None
        self._bond: Any = None
        self._refused_policies: dict[str, str] = {}
        self._last_image_s: dict[str, float] = {}
        self._transforms: Transforms | None = None
        self._parameters_given = declare_all(self)
        for warning in unknown_parameters(self._parameter_overrides):
            self.get_logger().warning(warning)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        NodeServices(self, self._running)

    # The life cycle

    def start(self) -> bool:
        """Configure and activate if the parameter `autostart` is set; return whether it worked."""
        if not self._parameters_given.autostart:
            return True
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network and let it run once; make what the node offers."""
        return self._transition(self._configure, state, super().on_configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe."""
        return self._transition(self._activate, state, super().on_activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; what waits is dropped, and the next activation begins a new map."""
        return self._transition(self._deactivate, state, super().on_deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the network and all that was made of it."""
        return self._transition(self.release, state, super().on_cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        return self._transition(self.release, state, super().on_shutdown)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node can be configured anew."""
        return self._transition(self.release, state, super().on_error)

    def _transition(
        self,
        do: Callable[[], Any],
        state: LifecycleState,
        then: Callable[[LifecycleState], TransitionCallbackReturn],
    ) -> TransitionCallbackReturn:
        # rclpy takes an exception for an error and does not report which it was.
        try:
            do()
            return then(state)
        except QvggtError as error:
            self.get_logger().error(str(error))
        except Exception as error:
            self.get_logger().error(f"{type(error).__name__}: {error}")
        return TransitionCallbackReturn.FAILURE

    def _configure(self) -> None:
        parameters = self._parameters_given
        if self._former is not None and not self._former.close(_FORMER_TIMEOUT_S):
            raise ParameterError(
                "the network of before is still at work on its window: configure again later"
            )
        self._former = None
        self._live = self._load(parameters)
        self._publish_all(parameters)
        facts = ", ".join(f"{name} {value}" for name, value in self._live.facts.items())
        self.get_logger().info(f"the network is ready: {facts}")

    def _load(self, parameters: Parameters) -> LiveReconstruction:
        transforms = self._transforms = Transforms(
            self,
            self._messages,
            parameters,
            silence_s=lambda: 0.0 if self._live is None else self._live.silence_s,
            warn=self._warn,
        )
        try:
            return LiveReconstruction(
                parameters,
                Driver(
                    self._messages,
                    self._emit,
                    wanted=self._is_wanted,
                    lookup=transforms.lookup,
                    now_ns=lambda: self.get_clock().now().nanoseconds,
                    forget=transforms.forget,
                    new_map=transforms.new_map,
                ),
                name=self.get_fully_qualified_name(),
                rectified=[
                    camera
                    for camera in parameters.cameras
                    if "image_rect" in self.resolve_topic_name(self._image_topic(camera))
                ],
                load=self._load_network,
            )
        except BaseException:
            self.release()
            raise

    def _publish_all(self, parameters: Parameters) -> None:
        for topic, name in outputs_of(parameters).items():
            if topic != "tf":
                message_class = getattr(self._messages, name)
                qos = _LATCHED_QOS if topic in LATCHED_OUTPUTS else _OUTPUT_QOS
                self._publishers_of[topic] = self.create_lifecycle_publisher(
                    message_class, topic, qos
                )
        self._diagnostics = self.create_publisher(
            self._messages.DiagnosticArray, "/diagnostics", QoSProfile(depth=10)
        )
        # Steady, so that it goes on while simulated time stands still.
        self._timer = self.create_timer(
            parameters.diagnostics_period_s,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def _activate(self) -> None:
        try:
            self._subscribe_all(self._running())
            if self._parameters_given.bond_id:
                bond = import_optional("bondpy.bondpy")
                self._bond = bond.Bond(_BOND_TOPIC, self._parameters_given.bond_id, self)
                self._bond.start()
        except BaseException:
            self._deactivate()
            raise

    def _subscribe_all(self, live: LiveReconstruction) -> None:
        parameters = live.parameters
        self._inputs = [
            self._subscribe("odom", "Odometry", live.on_odometry),
            self._subscribe("fix", "NavSatFix", live.on_fix),
            self._subscribe("range", "Range", live.on_range),
            self._subscribe("imu", "Imu", live.on_imu),
        ]
        for camera in parameters.cameras:
            prefix = f"{camera}/" if camera else ""
            take = partial(live.on_camera_info, camera=camera)
            self._inputs.append(self._subscribe(f"{prefix}camera_info", "CameraInfo", take))
            mask = partial(live.on_mask, camera=camera)
            self._inputs.append(self._subscribe(f"{prefix}mask", "Image", mask))
        if len(parameters.cameras) == 1:
            (camera,) = parameters.cameras
            self._inputs.append(
                self._subscribe(
                    self._image_topic(camera),
                    self._image_type(),
                    lambda message: self._on_image(live, camera, message),
                    _IMAGE_QOS,
                )
            )
        else:
            self._subscribe_rig(live, parameters)
        topics = ", ".join(
            self.resolve_topic_name(self._image_topic(name)) for name in parameters.cameras
        )
        self.get_logger().info(f"waiting for images on {topics}")

    def _deactivate(self) -> None:
        if self._bond is not None:
            self._bond.shutdown()
            self._bond = None
        self._refused_policies, self._last_image_s = {}, {}
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []
        if self._live is not None:
            self._live.pause()

    def release(self) -> bool:
        """Stop and release everything; return whether the network came to its end in time."""
        self._deactivate()
        # First, so that its thread does not publish what is about to be destroyed.
        ended = True
        if self._live is not None and not (ended := self._live.close(_STOP_TIMEOUT_S)):
            self._former = self._live
            self.get_logger().warning(
                "the network is still at work on a window: its memory is free when that has ended"
            )
        self._live = None
        if self._timer is not None:
            self.destroy_timer(self._timer)
        for publisher in self._publishers_of.values():
            self.destroy_lifecycle_publisher(publisher)
        if self._diagnostics is not None:
            self.destroy_publisher(self._diagnostics)
        if self._transforms is not None:
            self._transforms.close()
        self._timer = self._diagnostics = self._transforms = None
        self._publishers_of = {}
        return ended

    # Inputs

    def _subscribe(
        self,
        topic: str,
        type_name: str,
        take: Callable[[Any], None],
        qos: QoSProfile = qos_profile_sensor_data,
    ) -> Any:
        return self.create_subscription(
            getattr(self._messages, type_name),
            topic,
            take,
            copy(qos),  # overrides change the profile itself
            event_callbacks=self._qos_events(topic),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _qos_events(self, topic: str) -> SubscriptionEventCallbacks:
        """Return what names the policy for which a publisher of a topic is not received."""
        name = self.resolve_topic_name(topic)

        def refuse(event: Any) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
            self._refused_policies[name] = policy
            self.get_logger().warning(
                f"{name} has a publisher whose {policy} is less than this node asks for, so "
                "nothing is received from it: change it there, or here with the parameter "
                f"qos_overrides.{name}.subscription.{policy}"
            )

        return SubscriptionEventCallbacks(incompatible_qos=refuse)

    def _subscribe_rig(self, live: LiveReconstruction, parameters: Parameters) -> None:
        # Not message_filters' Subscriber: its releases of the winter of 2025 take no callbacks.
        filters = [SimpleFilter() for _ in parameters.cameras]
        for camera, each in zip(parameters.cameras, filters, strict=True):
            each.registerCallback(partial(self._note_image, camera))
            self._inputs.append(
                self._subscribe(
                    self._image_topic(camera), self._image_type(), each.signalMessage, _IMAGE_QOS
                )
            )

        def take(*images: Any) -> None:
            live.on_images(dict(zip(parameters.cameras, images, strict=True)))

        synchronizer = ApproximateTimeSynchronizer(
            filters, queue_size=10, slop=parameters.sync_slop_s
        )
        synchronizer.registerCallback(take)

    def _on_image(self, live: LiveReconstruction, camera: str, message: Any) -> None:
        self._note_image(camera, message)
        live.on_images({camera: message})

    def _note_image(self, camera: str, message: Any) -> None:
        self._last_image_s[camera] = time.monotonic()

    def _image_topic(self, camera: str) -> str:
        topic = f"{camera}/image" if camera else "image"
        if self._parameters_given.image_transport == "raw":
            return topic
        # As image_transport does: below the name that `image` is remapped to.
        return f"{self.resolve_topic_name(topic)}/compressed"

    def _image_type(self) -> str:
        raw = self._parameters_given.image_transport == "raw"
        return "Image" if raw else "CompressedImage"

    # Outputs

    def _is_wanted(self, topic: str) -> bool:
        if topic == "tf":
            return self._parameters_given.publish_tf != "none"
        publisher = self._publishers_of.get(topic)
        return publisher is not None and publisher.get_subscription_count() > 0

    def _emit(self, topic: str, message: Any, stamp_ns: int) -> None:
        if topic == "tf":
            if self._transforms is not None:
                self._transforms.send(message)
        elif topic in self._publishers_of:
            self._publishers_of[topic].publish(message)

    def _publish_diagnostics(self) -> None:
        if self._live is not None and self._diagnostics is not None:
            self._diagnostics.publish(self._live.diagnostics(self._what_is_missing()))

    def _what_is_missing(self) -> str:
        """Return why no image comes, as far as the graph shows."""
        if not self._inputs:
            return "the node is not active"
        now = time.monotonic()
        silent = {
            camera: self._why_silent(camera)
            for camera in self._parameters_given.cameras
            if now - self._last_image_s.get(camera, -math.inf) > _QUIET_S
        }
        if silent:
            return "; ".join(silent.values())
        return (
            "images come, but none of the cameras' stamps lie within sync_slop_s "
            f"{self._parameters_given.sync_slop_s:g} of each other"
        )

    def _why_silent(self, camera: str) -> str:
        topic = self.resolve_topic_name(self._image_topic(camera))
        own = f"sensor_msgs/msg/{self._image_type()}"
        others = {info.topic_type for info in self.get_publishers_info_by_topic(topic)} - {own}
        if others:
            return f"{topic} has {', '.join(sorted(others))}, not {own}: see image_transport"
        if policy := self._refused_policies.get(topic):
            return f"{topic} has a publisher whose {policy} does not match, see the log"
        if self.count_publishers(topic) and camera in self._last_image_s:
            return f"{topic} has a publisher that has stopped sending"
        if self.count_publishers(topic):
            return f"{topic} has a publisher that sends nothing, or whose QoS does not match"
        return f"no one publishes {topic}: see `ros2 topic list`"

    # Parameters

    def _warn(self, text: str) -> None:
        if self._live is not None:
            self._live.warn(text)

    def _running(self) -> LiveReconstruction:
        if self._live is None:
            raise ParameterError("the node is not configured: `ros2 lifecycle set ... configure`")
        return self._live

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        known = Parameters.model_fields
        values = {change.name: change.value for change in changes if change.name in known}
        if not values:
            return SetParametersResult(successful=True)
        reason = refusal(self._parameters_given, values, loaded=self._live is not None)
        if reason:
            return SetParametersResult(successful=False, reason=reason)
        try:
            given = self._parameters_given.with_values(**values)
            if self._live is not None:
                self._live.change_parameters(**values)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._parameters_given = given
        return SetParametersResult(successful=True)


class _LogHandler(logging.Handler):
    """Brings what the core logs to /rosout."""

    def __init__(self, logger: Any) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record at its own level."""
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def main(arguments: list[str] | None = None) -> None:
    """Run the node until Ctrl-C."""
    rclpy.init(args=arguments)
    status = 0
    node = None
    try:
        node = ReconstructNode()
        root = logging.getLogger()
        root.setLevel(logging.INFO)
        root.addHandler(_LogHandler(node.get_logger()))
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if not node.start():
            node.get_logger().fatal("the node could not start, see above")
            status = 1
        else:
            # What is loaded stays: no collection needs to go through PyTorch's modules again.
            gc.freeze()
            # Not `spin`: idle in it, rclpy may miss a signal for ever.
            while rclpy.ok():
                executor.spin_once(timeout_sec=_SPIN_S)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (QvggtError, ImportError) as error:
        rclpy.logging.get_logger("qvggt").fatal(str(error))
        status = 1
    finally:
        # Ctrl-C reaches a node twice: from the terminal and from `ros2 launch`.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.release()
            node.destroy_node()
        rclpy.try_shutdown()
    # A robot must not wait for a network in the middle of a window, which cannot be interrupted,
    # nor for PyTorch to be taken apart, which takes seconds on a busy machine.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
