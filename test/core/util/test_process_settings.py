"""Linear algebra on one thread, and garbage collections of what is new."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import threadpoolctl

from qvggt_core.util.process_settings import freeze_long_lived, limit_blas_threads

CHOICES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def threads_after(code: str, **environment: str) -> dict[str, int]:
    """Threads of each library of linear algebra in a process that has run some lines."""
    lines = f"""
import json, cv2, numpy, torch
{code}
import scipy.linalg
from threadpoolctl import threadpool_info
found = [each for each in threadpool_info() if each["user_api"] == "blas"]
print(json.dumps({{each["filepath"]: each["num_threads"] for each in found}}))
"""
    inherited = {k: v for k, v in os.environ.items() if k not in (*CHOICES, "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", lines],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one processor")
def test_loading_a_network_leaves_one_thread_to_linear_algebra() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    before = threads_after("")
    if max(before.values(), default=1) < 2:
        pytest.skip("NumPy and SciPy have no library with threads here")
    load = "import qvggt_core; qvggt_core.load_network()"
    assert set(threads_after(load).values()) == {1}
    assert threads_after(load, OPENBLAS_NUM_THREADS="2") == threads_after(
        "", OPENBLAS_NUM_THREADS="2"
    )


def test_pytorchs_library_keeps_its_threads(monkeypatch) -> None:
    class Library(SimpleNamespace):
        def set_num_threads(self, count: int) -> None:
            self.count = count

    libraries = [
        Library(user_api="blas", filepath="/lib/numpy.libs/libscipy_openblas64_.so", count=4),
        Library(user_api="blas", filepath="/usr/lib/aarch64-linux-gnu/libopenblas.so.0", count=4),
        Library(user_api="blas", filepath="/lib/torch/lib/libopenblas.so.0", count=4),
        Library(user_api="blas", filepath="/lib/torch.libs/libopenblas.so.0", count=4),
        Library(user_api="openmp", filepath="/lib/libgomp.so.1", count=4),
    ]
    controller = SimpleNamespace(lib_controllers=libraries)
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda: controller)
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    limit_blas_threads()
    assert [library.count for library in libraries] == [1, 1, 4, 4, 4]


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_lives_long_is_not_looked_at_again_and_garbage_is_never_kept() -> None:
    gc.disable()
    try:
        before, kept = Cycle(), Cycle()
        gone_before, gone_later = weakref.ref(before), weakref.ref(kept)
        del before
        freeze_long_lived()
        assert gone_before() is None
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 1_000
        del kept
        gc.collect()
        assert gone_later() is not None, "it was there when the rest was frozen"
        freeze_long_lived()
        assert gone_later() is None
    finally:
        gc.unfreeze()
        gc.enable()
