"""Where there is no memory for OpenCV's linear algebra, that is an error, and no dead process."""

import subprocess
import sys

SCRIPT = """
import resource, cv2, numpy as np
from qvggt_core.util.opencv import take_working_memory
cv2.setNumThreads(1)
points = np.random.default_rng(0).normal(size=(300, 2))

def use():
    return cv2.findHomography(points, points + 1.0, cv2.RANSAC, 0.01)[0]

def leave(megabytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
"""


def run(script: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SCRIPT + script], capture_output=True, text=True)


def test_it_is_an_error():
    ended = run("leave(64); take_working_memory()")
    assert ended.returncode == 1
    assert "MemoryError: 160 MB of address space for OpenCV" in ended.stderr


def test_what_was_taken_early_is_there_when_memory_is_short():
    ended = run("take_working_memory(); leave(16); take_working_memory(); print(use()[0, 2])")
    assert ended.returncode == 0, ended.stderr
    assert abs(float(ended.stdout) - 1.0) < 1e-6
