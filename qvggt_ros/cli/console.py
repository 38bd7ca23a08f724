"""What the commands print to, and how they show progress and stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich import table as rich_table
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from qvggt_core.util.quoting import visible
from qvggt_core.util.threads import check_room_for_thread


class Terminal(Console):
    """A console that what is printed, whatever name of others it holds, cannot take over."""

    def __init__(self, **options: Any) -> None:
        """Take rich's options; a topic called /a:bee:b is called so."""
        super().__init__(emoji=False, **options)

    def status(self, status: Any, **options: Any) -> AbstractContextManager[Status]:  # type: ignore[override]
        """Show what is being done, with a thread that turns a wheel where somebody sees it."""
        found = super().status(status, **options)
        if not self.is_terminal:
            return nullcontext(found)
        check_room_for_thread()
        return found

    # The method that makes a text of each string; the other sees the texts that others made.
    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text that only shows itself."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield what is written, with signs that control the terminal only where rich set them."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(visible(part.text), part.style)


class LogHandler(RichHandler):
    """Prints log records to standard error, as safely."""

    def render_message(self, record: logging.LogRecord, message: str) -> Any:
        """Return what is printed of a record."""
        return super().render_message(record, visible(message))


class Table(rich_table.Table):
    """A table that folds what is too long for its column: cut off, a licence is none."""

    def add_column(self, *heads: Any, **options: Any) -> None:
        """Take rich's options."""
        options.setdefault("overflow", "ellipsis" if options.get("no_wrap") else "fold")
        super().add_column(*heads, **options)


out = Terminal()
err = Terminal(stderr=True)

EXIT_ERROR = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


def wrote(*paths: Path, more: str = "") -> None:
    """Print a line per file or directory that was written."""
    for path in paths:
        out.print(f"wrote {path}{more}", soft_wrap=True, highlight=False, markup=False)


def note(kind: str, text: str) -> None:
    """Print a line about something to standard error, after a word in rich's markup."""
    err.print(f"{kind} {escape(text)}", soft_wrap=True, highlight=False)


def print_facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values below a title."""
    table = Table(show_header=False, title=escape(title), title_justify="left")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    out.print(table)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print rows below their heads: the first column is a name, the others are numbers."""
    table = Table(title=escape(title) if title else None, title_justify="left")
    for index, heading in enumerate(head):
        justify = "right" if index else "left"
        table.add_column(escape(heading), justify=justify, no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that is true after Ctrl-C; pressed twice, that interrupts at once."""
    pressed = False

    def press(signum: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, former)
        err.print("finishing what there is; press Ctrl-C again to stop at once")

    former = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, former)


def _bar(*columns: ProgressColumn) -> Progress:
    if err.is_terminal:
        check_room_for_thread()
    return Progress(*columns, console=err, auto_refresh=err.is_terminal)


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of done and total that moves a progress bar."""
    with progresses() as add:
        yield add(what, unit)


@contextmanager
def progresses() -> Iterator[Callable[[str, str], Callable[[int, int], None]]]:
    """Yield a function of what and unit that adds a progress bar, as `progress` does, below."""
    with _bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]} {task.fields[unit]}/s"),
        TimeRemainingColumn(),
    ) as bars:

        def add(what: str, unit: str) -> Callable[[int, int], None]:
            # Shown from the first item on: an error before it needs no empty bar.
            task = bars.add_task(what, total=None, rate="-", unit=unit, visible=False)

            def update(done: int, total: int) -> None:
                speed = bars.tasks[task].speed
                rate = "-" if speed is None else f"{speed:.1f}"
                bars.update(task, completed=done, total=total, rate=rate, visible=True)

            return update

        yield add


@contextmanager
def steps(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function of done, total and what is next that moves a bar of named steps."""
    with _bar(
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("[dim]{task.fields[name]}[/]"),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task(what, total=None, name="", visible=False)

        def update(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, name=name, visible=True)

        yield update
