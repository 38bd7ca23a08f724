"""Comparisons and sweeps: known answers, intervals, plans within budgets, tables."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from scipy import stats
from support.small_network import TINY, open_state

from qvggt_core.errors import EvaluationError, QuantizationError
from qvggt_core.evaluate.bootstrap import bootstrap
from qvggt_core.geometry.poses import inverse
from qvggt_core.measure.footprint import measure_footprint
from qvggt_core.model import Prediction, encode_pose, read_checkpoint
from qvggt_core.model.checkpoint import save_checkpoint
from qvggt_core.quantize import PRESETS, CalibrationSet, planned_sizes
from qvggt_core.quantize.calibration_sources import pool_windows
from qvggt_core.quantize.comparison import Protocol, run_studies
from qvggt_core.quantize.scores import METRICS, run_windows, score_outputs
from qvggt_core.quantize.sensitivity import BLOCK, auto_plan, draw_heat_map, sweep_sensitivity
from qvggt_core.quantize.study import STUDIES, Study, load_study
from qvggt_core.report.recipe_comparison import write_tables
from qvggt_core.training.clips import PoolConfig, render_clip
from qvggt_core.training.pool import Pool
from qvggt_core.training.windows import Windows, WindowTruth, evaluation_windows


def rendered_pool(evaluation: bool) -> Pool:
    config = PoolConfig(
        worlds=("studio",), clips=3, frames=3, height=42, width=56, samples=0, evaluation=evaluation
    )
    clips = [render_clip(config, index) for index in range(config.clips)]
    fields = ("images", "depth", "world_from_camera", "intrinsics")
    return Pool(config, *(np.stack([getattr(clip, name) for clip in clips]) for name in fields))


@pytest.fixture(scope="module")
def windows() -> Windows:
    return evaluation_windows(rendered_pool(evaluation=True), 2)


@pytest.fixture(scope="module")
def data() -> CalibrationSet:
    return pool_windows(rendered_pool(evaluation=False), 2, "test flights")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    save_checkpoint(path, open_state(), TINY)
    return path


# --- scores -------------------------------------------------------------------------------


class KnowsTheTruth:
    """Answers with the truth of its windows, in another world, turned by some degrees."""

    config = TINY

    def __init__(self, windows: Windows, degrees: float = 0.0, scale: float = 3.0) -> None:
        self.windows, self.degrees, self.scale = windows, degrees, scale
        self.place = 0

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, images, heads):
        count, frames = images.shape[:2]
        rows = slice(self.place, self.place + count)
        self.place += count
        camera_from_world = torch.from_numpy(inverse(self.windows.world_from_camera[rows].numpy()))
        first = self.windows.world_from_camera[rows, :1]
        pose = camera_from_world @ first
        pose[..., :3, 3] *= self.scale
        angle = torch.deg2rad(torch.tensor(self.degrees)).double() * torch.arange(frames)
        turn = torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1)
        turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
        turn[:, 0, 1], turn[:, 1, 0] = -angle.sin(), angle.sin()
        pose[..., :3, :] = turn @ pose[..., :3, :]
        intrinsics = self.windows.intrinsics[rows].clone()
        height, width = images.shape[-2:]
        intrinsics[..., 0, 2], intrinsics[..., 1, 2] = width / 2, height / 2
        encodings = encode_pose(pose[..., :3, :], intrinsics, height, width)
        depth = self.windows.depth[rows].nan_to_num(1.0) * self.scale
        return Prediction((encodings.float(),), depth, torch.ones_like(depth))


def score(network, windows):
    full = run_windows(KnowsTheTruth(windows), windows)
    return score_outputs(run_windows(network, windows), windows, full).values


def test_the_truth_scores_full_marks_in_any_gauge(windows):
    scores = score(KnowsTheTruth(windows), windows)
    assert set(scores) == set(METRICS)
    assert np.allclose(scores["auc_30"], 100.0)
    assert np.allclose(scores["auc_5"], 100.0)
    assert scores["rotation"].max() < 1e-2
    assert scores["abs_rel"].max() < 1e-3
    # Half a pixel of principal point is all that is left.
    assert scores["accuracy"].max() < 0.05
    assert scores["completeness"].max() < 0.05
    assert scores["normal_consistency"].min() > 0.97


def test_a_known_turn_costs_what_the_definition_says(windows):
    scores = score(KnowsTheTruth(windows, degrees=10.5), windows)
    assert np.allclose(scores["rotation"], 10.5, atol=1e-2)
    # Below 11, 12, ... 30 degrees: 20 of 30 thresholds.
    assert np.allclose(scores["auc_30"], 100 * 20 / 30, atol=1e-6)
    assert np.allclose(scores["auc_5"], 0.0)
    # The full-precision network predicts the truth, so the turn is all of the drift.
    assert np.allclose(scores["pose_drift"], 10.5, atol=1e-2)
    assert np.allclose(scores["depth_drift"], 0.0)


# --- intervals ----------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_intervals_are_scipys(statistic):
    values = np.random.default_rng(0).gamma(2.0, size=400)
    ours = bootstrap(values, statistic)
    theirs = stats.bootstrap(
        (values,), statistic, n_resamples=4000, method="percentile", random_state=1
    ).confidence_interval
    assert ours.value == pytest.approx(statistic(values))
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_no_windows_have_no_interval():
    with pytest.raises(EvaluationError, match="no windows"):
        bootstrap(np.empty(0))


# --- sensitivity --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(source, data):
    return sweep_sensitivity(read_checkpoint(source), data, precision="w3a16", group_size=32)


def test_a_sweep_has_each_linear_and_each_block_alone(sweep):
    assert len(sweep.rows) == 9 * 5
    assert {row.part for row in sweep.rows} == {"frame", "global", "camera"}
    for path in {row.path for row in sweep.rows}:
        rows = {row.kind: row for row in sweep.rows if row.path == path}
        singles = [rows[kind].errors.camera for kind in ("qkv", "proj", "fc1", "fc2")]
        assert max(singles) > 0
        assert rows[BLOCK].errors.camera < 3 * sum(singles)
        extra = sum(row.extra_bytes for kind, row in rows.items() if kind != BLOCK)
        assert rows[BLOCK].extra_bytes == extra
    camera = [row for row in sweep.rows if row.part == "camera"]
    assert all(row.errors.depth == 0 for row in camera), "the camera head does not touch depth"
    assert sweep.total(sweep.everything) == pytest.approx(1.0)
    json.dumps(sweep.to_dict())


def test_auto_plans_stay_within_their_budget_and_protect_the_worst(source, sweep):
    checkpoint = read_checkpoint(source)
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    least = sum(s.nbytes for s in planned_sizes(PRESETS["uniform"], shapes, 32).values())
    for extra in (0, 10_000, 60_000):
        plan = auto_plan(sweep, shapes, megabytes=(least + extra) / 1e6)
        size = sum(s.nbytes for s in planned_sizes(plan, shapes, 32).values())
        assert size <= least + extra
        protected = [r.match for r in plan.rules if r.bits == 16 and r.match in shapes]
        assert bool(protected) == bool(extra)
        assert plan.unused_rules(list(shapes)) == ("camera_head.fc_*",)
    candidates = [row for row in sweep.rows if row.kind != BLOCK]
    worst = max(candidates, key=lambda row: sweep.total(row.errors) / row.extra_bytes)
    assert protected[0].startswith(f"{worst.path}.")
    everything = auto_plan(sweep, shapes, bits_per_weight=32)
    assert sum(r.bits == 16 and r.match in shapes for r in everything.rules) == 36


def test_budgets_that_cannot_be_are_refused(source, sweep):
    checkpoint = read_checkpoint(source)
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    with pytest.raises(QuantizationError, match=r"0\.10 MB is below the .* the uniform plan"):
        auto_plan(sweep, shapes, megabytes=0.1)
    with pytest.raises(QuantizationError, match="one budget"):
        auto_plan(sweep, shapes)


def test_the_heat_map_is_drawn(sweep, tmp_path):
    draw_heat_map(sweep, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


# --- studies ------------------------------------------------------------------------------

STUDY = Study.model_validate(
    {
        "name": "small",
        "title": "A < small > study",
        "auto_bits": 20,
        "rows": [
            {"label": "nearest", "recipe": "rtn", "precision": "w4a8"},
            {"label": "gptq", "recipe": "gptq", "precision": "w3a16", "plan": "auto", "images": 4},
        ],
    }
)


@pytest.fixture(scope="module")
def compared(source, data, windows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    protocol = Protocol(data, windows, seeds=(0, 1), images=6)
    checkpoint = read_checkpoint(source)
    (result,) = run_studies(checkpoint, [STUDY], protocol, folder, footprint=False)
    return folder, protocol, result


def test_rows_come_with_sizes_intervals_and_differences(compared, source):
    _, _, result = compared
    full, nearest, gptq = result.rows
    assert full.label == "full precision"
    assert full.megabytes == pytest.approx(source.stat().st_size / 1e6)
    assert (nearest.repetitions, gptq.repetitions) == (1, 2)
    assert nearest.megabytes < gptq.megabytes < full.megabytes
    assert gptq.bits_per_weight < 20
    for row in result.rows:
        assert set(row.scores) == set(METRICS)
        assert all(i.low <= i.value <= i.high for i in row.scores.values())
    assert full.changes["auc_30"] == (0.0, 0.0, 0.0)
    assert full.scores["pose_drift"].value == full.scores["depth_drift"].value == 0.0
    assert nearest.scores["depth_drift"].value > 0
    difference = nearest.scores["abs_rel"].value - full.scores["abs_rel"].value
    assert nearest.changes["abs_rel"].value == pytest.approx(difference)


def test_a_comparison_goes_on_where_it_stopped(compared, source, monkeypatch):
    folder, protocol, before = compared

    def never(*arguments, **settings):
        raise AssertionError("this was computed already")

    monkeypatch.setattr("qvggt_core.quantize.comparison.quantize_checkpoint", never)
    checkpoint = read_checkpoint(source)
    (after,) = run_studies(checkpoint, [STUDY], protocol, folder, footprint=False)
    assert [row.to_dict() for row in after.rows] == [row.to_dict() for row in before.rows]
    next(folder.glob("*.json")).write_text("{")
    with pytest.raises(QuantizationError, match="delete it"):
        run_studies(checkpoint, [STUDY], protocol, folder, footprint=False)


def test_tables_are_written_in_three_forms(compared, tmp_path):
    _, protocol, result = compared
    facts = {"network": "tiny", "network_sha256": "0" * 64, "protocol": protocol.describe()}
    raw, markdown, page = write_tables([result], facts, tmp_path)
    lines = [x for x in markdown.read_text(encoding="utf-8").splitlines() if x.startswith("|")]
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    html = page.read_text(encoding="utf-8")
    assert "A &lt; small &gt; study" in html
    table = html[html.index("<tbody>") : html.index("</tbody>") + 8]
    assert len(ElementTree.fromstring(table)) == 3
    data = json.loads(raw.read_text(encoding="utf-8"))
    assert [row["label"] for row in data["studies"][0]["rows"]] == [
        "full precision",
        "nearest",
        "gptq",
    ]
    assert len(data["studies"][0]["rows"][1]["windows"]["auc_30"]) == 6


def test_memory_and_time_are_measured_in_a_process_of_its_own(source):
    cost = measure_footprint(source, frames=2, height=42, width=56, repeats=1, dtype="float32")
    assert cost.compute_dtype == "float32"
    assert cost.peak_mib > 1
    assert cost.milliseconds > 0
    with pytest.raises(EvaluationError, match="cannot open the checkpoint"):
        measure_footprint(Path("nothing.safetensors"), 2, 42, 56)


@pytest.mark.parametrize("name", STUDIES)
def test_the_packages_studies_name_recipes_and_fields_that_are_there(name):
    study = load_study(name)
    assert study.name == name
    for row in study.rows:
        row.changed_recipe()


def test_studies_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(QuantizationError, match="no study"):
        load_study("nothing")
    path = tmp_path / "study.yaml"
    row = "{label: a, recipe: awq, precision: w4a16, changes: {scaling: {speed: 9}}}"
    path.write_text(f"name: mine\ntitle: mine\nrows:\n- {row}\n")
    with pytest.raises(QuantizationError, match="a Scaling has no 'speed'"):
        load_study(path).rows[0].changed_recipe()


def test_evaluation_flights_are_not_for_calibration():
    with pytest.raises(QuantizationError, match="evaluation split"):
        pool_windows(rendered_pool(evaluation=True), 2, "held-out flights")


def test_a_calibration_set_carries_its_truth(data):
    assert isinstance(data.truth, WindowTruth)
    part = data.part([2, 0])
    assert torch.equal(part.truth.depth[1].nan_to_num(), data.truth.depth[0].nan_to_num())
    assert part.sha256() != data.sha256()
