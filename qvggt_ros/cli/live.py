"""`qvggt live` and `qvggt play`: a live reconstruction without ROS, and a recording for it."""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape

from qvggt_core.util.options import option
from qvggt_ros.cli import console
from qvggt_ros.cli.options import NetworkOptions, RecordingPath

DomainId = Annotated[
    int, typer.Option(envvar="ROS_DOMAIN_ID", help="DDS domain, as ROS_DOMAIN_ID.")
]
Interface = Annotated[
    str,
    typer.Option(help="Name or address of the network interface; by default this machine only."),
]


@dataclass(frozen=True)
class LiveTopics:
    """Topics that `qvggt live` subscribes to."""

    image_topic: str = option(
        "/camera/image_raw", "Images; compressed ones if it ends in /compressed."
    )
    camera_info_topic: str | None = option(
        None, "Their CameraInfo; beside the images if not given."
    )
    odom_topic: str = option("/odom", "Odometry that gives the scale.")
    fix_topic: str = option("/fix", "NavSatFix that gives the scale.")


def live(
    network: NetworkOptions,
    topics: LiveTopics,
    namespace: Annotated[str, typer.Option(help="What precedes the outputs.")] = "qvggt",
    domain_id: DomainId = 0,
    interface: Interface = "127.0.0.1",
    save_map: Annotated[
        bool, typer.Option(help="Write the map into map_directory at the end.")
    ] = False,
) -> None:
    """Reconstruct live over DDS, with ROS 2's topics but without a ROS, until Ctrl-C."""
    parameters = network.parameters()
    from qvggt_core.stream.load_network import load_network
    from qvggt_ros.drivers.dds.node import DdsNode, Inputs

    image_topic = topics.image_topic
    if parameters.image_transport == "compressed" and not image_topic.endswith("/compressed"):
        image_topic += "/compressed"
    beside = image_topic.removesuffix("/compressed").rpartition("/")[0]
    info_topic = topics.camera_info_topic or f"{beside}/camera_info"
    inputs = Inputs(image_topic, info_topic, topics.odom_topic, topics.fix_topic)
    with console.err.status("loading the network"):
        node = DdsNode(
            parameters,
            inputs,
            namespace=namespace,
            domain_id=domain_id,
            interface=interface,
            load=load_network,
        )
    # What is loaded stays: no collection of garbage needs to go through PyTorch's modules again,
    # neither between images nor at the end.
    gc.freeze()
    try:
        with console.stop_on_interrupt() as stop:
            console.out.print(
                f"waiting for images on {image_topic}, domain {domain_id}; Ctrl-C ends",
                highlight=False,
            )
            with console.err.status("waiting for images") as status:
                node.run(stop, lambda state: status.update(escape(_line(state))))
        console.out.print(_line(node.diagnostics()), soft_wrap=True, highlight=False, markup=False)
        if save_map:
            path, points = node.save_map()
            console.wrote(path, more=f", {points:,} points")
    finally:
        node.close()
    # A network in the middle of a window cannot be interrupted, and taking PyTorch apart takes
    # seconds on a busy machine.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def play(
    bag: RecordingPath,
    rate: Annotated[float, typer.Option(help="Speed; 1 is as recorded.")] = 1.0,
    keep_stamps: Annotated[
        bool, typer.Option(help="Leave the stamps as recorded, instead of moving them to now.")
    ] = False,
    domain_id: DomainId = 0,
    interface: Interface = "127.0.0.1",
) -> None:
    """Play a recording to `qvggt live`, or to any DDS or ROS 2 process, in real time."""
    from qvggt_ros.drivers.dds.participant import Participant
    from qvggt_ros.drivers.dds.player import play as play_recording

    participant = Participant("qvggt_player", domain_id=domain_id, interface=interface)
    try:
        with (
            console.stop_on_interrupt() as stop,
            console.progress("playing", "messages") as progress,
        ):
            played = play_recording(
                bag,
                participant,
                rate=rate,
                keep_stamps=keep_stamps,
                stop=stop,
                progress=progress,
            )
            interrupted = stop()
    finally:
        participant.close()
    for warning in played.warnings:
        console.note("[yellow]warning:[/]", warning)
    console.out.print(
        f"played {played.messages} messages of {bag}", soft_wrap=True, highlight=False
    )
    if interrupted:
        raise typer.Exit(console.EXIT_INTERRUPTED)


def _line(state: Any) -> str:
    """Return the state in one line."""
    (status,) = state.status
    values = {value.key: value.value for value in status.values}
    age = values.get("age_s.p50")
    return (
        f"{values['images']} images, {values['dropped']} dropped; "
        f"{values['published']} frames with geometry, {values['rate_hz']} Hz"
        + (f", {1000 * float(age):.0f} ms old when the network starts" if age else "")
        + f"; {status.message}"
    )
