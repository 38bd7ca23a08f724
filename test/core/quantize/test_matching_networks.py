"""Networks whose poses come from matches are judged, swept and compared by their matches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_network import TINY, open_state
from torch.nn import functional as F

from qvggt_core.geometry.poses import inverse
from qvggt_core.model import VGGT, load_model, read_checkpoint, shipped_checkpoint
from qvggt_core.model.checkpoint import save_checkpoint
from qvggt_core.model.matching import patch_similarity
from qvggt_core.quantize import PRESETS, CalibrationSet, planned_sizes
from qvggt_core.quantize.block_linears import LINEARS
from qvggt_core.quantize.blockwise import BlockwiseRunner
from qvggt_core.quantize.comparison import Protocol, run_studies
from qvggt_core.quantize.comparison_results import RowResult
from qvggt_core.quantize.objective import (
    attention_moved,
    matching_divergence,
    task_loss,
    teacher_targets,
)
from qvggt_core.quantize.scores import MATCHING_METRICS, Outputs, run_windows, score_outputs
from qvggt_core.quantize.sensitivity import BLOCK, auto_plan, sweep_sensitivity
from qvggt_core.quantize.study import Study
from qvggt_core.report.plan_transfer import transfer_table
from qvggt_core.report.recipe_comparison import write_tables
from qvggt_core.training.clips import PoolConfig
from qvggt_core.training.pool import build_pool
from qvggt_core.training.validation import evaluate_matches
from qvggt_core.training.windows import Windows, evaluation_windows

MATCHING = replace(TINY, matching=True)
ROWS, COLUMNS = 3, 4
HEIGHT, WIDTH = 14 * ROWS, 14 * COLUMNS


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "matching.safetensors"
    save_checkpoint(path, open_state(MATCHING), MATCHING)
    return path


@pytest.fixture(scope="module")
def data():
    images = torch.randint(
        0, 255, (4, 2, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0)
    )
    return CalibrationSet(images.to(torch.uint8), source="noise")


def still_windows(count: int = 2, frames: int = 3) -> Windows:
    """A camera that rises by a quarter of a pixel a view: patches are seen at their own places."""
    intrinsics = torch.tensor([[50.0, 0, 27.5], [0, 50, 20.5], [0, 0, 1]], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, frames, 1, 1)
    poses[..., 1, 3] = -0.01 * torch.arange(frames)
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 255, (count, 1, 3, HEIGHT, WIDTH), generator=generator)
    return Windows(
        images=image.to(torch.uint8).repeat(1, frames, 1, 1, 1),
        depth=torch.full((count, frames, HEIGHT, WIDTH), 2.0),
        world_from_camera=poses,
        intrinsics=intrinsics.expand(count, frames, 3, 3),
    )


# --- scores -------------------------------------------------------------------------------


def test_scores_are_those_of_the_matches_with_calibrated_cameras(tmp_path):
    places = PoolConfig(
        ("room",), layouts=9, clips=2, frames=3, flights=("views",), samples=1, evaluation=True
    )
    windows = evaluation_windows(build_pool(places, tmp_path, workers=1), 3, gaps=(1,))
    network = load_model(shipped_checkpoint(), dtype=torch.float32)
    outputs = run_windows(network, windows)
    scores = score_outputs(outputs, windows, outputs).values
    wanted = evaluate_matches(network, windows, with_intrinsics=True)
    # Every window has as many pairs: the mean over windows is the one over all pairs.
    for name in ("auc_30", "auc_5", "auc_3", "abs_rel"):
        assert scores[name].mean() == pytest.approx(getattr(wanted, name), abs=1e-6)
    assert scores["matched"].min() > 0.4, "it was trained to find patches again"
    assert scores["matches_moved"].max() == scores["pose_drift"].max() == 0.0
    as_predicted = run_windows(network, windows, with_intrinsics=False)
    assert np.abs(as_predicted.camera_from_world - outputs.camera_from_world).max() > 1e-4


def test_matches_are_right_within_a_patch_of_the_truth_and_moved_beyond_one_of_full_precisions():
    windows = still_windows()
    count, frames = windows.images.shape[:2]
    own = np.tile(np.arange(ROWS * COLUMNS), (count, frames, frames, 1))
    row, column = np.divmod(own, COLUMNS)

    def score(peak):
        poses = inverse(windows.world_from_camera.numpy())
        depth = windows.depth.numpy()
        points = run_windows(VGGT(TINY).initialise().eval(), windows).points
        made, full = (Outputs(poses, depth, points, each) for each in (peak, own))
        values = score_outputs(made, windows, full).values
        return [values[name].tolist() for name in MATCHING_METRICS]

    assert score(own) == [[1.0, 1.0], [0.0, 0.0]]
    beside = row * COLUMNS + np.minimum(column + 1, COLUMNS - 1)
    assert score(beside) == [[1.0, 1.0], [0.0, 0.0]]
    away = row * COLUMNS + (column + 2) % COLUMNS
    assert score(away) == [[0.0, 0.0], [1.0, 1.0]]
    half = own.copy()
    half[0, ..., : ROWS * COLUMNS // 2] = away[0, ..., : ROWS * COLUMNS // 2]
    assert score(half) == [[0.5, 1.0], [0.5, 0.0]]


# --- the loss of the heads ----------------------------------------------------------------


def test_matches_of_a_runner_are_the_attention_that_the_stream_reads(source, data):
    model = load_model(source, "cpu", torch.float32)
    runner = BlockwiseRunner(model, data.images, 2, 4)
    with torch.inference_mode():
        entering = model(data.images[1:2].float() / 255, heads=("camera", "depth")).entering
        wanted = patch_similarity(model, entering[0], ROWS, COLUMNS).log_softmax(dim=-1)
    found = runner.matches(0)
    assert found.shape == (2, 2, 2, 12, 12)
    assert torch.allclose(found[1], wanted, atol=1e-5)
    while runner.site.path != "aggregator.global_blocks.0":
        runner.advance()
    assert torch.allclose(runner.matches(0)[1], wanted, atol=1e-5)
    runner.advance()
    assert runner.matches(0) is None, "no block behind the first global one changes them"


def test_attention_is_compared_between_different_views_alone():
    generator = torch.Generator().manual_seed(3)
    mine, wanted = (
        torch.randn(2, 3, 3, 5, 5, generator=generator).log_softmax(dim=-1) for _ in range(2)
    )
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    for i, j in pairs:
        assert not torch.equal(mine[:, i, j], wanted[:, i, j])
    theirs = [
        F.kl_div(
            mine[:, i, j].flatten(0, 1),
            wanted[:, i, j].flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )
        for i, j in pairs
    ]
    assert float(matching_divergence(mine, wanted)) == pytest.approx(
        float(sum(theirs)) / 6, rel=1e-5
    )
    same = wanted.clone()
    same[:, [0, 1, 2], [0, 1, 2]] = mine[:, [0, 1, 2], [0, 1, 2]]
    assert float(matching_divergence(same, wanted)) == pytest.approx(0.0, abs=1e-6)
    here, there = torch.full((1, 2, 2, 4, 4), -200.0), torch.full((1, 2, 2, 4, 4), -200.0)
    here[..., 0], there[..., 1] = 0.0, 0.0
    assert float(attention_moved(here, there)) == pytest.approx(1.0)
    assert float(attention_moved(here, here)) == 0.0


def test_the_heads_loss_sees_a_change_of_queries_that_the_heads_do_not_see(source, data):
    model = load_model(source, "cpu", torch.float32)
    runner = BlockwiseRunner(model, data.images, 4, 4)
    prediction, matches = runner.predict(0), runner.matches(0)
    targets = teacher_targets(prediction, matches)
    assert task_loss(prediction, targets, matches) == pytest.approx(0.0, abs=1e-6)
    other = matches.flip(-1)
    added = task_loss(prediction, targets, other) - task_loss(prediction, targets)
    assert added == pytest.approx(float(matching_divergence(other, matches)), rel=1e-5)
    assert targets.part(slice(1, 2)).matches.shape == (1, 2, 2, 12, 12)


# --- sensitivity --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(source, data):
    return sweep_sensitivity(read_checkpoint(source), data, precision="w3a16", group_size=32)


def test_matches_are_moved_by_what_comes_before_them_and_by_nothing_else(sweep):
    moving = {
        (row.path.removeprefix("aggregator."), row.kind)
        for row in sweep.rows
        if row.errors.matches > 0
    }
    kinds = ("qkv", "proj", "fc1", "fc2", BLOCK)
    before = {("frame_blocks.0", kind) for kind in kinds}
    assert moving == before | {("global_blocks.0", "qkv"), ("global_blocks.0", BLOCK)}
    assert sweep.everything.matches > max(
        row.errors.matches for row in sweep.rows if row.kind != BLOCK
    )


def test_cameras_do_not_count_where_poses_come_from_matches(sweep):
    camera = [row for row in sweep.rows if row.part == "camera"]
    assert max(row.errors.camera for row in camera) > 0
    assert all(sweep.total(row.errors) == 0 for row in camera)
    assert sweep.total(sweep.everything) == pytest.approx(1.0)
    whole, row = sweep.everything, sweep.rows[0].errors
    wanted = (row.depth / whole.depth + row.matches / whole.matches) / 2
    assert sweep.total(row) == pytest.approx(wanted)


def test_plans_by_chance_take_the_budget_of_an_auto_plan(source, sweep):
    checkpoint = read_checkpoint(source)
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}

    least = sum(s.nbytes for s in planned_sizes(PRESETS["uniform"], shapes, 32).values())
    room = 150_000

    def protected(draw):
        plan = auto_plan(sweep, shapes, megabytes=(least + room) / 1e6, draw=draw)
        return tuple(rule.match for rule in plan.rules if rule.bits == 16 and rule.match in shapes)

    chosen = {draw: protected(draw) for draw in (None, 1, 2, 3)}
    assert len(set(map(frozenset, chosen.values()))) == 4
    assert protected(1) == chosen[1]
    extra = {
        f"{r.path}.{LINEARS[r.kind]}.weight": r.extra_bytes for r in sweep.rows if r.kind != BLOCK
    }
    for names in chosen.values():
        assert room - max(extra.values()) < sum(extra[name] for name in names) <= room
    assert not any("camera" in name for names in chosen.values() for name in names)


# --- studies ------------------------------------------------------------------------------

STUDY = Study.model_validate(
    {
        "name": "moved",
        "title": "moved",
        "auto_bits": 14,
        "rows": [
            {"label": name, "recipe": "rtn", "precision": "w3a16", **plan}
            for name, plan in (
                ("bare", {}),
                ("first", {"plan": "auto", "plan_world": "first"}),
                ("second", {"plan": "auto", "plan_world": "second"}),
                ("chance", {"plan": "chance", "draw": 1}),
            )
        ],
    }
)


def test_a_study_of_transfer_ends_in_a_table_of_own_and_other_kinds(source, data, tmp_path):
    protocol = Protocol(
        data,
        still_windows(),
        worlds=("first", "second"),
        plan_windows={"first": data.part([0, 1]), "second": data.part([2, 3])},
    )
    checkpoint = read_checkpoint(source)
    (result,) = run_studies(checkpoint, [STUDY], protocol, tmp_path / "rows", footprint=False)
    assert all(set(MATCHING_METRICS) < set(row.scores) for row in result.rows)
    facts = {"network": "a", "network_sha256": "0" * 64, "protocol": protocol.describe()}
    _, markdown, page = write_tables([result], facts, tmp_path)
    text = markdown.read_text(encoding="utf-8")
    assert "| matched % | matches moved % |" in text
    assert "own less other kinds" in text
    assert "matches moved" in page.read_text(encoding="utf-8")


def test_the_table_sets_own_kinds_others_and_chance_apart():
    def row(label, plan, world, moved):
        facts = {"plan": plan, "plan_world": world}
        return RowResult(
            label, "", facts, 1, 0, 0, 0, {}, {}, (0, 0), windows={"matches_moved": moved}
        )

    rows = [
        row("a", "auto", "a", [0.01, 0.04]),
        row("b", "auto", "b", [0.03, 0.02]),
        row("chance 1", "chance", None, [0.08, 0.08]),
        row("chance 2", "chance", None, [0.06, 0.06]),
    ]
    lines = transfer_table(rows, ["a", "b"])
    found = {line.split("|")[1].strip(): line.split("|")[2].split("[")[0] for line in lines[2:-1]}
    assert {name: float(value) for name, value in found.items()} == {
        "own kind": 1.5,
        "other kinds": 3.5,
        "own less other kinds": -2.0,
        "chance": 7.0,
        "other kinds less chance": -3.5,
    }
    assert transfer_table(rows, ["a", "c"]) == [], "no plan was chosen on one of the kinds"
    assert transfer_table(rows[2:], ["a", "b"]) == []
