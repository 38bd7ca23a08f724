"""Recordings opened for reading: rosbag2 directories and bare files, whole or cut off."""

from __future__ import annotations

import logging
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from qvggt_core.errors import RecordingError
from qvggt_ros.io.image_sequence import is_image_sequence, open_image_sequence
from qvggt_ros.io.images import is_picture
from qvggt_ros.io.messages import TYPES, rosbags_typestore

logger = logging.getLogger(__name__)

POSE_TYPES = (TYPES["PoseStamped"], TYPES["Odometry"], TYPES["TransformStamped"])
"""Message types that can hold a reference trajectory."""

OWN_NAMESPACE = "/qvggt/"
_OF_A_RUN = frozenset({"/diagnostics", "/clock", "/rosout", "/parameter_events"})
"""Topics of a former reconstruction; they are never an input."""

_IMAGE_TYPES = (TYPES["Image"], TYPES["CompressedImage"])
_PREFERRED_NAMES = ("image_raw", "image_color", "image_rect_color", "image_rect", "image")

# MCAP framing (https://mcap.dev/spec): magic, then records of opcode, u64 length, content.
_MCAP_MAGIC = b"\x89MCAP0\r\n"
_MCAP_RECORD = struct.Struct("<BQ")
_MCAP_FOOTER, _MCAP_CHUNK, _MCAP_DATA_END = 0x02, 0x06, 0x0F
_MCAP_CHUNK_HEAD = struct.Struct("<QQQII")


@dataclass(frozen=True)
class Topics:
    """The topics of a recording that a reconstruction uses.

    Attributes:
        image: topic of the camera's images.
        camera_info: topic of its calibration, or None.
        reference: topics that hold poses of another source, such as ground truth.
    """

    image: str
    camera_info: str | None = None
    reference: tuple[str, ...] = ()

    @property
    def rectified(self) -> bool:
        """Whether the images are rectified already, by the naming of image_proc."""
        return "image_rect" in self.image


