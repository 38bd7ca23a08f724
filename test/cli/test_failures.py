"""A failure of the disk or of memory ends a command in one line; a fault of ours is not hidden."""

from __future__ import annotations

import errno
import sqlite3

import cv2
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from support.commands import run, small_checkpoint

from qvggt_ros.cli import app


def memory_of_cv2() -> Exception:
    return cv2.error("OpenCV(5) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate")


def while_importing() -> Exception:
    error = ImportError("cannot import name 'x'")
    error.__context__ = MemoryError()
    return error


FAILURES = {
    "full": lambda: OSError(errno.ENOSPC, "No space left on device", "/out/bag"),
    "read-only": lambda: OSError(errno.EROFS, "Read-only file system", "/out"),
    "memory": MemoryError,
    "an array": lambda: np._core._exceptions._ArrayMemoryError((10**9, 9), np.dtype("f8")),
    "a tensor": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "OpenCV": memory_of_cv2,
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "an import": while_importing,
    "a library": lambda: ImportError("x.so: failed to map segment from shared object"),
    "weights": lambda: SafetensorError("I/O error: No space left on device (os error 28)"),
    "PyTorch": lambda: RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 454400 vs 454288"
    ),
    "a database": lambda: sqlite3.OperationalError("database or disk is full"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_of_the_machine_is_one_line(kind, capsys, monkeypatch, tmp_path):
    path = small_checkpoint(tmp_path / "tiny.safetensors")

    def fail(*arguments, **options):
        raise FAILURES[kind]()

    monkeypatch.setattr("qvggt_core.model.read_checkpoint", fail)
    status, _, err = run(capsys, "info", path)
    assert status == 2
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("fault", [IndexError("list index out of range"), RuntimeError("shape")])
def test_a_fault_of_ours_keeps_its_traceback(fault, monkeypatch, tmp_path):
    path = small_checkpoint(tmp_path / "tiny.safetensors")

    def fail(*arguments, **options):
        raise fault

    monkeypatch.setattr("qvggt_core.model.read_checkpoint", fail)
    with pytest.raises(type(fault)):
        app.main(["info", str(path)])


def test_memory_that_is_really_not_there():
    """What PyTorch and NumPy say today is what is looked for."""
    from qvggt_ros.cli.failures import explanation

    with pytest.raises(RuntimeError) as tensor:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as array:
        np.empty(1 << 60, np.uint8)
    for caught in (tensor.value, array.value):
        assert "not enough memory" in explanation(caught)
