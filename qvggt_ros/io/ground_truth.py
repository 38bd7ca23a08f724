"""Where true poses come from: a topic, the TF tree, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from qvggt_core.errors import QvggtError, RecordingError
from qvggt_core.evaluate.track import Track
from qvggt_core.results.truth import GroundTruth
from qvggt_core.util.quoting import listed
from qvggt_ros.io.conversions import frames_of, read_pose, stamp_ns
from qvggt_ros.io.recording import Recording
from qvggt_ros.io.tf_tree import TransformTree
from qvggt_ros.io.topics import POSE_TYPES, is_truth, pose_topics

TF_PREFIX = "/tf:"
_SHOWN = 4


def named_ground_truth(recording: Recording) -> str | None:
    """Return the topic of poses that is called ground truth, or None."""
    return next((topic for topic in pose_topics(recording) if is_truth(topic)), None)


def read_ground_truth(
    source: str,
    recordings: Sequence[Recording],
    *,
    camera_frame: str = "",
    truth_frame: str = "",
    times: Path | None = None,
) -> GroundTruth:
    """Read true poses.

    Where the truth is that of another frame than the camera's, as a robot's base, and TF holds a
    fixed transform between the two, the poses of the camera are computed from it.

    Args:
        source: a topic (PoseStamped, Odometry, TransformStamped); `/tf:PARENT` or
            `/tf:PARENT.CHILD`, where the child is the camera if it is not given; or a file (TUM,
            EuRoC, KITTI).
        recordings: where topics are looked for, in this order.
        camera_frame: name of the camera's optical frame.
        truth_frame: name of the frame that the poses are of, where messages do not name it.
        times: stamps of a KITTI file.

    Raises:
        RecordingError: there is no such topic or frame, or it holds no pose.
        EvaluationError: the file cannot be read.
    """
    if source.startswith(TF_PREFIX):
        return _from_tf(source, recordings, camera_frame)
    for recording in recordings:
        if recording.types.get(source) in POSE_TYPES:
            truth = _from_topic(source, recording)
            break
    else:
        if not Path(source).is_file():
            raise RecordingError(_nowhere(source, recordings))
        truth = GroundTruth.read(Path(source), times)
    return _of_camera(truth, truth_frame or truth.frame, camera_frame, recordings)


def _from_topic(topic: str, recording: Recording) -> GroundTruth:
    track, frame, broken = Track(), "", 0
    frames: tuple[set[str], set[str]] = (set(), set())
    for _, msgtype, received_ns, data in recording.messages([topic]):
        try:
            message = recording.deserialize(data, msgtype)
            pose = read_pose(message)
        except QvggtError:
            broken += 1
            continue
        named = frames_of(message)
        frame = frame or named[1]
        for known, each in zip(frames, named, strict=True):
            known.add(each)
        track.add(stamp_ns(message) or received_ns, pose)
    if len(track) == 0:
        raise RecordingError(
            f"{topic} in {recording.path} holds no pose that can be used; {broken} are broken"
        )
    notes = [f"{broken} poses of {topic} are broken and left out"] if broken else []
    notes += [
        f"poses of {topic} are {what} several frames ({listed(known, _SHOWN)}), and "
        "are compared as if these were one"
        for what, known in zip(("in", "of"), frames, strict=True)
        if len(known) > 1
    ]
    return GroundTruth(topic, "topic", track.in_order(), frame, notes=tuple(notes))


def _from_tf(source: str, recordings: Sequence[Recording], camera_frame: str) -> GroundTruth:
    trees = [TransformTree.read(recording) for recording in recordings]
    problem: RecordingError | None = None
    for tree in trees:
        try:
            parent, child = _tf_frames(source, tree, camera_frame)
            track = tree.track(parent, child, tree.stamps(parent, child))
        except RecordingError as error:
            problem = problem or error
            continue
        if len(track):
            return GroundTruth(
                f"{TF_PREFIX}{parent}.{child}",
                "tf",
                track,
                child,
                child == camera_frame,
                sample=partial(tree.track, parent, child),
            )
        problem = RecordingError(f"TF never connects all of the way from {parent!r} to {child!r}")
    raise problem or RecordingError(f"{source} needs a recording: there is none to read TF from")


def _tf_frames(source: str, tree: TransformTree, camera_frame: str) -> tuple[str, str]:
    """Return parent and child; names of frames may hold dots, so the tree decides."""
    name = source.removeprefix(TF_PREFIX)
    frames = set(tree.frames)
    if name in frames and camera_frame:
        return name, camera_frame
    dots = [index for index, letter in enumerate(name) if letter == "."]
    splits = [(name[:dot], name[dot + 1 :]) for dot in dots]
    known = [split for split in splits if frames.issuperset(split)]
    if len(known) != 1:
        raise RecordingError(
            f"{source} names no two frames of TF; write {TF_PREFIX}PARENT.CHILD; its frames are: "
            f"{listed(frames)}"
        )
    return known[0]


def _of_camera(
    truth: GroundTruth, frame: str, camera_frame: str, recordings: Sequence[Recording]
) -> GroundTruth:
    """Return the poses of the camera where TF has its mounting on what moves."""
    if not frame or not camera_frame or frame == camera_frame:
        return replace(truth, frame=frame)
    for recording in recordings:
        mounted = TransformTree.read(recording).fixed(frame, camera_frame)
        if mounted is not None:
            track = Track(truth.track.stamps_ns, list(truth.track.matrices @ mounted))
            return replace(truth, track=track, frame=frame, moved_to_camera=True)
    note = (
        f"the truth is that of {frame!r} and TF does not have how {camera_frame!r} sits on it: its "
        "poses are compared as if they were the camera's, so rotations have a constant error and "
        "a lever arm adds to positions"
    )
    return replace(truth, frame=frame, notes=(*truth.notes, note))


def _nowhere(source: str, recordings: Sequence[Recording]) -> str:
    topics = sorted({topic for recording in recordings for topic in pose_topics(recording)})
    where = " or ".join(str(recording.path) for recording in recordings) or "a recording"
    return (
        f"the ground truth {source} is no file and no topic with poses of {where}; such topics "
        f"are: {', '.join(topics) or 'none'}; {TF_PREFIX}PARENT.CHILD takes poses from TF"
    )
