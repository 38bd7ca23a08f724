"""Arguments and options that several commands share: what they are called and what help says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recording = Annotated[
    Path, typer.Argument(help="rosbag2 directory, .mcap or .db3 file, video, or folder of images.")
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Network; the small one that ships if not given.")
]
ParameterFile = Annotated[
    Path | None, typer.Option(help="Parameter file, as config/reconstruct.yaml.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="One parameter; may be repeated."),
]
ImageTopic = Annotated[str | None, typer.Option(help="Found by type if not given.")]
Evaluate = Annotated[
    bool | None,
    typer.Option(
        help="Compare with the ground truth; done without asking if a topic is called so."
    ),
]
