"""The TF tree of a recording, asked for the pose of one frame in another over time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from qvggt_core.errors import RecordingError
from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.poses import inverse
from qvggt_ros.io.conversions import frames_of, read_transform, stamp_ns
from qvggt_ros.io.messages import TYPES
from qvggt_ros.io.recording import Recording

MAX_GAP_S = 1.0
"""Longest time between two transforms that is bridged by interpolation, in seconds."""

_MAX_DEPTH = 256


@dataclass
class _Edge:
    """How a frame moves in its parent; `track` holds one pose if it does not move."""

    parent: str
    static: bool
    track: Track = field(default_factory=Track)


class TransformTree:
    """The transforms of a recording.

    Each frame has one parent, as in tf2; the last message about the parent holds.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._edges: dict[str, _Edge] = {}

    @classmethod
    def read(cls, recording: Recording) -> TransformTree:
        """Read all TFMessage topics; a topic whose name ends with `tf_static` does not move."""
        tree = cls()
        topics = [t for t, kind in recording.types.items() if kind == TYPES["TFMessage"]]
        for topic, msgtype, _, data in recording.messages(topics):
            for message in recording.deserialize(data, msgtype).transforms:
                parent, child = frames_of(message)
                tree.add(
                    parent,
                    child,
                    stamp_ns(message),
                    read_transform(message),
                    static=topic.endswith("tf_static"),
                )
        for edge in tree._edges.values():
            edge.track = edge.track.in_order()
        return tree

    @property
    def frames(self) -> list[str]:
        """Names of all frames."""
        return sorted({*self._edges, *(edge.parent for edge in self._edges.values())})

    def add(
        self, parent: str, child: str, stamp_ns: int, pose: NDArray[np.float64], *, static: bool
    ) -> None:
        """Take the pose of `child` in `parent`."""
        edge = self._edges.get(child)
        if edge is None or edge.parent != parent or edge.static != static or static:
            edge = self._edges[child] = _Edge(parent, static)
        edge.track.add(stamp_ns, pose)

    def stamps(self, parent: str, child: str) -> list[int]:
        """Return the times at which a transform between two frames came, in order.

        Raises:
            RecordingError: the frames are not connected.
        """
        up, down = self._chain(parent, child)
        moving = [self._edges[name] for name in (*up, *down) if not self._edges[name].static]
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
        for name in up:
            step, valid = self._at(name, stamps_ns)
            poses, known = poses @ inverse(step), known & valid
        for name in reversed(down):
            step, valid = self._at(name, stamps_ns)
            poses, known = poses @ step, known & valid
        return Track(stamps_ns=list(stamps_ns), poses=list(poses)).at(np.nonzero(known)[0])

    def fixed(self, parent: str, child: str) -> NDArray[np.float64] | None:
        """Return the pose of `child` in `parent`, (4, 4), or None if it moves or is not known."""
        try:
            up, down = self._chain(parent, child)
        except RecordingError:
            return None
        if any(not self._edges[name].static for name in (*up, *down)):
            return None
        return self.track(parent, child, [0]).poses[0]

    def _chain(self, parent: str, child: str) -> tuple[list[str], list[str]]:
        above_child = self._ancestors(child)
        above_parent = self._ancestors(parent)
        common = next((name for name in above_parent if name in above_child), None)
        if common is None:
            raise RecordingError(
                f"TF does not connect {child!r} with {parent!r}; its frames are: "
                f"{', '.join(self.frames) or 'none'}"
            )
        return (
            above_parent[: above_parent.index(common)],
            above_child[: above_child.index(common)],
        )

    def _ancestors(self, frame: str) -> list[str]:
        found = [frame]
        while (edge := self._edges.get(found[-1])) is not None:
            if edge.parent in found or len(found) > _MAX_DEPTH:
                raise RecordingError(f"TF goes in a circle at {edge.parent!r}: it is no tree")
            found.append(edge.parent)
        return found

    def _at(
        self, child: str, stamps_ns: list[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        edge = self._edges[child]
        poses = edge.track.matrices
        at = np.array(stamps_ns, dtype=np.int64)
        if edge.static:
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
