"""Packages that only some features need: what for, and how each is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from qvggt_core.errors import MissingPackageError


@dataclass(frozen=True)
class OptionalPackage:
    """A package that qvggt runs without, as long as no feature of it is used.

    Attributes:
        module: top-level name that is imported.
        distribution: name on the package index; empty if it comes with ROS.
        purpose: the features that need it.
        install: command that installs it.
    """

    module: str
    distribution: str
    purpose: str
    install: str


_PACKAGES = (
    OptionalPackage(
        "torch", "torch", "running and quantizing networks", "pip install 'torch>=2.5,<2.14'"
    ),
    OptionalPackage("matplotlib", "matplotlib", "figures in reports", "pip install matplotlib"),
    OptionalPackage("viser", "viser", "the live 3D view", "pip install 'qvggt_ros[viz]'"),
    OptionalPackage(
        "cyclonedds", "cyclonedds", "live streams without ROS", "pip install 'qvggt_ros[dds]'"
    ),
    OptionalPackage(
        "sklearn", "scikit-learn", "some quantization recipes", "pip install 'qvggt_ros[quantize]'"
    ),
    OptionalPackage("ray", "ray", "batches on a cluster", "pip install 'qvggt_ros[ray]'"),
    OptionalPackage("triton", "triton", "kernels on NVIDIA GPUs", "pip install triton"),
    OptionalPackage(
        "bondpy",
        "",
        "the bond with Nav2's lifecycle manager",
        "sudo apt install ros-$ROS_DISTRO-bondpy",
    ),
    OptionalPackage(
        "open3d",
        "open3d-cpu",
        "worlds of meshes, and the tests' comparison of surfaces",
        "pip install open3d-cpu",
    ),
    OptionalPackage("trimesh", "trimesh", "worlds of meshes", "pip install trimesh pycollada"),
)

OPTIONAL_PACKAGES = {package.module: package for package in _PACKAGES}
"""By the name that is imported."""


def import_optional(module: str) -> ModuleType:
    """Import a module of an optional package, e.g. "sklearn.cluster".

    Raises:
        MissingPackageError: the package, or one that it needs, is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise missing_package(error, module) or error from error


def missing_package(error: ImportError, module: str | None = None) -> MissingPackageError | None:
    """Return one sentence for a failed import, or None if no optional package is concerned.

    Args:
        error: what the import raised.
        module: what was imported; the module that `error` names if not given.
    """
    name = (module or error.name or "").split(".")[0]
    package = OPTIONAL_PACKAGES.get(name)
    if package is None:
        return None
    absent = (error.name or "").split(".")[0] in ("", name) and isinstance(
        error, ModuleNotFoundError
    )
    problem = "is not installed" if absent else f"cannot be imported ({error})"
    return MissingPackageError(
        f"{package.distribution or package.module} {problem}, and is needed for "
        f"{package.purpose}: `{package.install}`"
    )
