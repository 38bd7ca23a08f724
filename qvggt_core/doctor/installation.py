"""Checks of what is installed: Python, the required packages, the optional ones."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement

from qvggt_core.doctor.finding import Finding, ok, problem, warn
from qvggt_core.optional import OPTIONAL_PACKAGES, OptionalPackage

_DISTRIBUTION = "qvggt_ros"
_OLDEST_PYTHON = (3, 10)


def check_installation() -> list[Finding]:
    """Return findings on Python, this distribution, what it requires, and optional packages."""
    findings = [_python(sys.version_info[:2])]
    try:
        version = metadata.version(_DISTRIBUTION)
        required = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [
            *findings,
            warn(
                "qvggt",
                "runs from its sources without being installed",
                "`pip install .` in the repository, so that requirements and kernels are there",
            ),
            *optional_packages(),
        ]
    return [*findings, ok("qvggt", version), *required_packages(required), *optional_packages()]


def required_packages(requirements: Iterable[str]) -> list[Finding]:
    """Return a problem per requirement that is missing or of a refused version, else one ok.

    Args:
        requirements: lines as in `requirements.in`; those of extras are left out.
    """
    problems, versions = [], []
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = "is not installed"
        else:
            versions.append(f"{requirement.name} {version}")
            if requirement.specifier.contains(version, prereleases=True):
                continue
            found = f"{version}, but {requirement.specifier} is required"
        advice = f"`{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'`"
        problems.append(problem(requirement.name, found, advice))
    return problems or [ok("required packages", ", ".join(versions))]


def optional_packages() -> list[Finding]:
    """Return which optional packages are there; one that is not is no fault."""
    return [
        _optional_package(package)
        for package in OPTIONAL_PACKAGES.values()
        if package.distribution  # the others are part of ROS, which is checked there
    ]


def _optional_package(package: OptionalPackage) -> Finding:
    if find_spec(package.module) is None:
        found = f"not installed; only for {package.purpose}"
        return ok(package.module, found, f"if wanted: `{package.install}`")
    try:
        return ok(package.module, metadata.version(package.distribution))
    except metadata.PackageNotFoundError:  # built by another vendor, under another name
        return ok(package.module, "installed")


def _python(version: tuple[int, ...]) -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    if version < _OLDEST_PYTHON:
        return problem("python", found, "use Python 3.10 or newer")
    return ok("python", found)
