"""Checks of a shell's ROS 2: sourced, its Python, its middleware, its network."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

from qvggt_core.doctor.finding import Finding, ok, problem, warn, warn_if

SUPPORTED = ("humble", "jazzy", "lyrical", "rolling")
"""Distributions that the continuous integration builds for."""

_DEFAULT_RMW = "rmw_fastrtps_cpp"
_ZENOH_ROUTER = ("127.0.0.1", 7447)
_LARGEST_DOMAIN = 101
"""Above it, DDS's ports reach into the range from which Linux takes ports for other programs."""
_RECEIVE_BUFFER = 2 * 1024 * 1024
_MULTICAST = 0x1000


def check_ros_environment(
    environment: Mapping[str, str] = os.environ, required: bool = False
) -> list[Finding]:
    """Return findings on the ROS that is sourced in this shell.

    Args:
        environment: the process's environment variables.
        required: whether it is a problem that none is.
    """
    distribution = environment.get("ROS_DISTRO", "")
    if not distribution or not environment.get("AMENT_PREFIX_PATH"):
        found = "no ROS 2 is sourced"
        if required:
            return [problem("ros", found, "`source /opt/ros/$ROS_DISTRO/setup.bash`")]
        return [ok("ros", f"{found}: `qvggt replay` and `qvggt live` need none, the node does")]
    return [
        _distribution(distribution),
        python_finding(find_spec, environment.get("PYTHONPATH", "")),
        *_middleware(environment),
        domain_finding(environment),
        *_network(environment),
    ]


def _distribution(name: str) -> Finding:
    if name not in SUPPORTED:
        return warn(
            "ros",
            f"{name} is not one of {', '.join(SUPPORTED)}, which qvggt is built for",
            "use one of these; Kilted ended in November 2026",
        )
    return ok("ros", name)


def python_finding(find: Callable[[str], object | None], python_path: str) -> Finding:
    """Return whether this interpreter can import ROS's packages.

    Args:
        find: returns None for a module that cannot be imported, as `find_spec` does.
        python_path: value of PYTHONPATH.
    """
    if find("rclpy") is not None:
        return ok("ros python", f"{sys.version_info[0]}.{sys.version_info[1]}")
    wanted = re.search(r"python(3\.\d+)", python_path)
    found = f"Python {sys.version_info[0]}.{sys.version_info[1]} cannot import rclpy"
    if wanted:
        found += f", ROS is built for {wanted[1]}"
    return problem(
        "ros python",
        found,
        "make the virtual environment with ROS's own Python: `/usr/bin/python3 -m venv "
        "--system-site-packages .venv`",
    )


def _middleware(environment: Mapping[str, str]) -> list[Finding]:
    given = environment.get("RMW_IMPLEMENTATION", "")
    installed = _installed_middleware(environment["AMENT_PREFIX_PATH"])
    name = given or (_DEFAULT_RMW if _DEFAULT_RMW in installed or not installed else min(installed))
    if name not in installed:
        there = ", ".join(sorted(installed)) or "none"
        advice = f"`sudo apt install ros-$ROS_DISTRO-{name.replace('_', '-')}`"
        if given and installed:
            advice += ", or `unset RMW_IMPLEMENTATION`"
        return [problem("rmw", f"{name} is not installed; installed: {there}", advice)]
    findings = [ok("rmw", name if given else f"{name}, as RMW_IMPLEMENTATION is not set")]
    uri = environment.get("CYCLONEDDS_URI", "")
    if name == "rmw_cyclonedds_cpp" and uri.startswith("file:"):
        file = Path(urlparse(uri).path)
        if not file.is_file():
            findings.append(
                problem(
                    "cyclonedds configuration",
                    f"CYCLONEDDS_URI names {file}, which is not there",
                    "correct the path, or `unset CYCLONEDDS_URI`",
                )
            )
    if name == "rmw_zenoh_cpp":
        findings.append(_zenoh_router())
    return findings


def _installed_middleware(prefix_path: str) -> set[str]:
    """Return the names under which middleware registers in ament's index."""
    index = Path("share/ament_index/resource_index/rmw_typesupport")
    return {
        file.name
        for prefix in prefix_path.split(os.pathsep)
        if prefix and (Path(prefix) / index).is_dir()
        for file in (Path(prefix) / index).iterdir()
        if file.name != "rmw_implementation"  # the one that chooses among the others
    }


def _zenoh_router() -> Finding:
    try:
        socket.create_connection(_ZENOH_ROUTER, timeout=0.5).close()
    except OSError:
        return warn(
            "zenoh router",
            f"none on port {_ZENOH_ROUTER[1]}: nodes do not find each other",
            "`ros2 run rmw_zenoh_cpp rmw_zenohd`",
        )
    return ok("zenoh router", f"on port {_ZENOH_ROUTER[1]}")


def domain_finding(environment: Mapping[str, str]) -> Finding:
    """Return whether ROS_DOMAIN_ID is a number that works on Linux."""
    given = environment.get("ROS_DOMAIN_ID", "") or "0"
    advice = f"`export ROS_DOMAIN_ID=N` with N from 0 to {_LARGEST_DOMAIN}, the same on all"
    if not given.isdecimal() or int(given) > 232:
        return problem("ros domain", f"ROS_DOMAIN_ID is {given!r}, not a number to 232", advice)
    if int(given) > _LARGEST_DOMAIN:
        return warn("ros domain", f"{given}: its ports may be taken by other programs", advice)
    return ok("ros domain", given)


def _network(environment: Mapping[str, str]) -> list[Finding]:
    local = (
        environment.get("ROS_LOCALHOST_ONLY") == "1"
        or environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "").upper() == "LOCALHOST"
    )
    findings = [
        ok("ros discovery", "this machine only" if local else "all machines of the network")
    ]
    flags = _number(Path("/sys/class/net/lo/flags"), base=16)
    middleware = environment.get("RMW_IMPLEMENTATION", "")
    if flags is not None and local and middleware == "rmw_cyclonedds_cpp":
        findings += loopback_findings(flags)
    buffer = _number(Path("/proc/sys/net/core/rmem_max"))
    if buffer is not None and middleware != "rmw_zenoh_cpp":
        findings.append(receive_buffer_finding(buffer))
    return findings


def loopback_findings(flags: int) -> list[Finding]:
    """Return a warning if the loopback interface with some flags carries no multicast."""
    if flags & _MULTICAST:
        return []
    return [
        warn(
            "loopback",
            "lo has no multicast: nodes may not find each other on this machine alone",
            "`sudo ip link set lo multicast on`",
        )
    ]


def receive_buffer_finding(size: int) -> Finding:
    """Return whether UDP's receive buffer, in bytes, holds an image from another machine."""
    return warn_if(
        size < _RECEIVE_BUFFER,
        "receive buffer",
        f"{size / 1e6:.1f} MB",
        "raw images from another machine are lost when they burst",
        "`sudo sysctl -w net.core.rmem_max=2147483647`",
    )


def _number(path: Path, base: int = 10) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"), base)
    except (OSError, ValueError):
        return None
