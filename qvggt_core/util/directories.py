"""Output directories that appear whole, and of which nothing is deleted that is not ours."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qvggt_core.errors import OutputError
from qvggt_core.util.files import write_atomically

_MARKER = ".unfinished"
"""Name of the file that marks a directory in the making; it holds the name of the kind."""


@dataclass(frozen=True)
class OutputKind:
    """What a command makes, which makes a former output recognisable beside a user's directory.

    Attributes:
        name: what messages call it, such as "result of a reconstruction".
        entries: returns the paths below a directory, relative to it, that have names of ours.
        is_marked: whether a directory has in it what only such an output has.
    """

    name: str
    entries: Callable[[Path], list[Path]]
    is_marked: Callable[[Path], bool]

    def owns(self, directory: Path, *apart: Path) -> bool:
        """Return whether a directory holds such an output and nothing else, but what is apart."""
        return (
            directory.is_dir()
            and self.is_marked(directory)
            and not _foreign(directory, self.entries(directory), apart)
        )

    def owns_unfinished(self, directory: Path) -> bool:
        """Return whether a directory holds what a run of ours left unfinished, or nothing."""
        if directory.is_symlink() or not directory.is_dir():
            return False
        # A run that was killed, or had no room, may not have come as far as its mark.
        if all(path in _begun_marks(directory) for path in directory.iterdir()):
            return True
        try:
            marked = (directory / _MARKER).read_text(encoding="utf-8") == self.name
        except (OSError, UnicodeDecodeError):
            return False
        return marked and not _foreign(directory, [*self.entries(directory), Path(_MARKER)])

    def remove(self, directory: Path) -> None:
        """Remove the files of an output, unfinished or not, and the directories left empty."""
        remove_entries(directory, [*self.entries(directory), Path(_MARKER)])
        with suppress(OSError):
            directory.rmdir()


@contextmanager
def new_output(
    output: Path,
    kind: OutputKind,
    *,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    keep_unfinished: bool = True,
) -> Iterator[Path]:
    """Yield a directory to fill; it becomes `output` when the block ends without an error.

    The directory is `OUTPUT.partial` beside the output. Where the output cannot be renamed (it is
    a mount point, the working directory, or in a directory that is read-only) it is `.partial`
    inside, and its entries are moved up at the end.
    Symbolic links are followed: what they point to becomes the output.

    Args:
        output: directory to make; an empty one that exists is used.
        kind: what is made there.
        overwrite: whether a former output of this kind is replaced.
        inputs: files and directories that must not lie in the output.
        keep_unfinished: whether what was made until then stays if the block raises.

    Raises:
        OutputError: something is in the way, or the place cannot be written; nothing was changed.
    """
    place = _Place.of(output)
    place.check(kind, overwrite, inputs)
    with _made(place.partial, kind) as partial:
        try:
            yield partial
        except BaseException:
            if not keep_unfinished:
                kind.remove(partial)
            raise
        place.put(kind)


@dataclass(frozen=True)
class _Place:
    """Where an output is, where it is made, and where a former one waits meanwhile."""

    output: Path
    inside: bool

    @classmethod
    def of(cls, output: Path) -> _Place:
        if "\0" in str(output):
            raise OutputError(f"{str(output)!r} is no path: it holds a zero byte")
        try:
            output = output.resolve()
            exists = output.exists()
        except (OSError, RuntimeError) as error:
            raise OutputError(f"the output {output} is no usable path: {error}") from error
        fixed = exists and (
            output.is_mount()
            or Path.cwd().is_relative_to(output)
            or not os.access(output.parent, os.W_OK)
        )
        return cls(output, fixed)

    @property
    def partial(self) -> Path:
        return self._beside("partial")

    @property
    def former(self) -> Path:
        return self._beside("former")

    def _beside(self, word: str) -> Path:
        if self.inside:
            return self.output / f".{word}"
        return self.output.with_name(f"{self.output.name}.{word}")

    def check(self, kind: OutputKind, overwrite: bool, inputs: Sequence[Path]) -> None:
        """Refuse what is in the way."""
        for path in inputs:
            if path.resolve().is_relative_to(self.output):
                raise OutputError(
                    f"the recording {path} lies in the output {self.output}: choose another"
                )
        try:
            self._check(kind, overwrite)
        except OSError as error:
            raise OutputError(f"cannot use the output {self.output}: {error}") from error

    def _check(self, kind: OutputKind, overwrite: bool) -> None:
        if _is_something(self.partial) and not kind.owns_unfinished(self.partial):
            raise OutputError(
                f"{self.partial} exists and is nothing that a run left unfinished: move it away, "
                "it is left alone"
            )
        if _is_something(self.former):
            raise OutputError(
                f"{self.former} exists: it is a former output of a run that was killed while it "
                "was replaced, or yours; move it away, it is left alone"
            )
        if not _is_something(self.output) or not self._entries():
            return
        for path in self._entries():
            if path.is_mount():
                raise OutputError(f"{path} is a mount point in the output: choose another")
        if not kind.owns(self.output, self.partial):
            raise OutputError(
                f"{self.output} exists and is no {kind.name}: choose another, it is left alone"
            )
        if not overwrite:
            raise OutputError(
                f"{self.output} exists: choose another, or replace it with --overwrite"
            )

    def _entries(self) -> list[Path]:
        if not self.output.is_dir():
            return [self.output]
        return [path for path in self.output.iterdir() if path != self.partial]

    def put(self, kind: OutputKind) -> None:
        """Put what was made into its place; a former output goes when the new one is there."""
        try:
            entries = self._entries() if self.output.exists() else []
            if entries and not kind.owns(self.output, self.partial):
                # What came meanwhile is somebody else's.
                raise OutputError(
                    f"{self.output} has changed meanwhile: what was made is in {self.partial}"
                )
            (self.partial / _MARKER).unlink()
            if self.inside:
                self._move_in(entries)
            else:
                if self.output.exists():
                    self.output.rename(self.former)
                self.partial.rename(self.output)
            if self.former.exists():
                kind.remove(self.former)
        except OSError as error:
            raise OutputError(
                f"cannot put the output in place ({error}): what was made is in {self.partial}"
            ) from error

    def _move_in(self, entries: Sequence[Path]) -> None:
        if entries:
            self.former.mkdir()
        for path in entries:
            path.rename(self.former / path.name)
        # Files last: what marks an output is among them.
        for path in sorted(self.partial.iterdir(), key=lambda path: (path.is_file(), path.name)):
            path.rename(self.output / path.name)
        self.partial.rmdir()


@contextmanager
def _made(partial: Path, kind: OutputKind) -> Iterator[Path]:
    """Yield the directory to fill, emptied of an unfinished output and locked."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"cannot make {partial}: {error}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{partial} is being written by another process") from error
        except OSError:
            pass  # a file system without locks
        try:
            for path in _begun_marks(partial):
                path.unlink()
            remove_entries(partial, kind.entries(partial))
            write_atomically(partial / _MARKER, kind.name)
        except OSError as error:
            raise OutputError(f"cannot write to {partial}: {error}") from error
        yield partial
    finally:
        os.close(lock)


def _begun_marks(directory: Path) -> list[Path]:
    """Return the marks that were not written to their end."""
    return list(directory.glob(f".{_MARKER}.*.tmp"))


def _is_something(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _foreign(directory: Path, known: Sequence[Path], apart: Sequence[Path] = ()) -> list[Path]:
    """Return what lies in a directory and is neither known nor the directory of something known."""
    expected = {directory / path for path in known}
    expected |= {parent for path in expected for parent in path.parents}
    found = []
    for path in sorted(directory.rglob("*")):
        if any(path == each or each in path.parents for each in apart):
            continue
        if path not in expected or (path.is_symlink() and path.is_dir()):
            found.append(path)
    return found


def remove_entries(directory: Path, known: Sequence[Path]) -> None:
    """Remove some files below a directory, and the folders above them that are empty then."""
    folders = {path for path in known if (directory / path).is_dir()}
    for path in set(known) - folders:
        (directory / path).unlink(missing_ok=True)
    folders |= {parent for path in known for parent in path.parents if parent != Path()}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        with suppress(OSError):
            (directory / folder).rmdir()
