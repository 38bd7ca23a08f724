"""`qvggt topics`: what a recording holds, and what of it a reconstruction takes."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape

from qvggt_ros.cli import console
from qvggt_ros.cli.options import CameraInfoTopic, ImageTopic, RecordingPath


def topics(
    bag: RecordingPath,
    image_topic: ImageTopic = None,
    camera_info_topic: CameraInfoTopic = None,
    namespace: Annotated[
        str, typer.Option(help="Of the node that the recording will be played to.")
    ] = "qvggt",
    as_json: Annotated[bool, typer.Option("--json", help="Print the choice as JSON.")] = False,
) -> None:
    """List the topics of a recording, and which of them a reconstruction takes."""
    from qvggt_ros.io.recording import open_recording
    from qvggt_ros.io.topics import choose_topics, odometry_topic, playable_topics, sensor_topic

    with open_recording(bag) as recording:
        chosen = choose_topics(recording, image_topic, camera_info_topic)
        taken = {
            "image": chosen.image,
            "camera_info": chosen.camera_info,
            "odometry": odometry_topic(recording),
            "fix": sensor_topic(recording, "NavSatFix"),
            "range": sensor_topic(recording, "Range"),
            "imu": sensor_topic(recording, "Imu"),
        }
        taken = {use: topic for use, topic in taken.items() if topic is not None}
        if as_json:
            play = playable_topics(recording, namespace)
            typer.echo(json.dumps({**taken, "play": play}))
            return
        table = console.Table(title=str(bag), title_justify="left")
        for column in ("topic", "type", "messages", "taken as"):
            table.add_column(column, justify="right" if column == "messages" else "left")
        uses = {topic: use for use, topic in taken.items()}
        for topic, msgtype in recording.types.items():
            count = str(recording.count(topic))
            table.add_row(escape(topic), msgtype, count, uses.get(topic, ""))
    console.out.print(table)
