"""Which topics of a recording a reconstruction uses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from qvggt_core.errors import ImageError, RecordingError
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.conversions import frames_of
from qvggt_ros.io.images import is_picture, picture_size
from qvggt_ros.io.messages import TYPES
from qvggt_ros.io.recording import Recording

POSE_TYPES = (TYPES["PoseStamped"], TYPES["Odometry"], TYPES["TransformStamped"])
"""Message types that can hold a reference trajectory."""

OWN_NAMESPACE = "/qvggt/"
"""Topics of a former reconstruction; they are never an input."""

_OF_A_RUN = frozenset({"/diagnostics", "/clock", "/rosout", "/parameter_events"})
_IMAGE_TYPES = (TYPES["Image"], TYPES["CompressedImage"])
_PREFERRED_NAMES = ("image_raw", "image_color", "image_rect_color", "image_rect", "image")
_COMPRESSED = "/compressed"
_TRUTH = re.compile(r"(?:^|[/_])(?:gt|ground_?truth|truth)(?:[/_]|$)", re.IGNORECASE)
# A topic with fewer of its twin's messages was recorded at a fraction of its rate.
_THIN = 0.5


@dataclass(frozen=True)
class Topics:
    """The topics of a recording that a reconstruction uses.

    Attributes:
        image: topic of the camera's images.
        camera_info: topic of its calibration, or None.
        reference: topics that hold poses of another source, such as ground truth.
        notes: sentences about why not others.
        mask: topic of masks of what stands still, or None.
        stereo: topic of a second camera's images, or None.
        stereo_info: topic of its calibration, or None.
    """

    image: str
    camera_info: str | None = None
    reference: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mask: str | None = None
    stereo: str | None = None
    stereo_info: str | None = None

    @property
    def rectified(self) -> bool:
        """Whether the images are rectified already, by the naming of image_proc."""
        return "image_rect" in self.image


def choose_topics(
    recording: Recording, image_topic: str | None = None, camera_info_topic: str | None = None
) -> Topics:
    """Return the topics to use, found by type and naming conventions where they are not named.

    A raw image is preferred to its compressed twin, unless most of it was not recorded; a camera
    with a camera_info beside it to one without; a picture to a depth image.

    Raises:
        RecordingError: a named topic is not there, empty or of the wrong type, there is no camera,
            or there are several.
    """
    types = recording.types
    notes: list[str] = []
    if image_topic is None:
        image_topic = _the_image_topic(recording, notes)
    elif types.get(image_topic) not in _IMAGE_TYPES:
        raise RecordingError(_no_such_topic(recording, image_topic, "an image"))
    elif recording.count(image_topic) == 0:
        raise RecordingError(f"{image_topic} in {recording.path} holds no message")
    if camera_info_topic is None:
        camera_info_topic = _camera_info_of(recording, image_topic, notes)
    elif types.get(camera_info_topic) != TYPES["CameraInfo"]:
        raise RecordingError(_no_such_topic(recording, camera_info_topic, "a camera_info"))
    return Topics(image_topic, camera_info_topic, tuple(pose_topics(recording)), tuple(notes))


def with_mask(recording: Recording, topics: Topics, mask_topic: str | None) -> Topics:
    """Return topics with that of masks, if one is named.

    Raises:
        RecordingError: it is not there, or holds no images.
    """
    if mask_topic is not None and recording.types.get(mask_topic) != TYPES["Image"]:
        raise RecordingError(_no_such_topic(recording, mask_topic, "a mask"))
    return replace(topics, mask=mask_topic)


def with_stereo(recording: Recording, topics: Topics, stereo_topic: str | None) -> Topics:
    """Return topics with those of a second camera on the same rig, if one is named.

    Raises:
        RecordingError: it is not there, holds no images or is the first one.
    """
    if stereo_topic is None:
        return topics
    is_first = stereo_topic == topics.image
    if is_first or recording.types.get(stereo_topic) not in _IMAGE_TYPES:
        raise RecordingError(_no_such_topic(recording, stereo_topic, "a second camera's image"))
    info = _sibling_camera_info(stereo_topic, recording.types)
    notes = topics.notes
    if info is None:
        notes += (f"{stereo_topic} has no camera_info beside it, so it gives no metres",)
    return replace(topics, stereo=stereo_topic, stereo_info=info, notes=notes)


def pose_topics(recording: Recording) -> list[str]:
    """Return the topics with poses that are no former results."""
    return [
        topic
        for topic, msgtype in recording.types.items()
        if msgtype in POSE_TYPES and not topic.startswith(OWN_NAMESPACE)
    ]


def is_truth(topic: str) -> bool:
    """Return whether a topic is called ground truth: by whole words of its name."""
    return _TRUTH.search(topic) is not None


def odometry_topic(recording: Recording) -> str | None:
    """Return the topic of the robot's own odometry, by type: not what is called ground truth."""
    topics = [
        topic
        for topic in pose_topics(recording)
        if recording.types[topic] == TYPES["Odometry"] and not is_truth(topic)
    ]
    return min(topics, key=lambda topic: (topic.rpartition("/")[2] != "odom", topic), default=None)


def sensor_topic(recording: Recording, type_name: str) -> str | None:
    """Return the first topic, by name, that holds messages of a type of `TYPES`; None without."""
    topics = [
        topic
        for topic, msgtype in recording.types.items()
        if msgtype == TYPES[type_name] and recording.count(topic) and not is_truth(topic)
    ]
    return min(topics, default=None)


