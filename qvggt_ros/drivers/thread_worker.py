"""One worker thread: callbacks hand over and return, the newest image wins, drops are counted."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from qvggt_core.util import threads

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_MESSAGES_KEPT = 2000
"""Of each kind that wait: five seconds of an IMU at 400 Hz, and hours of a calibration at 1 Hz."""
_MESSAGES_IN_A_ROW = 4000
"""So many go before an image that waits, and then the image: no sensor may hold it up for ever."""


class _Message(NamedTuple):
    arrival: int
    work: Callable[[], Any]
    images: int


class Worker:
    """Does all work of a reconstruction in one thread, so that no callback ever waits for it.

    Images go through a slot of one place: what is in it when a newer one comes is dropped, and
    the network never sees an image that is older than it must be. Messages that are small and
    all count (calibration, odometry) wait in the order of their arrival and go before the image.
    Each kind has so many places: a fast IMU pushes out its own oldest messages and no calibration.
    Calls (reset, a changed parameter) go before both. All use of a GPU is in this thread.

    Attributes:
        dropped: images that newer ones replaced, that came in too many messages that cannot be
            read, or that waited when all was forgotten.
        pushed_out: messages per kind that newer ones of their kind replaced.
        failures: exceptions that the work raised; each cost what it worked on.
        last_failure: the text of the newest.
        last_failure_s: when that was, by the monotonic clock.
    """

    def __init__(
        self,
        name: str = "qvggt-worker",
        *,
        on_idle: Callable[[], Any] | None = None,
        idle_s: float = math.inf,
    ) -> None:
        """Start the thread.

        Args:
            name: of the thread.
            on_idle: done once when the last image is done and no other has come.
            idle_s: seconds until then.
        """
        self.dropped = 0
        self.pushed_out: Counter[str] = Counter()
        self.failures = 0
        self.last_failure = ""
        self.last_failure_s = -math.inf
        self._on_idle = on_idle
        self._idle_s = idle_s
        self._idle_due: float | None = None
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._messages: dict[str, deque[_Message]] = {}
        self._arrivals = 0
        self._in_a_row = 0
        self._newest: Callable[[], Any] | None = None
        self._newest_images = 0
        self._condition = threading.Condition()
        self._stopping = False
        # Not joined by the interpreter: a network that runs for minutes must not delay an exit.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        threads.start(self._thread)

    def offer(self, work: Callable[[], Any], images: int = 1) -> None:
        """Do this with the newest images, in place of what was offered and not yet begun."""
        with self._condition:
            self._drop()
            self._newest, self._newest_images = work, images
            self._condition.notify()

    def put(self, work: Callable[[], Any], kind: str = "message", images: int = 0) -> None:
        """Do this in order, before the next image.

        Args:
            work: what to do.
            kind: of the message; of too many that wait, the oldest of the kind is forgotten.
            images: how many images it stands for; they are `dropped` if it is forgotten.
        """
        with self._condition:
            queue = self._messages.setdefault(kind, deque())
            if len(queue) >= _MESSAGES_KEPT:
                self.dropped += queue.popleft().images
                self.pushed_out[kind] += 1
            self._arrivals += 1
            queue.append(_Message(self._arrivals, work, images))
            self._condition.notify()

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Do this next; the future brings its result or its exception."""
        future: Future[Result] = Future()
        with self._condition:
            if self._stopping:
                future.set_exception(RuntimeError("the worker has stopped"))
                return future
            self._calls.append((work, future))
            self._condition.notify()
        return future

    def forget(self) -> None:
        """Drop the image and the messages that wait."""
        with self._condition:
            self._drop()
            self._idle_due = None
            self.dropped += sum(each.images for queue in self._messages.values() for each in queue)
            self._messages.clear()

    def _drop(self) -> None:
        """Count the images that wait as dropped."""
        self.dropped += self._newest_images if self._newest is not None else 0
        self._newest = None

    def stop(self, timeout_s: float) -> bool:
        """End after what is being worked on; return whether that was within the time."""
        with self._condition:
            self._stopping = True
            self._newest = None
            self._messages.clear()
            for _, future in self._calls:
                future.cancel()
            self._calls.clear()
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception as error:  # whatever it was, it must not end the node
                if self._stopping:
                    # It worked for longer than `stop` waited: what it publishes to is gone.
                    return
                self.failures += 1
                self.last_failure = f"{type(error).__name__}: {error}"
                self.last_failure_s = time.monotonic()
                logger.exception("the work on a message failed")

    def _next(self) -> Callable[[], Any] | None:
        with self._condition:
            while True:
                if self._stopping:
                    return None
                if self._calls:
                    return _into_future(*self._calls.popleft())
                if (message := self._oldest_message()) is not None:
                    return message
                if self._newest is not None:
                    work, self._newest = self._newest, None
                    self._in_a_row = 0
                    return self._then_idle(work)
                if self._idle_due is None:
                    self._condition.wait()
                elif (left := self._idle_due - time.monotonic()) > 0:
                    self._condition.wait(left)
                else:
                    self._idle_due = None
                    return self._on_idle

    def _oldest_message(self) -> Callable[[], Any] | None:
        """Take the message that came first; None if there is none, or an image's turn has come."""
        waiting = [queue for queue in self._messages.values() if queue]
        if not waiting:
            return None
        self._in_a_row = self._in_a_row + 1 if self._newest is not None else 0
        if self._in_a_row > _MESSAGES_IN_A_ROW:
            return None
        return min(waiting, key=lambda queue: queue[0].arrival).popleft().work

    def _then_idle(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Return the work on an image, after which the time until `on_idle` begins."""
        if self._on_idle is None:
            return work

        def run() -> None:
            self._idle_due = None
            try:
                work()
            finally:
                self._idle_due = time.monotonic() + self._idle_s

        return run


def _into_future(work: Callable[[], Any], future: Future) -> Callable[[], None]:
    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # the caller gets it, whatever it is
            future.set_exception(error)

    return run
