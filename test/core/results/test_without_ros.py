"""The core evaluates and reports where neither the ROS adapter nor its message library is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_result import FRAMES, STAMPS_NS, pose, write_result

from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory_files import write_tum

SCRIPT = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"qvggt_ros", "rosbags", "rclpy"}:
            raise ImportError(f"{name} is absent")


sys.meta_path.insert(0, Absent())
import qvggt_core
from qvggt_core.report import write_comparison, write_report
from qvggt_core.results.evaluation import evaluate
from qvggt_core.results.truth import GroundTruth
from qvggt_core.results.options import EvaluationOptions
from qvggt_core.results.result import Result

result, truth, times = map(Path, sys.argv[1:])
found = evaluate(
    Result.read(result),
    GroundTruth.read(truth, times if times.exists() else None),
    EvaluationOptions(),
)
found.write_comparison(result)
write_report(found, result)
write_comparison(result / "compare.html", {result: found})
assert not {"qvggt_ros", "rosbags"} & set(sys.modules)
"""


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write_result(tmp_path / "result")


def truth_file(directory: Path, kind: str) -> Path:
    path = directory / f"truth.{kind}"
    track = Track(STAMPS_NS, [pose(index) for index in range(FRAMES)])
    if kind == "tum":
        write_tum(path, track)
    elif kind == "euroc":
        rows = [
            f"{stamp},{','.join(map(str, matrix[:3, 3]))},1,0,0,0"
            for stamp, matrix in zip(track.stamps_ns, track.poses, strict=True)
        ]
        path.write_text("\n".join(rows))
    else:
        path.write_text("\n".join(" ".join(map(str, m[:3].ravel())) for m in track.poses))
        seconds = [f"{stamp * 1e-9:.9f}" for stamp in track.stamps_ns]
        (directory / "seconds.txt").write_text("\n".join(seconds))
    return path


@pytest.mark.parametrize("kind", ["tum", "euroc", "kitti"])
def test_it_evaluates_and_reports_without_the_adapter(
    kind: str, result: Path, tmp_path: Path
) -> None:
    truth = truth_file(tmp_path, kind)
    arguments = [str(path) for path in (result, truth, tmp_path / "seconds.txt")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((result / "metrics.json").read_text())["accuracy"]
    found = accuracy["segments"][0]["alignments"]["sim3"]
    assert accuracy["segments"][0]["compared"] == FRAMES
    assert found["scale"] == pytest.approx(2.0, abs=1e-6)
    assert found["translation"]["rmse"] < 1e-6
    for name in ("errors.csv", "report.html", "compare.html", "pictures/path.png"):
        assert (result / name).stat().st_size > 0, name
