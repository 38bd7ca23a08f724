"""A parent that is killed leaves no process that works on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from support.packages import needs
from support.recordings import room_entries, write_recording

TESTS = Path(__file__).parents[1]
FLEET = """
import sys
from pathlib import Path
from qvggt_core.parameters import Parameters
from qvggt_ros.drivers.batch import Batch, Job, run_on_processes
from support.slow_room import load_endless_network
if __name__ == "__main__":
    bags, out = [Path(name) for name in sys.argv[1:3]], Path(sys.argv[3])
    jobs = [Job(bag, out / bag.name, Parameters(threads=1)) for bag in bags]
    list(run_on_processes(Batch(jobs, load=load_endless_network), 2))
"""
POOL = """
import sys
from pathlib import Path
from qvggt_core.training.clips import PoolConfig
from qvggt_core.training.pool import build_pool
if __name__ == "__main__":
    place = Path(sys.argv[1])
    config = PoolConfig(clips=20_000, frames=2, height=24, width=32)
    build_pool(config, place, workers=2, progress=lambda done, total: (place / "first").touch())
"""
LATE = """
import multiprocessing, os, sys, time
from pathlib import Path
from qvggt_core.util.processes import end_with_parent
def work():
    end_with_parent()
    time.sleep(600)
if __name__ == "__main__":
    workers = [multiprocessing.get_context("spawn").Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    time.sleep(600)
else:  # what a worker has to import takes until its parent is gone
    parent = os.getppid()
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    while os.getppid() == parent:
        time.sleep(0.05)
"""
PATIENCE_S = 300.0
"""How long is waited for what takes some seconds, on however busy a machine."""


def wait_until(condition) -> bool:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def running(script: Path, content: str, *arguments: object) -> Iterator[subprocess.Popen]:
    script.write_text(content)
    command = [sys.executable, script, *map(str, arguments)]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(TESTS)})
    try:
        yield parent
    finally:
        parent.kill()
        parent.wait()


def must_leave_no_workers(parent: subprocess.Popen, has_begun) -> None:
    assert wait_until(lambda: has_begun() or parent.poll() is not None), "no worker began"
    assert parent.poll() is None, f"the parent ended by itself with status {parent.returncode}"
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: all(map(is_gone, workers))), "workers go on without a parent"


def test_workers_of_a_fleet_end_with_their_parent(tmp_path):
    needs("torch")
    bags = [write_recording(tmp_path / name, room_entries(4)) for name in ("a", "b")]
    begun = [tmp_path / "out" / f"{name}.partial" for name in ("a", "b")]
    with running(tmp_path / "fleet.py", FLEET, *bags, tmp_path / "out") as fleet:
        must_leave_no_workers(fleet, lambda: all(path.exists() for path in begun))


def test_workers_that_render_for_a_training_end_with_their_parent(tmp_path):
    needs("torch")
    with running(tmp_path / "pool.py", POOL, tmp_path / "pool") as pool:
        rendered = tmp_path / "pool" / "first"
        must_leave_no_workers(pool, rendered.exists)


def test_workers_that_begin_after_their_parent_has_gone_end_too(tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    with running(tmp_path / "late.py", LATE, begun) as parent:
        must_leave_no_workers(parent, lambda: len(list(begun.iterdir())) == 2)
