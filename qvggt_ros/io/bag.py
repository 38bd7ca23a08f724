"""rosbag2 directories and bare storage files opened for reading, as far as they go."""

from __future__ import annotations

import heapq
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from qvggt_core.errors import RecordingError
from qvggt_core.util.yaml_text import read_yaml
from qvggt_ros.io.mcap import McapFile
from qvggt_ros.io.messages import rosbags_typestore
from qvggt_ros.io.sqlite import SqliteFile
from qvggt_ros.io.storage import Storage, StoredTopic, zstd

logger = logging.getLogger(__name__)

_SUFFIXES = (".mcap", ".db3")
_PACKED = ".zstd"
_BEGINNINGS = {
    b"\x89MCAP": ".mcap",
    b"SQLite format 3\0": ".db3",
    b"\x28\xb5\x2f\xfd": _PACKED,
    b"#ROSBAG V": ".bag",
}
_MAX_ARRAY = 1 << 16
_ARRAYS = re.compile(r"\[(\d+)\]|array<[^;]*,\s*(\d+)")
_BLOCK = 1 << 20
_DISK_LEFT = 1 << 30


@dataclass
class Recording:
    """An open recording.

    Attributes:
        path: what was opened.
        storages: its files.
        typestore: the message types that it has.
        warnings: sentences about what could not be read.
    """

    path: Path
    storages: Sequence[Storage]
    typestore: Typestore
    warnings: list[str] = field(default_factory=list)

    @property
    def types(self) -> dict[str, str]:
        """Message type per topic, by name; topics of other encodings than ROS 2's are not here."""
        found = {topic.name: topic.msgtype for topic in self._topics()}
        return dict(sorted(found.items()))

    @property
    def message_count(self) -> int:
        """Number of messages."""
        return sum(topic.count for topic in self._topics())

    def count(self, topic: str) -> int:
        """Return the number of messages of a topic."""
        return sum(each.count for each in self._topics() if each.name == topic)

    def messages(self, topics: Sequence[str]) -> Iterator[tuple[str, str, int, bytes]]:
        """Yield topic, type, receive time in nanoseconds and CDR bytes, in order of receive time.

        What cannot be read is left out, with a warning.
        """
        streams = [self._of(storage, topics) for storage in self.storages]
        # Files of a split recording overlap by what was under way when they changed.
        for time_ns, topic, msgtype, data in heapq.merge(*streams, key=lambda entry: entry[0]):
            yield topic, msgtype, time_ns, data
        for storage in self.storages:
            for warning in storage.warnings:
                if warning not in self.warnings:
                    self.warnings.append(warning)

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
            return self.typestore.deserialize_cdr(data, msgtype)
        except Exception as error:  # whatever the bytes of a file lead to
            raise RecordingError(
                f"a {msgtype} of {len(data)} bytes cannot be read ({describe(error)})"
            ) from error

    def _topics(self) -> Iterator[StoredTopic]:
        for storage in self.storages:
            yield from (topic for topic in storage.topics if topic.encoding == "cdr")

    def _of(self, storage: Storage, topics: Sequence[str]) -> Iterator[tuple[int, str, str, bytes]]:
        wanted = {
            each.key: (each.name, each.msgtype)
            for each in storage.topics
            if each.name in topics and each.encoding == "cdr"
        }
        if wanted:
            for key, time_ns, data in storage.messages(wanted):
                yield time_ns, *wanted[key], data


@contextmanager
def open_bag(path: Path) -> Iterator[Recording]:
    """Open a rosbag2 directory, a bare .mcap or a bare .db3 file, compressed or not.

    metadata.yaml is a summary, so what the files hold is taken. A recording without it, or whose
    files are cut off, as a recorder leaves them when it is killed, is opened as far as it goes,
    with a warning.

    Raises:
        RecordingError: there is nothing, nothing that can be read, or no message.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvggt_")))
        try:
            files, warnings = _storage_files(path)
            storages = [
                _opened(file, scratch / str(number), stack, warnings, alone=len(files) == 1)
                for number, file in enumerate(files)
            ]
        except OSError as error:
            raise RecordingError(f"{path} cannot be read: {error}") from error
        found = [storage for storage in storages if storage is not None]
        if not found:
            raise RecordingError(f"{path} cannot be read: {'; '.join(warnings)}")
        for storage in found:
            warnings += storage.warnings
        topics = [topic for storage in found for topic in storage.topics]
        recording = Recording(path, found, _typestore(topics, warnings), warnings)
        for warning in warnings:
            logger.warning("%s", warning)
        if recording.message_count == 0 and warnings:
            raise RecordingError(
                f"{path} cannot be read, no whole message is in it: {'; '.join(warnings)}"
            )
        if recording.message_count == 0:
            raise RecordingError(f"{path} is empty: it holds no message")
        yield recording


def describe(error: Exception) -> str:
    """Return the kind and the text of an error."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _storage_files(path: Path) -> tuple[list[Path], list[str]]:
    """Return the files of a recording in order, and what is odd about them."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise RecordingError(f"{path} is no file and no directory")
    files = sorted((file for file in path.iterdir() if _is_storage(file)), key=_natural)
    if not files:
        old = next((file for file in path.iterdir() if file.suffix == ".bag"), None)
        raise RecordingError(
            _is_none(old, ".bag")
            if old is not None
            else f"{path} is no recording: it holds no .mcap, no .db3 file and no images"
        )
    if not (path / "metadata.yaml").exists():
        return files, [f"{path} has no metadata.yaml: its files are read one by one"]
    listed = _listed_files(path / "metadata.yaml")
    missing = sorted(listed - {file.name.removesuffix(_PACKED) for file in files})
    if missing:
        return files, [f"{path}: files that its metadata.yaml names are not there: {missing}"]
    # A file that the metadata does not name is another recording's, or a copy.
    named = [file for file in files if file.name.removesuffix(_PACKED) in listed]
    others = sorted(file.name for file in files if named and file not in named)
    if others:
        return named, [f"{path}: files that its metadata.yaml does not name are left out: {others}"]
    return files, []


def _is_storage(path: Path) -> bool:
    return path.is_file() and Path(path.name.removesuffix(_PACKED)).suffix in _SUFFIXES


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key by which x_2 comes before x_10, as a recorder numbers the files of a split."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)
    ]


def _listed_files(metadata: Path) -> set[str]:
    """Return the names that metadata.yaml lists, without what names their compression."""
    try:
        content = read_yaml(metadata)
        names = content["rosbag2_bagfile_information"]["relative_file_paths"]
        return {
            PurePath(name).name.removesuffix(_PACKED) for name in names if isinstance(name, str)
        }
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _opened(
    path: Path, scratch: Path, stack: ExitStack, warnings: list[str], *, alone: bool
) -> McapFile | SqliteFile | None:
    """Open a file; None and a warning for one of several that cannot be read."""
    scratch.mkdir()
    try:
        kind = _kind(path)
        if kind == _PACKED:
            path = _unpacked_file(path, scratch, warnings)
            kind = _kind(path)
        if kind == ".mcap":
            return _closed_later(McapFile(path), stack)
        if kind == ".db3":
            return _closed_later(SqliteFile(path, scratch), stack)
        raise RecordingError(_is_none(path, kind))
    except (RecordingError, OSError) as error:
        if alone:
            raise
        warnings.append(f"{path.name} is left out: {error}")
        return None


def _kind(path: Path) -> str:
    """Return what a file is by its first bytes, as its name's suffix has it; else that suffix."""
    with path.open("rb") as file:
        head = file.read(16)
    return next(
        (kind for magic, kind in _BEGINNINGS.items() if head.startswith(magic)), path.suffix
    )


