"""What the storage files of a recording have in common: topics, messages, and bounded unpacking."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import lz4.frame

from qvggt_core.errors import RecordingError

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd  # type: ignore[import-not-found,unused-ignore]

MAX_UNPACKED = 1 << 29
"""Largest chunk or message that is unpacked or read at once, in bytes: some 180 megapixels."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class StoredTopic:
    """A topic of one storage file.

    Attributes:
        key: its number in the file.
        name: of the topic.
        msgtype: full ROS name of its message type.
        encoding: how messages are serialized; "cdr" in ROS 2.
        definition: text of the message type; empty if the file has none.
        definition_format: "ros2msg", "ros2idl" or empty.
        count: number of messages.
    """

    key: int
    name: str
    msgtype: str
    encoding: str
    definition: str
    definition_format: str
    count: int


class Storage(Protocol):
    """An open storage file.

    Attributes:
        topics: those that it has.
        warnings: sentences about what cannot be read; `messages` may add some.
    """

    topics: list[StoredTopic]
    warnings: list[str]

    def messages(self, keys: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield topic key, receive time in nanoseconds and content, in order of receive time."""


def unpacked(data: bytes | memoryview, compression: str, size: int | None = None) -> bytes:
    """Return the content of a compressed chunk or message.

    Args:
        data: compressed bytes; if they are cut off, what is whole of them is returned.
        compression: "", "zstd" or "lz4".
        size: what it must unpack to at most; `MAX_UNPACKED` if not known.

    Raises:
        RecordingError: it is larger than that, broken, or of an unknown compression.
    """
    bound = MAX_UNPACKED if size is None else size
    if bound > MAX_UNPACKED:
        raise RecordingError(
            f"{bound} bytes in one piece are more than the {MAX_UNPACKED} that are read"
        )
    if not compression:
        return bytes(data)
    try:
        if compression == "zstd":
            content = zstd.ZstdDecompressor().decompress(data, max_length=bound + 1)
        elif compression == "lz4":
            decompressor = lz4.frame.LZ4FrameDecompressor()
            content = decompressor.decompress(data, max_length=bound + 1)
        else:
            raise RecordingError(f"compression {compression!r} is unknown: zstd and lz4 are read")
    except (zstd.ZstdError, RuntimeError, EOFError, ValueError) as error:
        raise RecordingError(f"{len(data)} bytes of {compression} are broken: {error}") from error
    if len(content) > bound:
        raise RecordingError(f"{len(data)} bytes of {compression} unpack to more than {bound}")
    return content


def message_content(data: bytes | memoryview) -> bytes:
    """Return a message, unpacked if rosbag2 compressed it by itself (`--compression-mode message`).

    A serialized message begins with a zero byte, a compressed one with the mark of zstd.

    Raises:
        RecordingError: it is too large or broken.
    """
    return unpacked(data, "zstd" if bytes(data[:4]) == _ZSTD_MAGIC else "")
