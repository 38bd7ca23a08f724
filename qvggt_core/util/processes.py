"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

from qvggt_core.util import threads

_PARENT_CHECK_S = 1.0


def end_with_parent() -> None:
    """Let this process end when its parent is killed, so that no work goes on without it.

    The parent may be gone already, where this process took long to begin.
    """
    starter = multiprocessing.parent_process()
    parent = os.getppid() if starter is None else starter.pid

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    threads.start(threading.Thread(target=watch, daemon=True))
