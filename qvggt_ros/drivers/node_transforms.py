"""The robot's transforms on a ROS graph: those of others, and the one that the node owns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.time import Time
from tf2_ros import Buffer, TransformBroadcaster, TransformException, TransformListener

from qvggt_core.errors import QvggtError
from qvggt_core.parameters import Parameters
from qvggt_ros.io.conversions import read_transform, time_message
from qvggt_ros.io.messages import Messages

# Longer than the slowest window takes, or poses of its images would be forgotten by then.
_CACHE = Duration(seconds=60)
_STAMPS_KEPT = 2000
_ANY_JUMP_BACK = Duration(nanoseconds=-1)


class Transforms:
    """Looks transforms up, and broadcasts the one that the node owns.

    `map -> odom` and `odom -> base` are broadcast at a rate of their own and stamped ahead of now,
    as localisation does for those who look up the present (REP-105). `odom -> base` is sent with
    its image's stamp too: that is where the robot was.

    `lookup`, `send`, `forget` and `new_map` may be called from any thread.
    """

    def __init__(
        self,
        node: Any,
        messages: Messages,
        parameters: Parameters,
        *,
        silence_s: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        """Subscribe to /tf and /tf_static.

        Args:
            node: the node whose publisher, subscriptions and timer these are.
            messages: message classes of the installed ROS.
            parameters: what is broadcast, how often, and how far ahead.
            silence_s: returns for how long no image has come.
            warn: called with what an operator should know.
        """
        self._node = node
        self._messages = messages
        self._parameters = parameters
        self._silence_s = silence_s
        self._warn = warn
        self._lock = threading.Lock()
        self._newest: dict[str, Any] = {}
        self._sent: deque[tuple[str, int, int]] = deque(maxlen=_STAMPS_KEPT)
        self._buffer = Buffer(cache_time=_CACHE)
        self._listener = _Listener(self._buffer, node, self._look_for_another_owner)
        self._jumps = node.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=_ANY_JUMP_BACK, on_clock_change=False),
            post_callback=self._on_jump,
        )
        owned = parameters.publish_tf
        self._broadcaster = TransformBroadcaster(node) if owned != "none" else None
        self._repeats = (
            owned in ("map_to_odom", "odom_to_base") and parameters.transform_rate_hz > 0.0
        )
        self._timer = None
        if self._repeats:
            self._timer = node.create_timer(
                1.0 / parameters.transform_rate_hz,
                self._repeat,
                clock=Clock(clock_type=ClockType.STEADY_TIME),
            )

    def lookup(self, target: str, source: str, stamp_ns: int) -> NDArray | None:
        """Return `target_from_source`, (4, 4), or None where it is not known."""
        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns))
            return read_transform(found)
        except (TransformException, QvggtError):
            return None

    def send(self, message: Any) -> None:
        """Broadcast the transforms of a TFMessage with one transform, the newest."""
        (transform,) = message.transforms
        if not self._repeats or self._parameters.publish_tf == "odom_to_base":
            self._broadcast(transform)
        if self._repeats:
            with self._lock:
                self._newest[transform.child_frame_id] = transform
            self._repeat()

    def new_map(self) -> None:
        """Repeat nothing of the former map."""
        with self._lock:
            self._newest = {}

    def forget(self) -> None:
        """Forget all transforms but the static ones, which hold at any time."""
        self.new_map()
        self._buffer.clear()

    def close(self) -> None:
        """Leave the graph."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        self._jumps.unregister()
        self._listener.unregister()
        with self._lock:
            broadcaster, self._broadcaster = self._broadcaster, None
        if broadcaster is not None:
            self._node.destroy_publisher(broadcaster.pub_tf)

    def _on_jump(self, jump: TimeJump) -> None:
        if jump.delta.nanoseconds < 0:
            self.forget()

    def _repeat(self) -> None:
        with self._lock:
            newest = list(self._newest.values())
        # A camera that is silent for so long begins another map: this one is over.
        if not newest or self._silence_s() > self._parameters.max_gap_s:
            return
        now_ns = self._node.get_clock().now().nanoseconds
        if now_ns == 0:  # simulated, and no one publishes /clock
            return
        ahead_ns = round(self._parameters.transform_tolerance_s * 1e9)
        for transform in map(deepcopy, newest):
            transform.header.stamp = time_message(self._messages, now_ns + ahead_ns)
            self._broadcast(transform)

    def _broadcast(self, transform: Any) -> None:
        stamp = transform.header.stamp
        key = (transform.child_frame_id, stamp.sec, stamp.nanosec)
        with self._lock:
            # Simulated time stands still at times; receivers complain of a stamp that comes twice.
            if self._broadcaster is None or key in self._sent:
                return
            self._sent.append(key)
            self._broadcaster.sendTransform(transform)

    def _look_for_another_owner(self, transform: Any) -> None:
        parameters = self._parameters
        owned = {"map_to_odom": parameters.odom_frame, "odom_to_base": parameters.base_frame}
        if transform.child_frame_id != owned.get(parameters.publish_tf):
            return
        stamp = transform.header.stamp
        with self._lock:
            own = (transform.child_frame_id, stamp.sec, stamp.nanosec) in self._sent
        if not own:
            self._warn(
                f"somebody else broadcasts {transform.header.frame_id} -> "
                f"{transform.child_frame_id} too, which publish_tf {parameters.publish_tf} makes "
                "this node's: the two fight for one frame"
            )


class _Listener(TransformListener):
    """tf2's listener, which shows what it receives."""

    def __init__(self, buffer: Buffer, node: Any, show: Callable[[Any], None]) -> None:
        self._show = show
        super().__init__(buffer, node)

    def callback(self, data: Any) -> None:
        for transform in data.transforms:
            self._show(transform)
        super().callback(data)
