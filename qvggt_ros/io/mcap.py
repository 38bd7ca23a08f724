"""MCAP files (https://mcap.dev/spec): whole, cut off, without an index, in any order.

A whole file is read by its index. Every other one is scanned once, and what is whole in it is read
in order of receive time; chunks that are broken are left out, and counted.
"""

from __future__ import annotations

import heapq
import struct
from binascii import crc32
from collections import Counter
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from qvggt_core.errors import RecordingError
from qvggt_ros.io.storage import MAX_UNPACKED, StoredTopic, message_content, unpacked

MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")
_CHUNK_HEAD = struct.Struct("<QQQI")
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
_CHUNK_INDEX, _STATISTICS, _DATA_END = 0x08, 0x0B, 0x0F
_KNOWN = range(_HEADER, _DATA_END + 1)
_FOOTER_BYTES = _RECORD.size + 20 + len(MAGIC)
_MAX_SUMMARY = 1 << 28
_CHUNKS_KEPT = 4
_NEVER_UNPACKED = -1


class _Chunk(NamedTuple):
    start_ns: int
    offset: int
    size: int


class _Entry(NamedTuple):
    """Where a message is: in the file itself (chunk -1), or at an offset of a chunk's content."""

    time_ns: int
    channel: int
    chunk: int
    offset: int
    size: int


