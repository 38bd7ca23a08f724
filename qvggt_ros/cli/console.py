"""What the commands print to, and how they show progress and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

out = Console()
err = Console(stderr=True)

EXIT_ERROR = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed; pressed twice, it interrupts at once."""
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


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of done and total that moves a progress bar."""
    with Progress(
        TextColumn(what),
        BarColumn(),
        TextColumn(f"{{task.completed}}/{{task.total}} {unit}"),
        TextColumn(f"{{task.fields[rate]}} {unit}/s"),
        TimeRemainingColumn(),
        console=err,
    ) as bar:
        # Shown from the first item on: an error before it needs no empty bar.
        task = bar.add_task(what, total=None, rate="-", visible=False)

        def update(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            rate = "-" if speed is None else f"{speed:.1f}"
            bar.update(task, completed=done, total=total, rate=rate, visible=True)

        yield update


@contextmanager
def steps(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function of done, total and what is next that moves a bar of named steps."""
    with Progress(
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("[dim]{task.fields[name]}[/]"),
        TimeRemainingColumn(),
        console=err,
    ) as bar:
        task = bar.add_task(what, total=None, name="", visible=False)

        def update(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, name=name, visible=True)

        yield update
