"""The report of one run: pictures, and one page around them."""

from __future__ import annotations

from pathlib import Path

import yaml

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.report.charts import charts_of
from qvggt_core.report.frames import frames_of
from qvggt_core.report.page import data_uri, render_page
from qvggt_core.report.pictures import draw_pictures
from qvggt_core.report.rows import (
    accuracy_tables,
    cloud_caption,
    count_rows,
    path_caption,
    sentence,
    tiles,
    time_rows,
)
from qvggt_core.report.scene_data import scene_of
from qvggt_core.results import layout
from qvggt_core.results.result import Result
from qvggt_core.results.samples import Samples
from qvggt_core.util.files import write_atomically


def write_report(result: Result, directory: Path, title: str | None = None) -> list[Path]:
    """Write `pictures/*.png` and `report.html` into a directory; return their paths.

    Args:
        result: in memory, or read from a directory.
        directory: of the result.
        title: what to call it; the name of its recording if not given.

    Raises:
        RecordingError: a file of the result cannot be read.
    """
    cloud, samples = result.cloud, result.load_samples()
    truth = None if result.errors is None else result.errors.truth
    pictures = directory / layout.PICTURES
    pictures.mkdir(exist_ok=True)
    drawn = draw_pictures(samples, result.track, cloud, result.metrics.result.unit, truth)
    for name, content in drawn.items():
        write_atomically(pictures / name, content)
    page = directory / layout.REPORT_FILE
    title = title or result.metrics.recording.name
    write_atomically(
        page, _page(result, cloud, samples, title, data_uri(drawn["cloud_behind.png"]))
    )
    return [*(pictures / name for name in drawn), page]


def _page(
    result: Result,
    cloud: Cloud,
    samples: Samples | None,
    title: str,
    poster: str,
) -> str:
    metrics, track = result.metrics, result.track
    scene = scene_of(result, cloud, samples)
    low, high = scene["cloud"]["heights"] if scene["cloud"] else (0.0, 1.0)
    cut = (scene["ceiling"] - low) / max(high - low, 1e-9)
    recording = metrics.recording
    return render_page(
        "run.html",
        {**scene, "charts": charts_of(result)},
        title=title,
        brand="qvggt reconstruction",
        subtitle=" · ".join(
            [
                recording.image_topic,
                recording.camera_info_topic or "no camera_info: intrinsics as predicted",
                f"network {metrics.model.get('file', 'unknown')}",
            ]
        ),
        tiles=tiles(result),
        notes=[sentence(text) for text in metrics.warnings],
        cloud_caption=cloud_caption(cloud, scene, metrics.result.unit),
        poster=poster,
        has_truth=bool(scene["truth"]),
        cut=f"{min(1.0, max(0.05, cut)):.2f}",
        duration=f"{track.seconds[-1]:.3f}",
        path_caption=path_caption(result),
        truth_unit="m",
        **accuracy_tables(result),
        **frames_of(samples, result),
        time_caption=str(result.run.get("latency_is", "")),
        time_rows=time_rows(result.run.get("timings", {})),
        count_rows=count_rows(result),
        events=[
            *(sentence(text) for text in metrics.events),
            *(
                f"{count} times: {sentence(reason)}"
                for reason, count in metrics.result.rejected.items()
            ),
        ],
        network_rows=[
            (f"network's {name.replace('_', ' ')}", str(value))
            for name, value in metrics.model.items()
        ],
        version_rows=[(name, str(value)) for name, value in result.run.get("versions", {}).items()],
        parameters=yaml.safe_dump(result.run.get("parameters", {}), sort_keys=False),
    )