class McapFile:
    """An open MCAP file.

    Attributes:
        topics: its channels.
        warnings: sentences about what cannot be read.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, by its index if it has a whole one.

        Raises:
            RecordingError: it is no MCAP file, or a ROS 1 recording.
            OSError: it cannot be read.
        """
        self.path = path
        self.topics: list[StoredTopic] = []
        self.warnings: list[str] = []
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._channels: dict[int, tuple[int, str, str]] = {}
        self._counts: Counter[int] = Counter()
        self._chunks: list[_Chunk] = []
        self._entries: np.ndarray | None = None
        self._file: BinaryIO = path.open("rb")
        try:
            self._size = path.stat().st_size
            self._open()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def messages(self, keys: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield channel, receive time in nanoseconds and content, in order of receive time."""
        found = self._scanned(keys) if self._entries is not None else self._indexed(keys)
        for channel, time_ns, data in found:
            try:
                yield channel, time_ns, message_content(data)
            except RecordingError as error:
                self._warn(f"a message is left out: {error}")

    # Opening

    def _open(self) -> None:
        if self._file.read(len(MAGIC)) != MAGIC:
            raise RecordingError(f"{self.path} is no MCAP file: it does not begin as one")
        try:
            whole = self._read_index()
        except (struct.error, UnicodeDecodeError, RecordingError, ValueError, IndexError) as error:
            self._warn(f"its index cannot be used ({error}), so it is scanned")
            whole = False
        if not whole:
            self._schemas, self._channels = {}, {}
            self._counts, self._chunks = Counter(), []
            self._scan()
        self._make_topics()

    def _make_topics(self) -> None:
        for key, (schema, topic, encoding) in sorted(self._channels.items()):
            name, form, text = self._schemas.get(schema, ("", "", ""))
            count = self._counts[key]
            self.topics.append(StoredTopic(key, topic, name, encoding, text, form, count))
        if lost := sum(n for key, n in self._counts.items() if key not in self._channels):
            self._warn(f"{lost} messages are left out: there is no channel with their number")
        if self.topics and all(topic.encoding == "ros1" for topic in self.topics):
            raise RecordingError(
                f"{self.path} holds messages of ROS 1: convert the recording that it was made of "
                "with `rosbags-convert --src RECORDING.bag --dst DIR`"
            )

    def _read_index(self) -> bool:
        """Read the summary; return whether all messages can be found by it."""
        if self._size < _FOOTER_BYTES + len(MAGIC):
            return False
        self._file.seek(-_FOOTER_BYTES, 2)
        footer = self._file.read()
        opcode, length = _RECORD.unpack_from(footer)
        if footer[-len(MAGIC) :] != MAGIC or (opcode, length) != (_FOOTER, 20):
            return False
        (start,) = struct.unpack_from("<Q", footer, _RECORD.size)
        end = self._size - _FOOTER_BYTES
        if not len(MAGIC) <= start < end or end - start > _MAX_SUMMARY:
            return False
        self._file.seek(start)
        summary = self._file.read(end - start)
        counted = False
        for opcode, at, length in _records(summary):
            body = summary[at : at + length]
            if opcode == _CHUNK_INDEX:
                begin, _, offset, size = struct.unpack_from("<QQQQ", body)
                if offset + size > start:
                    raise RecordingError("a chunk lies beyond its data")
                self._chunks.append(_Chunk(begin, offset, size))
            elif opcode == _STATISTICS:
                counted = True
                self._read_counts(body)
            else:
                self._define(opcode, body)
        complete = all(schema in self._schemas for schema, _, _ in self._channels.values())
        # Without chunks the index has no place of a message.
        return counted and complete and (bool(self._chunks) or not sum(self._counts.values()))

    def _read_counts(self, body: bytes) -> None:
        (length,) = struct.unpack_from("<I", body, 42)
        for channel, count in struct.iter_unpack("<HQ", body[46 : 46 + length // 10 * 10]):
            self._counts[channel] = count

    def _define(self, opcode: int, body: bytes) -> None:
        """Take a schema or a channel."""
        if opcode == _SCHEMA:
            (key,) = struct.unpack_from("<H", body)
            name, at = _text(body, 2)
            form, at = _text(body, at)
            definition, _ = _text(body, at)
            self._schemas[key] = (name, form, definition)
        elif opcode == _CHANNEL:
            key, schema = struct.unpack_from("<HH", body)
            topic, at = _text(body, 4)
            encoding, _ = _text(body, at)
            self._channels[key] = (schema, topic, encoding)

    # A file without a usable index

    def _scan(self) -> None:
        entries: list[_Entry] = []
        at, reason = len(MAGIC), ""
        while True:
            self._file.seek(at)
            head = self._file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                reason = "ends in the middle" if head or at >= self._size else ""
                break
            opcode, length = _RECORD.unpack(head)
            if opcode in (_FOOTER, _DATA_END):
                break
            body_at, end = at + _RECORD.size, at + _RECORD.size + length
            if opcode not in _KNOWN and not (opcode >= 0x80 and end <= self._size):
                reason = f"holds no record at byte {at} of {self._size}"
                break
            cut = end > self._size
            if cut and opcode != _CHUNK:
                reason = "ends in the middle of a record"
                break
            self._scan_record(opcode, body_at, length, entries, cut)
            if cut:
                reason = "ends in the middle of a chunk"
                break
            at = end
        if reason:
            self.warnings.append(
                f"{self.path} is damaged: it {reason}; it is read as far as it goes, "
                f"{len(entries)} messages"
            )
        kinds = [
            ("time", "i8"),
            ("channel", "i4"),
            ("chunk", "i4"),
            ("offset", "i8"),
            ("size", "i8"),
        ]
        times = [entry for entry in entries if entry.time_ns < 1 << 63]
        if lost := len(entries) - len(times):
            self._warn(f"{lost} messages are left out: their time is none that there is")
        self._entries = np.array(times, dtype=kinds)
        self._counts = Counter(entry.channel for entry in times)

    def _scan_record(
        self, opcode: int, at: int, length: int, entries: list[_Entry], cut: bool
    ) -> None:
        try:
            if opcode == _MESSAGE:
                channel, _, time_ns, _ = _MESSAGE_HEAD.unpack(self._file.read(_MESSAGE_HEAD.size))
                size = length - _MESSAGE_HEAD.size
                start = at + _MESSAGE_HEAD.size
                entries.append(_Entry(time_ns, channel, _NEVER_UNPACKED, start, size))
            elif opcode == _CHUNK:
                chunk = len(self._chunks)
                self._chunks.append(_Chunk(0, at - _RECORD.size, length + _RECORD.size))
                for kind, start, size, content in self._chunk_records(chunk, cut=cut):
                    if kind == _MESSAGE:
                        channel, _, time_ns, _ = _MESSAGE_HEAD.unpack_from(content, start)
                        begin, rest = start + _MESSAGE_HEAD.size, size - _MESSAGE_HEAD.size
                        entries.append(_Entry(time_ns, channel, chunk, begin, rest))
                    else:
                        self._define(kind, content[start : start + size])
            elif opcode in (_SCHEMA, _CHANNEL) and length <= _MAX_SUMMARY:
                self._define(opcode, self._file.read(length))
        except (RecordingError, struct.error, UnicodeDecodeError) as error:
            self._warn(f"a record at byte {at} is left out: {error}")

    def _chunk_records(self, number: int, *, cut: bool) -> Iterator[tuple[int, int, int, bytes]]:
        content = self._unpack(self._chunks[number], cut=cut)
        for kind, start, size in _records(content):
            yield kind, start, size, content

    def _scanned(self, keys: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        assert self._entries is not None
        wanted = self._entries[np.isin(self._entries["channel"], list(keys))]
        content_of = lru_cache(_CHUNKS_KEPT)(
            lambda number: self._unpack(self._chunks[number], cut=True)
        )
        for time_ns, channel, chunk, offset, size in wanted[
            np.argsort(wanted["time"], kind="stable")
        ]:
            if size > MAX_UNPACKED:
                self._warn(f"a message of {size} bytes is too large and left out")
                continue
            if chunk == _NEVER_UNPACKED:
                self._file.seek(int(offset))
                data = self._file.read(int(size))
            else:
                data = content_of(int(chunk))[offset : offset + size]
            yield int(channel), int(time_ns), data

    # A file with an index

    def _indexed(self, keys: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Merge the chunks, which may overlap in time: one is unpacked when its time has come."""
        wanted = set(keys)
        pending: list[tuple[int, int, int, bytes]] = []
        order = 0
        for chunk in sorted(self._chunks):
            while pending and pending[0][0] < chunk.start_ns:
                time_ns, _, channel, data = heapq.heappop(pending)
                yield channel, time_ns, data
            try:
                content, end = self._unpack(chunk, cut=False), 0
                for opcode, at, length in _records(content):
                    end = at + length
                    if opcode != _MESSAGE:
                        continue
                    channel, _, time_ns, _ = _MESSAGE_HEAD.unpack_from(content, at)
                    if channel in wanted and time_ns < 1 << 63:
                        data = content[at + _MESSAGE_HEAD.size : at + length]
                        heapq.heappush(pending, (time_ns, order, channel, data))
                        order += 1
                if end < len(content):
                    self._warn(
                        f"is damaged: {len(content) - end} bytes of a chunk at byte "
                        f"{chunk.offset} cannot be read and are left out"
                    )
            except (RecordingError, struct.error) as error:
                self._warn(f"a chunk at byte {chunk.offset} is left out: {error}")
        while pending:
            time_ns, _, channel, data = heapq.heappop(pending)
            yield channel, time_ns, data

    def _unpack(self, chunk: _Chunk, *, cut: bool) -> bytes:
        """Return the records of a chunk; of one that is cut off, what is whole.

        Raises:
            RecordingError: it is too large, or its content is not what was written.
        """
        self._file.seek(chunk.offset + _RECORD.size)
        head = self._file.read(_CHUNK_HEAD.size + 4)
        if len(head) < _CHUNK_HEAD.size + 4:
            raise RecordingError("its head is cut off")
        _, _, size, crc = _CHUNK_HEAD.unpack_from(head)
        (length,) = struct.unpack_from("<I", head, _CHUNK_HEAD.size)
        if length > 16 or size > MAX_UNPACKED:
            raise RecordingError(
                f"its head is wrong: {size} bytes, compression of {length} letters"
            )
        compression = self._file.read(length).decode("ascii", "replace")
        (packed,) = struct.unpack("<Q", self._file.read(8).ljust(8, b"\0"))
        if packed > MAX_UNPACKED or (not cut and packed > chunk.size):
            raise RecordingError(f"its {packed} bytes are more than the chunk has")
        data = self._file.read(packed)
        content = unpacked(data, compression, size)
        if not cut and len(content) != size:
            raise RecordingError(f"it holds {len(content)} bytes instead of {size}")
        if len(data) == packed and crc and crc32(content) != crc:
            raise RecordingError("its checksum is wrong")
        return content

    def _warn(self, text: str) -> None:
        warning = f"{self.path}: {text}"
        if warning not in self.warnings and len(self.warnings) < 20:
            self.warnings.append(warning)


def _records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield opcode, offset of the content and its length, of the records that are whole."""
    at = 0
    while at + _RECORD.size <= len(data):
        opcode, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if at + length > len(data):
            return
        yield opcode, at, length
        at += length


def _text(body: Any, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", body, at)
    at += 4
    if at + length > len(body):
        raise RecordingError(f"a text of {length} bytes is longer than its record")
    return bytes(body[at : at + length]).decode(), at + length
