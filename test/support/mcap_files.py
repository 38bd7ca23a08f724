"""MCAP files written by hand (https://mcap.dev/spec), with whatever a writer may leave out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from qvggt_ros.io.messages import TYPES, rosbags_typestore
from support.recordings import Entry

MAGIC = b"\x89MCAP0\r\n"


def record(opcode: int, body: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(body)) + body


def text(content: str | bytes) -> bytes:
    data = content if isinstance(content, bytes) else content.encode()
    return struct.pack("<I", len(data)) + data


def definitions(names: Sequence[tuple[str, str]], encoding: str) -> bytes:
    """Schema and channel per topic, numbered from 1."""
    store, found = rosbags_typestore(), b""
    for key, (topic, name) in enumerate(names, start=1):
        schema = store.generate_msgdef(TYPES[name], ros_version=2)[0]
        found += record(
            3, struct.pack("<H", key) + text(TYPES[name]) + text("ros2msg") + text(schema)
        )
        found += record(4, struct.pack("<HH", key, key) + text(topic) + text(encoding) + text(""))
    return found


def write_mcap(
    path: Path,
    entries: Sequence[Entry],
    *,
    profile: str = "ros2",
    encoding: str = "cdr",
    per_chunk: int = 0,
    extra: bytes = b"",
    chunk_size: int | None = None,
) -> Path:
    """Write messages in the order given, without an index.

    Args:
        path: the file.
        entries: the messages.
        profile: of the header.
        encoding: that the channels name.
        per_chunk: messages in a chunk; 0 writes none.
        extra: further records.
        chunk_size: what the chunks give as their unpacked size, if that is not the truth.
    """
    store = rosbags_typestore()
    names = list(dict.fromkeys((topic, name) for topic, name, _, _ in entries))
    keys = {topic: key for key, (topic, _) in enumerate(names, start=1)}
    messages = [
        record(
            5,
            struct.pack("<HIQQ", keys[topic], 0, received, received)
            + bytes(store.serialize_cdr(message, TYPES[name])),
        )
        for topic, name, received, message in entries
    ]
    content = MAGIC + record(1, text(profile) + text("test")) + definitions(names, encoding) + extra
    step = per_chunk or len(messages)
    for start in range(0, len(messages), step):
        body = b"".join(messages[start : start + step])
        if per_chunk:
            times = [received for _, _, received, _ in entries[start : start + step]]
            size = len(body) if chunk_size is None else chunk_size
            head = struct.pack("<QQQI", min(times), max(times), size, 0)
            body = record(6, head + text("") + struct.pack("<Q", len(body)) + body)
        content += body
    content += record(0x0F, bytes(4)) + record(2, bytes(20)) + MAGIC
    path.write_bytes(content)
    return path