def _is_none(path: Path, kind: str) -> str:
    if kind == ".bag":
        return (
            f"{path} is a ROS 1 recording: convert it with `rosbags-convert --src {path} --dst DIR`"
        )
    return f"{path} is no recording: MCAP and sqlite3 files (.mcap, .db3), videos and folders are"


def _closed_later(storage: Any, stack: ExitStack) -> Any:
    stack.callback(storage.close)
    return storage


def _unpacked_file(path: Path, scratch: Path, warnings: list[str]) -> Path:
    """Unpack a file that rosbag2 compressed as a whole (`--compression-mode file`)."""
    target = scratch / path.name.removesuffix(_PACKED)
    room = shutil.disk_usage(scratch).free - _DISK_LEFT
    written = 0
    with path.open("rb") as packed, target.open("wb") as out:
        try:
            source = zstd.open(packed, "rb")
            while block := source.read(_BLOCK):
                written += len(block)
                if written > room:
                    raise RecordingError(
                        f"{path} unpacks to more than the {room} bytes that are free at {scratch}"
                    )
                out.write(block)
        except (zstd.ZstdError, EOFError) as error:
            if not written:
                raise RecordingError(f"{path} cannot be unpacked: {error}") from error
            warnings.append(f"{path} is damaged ({error}): it is read as far as it goes")
    return target


def _typestore(topics: Sequence[StoredTopic], warnings: list[str]) -> Typestore:
    """Return the message types of a recording; ROS 2's own where it brings none.

    A definition that cannot be used takes its topic with it, and no other.
    """
    known = rosbags_typestore()
    typestore = get_typestore(Stores.EMPTY)
    for topic in topics:
        if topic.encoding != "cdr" or topic.msgtype in typestore.fielddefs:
            continue
        try:
            found = _definitions(topic)
            _check_fields(found, known)
            typestore.register(found)
        except Exception as error:  # the text of a file leads to whatever it leads to
            if topic.msgtype in known.fielddefs:
                _borrow(typestore, known)
            else:
                warnings.append(
                    f"messages of {topic.name} cannot be read: the definition of {topic.msgtype} "
                    f"is no use ({describe(error)[:200]})"
                )
    return typestore


def _definitions(topic: StoredTopic) -> Any:
    sizes = [int(size[-12:]) for pair in _ARRAYS.findall(topic.definition) for size in pair if size]
    if any(size > _MAX_ARRAY for size in sizes):
        raise RecordingError(f"it has an array of more than {_MAX_ARRAY} elements")
    if topic.definition_format == "ros2msg":
        return get_types_from_msg(topic.definition, topic.msgtype)
    if topic.definition_format in ("ros2idl", "omgidl"):
        rule = "=" * 80 + "\n"
        parts = topic.definition.split(rule)
        texts = [part.split("\n", 1)[-1] for part in parts if part.strip()]
        found: dict[str, Any] = {}
        for text in texts:
            found |= get_types_from_idl(text)
        return found
    raise RecordingError("it brings none")


def _check_fields(found: Any, known: Typestore) -> None:
    """Raise RecordingError if a type of ROS 2 lacks a field that it has."""
    for name, (_, fields) in found.items():
        has = {each[0].lower() for each in fields}
        for field_name, _ in known.fielddefs.get(name, ((), ()))[1]:
            if field_name.lower() not in has:
                raise RecordingError(f"{name} has no field {field_name}")


def _borrow(typestore: Typestore, known: Typestore) -> None:
    """Take over the definitions of ROS 2 that are not there yet."""
    missing = {name: d for name, d in known.fielddefs.items() if name not in typestore.fielddefs}
    typestore.register(missing)
