"""What a replay reads and writes, as options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qvggt_core.util.options import option


@dataclass(frozen=True)
class ReplayOptions:
    """What is read of a recording, and what is written; a field's metadata describes it."""

    image_topic: str | None = option(None, "Found by type if not given.")
    camera_info_topic: str | None = option(None, "Found beside the images if not given.")
    focal_length: float | None = option(
        None,
        "Pixels, of images without CameraInfo; found from the images if not given; 0 leaves it to "
        "the network.",
    )
    mask_topic: str | None = option(None, "mono8, non-zero where the scene stands still.")
    stereo_topic: str | None = option(
        None, "Images of a second camera on the same rig; both give metres together."
    )
    odometry: bool | None = option(
        None, "Take the scale from the recording's odometry; done without asking if there is one."
    )
    storage: str = option("mcap", "Storage of the result: mcap or sqlite3.")
    limit: int | None = option(None, "End after so many images.")
    overwrite: bool = option(False, "Replace a former output.")
    report: bool = option(True, "Draw pictures and write report.html.")


@dataclass(frozen=True)
class MapOptions:
    """Which map is loaded or saved; a field's metadata describes it."""

    save_map: Path | None = option(
        None, "Save the map into this directory, for --load-map; turns loop_closure on."
    )
    load_map: Path | None = option(
        None,
        "Find the camera in this map, which grows with localization_only=false; turns "
        "loop_closure on.",
    )
