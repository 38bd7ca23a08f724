"""Where there is no memory for a thread, that is an error, and no one waits for it for ever."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

SCRIPT = """
import os, resource, threading, time
from qvggt_core.util import threads

STACK = resource.getrlimit(resource.RLIMIT_STACK)[0]
STACK = 8 << 20 if STACK == resource.RLIM_INFINITY else STACK

def be_short_of_memory(room):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        thread = threading.Thread(target=int, daemon=True)
        threads.start(thread)
        thread.join()
    except MemoryError:
        os._exit(1)
    os._exit(0)

ends = []
for more in range(-64 << 10, 2 << 20, 16 << 10):
    child = os.fork()
    if not child:
        be_short_of_memory(STACK + more)
    until = time.monotonic() + 20.0
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.001)
    if not ended[0]:
        os.kill(child, 9)
        ended = os.waitpid(child, 0)
    ends.append(os.waitstatus_to_exitcode(ended[1]))
print(*ends)
"""


def test_a_thread_begins_or_is_refused_whatever_memory_there_is():
    script = [sys.executable, "-c", SCRIPT]
    ended = subprocess.run(script, capture_output=True, text=True, check=True)
    ends = [int(end) for end in ended.stdout.split()]
    assert set(ends) == {0, 1}
    assert ends == sorted(ends, reverse=True)


def test_all_threads_are_started_so():
    started = re.compile(r"thread\w*(\(.*\))?\.start\(\)", re.IGNORECASE)
    found = [
        f"{path.name}: {line.strip()}"
        for package in ("qvggt_core", "qvggt_ros", "kernels")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if started.search(line) and path.name != "threads.py"
    ]
    assert not found
