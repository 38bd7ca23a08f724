"""The TF tree of a recording: the pose of one frame in another over time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import RecordingError
from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.poses import inverse
from qvggt_core.util.quoting import listed
from qvggt_ros.io.conversions import frames_of, read_transform, stamp_ns
from qvggt_ros.io.messages import TYPES
from qvggt_ros.io.recording import Recording

MAX_GAP_S = 1.0
"""Longest time between two transforms that is bridged by interpolation, in seconds."""

_MAX_DEPTH = 256
# A mounting that is repeated on /tf, as static_transform_publisher of ROS 1 does it.
_REPEATED = 3
_SAME_POSE = 1e-9


@dataclass
class _Edge:
    """How a frame moves in its parent; `track` holds one pose if it is static.

    One that is not declared static, but `repeated` without a change, is as good as that.
    """

    parent: str
    static: bool
    track: Track = field(default_factory=Track)
    repeated: bool = False


class TransformTree:
    """The transforms of a recording.

    Each frame has one parent, as in tf2; the newest parent holds.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._edges: dict[str, dict[str, _Edge]] = {}
        self.warnings: list[str] = []

    @classmethod
    def read(cls, recording: Recording) -> TransformTree:
        """Read all TFMessage topics; a topic whose name ends with `tf_static` does not move.

        A transform that cannot be used is left out, as tf2 leaves it out, with a warning.
        """
        tree, broken = cls(), Counter[str]()
        topics = [t for t, kind in recording.types.items() if kind == TYPES["TFMessage"]]
        for topic, msgtype, _, data in recording.messages(topics):
            try:
                transforms = recording.deserialize(data, msgtype).transforms
            except RecordingError as error:
                broken[f"{topic}: {error}"] += 1
                continue
            for message in transforms:
                parent, child = frames_of(message)
                try:
                    tree.add(
                        parent,
                        child,
                        stamp_ns(message),
                        read_transform(message),
                        static=topic.endswith("tf_static"),
                    )
                except RecordingError:
                    broken[f"{topic}: transforms of {child!r} in {parent!r} that are none"] += 1
        tree.warnings = [f"left out of {text} ({count} times)" for text, count in broken.items()]
        tree._settle()
        return tree

    def _settle(self) -> None:
        """Order the poses of each edge; one that never moves is fixed, whatever its topic."""
        for edge in self._all():
            edge.track = edge.track.in_order()
            poses = edge.track.matrices
            if len(poses) >= _REPEATED and np.abs(poses - poses[0]).max() < _SAME_POSE:
                edge.repeated = True

    def _all(self) -> Iterator[_Edge]:
        for parents in self._edges.values():
            yield from parents.values()

    @property
    def frames(self) -> list[str]:
        """Names of all frames."""
        return sorted({*self._edges, *(edge.parent for edge in self._all())})

    def add(
        self, parent: str, child: str, stamp_ns: int, pose: NDArray[np.float64], *, static: bool
    ) -> None:
        """Take the pose of `child` in `parent`."""
        parents = self._edges.setdefault(child, {})
        edge = parents.get(parent)
        if edge is None or edge.static != static or static:
            edge = parents[parent] = _Edge(parent, static)
        edge.track.add(stamp_ns, pose)

    def stamps(self, parent: str, child: str) -> list[int]:
        """Return the times of the transforms between two frames, in order.

        Raises:
            RecordingError: the frames are not connected.
        """
        up, down = self._chain(parent, child)
        moving = [edge for edge in (*up, *down) if not edge.static]
        return sorted({stamp for edge in moving for stamp in edge.track.stamps_ns})

    def track(self, parent: str, child: str, stamps_ns: list[int]) -> Track:
        """Return the poses of `child` in `parent` at those stamps where all parts are known.

        Between two transforms the translation is interpolated linearly and the rotation on the
        shortest arc, as tf2 does; nothing is extrapolated, and no gap over `MAX_GAP_S` is bridged.

        Raises:
            RecordingError: the frames are not connected.
        """
        up, down = self._chain(parent, child)
        known = np.ones(len(stamps_ns), dtype=bool)
        poses = np.broadcast_to(np.eye(4), (len(stamps_ns), 4, 4)).copy()
        # Up from the parent to the common ancestor, then down to the child.
        for edge in up:
            step, valid = _at(edge, stamps_ns)
            poses, known = poses @ inverse(step), known & valid
        for edge in reversed(down):
            step, valid = _at(edge, stamps_ns)
            poses, known = poses @ step, known & valid
        return Track(stamps_ns=list(stamps_ns), poses=list(poses)).at(np.nonzero(known)[0])

    def fixed(self, parent: str, child: str) -> NDArray[np.float64] | None:
        """Return the pose of `child` in `parent`, (4, 4), or None if it moves or is not known."""
        try:
            up, down = self._chain(parent, child)
        except RecordingError:
            return None
        if any(not (edge.static or edge.repeated) for edge in (*up, *down)):
            return None
        return self.track(parent, child, [0]).poses[0]

    def _chain(self, parent: str, child: str) -> tuple[list[_Edge], list[_Edge]]:
        """Return the edges from both frames up to the nearest frame that is above both."""
        above_child = self._ancestors(child)
        above_parent = self._ancestors(parent)
        common = [name for name in above_parent if name in above_child]
        if not common:
            raise RecordingError(
                f"TF does not connect {child!r} with {parent!r}; its frames are: "
                f"{listed(self.frames)}"
            )
        nearest = min(common, key=lambda name: len(above_parent[name]) + len(above_child[name]))
        return above_parent[nearest], above_child[nearest]

    def _ancestors(self, frame: str) -> dict[str, list[_Edge]]:
        """Return the edges to each frame above a frame, itself among them.

        A frame with several parents, as of a robot and of a motion capture, is below all of them.
        """
        found: dict[str, list[_Edge]] = {frame: []}
        waiting = deque([frame])
        while waiting:
            name = waiting.popleft()
            for edge in self._edges.get(name, {}).values():
                if edge.parent not in found and len(found[name]) < _MAX_DEPTH:
                    found[edge.parent] = [*found[name], edge]
                    waiting.append(edge.parent)
        return found


def _at(edge: _Edge, stamps_ns: list[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the poses of an edge at some stamps, and where they are known."""
    poses = edge.track.matrices
    at = np.array(stamps_ns, dtype=np.int64)
    if edge.static or edge.repeated:
        return np.broadcast_to(poses[-1], (len(at), 4, 4)), np.ones(len(at), dtype=bool)
    times = np.array(edge.track.stamps_ns, dtype=np.int64)
    after = np.clip(np.searchsorted(times, at), 0, len(times) - 1)
    before = np.where(times[after] == at, after, np.maximum(after - 1, 0))
    valid = (at >= times[0]) & (at <= times[-1])
    valid &= times[after] - times[before] <= round(MAX_GAP_S * 1e9)
    span = np.maximum(times[after] - times[before], 1)
    share = np.clip((at - times[before]) / span, 0.0, 1.0)
    result = np.broadcast_to(np.eye(4), (len(at), 4, 4)).copy()
    first, second = poses[before], poses[after]
    result[:, :3, 3] = first[:, :3, 3] + share[:, None] * (second[:, :3, 3] - first[:, :3, 3])
    turn = Rotation.from_matrix(np.swapaxes(first[:, :3, :3], 1, 2) @ second[:, :3, :3])
    part = Rotation.from_rotvec(turn.as_rotvec() * share[:, None])
    result[:, :3, :3] = first[:, :3, :3] @ part.as_matrix()
    return result, valid
