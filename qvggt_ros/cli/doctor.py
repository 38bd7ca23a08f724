"""`qvggt doctor`: what is installed, what will run and why, and what to do about each problem."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from qvggt_ros.cli import console
from qvggt_ros.cli.options import CameraInfoTopic, ImageTopic

if TYPE_CHECKING:
    from qvggt_core.doctor import Finding

_STYLES = {"ok": "green", "warn": "yellow", "problem": "bold red"}


def doctor(
    bag: Annotated[
        Path | None, typer.Option("--bag", help="Recording whose camera is checked too.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Network that is checked. [default: the shipped one]")
    ] = None,
    ros: Annotated[
        bool, typer.Option("--ros", help="Check the running ROS graph and one camera of it.")
    ] = False,
    image_topic: ImageTopic = None,
    camera_info_topic: CameraInfoTopic = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where results would be written.")
    ] = Path("."),
    seconds: Annotated[
        float, typer.Option(min=0.5, max=600, help="Time to wait for topics and messages.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check installation, machine, network, ROS and camera; exit status 3 if there is a problem."""
    sections = {
        "installation": _installation(),
        "machine": _machine(output, checkpoint),
        "network": _network(checkpoint),
        "ros": _ros_environment(ros),
    }
    if bag is not None:
        from qvggt_ros.io.camera_streams import check_recording

        sections["recording"] = check_recording(bag, image_topic, camera_info_topic)
    if ros and not any(finding.level.value == "problem" for finding in sections["ros"]):
        from qvggt_ros.drivers.ros_graph import check_graph

        sections["camera"] = check_graph(image_topic, camera_info_topic, seconds)
    if as_json:
        typer.echo(json.dumps({name: _plain(found) for name, found in sections.items()}))
    else:
        for name, found in sections.items():
            _print(name, found)
        _summary([finding for found in sections.values() for finding in found])
    if any(each.level.value == "problem" for found in sections.values() for each in found):
        raise typer.Exit(console.EXIT_SOME_FAILED)


def _installation() -> list[Finding]:
    from qvggt_core.doctor import check_installation

    return check_installation()


def _machine(output: Path, checkpoint: Path | None) -> list[Finding]:
    from qvggt_core.doctor import check_computing, check_machine

    size = checkpoint.stat().st_size if checkpoint is not None and checkpoint.is_file() else 0
    return [*check_computing(), *check_machine(output, size)]


def _network(checkpoint: Path | None) -> list[Finding]:
    from qvggt_core.doctor import check_checkpoint

    return check_checkpoint(checkpoint)


def _ros_environment(required: bool) -> list[Finding]:
    from qvggt_core.doctor import check_ros_environment

    return check_ros_environment(required=required)


def _plain(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [
        {
            "name": each.name,
            "level": each.level.value,
            "found": each.found,
            "advice": each.advice,
        }
        for each in findings
    ]


def _print(section: str, findings: Iterable[Finding]) -> None:
    table = console.Table(title=section, title_justify="left", show_header=False, box=None)
    for _ in range(3):
        table.add_column()
    for each in findings:
        style = _STYLES[each.level.value]
        advice = f"\n[bold]->[/] {escape(each.advice)}" if each.advice else ""
        table.add_row(
            f"[{style}]{each.level.value}[/]", escape(each.name), escape(each.found) + advice
        )
    console.out.print(table)


def _summary(findings: list[Finding]) -> None:
    problems = sum(each.level.value == "problem" for each in findings)
    warnings = sum(each.level.value == "warn" for each in findings)
    console.out.print(f"{problems} problems, {warnings} warnings in {len(findings)} checks")