@dataclass
class Recording:
    """An open recording.

    Attributes:
        path: what was opened.
        reader: rosbags' reader.
        warnings: sentences about what could not be read.
    """

    path: Path
    reader: AnyReader
    warnings: list[str] = field(default_factory=list)

    @property
    def types(self) -> dict[str, str]:
        """Message type per topic, by name."""
        return {c.topic: c.msgtype for c in sorted(self.reader.connections, key=lambda c: c.topic)}

    def count(self, topic: str) -> int:
        """Return the number of messages of a topic."""
        return sum(c.msgcount for c in self.reader.connections if c.topic == topic)

    def connections(self, topics: Sequence[str]) -> list[Connection]:
        """Return the connections of some topics."""
        return [c for c in self.reader.connections if c.topic in topics]

    def messages(self, topics: Sequence[str]) -> Iterator[tuple[str, str, int, bytes]]:
        """Yield topic, type, receive time in nanoseconds and CDR bytes, in order of receive time.

        A recording that turns out to be damaged ends there, with a warning.
        """
        connections = self.connections(topics)
        if not connections:
            return
        iterator = self.reader.messages(connections)
        while True:
            try:
                connection, received_ns, data = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # damaged files raise whatever their bytes lead to
                self.warnings.append(
                    f"{self.path} is damaged ({_described(error)}): what came before is kept"
                )
                return
            yield connection.topic, connection.msgtype, received_ns, data

    def first(self, topic: str) -> Any | None:
        """Return the first message of a topic that can be read, or None."""
        for _, msgtype, _, data in self.messages([topic]):
            with suppress(RecordingError):
                return self.deserialize(data, msgtype)
        return None

    def deserialize(self, data: bytes, msgtype: str) -> Any:
        """Return a message.

        Raises:
            RecordingError: the bytes are not a message of this type.
        """
        try:
            return self.reader.deserialize(data, msgtype)
        except Exception as error:  # as above: the bytes come from a file
            raise RecordingError(
                f"a {msgtype} of {len(data)} bytes cannot be read ({_described(error)})"
            ) from error


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Open a rosbag2 directory, a bare .mcap or .db3 file, a video, or a folder of images.

    A recording without metadata.yaml, or an MCAP file without its end, as a recorder leaves it
    when it is killed, is opened as far as it goes, with a warning.

    Raises:
        RecordingError: there is nothing, nothing that can be read, or no message.
    """
    if not path.exists():
        raise RecordingError(f"there is no recording at {path}")
    if path.suffix == ".bag":
        raise RecordingError(
            f"{path} is a ROS 1 recording: convert it with `rosbags-convert --src {path} --dst DIR`"
        )
    if is_image_sequence(path):
        # It has all that is used of a recording, and no bag below it.
        yield cast(Recording, open_image_sequence(path))
        return
    with ExitStack() as stack:
        reader, warnings = _open_reader(path, stack)
        recording = Recording(path, reader, warnings)
        for warning in warnings:
            logger.warning("%s", warning)
        if not reader.connections or reader.message_count == 0:
            raise RecordingError(f"{path} is empty: it holds no message")
        yield recording


def _open_reader(path: Path, stack: ExitStack) -> tuple[AnyReader, list[str]]:
    files = _storage_files(path)
    whole = path.is_file() or (path / "metadata.yaml").exists()
    try:
        return stack.enter_context(_reader([path] if whole else files)), (
            [] if whole else [f"{path} has no metadata.yaml: its files are read one by one"]
        )
    except Exception as error:  # see Recording.messages
        reason = _described(error)
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvggt_")))
    repaired = [_repaired_if_cut_off(file, directory) for file in files]
    try:
        reader = stack.enter_context(_reader(repaired))
    except Exception as error:
        raise RecordingError(f"{path} cannot be read: {reason}") from error
    return reader, [f"{path} is damaged ({reason}): it is read as far as it goes"]


def _reader(paths: Sequence[Path]) -> AnyReader:
    return AnyReader(paths, default_typestore=rosbags_typestore())


def _storage_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))
    if not files:
        raise RecordingError(
            f"{path} is no recording: it holds no .mcap, no .db3 file and no images"
        )
    return files


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _repaired_if_cut_off(path: Path, directory: Path) -> Path:
    """Return `path`, or a copy in `directory` with an end if it is an MCAP file without one."""
    if path.suffix != ".mcap":
        return path
    with path.open("rb") as source:
        if source.read(len(_MCAP_MAGIC)) != _MCAP_MAGIC:
            return path
        source.seek(max(0, path.stat().st_size - len(_MCAP_MAGIC)))
        if source.read() == _MCAP_MAGIC and path.stat().st_size > 2 * len(_MCAP_MAGIC):
            return path
        repaired = directory / path.name
        with repaired.open("wb") as target:
            _copy_whole_records(source, path.stat().st_size, target)
    return repaired


def _copy_whole_records(source: BinaryIO, size: int, target: BinaryIO) -> None:
    """Copy what is whole in a cut off MCAP file, and end it without an index.

    A chunk that was cut off is unpacked if it is not compressed: its records may also stand
    outside of a chunk.
    """
    source.seek(len(_MCAP_MAGIC))
    target.write(_MCAP_MAGIC)
    end = size
    while True:
        head = source.read(_MCAP_RECORD.size)
        if len(head) < _MCAP_RECORD.size:
            break
        opcode, length = _MCAP_RECORD.unpack(head)
        if opcode in (_MCAP_FOOTER, _MCAP_DATA_END):
            break
        if source.tell() + length <= end:
            target.write(head)
            _copy(source, target, length)
        elif opcode == _MCAP_CHUNK and _is_plain_chunk(source):
            continue
        else:
            break
    target.write(_MCAP_RECORD.pack(_MCAP_DATA_END, 4) + bytes(4))
    target.write(_MCAP_RECORD.pack(_MCAP_FOOTER, 20) + bytes(20))
    target.write(_MCAP_MAGIC)


def _is_plain_chunk(source: BinaryIO) -> bool:
    """Move to the first record in a chunk; return whether it is not compressed."""
    head = source.read(_MCAP_CHUNK_HEAD.size + 8)
    if len(head) < _MCAP_CHUNK_HEAD.size + 8:
        return False
    compression_length = _MCAP_CHUNK_HEAD.unpack_from(head)[-1]
    return compression_length == 0


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length:
        block = source.read(min(length, 1 << 20))
        target.write(block)
        length -= len(block)


def choose_topics(
    recording: Recording, image_topic: str | None = None, camera_info_topic: str | None = None
) -> Topics:
    """Return the topics to use, found by type and naming conventions where they are not named.

    A raw image is preferred to its compressed twin, a camera with a camera_info beside it to one
    without, a picture to a depth image.

    Raises:
        RecordingError: a named topic is not there or of the wrong type, there is no camera, or
            there are several.
    """
    types = recording.types
    if image_topic is None:
        image_topic = _the_image_topic(recording)
    elif types.get(image_topic) not in _IMAGE_TYPES:
        raise RecordingError(_no_such_topic(recording, image_topic, "an image"))
    if camera_info_topic is None:
        camera_info_topic = _camera_info_of(image_topic, types)
    elif types.get(camera_info_topic) != TYPES["CameraInfo"]:
        raise RecordingError(_no_such_topic(recording, camera_info_topic, "a camera_info"))
    reference = tuple(
        topic
        for topic, msgtype in types.items()
        if msgtype in POSE_TYPES and not topic.startswith(OWN_NAMESPACE)
    )
    return Topics(image_topic, camera_info_topic, reference)


def odometry_topic(recording: Recording) -> str | None:
    """Return the topic of the robot's own odometry, by type: not what is called ground truth."""
    topics = [
        topic
        for topic, msgtype in recording.types.items()
        if msgtype == TYPES["Odometry"]
        and not topic.startswith(OWN_NAMESPACE)
        and not {"gt", "ground_truth", "groundtruth", "truth"} & set(topic.split("/"))
    ]
    return min(topics, key=lambda topic: (topic.rpartition("/")[2] != "odom", topic), default=None)


