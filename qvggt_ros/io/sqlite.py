"""SQLite files of rosbag2: whole, with a write-ahead log, or cut off."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np

from qvggt_core.errors import RecordingError
from qvggt_ros.io.storage import MAX_UNPACKED, StoredTopic, message_content

_LOG = "-wal"
_MAX_TEXT = 1 << 24


class SqliteFile:
    """An open SQLite file.

    Attributes:
        topics: those that it has.
        warnings: sentences about what cannot be read.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        """Open a file; one that has a write-ahead log beside it is copied, and read with it.

        Args:
            path: the file.
            scratch: directory for the copy.

        Raises:
            RecordingError: it is no recording.
            OSError: it cannot be read, or copied.
        """
        self.path = path
        self.topics: list[StoredTopic] = []
        self.warnings: list[str] = []
        try:
            self._database = self._connect(scratch)
            self._database.execute("PRAGMA trusted_schema=OFF")
            self._read_topics()
        except sqlite3.Error as error:
            raise RecordingError(
                f"{path} cannot be read ({error}); what is left of a damaged one can be had with "
                f"`sqlite3 {path.name} .recover | sqlite3 recovered.db3`"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def messages(self, keys: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield topic, receive time in nanoseconds and content, in order of receive time."""
        wanted = self._index[np.isin(self._index["topic"], list(keys))]
        query = "SELECT data FROM messages WHERE id = ? AND typeof(data) = 'blob'"
        for row, topic, time_ns in wanted[np.argsort(wanted["time"], kind="stable")]:
            try:
                found = self._database.execute(query, (int(row),)).fetchone()
                if found is None:
                    self._warn("a message is left out: its content is no bytes")
                    continue
                yield int(topic), int(time_ns), message_content(found[0])
            except (sqlite3.Error, RecordingError) as error:
                self._warn(f"a message is left out: {error}")

    def _connect(self, scratch: Path) -> sqlite3.Connection:
        log = self.path.with_name(self.path.name + _LOG)
        if log.is_file() and log.stat().st_size:
            # SQLite reads a log only where it may write.
            copy = Path(shutil.copy(self.path, scratch / "recording.db3"))
            shutil.copy(log, scratch / f"recording.db3{_LOG}")
            self.warnings.append(
                f"{self.path} was not closed by its recorder: its write-ahead log {log.name} is "
                "read with it"
            )
            database = sqlite3.connect(f"file:{quote(str(copy))}", uri=True)
        else:
            uri = f"file:{quote(str(self.path.absolute()))}?mode=ro&immutable=1"
            database = sqlite3.connect(uri, uri=True)
        if hasattr(database, "setlimit"):  # Python 3.11
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_UNPACKED)
        return database

    def _read_topics(self) -> None:
        kinds = dict(self._database.execute("SELECT name, type FROM sqlite_master"))
        if {kinds.get("topics"), kinds.get("messages")} != {"table"}:
            raise RecordingError(f"{self.path} is no recording: it has no topics and messages")
        definitions = self._definitions() if kinds.get("message_definitions") == "table" else {}
        self._index = self._read_index()
        counts = Counter(self._index["topic"].tolist())
        rows = self._database.execute(
            "SELECT id, name, type, serialization_format FROM topics"
        ).fetchall()
        if lost := sum(counts.values()) - sum(counts[row[0]] for row in rows):
            self._warn(f"{lost} messages are left out: there is no topic with their number")
        for key, name, msgtype, encoding in rows:
            if not all(isinstance(text, str) for text in (name, msgtype, encoding)):
                self._warn(f"topic {key} is left out: its name or type is no text")
                continue
            form, text = definitions.get(msgtype, ("", ""))
            self.topics.append(StoredTopic(key, name, msgtype, encoding, text, form, counts[key]))

    def _definitions(self) -> dict[str, tuple[str, str]]:
        rows = self._database.execute(
            "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions "
            "WHERE length(encoded_message_definition) < ?",
            (_MAX_TEXT,),
        )
        return {
            name: (form, text)
            for name, form, text in rows
            if all(isinstance(each, str) for each in (name, form, text))
        }

    def _read_index(self) -> np.ndarray:
        """Return row, topic and time of each message, as far as the file goes."""
        rows: list[tuple[int, int, int]] = []
        lost = 0
        try:
            query = "SELECT id, topic_id, timestamp FROM messages NOT INDEXED ORDER BY id"
            for row in self._database.execute(query):
                if all(isinstance(number, int) for number in row):
                    rows.append(row)
                else:
                    lost += 1
        except sqlite3.Error as error:
            if not rows:
                raise
            self.warnings.append(
                f"{self.path} is damaged ({error}): it is read as far as it goes, "
                f"{len(rows)} messages"
            )
        if lost:
            self._warn(f"{lost} messages are left out: their topic or time is no whole number")
        return np.array(rows, dtype=[("row", "i8"), ("topic", "i8"), ("time", "i8")])

    def _warn(self, text: str) -> None:
        warning = f"{self.path}: {text}"
        if warning not in self.warnings and len(self.warnings) < 20:
            self.warnings.append(warning)
