"""Writes the recording of a result: outputs, and the input's reference poses between them."""

from __future__ import annotations

import logging
import re
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import TypesysError

from qvggt_ros.io.messages import LATCHED, TYPES, rosbags_typestore
from qvggt_ros.io.recording import Recording
from qvggt_ros.io.topics import OWN_NAMESPACE, Topics
from qvggt_ros.publishing import COMPRESSED_OUTPUT, GRID_OUTPUT, LATCHED_OUTPUTS, OUTPUTS

logger = logging.getLogger(__name__)

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
"""Storage plugins by the names of rosbag2."""

_ON_REQUEST = {**GRID_OUTPUT, **COMPRESSED_OUTPUT}

BAG_VERSION: Final = 9
"""Of rosbag2's metadata, as Jazzy writes and Humble reads it."""


_MEANINGFUL = re.compile(r"[#?%]")


def is_plain(name: str) -> bool:
    """Return whether a name has no character that means something in the addresses of SQLite."""
    return _MEANINGFUL.search(name) is None


@contextmanager
def addressable(path: Path) -> Iterator[Path]:
    """Yield the path of a recording to write, by a way whose names SQLite takes as they are.

    rosbags hands the path to SQLite as an address, where `#`, `?` and `%` would lead elsewhere.
    """
    path = path.absolute()
    if is_plain(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="qvggt_") as directory:
        link = Path(directory) / "output"
        link.symlink_to(path.parent, target_is_directory=True)
        yield link / path.name


class BagWriter:
    """Writes messages in the order of their stamps."""

    def __init__(self, path: Path, storage: str, recording: Recording, topics: Topics) -> None:
        """Begin a recording.

        Args:
            path: directory to make.
            storage: one of `STORAGES`.
            recording: what is reconstructed; the types of its reference poses are taken over.
            topics: those that are used of it.
        """
        self._stack = ExitStack()
        path = self._stack.enter_context(addressable(path))
        self._writer = Writer(path, version=BAG_VERSION, storage_plugin=STORAGES[storage])
        self._writer.open()
        self._typestore = rosbags_typestore()
        self._connections = {topic: self._connect(topic, name) for topic, name in OUTPUTS.items()}
        self._references = self._connect_references(recording, topics)
        self._pending: list[tuple[int, str, bytes]] = []

    def emit(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Write an output."""
        self._write_references_until(stamp_ns)
        if topic in _ON_REQUEST and topic not in self._connections:
            self._connections[topic] = self._connect(topic, _ON_REQUEST[topic])
        connection = self._connections[topic]
        data = self._typestore.serialize_cdr(message, connection.msgtype)
        self._writer.write(connection, max(stamp_ns, 0), data)

    def _connect(self, topic: str, name: str) -> Connection:
        return self._writer.add_connection(
            "/tf" if topic == "tf" else OWN_NAMESPACE + topic,
            TYPES[name],
            typestore=self._typestore,
            offered_qos_profiles=LATCHED if topic in LATCHED_OUTPUTS else (),
        )

    def _connect_references(self, recording: Recording, topics: Topics) -> dict[str, Connection]:
        """Return those references whose types the recording defines whole; others are left out."""
        found = {}
        for topic in topics.reference:
            try:
                found[topic] = self._writer.add_connection(
                    topic, recording.types[topic], typestore=recording.typestore
                )
            except TypesysError as error:
                logger.warning("%s is not copied into the result: %s", topic, error)
        return found

    def copy(self, topic: str, data: bytes, stamp_ns: int) -> None:
        """Keep a reference pose until the outputs have come to its stamp."""
        if topic in self._references:
            self._pending.append((stamp_ns, topic, data))

    def close(self) -> None:
        """Write what is kept, and end the recording."""
        with self._stack:
            self._write_references_until(None)
            self._writer.close()

    def _write_references_until(self, stamp_ns: int | None) -> None:
        self._pending.sort(key=lambda entry: entry[:2])
        due = len(self._pending)
        if stamp_ns is not None:
            due = bisect_right(self._pending, stamp_ns, key=lambda entry: entry[0])
        for stamp, topic, data in self._pending[:due]:
            self._writer.write(self._references[topic], max(stamp, 0), data)
        del self._pending[:due]