def _the_image_topic(recording: Recording) -> str:
    types = recording.types
    topics = [
        topic
        for topic, msgtype in types.items()
        if msgtype in _IMAGE_TYPES
        and not topic.startswith(OWN_NAMESPACE)
        and (message := recording.first(topic)) is not None
        and is_picture(message)
    ]
    if not topics:
        raise RecordingError(
            f"{recording.path} has no camera image; its topics are:\n{_listing(types)}"
        )
    topics = [
        t
        for t in topics
        if not (t.endswith("/compressed") and t.removesuffix("/compressed") in topics)
    ]
    with_info = [t for t in topics if _sibling_camera_info(t, types)]
    cameras: dict[str, list[str]] = {}
    for topic in with_info or topics:
        cameras.setdefault(_namespace(topic), []).append(topic)
    if len(cameras) > 1:
        names = "\n".join(f"  {t}" for group in cameras.values() for t in group)
        raise RecordingError(
            f"{recording.path} has several cameras; name one with --image-topic:\n{names}"
        )
    (group,) = cameras.values()
    return min(group, key=_preference)


def _preference(topic: str) -> tuple[int, str]:
    name = topic.removesuffix("/compressed").rpartition("/")[2]
    known = name in _PREFERRED_NAMES
    return (_PREFERRED_NAMES.index(name) if known else len(_PREFERRED_NAMES), topic)


def _namespace(image_topic: str) -> str:
    return image_topic.removesuffix("/compressed").rpartition("/")[0]


def _sibling_camera_info(image_topic: str, types: dict[str, str]) -> str | None:
    topic = f"{_namespace(image_topic)}/camera_info"
    return topic if types.get(topic) == TYPES["CameraInfo"] else None


def _camera_info_of(image_topic: str, types: dict[str, str]) -> str | None:
    """Return the sibling, or the only camera_info of a recording with one camera."""
    if sibling := _sibling_camera_info(image_topic, types):
        return sibling
    infos = [topic for topic, msgtype in types.items() if msgtype == TYPES["CameraInfo"]]
    return infos[0] if len(infos) == 1 else None


def _no_such_topic(recording: Recording, topic: str, what: str) -> str:
    found = recording.types.get(topic)
    problem = f"no topic {topic}" if found is None else f"{topic} of type {found}, not {what}"
    return f"{recording.path} has {problem}; its topics are:\n{_listing(recording.types)}"


def _listing(types: dict[str, str]) -> str:
    return "\n".join(f"  {topic}  [{msgtype}]" for topic, msgtype in types.items())


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