def playable_topics(recording: Recording, namespace: str = OWN_NAMESPACE) -> list[str]:
    """Return the topics to play to a live node: not what a former run of it published.

    Args:
        recording: the recording.
        namespace: of the node.
    """
    own = (OWN_NAMESPACE, f"/{namespace.strip('/')}/", "/events/")
    return [
        topic for topic in recording.types if topic not in _OF_A_RUN and not topic.startswith(own)
    ]


def _the_image_topic(recording: Recording, notes: list[str]) -> str:
    types = recording.types
    reasons: list[str] = []
    topics = [
        topic
        for topic, msgtype in types.items()
        if msgtype in _IMAGE_TYPES
        and not topic.startswith(OWN_NAMESPACE)
        and _is_camera(recording, topic, reasons)
    ]
    if not topics:
        why = f"{'; '.join(reasons)}; " if reasons else ""
        raise RecordingError(
            f"{recording.path} has no camera image: {why}its topics are:\n{_listing(types)}"
        )
    topics = [topic for topic in topics if not _has_better_twin(recording, topic, topics, notes)]
    with_info = [topic for topic in topics if _sibling_camera_info(topic, types)]
    cameras: dict[str, list[str]] = {}
    for topic in with_info or topics:
        cameras.setdefault(_namespace(topic), []).append(topic)
    if len(cameras) > 1:
        raise RecordingError(
            f"{recording.path} has several cameras; name one with --image-topic, and a "
            "second one beside it with --stereo-topic if both look to the same side:\n"
            f"{_names(topic for group in cameras.values() for topic in group)}"
        )
    (group,) = cameras.values()
    best = min(group, key=_preference)
    if len(group) > 1 and _preference(best)[0] == len(_PREFERRED_NAMES):
        raise RecordingError(
            f"{recording.path} has several images of one camera, and none has a usual name; name "
            f"one with --image-topic:\n{_names(group)}"
        )
    return best


def _is_camera(recording: Recording, topic: str, reasons: list[str]) -> bool:
    """Return whether a topic holds pictures; add to the reasons why not."""
    if recording.count(topic) == 0:
        reasons.append(f"{topic} holds no message")
        return False
    message = recording.first(topic)
    if message is None:
        reasons.append(f"no message of {topic} can be read")
        return False
    if not is_picture(message):
        reasons.append(f"{topic} holds depth")
        return False
    return True


def _has_better_twin(recording: Recording, topic: str, topics: list[str], notes: list[str]) -> bool:
    """Return whether a topic is the compressed twin of a raw one, or a raw one recorded thinly."""
    if topic.endswith(_COMPRESSED):
        raw = topic.removesuffix(_COMPRESSED)
        return raw in topics and not _is_thin(recording, raw)
    if topic + _COMPRESSED in topics and _is_thin(recording, topic):
        notes.append(
            f"{topic} has {recording.count(topic)} messages, {topic + _COMPRESSED} has "
            f"{recording.count(topic + _COMPRESSED)}: the compressed ones are taken"
        )
        return True
    return False


def _is_thin(recording: Recording, raw: str) -> bool:
    return recording.count(raw) < _THIN * recording.count(raw + _COMPRESSED)


def _preference(topic: str) -> tuple[int, str]:
    name = topic.removesuffix(_COMPRESSED).rpartition("/")[2]
    known = name in _PREFERRED_NAMES
    return (_PREFERRED_NAMES.index(name) if known else len(_PREFERRED_NAMES), topic)


def _namespace(image_topic: str) -> str:
    return image_topic.removesuffix(_COMPRESSED).rpartition("/")[0]


def _sibling_camera_info(image_topic: str, types: dict[str, str]) -> str | None:
    topic = f"{_namespace(image_topic)}/camera_info"
    return topic if types.get(topic) == TYPES["CameraInfo"] else None


def _camera_info_of(recording: Recording, image_topic: str, notes: list[str]) -> str | None:
    """Return the sibling, or the only camera_info if it is of the camera's frame and size."""
    types = recording.types
    if sibling := _sibling_camera_info(image_topic, types):
        return sibling
    infos = [topic for topic, msgtype in types.items() if msgtype == TYPES["CameraInfo"]]
    if len(infos) != 1:
        return None
    image, info = recording.first(image_topic), recording.first(infos[0])
    problem = None if image is None or info is None else _mismatch(image, info)
    if problem is None:
        return infos[0]
    notes.append(
        f"{infos[0]} is not taken for {image_topic}: {problem}; name it with --camera-info-topic "
        "if it is right"
    )
    return None


def _mismatch(image: Any, info: Any) -> str | None:
    """Return why a CameraInfo is that of another camera, or None."""
    own, other = frames_of(image)[0], frames_of(info)[0]
    if own and other and own != other:
        return f"its frame is {other}, the image's is {own}"
    try:
        camera_from_info(info, *picture_size(image))
    except ImageError as error:
        return str(error)
    return None


def _no_such_topic(recording: Recording, topic: str, what: str) -> str:
    found = recording.types.get(topic)
    problem = f"no topic {topic}" if found is None else f"{topic} of type {found}, not {what}"
    return f"{recording.path} has {problem}; its topics are:\n{_listing(recording.types)}"


def _names(topics: Any) -> str:
    return "\n".join(f"  {topic}" for topic in topics)


def _listing(types: dict[str, str]) -> str:
    return "\n".join(f"  {topic}  [{msgtype}]" for topic, msgtype in types.items())
