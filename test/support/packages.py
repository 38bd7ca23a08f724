"""Packages that tests need and that may be absent: who needs them is skipped, and says so."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path

import pytest

from qvggt_core.errors import MissingPackageError
from qvggt_core.optional import OPTIONAL_PACKAGES

_PACKAGES = {"qvggt_ros", "qvggt_core", "qvggt_kernels"}
TOOLS = {"catkin_pkg", "colcon", "evo", "hypothesis", "psutil", "pycolmap", "selenium"}
"""What `requirements-dev.txt` brings for tests alone."""


def is_absent(module: str) -> bool:
    """Return whether a package that may be absent is: one that cannot be imported is there."""
    may_be = module in OPTIONAL_PACKAGES or module in TOOLS
    return may_be and importlib.util.find_spec(module) is None


def needs(module: str) -> None:
    """Skip the test where a package is absent that it needs in another process."""
    if is_absent(module):
        pytest.skip(sentence(module))


def sentence(module: str) -> str:
    return f"needs {module}, which is not installed"


def blamed(error: BaseException | None, *, on_import: bool) -> str | None:
    """Return why a test is skipped that ended with an error, None if it failed.

    A test module may need what is absent. While a test runs, our code may say in its one sentence
    that a package is missing; that it stumbles over it is a failure.

    Args:
        error: what was raised.
        on_import: whether by the import of a test module.
    """
    while error is not None:
        if isinstance(error, MissingPackageError):
            missing = next(
                (m for m in OPTIONAL_PACKAGES if is_absent(m) and _names(error, m)), None
            )
            return None if missing is None else sentence(missing)
        if isinstance(error, ModuleNotFoundError) and error.name:
            module = error.name.split(".")[0]
            if is_absent(module) and (on_import or not _is_by_our_code(error)):
                return sentence(module)
        error = error.__cause__ or error.__context__
    return None


def _names(error: MissingPackageError, module: str) -> bool:
    package = OPTIONAL_PACKAGES[module]
    return str(error).startswith(f"{package.distribution or module} ")


def _is_by_our_code(error: BaseException) -> bool:
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    importers = [Path(name) for name in files if "importlib" not in name]
    return bool(importers) and not _PACKAGES.isdisjoint(importers[-1].parts)
