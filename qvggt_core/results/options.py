"""How a result is compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qvggt_core.evaluate.track import DEFAULT_TOLERANCE_S
from qvggt_core.util.options import option


@dataclass(frozen=True)
class EvaluationOptions:
    """How to compare; a field's metadata holds its description."""

    ground_truth: str | None = option(
        None,
        "Topic (PoseStamped, Odometry, TransformStamped), /tf:PARENT.CHILD, or a TUM, EuRoC "
        "or KITTI file; the topic that is called ground truth if not given.",
    )
    truth_frame: str = option(
        "",
        "Frame that the true poses are of, where messages do not name it; TF moves them to the "
        "camera.",
    )
    times: Path | None = option(
        None, "Times of a KITTI file; times.txt beside it if not given.", "--truth-times"
    )
    tolerance_s: float = option(
        DEFAULT_TOLERANCE_S, "Seconds that stamps which belong together may differ.", "--tolerance"
    )
    clock_offset: str = option(
        "0",
        "Seconds to add to the truth's stamps; 'first': both begin at once; 'estimate': "
        "found from the motion.",
    )
    rpe_distances: tuple[float, ...] = option(
        (1.0,),
        "Relative errors over so many metres; may be repeated. 1 if not given.",
        "--rpe-distance",
    )
    rpe_times: tuple[float, ...] = option(
        (1.0,),
        "Relative errors over so many seconds; may be repeated. 1 if not given.",
        "--rpe-time",
    )
    depth_topic: str | None = option(
        None, "True depth; found by type in the camera's frame if not given."
    )
