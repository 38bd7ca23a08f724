"""Calibration: its statistics, its equivalent changes, its roundings, and how it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from qvggt_kernels import IntegerLinear, hadamard_transform
from safetensors.torch import load_file, save_file
from support import small_network
from support.small_network import open_state

from qvggt_core.errors import QuantizationError
from qvggt_core.geometry.poses import unproject
from qvggt_core.model import (
    VGGT,
    EncoderConfig,
    decode_pose,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from qvggt_core.model.blocks import Mlp
from qvggt_core.model.settings import ComputeSettings
from qvggt_core.quantize import (
    RECIPES,
    CalibrationOptions,
    CalibrationSet,
    Precision,
    QuantizationSettings,
    quantize_checkpoint,
    windows_of_frames,
)
from qvggt_core.quantize.activation_statistics import InputStatistics, input_statistics
from qvggt_core.quantize.block_calibration import BlockCalibration
from qvggt_core.quantize.block_linears import LINEARS, linear_of, replace_linear
from qvggt_core.quantize.blockwise import BlockInput, BlockwiseRunner, run_block
from qvggt_core.quantize.clipping import TrainedLinear, searched_clip, train_block
from qvggt_core.quantize.compensation import compensation_token
from qvggt_core.quantize.objective import task_loss, teacher_targets, unprojected
from qvggt_core.quantize.recipes import LearnedClipping
from qvggt_core.quantize.rounding import (
    gptq,
    quantize_weight,
    quantized_linear,
    represented_weight,
)
from qvggt_core.quantize.sampling import choose_windows, diverse_choice, quiet_windows
from qvggt_core.quantize.scaling import (
    Snapshot,
    fold_inverse,
    rotate_values,
    scale_weight,
    searched_factors,
    smoothing_factors,
)
from qvggt_core.training.windows import WindowTruth

TINY = replace(small_network.TINY, encoder=EncoderConfig(embed_dim=64, depth=1, num_heads=2))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    state = open_state(TINY)
    # A column that is far larger than the rest, as trained networks have.
    for name in state:
        if name.endswith("norm1.weight"):
            state[name][3] = 20.0
    save_checkpoint(path, state, TINY, {"licence": "Apache-2.0"})
    return path


@pytest.fixture(scope="module")
def data() -> CalibrationSet:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (6, 2, 3, 28, 42), dtype=torch.uint8, generator=generator)
    return CalibrationSet(images, source="noise")


def model_of(source: Path) -> VGGT:
    return load_model(source, dtype=torch.float32)


# --- block by block -----------------------------------------------------------------------------


def test_from_every_block_the_rest_of_the_network_gives_the_outputs_of_the_whole(source, data):
    model = model_of(source)
    with torch.no_grad():
        whole = model(data.images.float() / 255)
    runner = BlockwiseRunner(model, data.images, batch=3, judged=6)
    assert [site.part for site in runner.sites].count("encoder") == 1
    while not runner.done:
        rest = runner.predict(1)
        assert torch.allclose(rest.pose_encodings[-1], whole.pose_encodings[-1][3:], atol=1e-5)
        assert torch.allclose(rest.depth, whole.depth[3:], rtol=1e-4)
        runner.advance()


def test_windows_that_are_not_judged_keep_no_taps(source, data):
    runner = BlockwiseRunner(model_of(source), data.images, batch=2, judged=2)
    while runner.site.part != "camera":
        runner.advance()
    assert [len(state.patches) for state in runner._states] == [4, 0, 0]
    assert runner.camera_tokens().shape == (12, 128)


# --- statistics ---------------------------------------------------------------------------


def seen_by_hooks(block, given):
    """Return the inputs (tokens, K) of a block's linears, by autograd's path without slices."""
    seen = {}
    handles = [
        linear_of(block, name).register_forward_pre_hook(
            lambda _, arguments, name=name: seen.__setitem__(name, arguments[0].detach())
        )
        for name in LINEARS
    ]
    with torch.enable_grad():
        run_block(block, given)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("view", ["all", "excluded"])
def test_statistics_are_those_of_the_tokens_that_count(source, data, view, monkeypatch):
    # Slices of an MLP that cut through frames must not lose track of which token is which.
    monkeypatch.setattr(Mlp, "settings", ComputeSettings(mlp_rows=7))
    runner = BlockwiseRunner(model_of(source), data.images, batch=6)
    runner.advance()
    inputs = runner.inputs()
    found = input_statistics(runner.site.block, inputs, 5, view)
    skipped = 5 if view == "excluded" else 0
    for name, x in seen_by_hooks(runner.site.block, inputs[0]).items():
        rows = x[:, :, skipped:].reshape(-1, x.shape[-1]).double()
        assert len(rows) == 6 * 2 * (11 - skipped)
        assert_statistics_of(found[name], rows)


def assert_statistics_of(found, rows):
    assert torch.allclose(found.mean_magnitude.double(), rows.abs().mean(0), rtol=1e-4)
    assert torch.allclose(found.max_magnitude.double(), rows.abs().amax(0), rtol=1e-5)
    moment = rows.t() @ rows / len(rows)
    assert torch.allclose(found.second_moment.double(), moment, rtol=1e-3, atol=1e-5)


def test_clamped_special_tokens_are_no_longer_than_image_tokens_are(source, data):
    runner = BlockwiseRunner(model_of(source), data.images, batch=6)
    runner.advance()
    (given,) = runner.inputs()
    given.x[:, :, 0] *= 0.01  # one short special token, one long one, as the block sees them
    given.x[:, :, 1] *= 100.0
    found = input_statistics(runner.site.block, [given], 5, "clamped")
    for name, x in seen_by_hooks(runner.site.block, given).items():
        rows = x.double().clone()
        usual = rows[:, :, 5:].norm(dim=-1).mean()
        for token in range(5):
            lengths = rows[:, :, token].norm(dim=-1, keepdim=True)
            rows[:, :, token] *= (usual / lengths).clamp(max=1.0)
        assert_statistics_of(found[name], rows.reshape(-1, x.shape[-1]))


def test_a_moment_of_many_tokens_takes_them_evenly(source, data, monkeypatch):
    monkeypatch.setattr("qvggt_core.quantize.activation_statistics.MAX_TOKENS", 50)
    runner = BlockwiseRunner(model_of(source), data.images, batch=2)
    runner.advance()
    found = input_statistics(runner.site.block, runner.inputs())
    # 132 tokens, every third one: fewer than any linear has columns, so they are kept.
    assert {len(statistics.samples) for statistics in found.values()} == {44}
    whole = found["fc1"].samples
    assert torch.allclose(whole.t() @ whole / 44, found["fc1"].second_moment, atol=1e-4)


def test_rotated_statistics_are_those_of_rotated_inputs(source, data):
    runner = BlockwiseRunner(model_of(source), data.images, batch=6)
    runner.advance()
    inputs = runner.inputs()
    found = input_statistics(runner.site.block, inputs, rotations={"fc2": 256})
    rows = seen_by_hooks(runner.site.block, inputs[0])["fc2"].reshape(-1, 256)
    rotated = hadamard_transform(rows, 256)
    assert torch.allclose(found["fc2"].max_magnitude, rotated.abs().amax(0), atol=1e-5)


# --- equivalent changes -------------------------------------------------------------------


@pytest.mark.parametrize("linear", ["qkv", "proj", "fc1"])
def test_folded_factors_leave_a_block_as_it_was(source, data, linear):
    runner = BlockwiseRunner(model_of(source), data.images, batch=6)
    runner.advance()
    block, given = runner.site.block, runner.inputs()[0]
    with torch.no_grad():
        before = run_block(block, given)
        weight = linear_of(block, linear).weight.clone()
        factors = torch.linspace(0.3, 3.0, weight.shape[1])
        fold_inverse(block, linear, factors)
        scale_weight(block, linear, factors)
        after = run_block(block, given)
    assert torch.allclose(linear_of(block, linear).weight, weight * factors)
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-5)


def test_rotated_values_leave_a_block_as_it_was(source, data):
    runner = BlockwiseRunner(model_of(source), data.images, batch=6)
    runner.advance()
    block, given = runner.site.block, runner.inputs()[0]
    weight = block.attn.proj.weight.clone()
    with torch.no_grad():
        before = run_block(block, given)
        assert rotate_values(block) == 32
        assert torch.allclose(run_block(block, given), before, rtol=1e-4, atol=1e-5)
    assert torch.allclose(block.attn.proj.weight, hadamard_transform(weight, 32), atol=1e-6)


def test_a_snapshot_brings_a_block_back(source, data):
    runner = BlockwiseRunner(model_of(source), data.images, batch=6)
    block = runner.site.block
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    snapshot = Snapshot(block)
    fold_inverse(block, "qkv", torch.full((64,), 2.0))
    block.mlp.fc2 = quantized_linear(block.mlp.fc2.weight, block.mlp.fc2.bias, Precision(4, 64))
    snapshot.restore()
    after = block.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_factors_are_the_papers():
    statistics = InputStatistics(
        torch.tensor([1.0, 4.0, 16.0]), torch.tensor([4.0, 16.0, 1.0]), torch.eye(3)
    )
    assert torch.allclose(searched_factors(statistics, 0.0), torch.ones(3))
    factors = searched_factors(statistics, 0.5)
    assert torch.allclose(factors / factors[0], torch.tensor([1.0, 2.0, 4.0]))
    assert float(factors.max() * factors.min()) == pytest.approx(1.0)
    weight = torch.tensor([[1.0, -4.0, 9.0], [0.5, 1.0, -1.0]])
    expected = torch.tensor([2.0, 2.0, 1.0 / 3.0])
    assert torch.allclose(smoothing_factors(statistics, weight, 0.5), expected)


# --- rounding -----------------------------------------------------------------------------


def correlated(tokens, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    return torch.randn(tokens, columns, generator=generator) @ mixing


def statistics_of(x):
    """Statistics with the tokens themselves where they are fewer than columns."""
    moment = x.t() @ x / len(x)
    samples = x if len(x) <= x.shape[1] else None
    return InputStatistics(x.abs().mean(0), x.abs().amax(0), moment, samples)


def optimal_brain_quantization(weight, moment, delta, damping):
    """Round column after column, correcting the rest by the explicit inverse each time."""
    w = weight.double().clone()
    h = moment.double() + damping * moment.double().diagonal().mean() * torch.eye(len(moment))
    out = torch.zeros_like(w)
    for column in range(w.shape[1]):
        inverse = torch.linalg.inv(h[column:, column:])
        step = delta[:, column]
        out[:, column] = (w[:, column] / step).round().clamp(-8, 7) * step
        error = (w[:, column] - out[:, column]) / inverse[0, 0]
        w[:, column:] -= error[:, None] * inverse[0]
    return out


@pytest.mark.parametrize("columns", [32, 192], ids=["a part", "a part and a half"])
def test_gptq_is_column_by_column_optimal_brain_quantization(columns):
    x = correlated(2000, columns)
    moment = x.t() @ x / 2000
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(1))
    q, scales = gptq(weight, moment, group_size=columns)
    delta = scales.double().expand(6, columns)
    expected = optimal_brain_quantization(weight, moment, delta, 0.01)
    # A value in the middle of two levels may fall to either, and moves those behind it.
    assert torch.isclose(q * scales.double(), expected, atol=1e-6).double().mean() > 0.99


def test_gptq_without_correlation_is_rounding_to_nearest():
    weight = torch.randn(5, 64)
    q, scales = gptq(weight, torch.eye(64), group_size=32)
    nearest, nearest_scales = quantize_weight(weight, 32)
    assert torch.equal(q, nearest)
    assert torch.equal(scales, nearest_scales)


@pytest.mark.parametrize("group_size", [32, 128])
def test_gptq_loses_less_of_the_output_than_rounding_to_nearest(group_size):
    x = correlated(1000, 128)
    moment = x.t() @ x / 1000
    weight = torch.randn(16, 128)
    errors = []
    for q, scales in (gptq(weight, moment, group_size), quantize_weight(weight, group_size)):
        kept = q * scales.float().repeat_interleave(group_size, dim=1)
        errors.append(float(((x @ (kept - weight).t()) ** 2).mean()))
    assert errors[0] < 0.7 * errors[1]


def test_gptq_tolerates_inputs_that_were_never_seen():
    moment = torch.eye(32)
    moment[5, 5] = 0
    weight = torch.randn(4, 32)
    q, _ = gptq(weight, moment, 32)
    assert (q[:, 5] == 0).all()


@pytest.mark.parametrize("tokens", [5, 50])
def test_output_energy_is_the_mean_squared_output(tokens):
    x = correlated(tokens, 8)
    d = torch.randn(3, 8)
    statistics = statistics_of(x)
    expected = float((x @ d.t()).square().sum(1).mean())
    assert statistics.output_energy(d) == pytest.approx(expected, rel=1e-4)
    factors = torch.linspace(0.5, 2, 8)
    halved = float(((x / factors) @ d.t()).square().sum(1).mean())
    assert statistics.divided(factors).output_energy(d) == pytest.approx(halved, rel=1e-4)


def test_a_searched_range_loses_less_than_the_whole_range():
    torch.manual_seed(0)
    weight = torch.randn(16, 128)
    weight[:, ::37] *= 5
    x = torch.randn(500, 128)
    moment = x.t() @ x / 500
    precision = Precision(3, 64)
    clip = searched_clip(weight, moment, precision)
    assert clip.shape == (16, 2)
    assert float(clip.min()) < 1.0
    errors = []
    for share in (clip, None):
        layer = quantized_linear(weight, None, precision, clip=share)
        errors.append(statistics_of(x).output_energy(represented_weight(layer) - weight))
    assert errors[0] < 0.9 * errors[1]


# --- trained ranges -----------------------------------------------------------------------


def test_a_trained_linear_rounds_as_the_packed_layer_does():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    factors = torch.linspace(0.5, 2.0, 64)
    precision = Precision(4, 64, 4)
    stand_in = TrainedLinear(linear, precision, factors, rotation=64)
    clip = stand_in.weight_logit.detach().sigmoid().squeeze(2)
    packed = quantized_linear(
        hadamard_transform(linear.weight, 64) * factors,
        linear.bias,
        precision,
        clip=clip,
        activation_clip=float(stand_in.input_logit.detach().sigmoid()),
        rotation=64,
        input_scale=1 / factors,
    )
    x = torch.randn(20, 64)
    with torch.no_grad():
        assert (stand_in(x) - packed(x)).abs().max() < 1e-3 * packed(x).abs().max()


def test_training_brings_a_block_closer_and_leaves_it_in_full_precision(source, data):
    runner = BlockwiseRunner(model_of(source), data.images, batch=3)
    runner.advance()
    block, inputs = runner.site.block, runner.inputs()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    precisions = {name: Precision(4, linear_of(block, name).in_features, 4) for name in LINEARS}
    ones = {name: torch.ones(linear_of(block, name).in_features) for name in LINEARS}
    errors = []
    for epochs in (0, 8):
        trained = train_block(
            block,
            inputs,
            precisions,
            ones,
            {},
            LearnedClipping(epochs=epochs, windows=1, clip_rate=0.1),
        )
        exact = torch.cat([run_block(block, given) for given in inputs])
        snapshot = Snapshot(block)
        for name, substitute in trained.items():
            replace_linear(block, LINEARS[name], substitute)
        with torch.no_grad():
            errors.append(float((torch.cat([run_block(block, g) for g in inputs]) - exact).norm()))
        snapshot.restore()
    assert errors[1] < 0.95 * errors[0]
    assert all(torch.equal(block.state_dict()[name], before[name]) for name in before)


# --- the heads' objective -----------------------------------------------------------------


def test_points_of_depth_and_cameras_are_geometrys(source, data):
    with torch.no_grad():
        prediction = model_of(source)(data.images[:1].float() / 255)
    encodings = prediction.pose_encodings[-1]
    points = unprojected(prediction.depth, encodings)
    pose, intrinsics = decode_pose(encodings.double(), 28, 42)
    for frame in range(2):
        in_camera = unproject(prediction.depth[0, frame].numpy(), intrinsics[0, frame].numpy())
        rotation, translation = pose[0, frame, :, :3].numpy(), pose[0, frame, :, 3].numpy()
        expected = (in_camera - translation) @ rotation
        assert np.allclose(points[0, frame].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_teacher_itself_loses_nothing_and_others_do(source, data):
    model = model_of(source)
    with torch.no_grad():
        prediction = model(data.images.float() / 255)
        targets = teacher_targets(prediction)
        assert task_loss(prediction, targets) == pytest.approx(0.0, abs=1e-6)
        model.aggregator.frame_blocks[0].mlp.fc1.weight.mul_(1.5)
        assert task_loss(model(data.images.float() / 255), targets) > 1e-4


# --- compensation -------------------------------------------------------------------------


def test_the_compensation_token_is_the_scaled_mean_as_its_algebra_says():
    tokens = torch.randn(40, 16) + torch.linspace(-2, 2, 16)
    token = compensation_token(tokens, patch_norm=7.0, directions=8)
    mean = tokens.mean(dim=0)
    assert torch.allclose(token, 7.0 * mean / mean.norm(), atol=1e-4)


def test_the_camera_head_drops_the_compensation_tokens_row(source):
    head = model_of(source).camera_head
    tokens = torch.randn(3, 4, 128)
    with torch.no_grad():
        without = head(tokens)[-1]
        head.cict_token = torch.randn(128)
        joined = head(tokens)[-1]
    assert joined.shape == without.shape == (3, 4, 9)
    assert not torch.allclose(joined, without)


# --- what is calibrated on ----------------------------------------------------------------


def frames(count, value=200, size=(28, 42)):
    return [np.full((*size, 3), value, np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "gives no images"),
        (frames(1), "gives one image"),
        (frames(4, value=2), "all 4 images of here are black"),
        (frames(4, value=90), "each of the 4 images of here is of one colour"),
        ([*frames(2), *frames(2, size=(28, 56))], "images of 2 shapes .*42x28, 56x28"),
    ],
)
def test_data_of_no_use_is_refused_with_the_reason(given, message):
    with pytest.raises(QuantizationError, match=message):
        windows_of_frames(given, 4, "here")


def test_frames_are_cut_into_windows_in_order():
    given = [np.full((14, 14, 3), 50 + i, np.uint8) for i in range(7)]
    given[0][1, 1] = 255  # or they were of one colour
    windows = windows_of_frames(given, 3, "here")
    assert windows.images.shape == (2, 3, 3, 14, 14)
    assert windows.images[:, :, 0, 0, 0].tolist() == [[50, 51, 52], [53, 54, 55]]


def test_images_that_are_no_whole_patches_are_refused(source, tmp_path):
    noise = torch.randint(0, 256, (1, 2, 3, 30, 42), dtype=torch.uint8)
    wrong = CalibrationSet(noise)
    with pytest.raises(QuantizationError, match="42x30 are not a whole number of patches of 14"):
        quantize_checkpoint(
            source, tmp_path / "q.safetensors", QuantizationSettings(recipe="gptq"), data=wrong
        )


def test_the_noisiest_windows_go_and_clusters_share():
    statistics = np.random.default_rng(0).normal(size=(20, 6))
    statistics[7] = 30.0
    assert 7 not in quiet_windows(statistics, dropped=0.1)
    assert len(quiet_windows(statistics, dropped=0.1)) == 18
    relations = np.concatenate([np.full((30, 2), 0.1), np.full((3, 2), 0.9)])
    relations += np.random.default_rng(1).normal(size=relations.shape) * 1e-3
    chosen = diverse_choice(relations, 8, seed=0)
    assert len(set(chosen.tolist())) == 8
    assert (chosen >= 30).any(), "three of 33 would often be missed at random"


def test_diverse_sampling_leaves_a_window_of_noise_out(source, data):
    images = data.images.clone().float() * 0.1 + 100
    images[2] = torch.randint(0, 2, images[2].shape) * 255.0
    more = CalibrationSet(torch.cat([images.to(torch.uint8)] * 2)[:10])
    chosen = choose_windows(more, 100, "diverse", 0, model_of(source))
    assert len(chosen.images) == 9
    assert "1 noisy ones left out" in chosen.selection


# --- recipes, end to end ------------------------------------------------------------------


def output_change(source, target, data):
    with torch.inference_mode():
        images = data.images.float() / 255
        exact, found = model_of(source)(images), load_model(target, dtype=torch.float32)(images)
    return float((found.depth - exact.depth).norm() / exact.depth.norm())


FEW = CalibrationOptions(batch=3, judged_images=4)
QUICK = {
    "quantvggt": replace(RECIPES["quantvggt"], learned_clipping=LearnedClipping(epochs=2)),
    "qvggt": replace(
        RECIPES["qvggt"],
        scaling=replace(RECIPES["qvggt"].scaling, task_candidates=2),
        compensation_judged=False,
    ),
}


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "rtn"])
def test_every_recipe_gives_a_file_that_runs_alone_and_says_what_it_is(
    source, data, tmp_path, name
):
    target = tmp_path / "q.safetensors"
    recipe = QUICK.get(name, RECIPES[name])
    report = quantize_checkpoint(
        source, target, QuantizationSettings(recipe=recipe), data=data, options=FEW
    )
    assert output_change(source, target, data) < 0.2
    metadata = read_checkpoint(target).metadata
    assert metadata["recipe"] == name
    assert json.loads(metadata["calibration"]) == data.describe()
    assert json.loads(metadata["recipe_settings"]) == json.loads(json.dumps(recipe.to_dict()))
    assert report.calibration["images"] == 12
    assert all(layer.output_error is not None for layer in report.layers)
    has_token = "camera_head.cict_token" in read_checkpoint(target)
    assert has_token == bool(recipe.compensation)


def test_calibration_pays_where_columns_are_uneven(source, data, tmp_path):
    changes = {}
    for name in ("rtn", "awq", "gptq"):
        report = quantize_checkpoint(
            source,
            tmp_path / "q.safetensors",
            QuantizationSettings(recipe=name, precision="w3a16"),
            data=data,
        )
        changes[name] = output_change(source, report.target, data)
    assert changes["awq"] < changes["rtn"]
    assert changes["gptq"] < changes["rtn"]


def test_ground_truth_can_be_the_target(source, data, tmp_path):
    truth = WindowTruth(
        torch.full((6, 2, 28, 42), 2.0),
        torch.eye(4, dtype=torch.float64).expand(6, 2, 4, 4),
        torch.tensor([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]).double().expand(6, 2, 3, 3),
    )
    scaling = replace(QUICK["qvggt"].scaling, targets="truth")
    recipe = replace(QUICK["qvggt"], scaling=scaling)
    quantize_checkpoint(
        source,
        tmp_path / "q.safetensors",
        QuantizationSettings(recipe=recipe),
        data=replace(data, truth=truth),
        options=FEW,
    )
    calibration = json.loads(read_checkpoint(tmp_path / "q.safetensors").metadata["calibration"])
    assert calibration["ground_truth"] is True


@pytest.mark.parametrize(("better", "excluded"), [("excluded", 36), ("clamped", 0)])
def test_the_loss_of_the_heads_decides_about_special_tokens_in_the_statistics(
    source, data, tmp_path, monkeypatch, better, excluded
):
    monkeypatch.setattr(
        BlockCalibration, "_judged", lambda _, name, candidate: float(candidate.view != better)
    )
    target = tmp_path / "q.safetensors"
    report = quantize_checkpoint(
        source, target, QuantizationSettings(recipe=QUICK["qvggt"]), data=data, options=FEW
    )
    # Four linears in each block but the camera trunk's, which gets no special tokens.
    assert report.notes == (
        f"special tokens excluded from the statistics of {excluded} of 36 linears, by the heads' "
        "loss",
    )


def test_without_a_loss_of_the_heads_the_last_view_holds(source, data, tmp_path):
    scaling = replace(QUICK["qvggt"].scaling, task_candidates=0)
    plain = replace(QUICK["qvggt"], scaling=scaling, compensation=0)
    files = []
    for number, views in enumerate((("excluded", "clamped"), ("clamped",))):
        files.append(tmp_path / f"{number}.safetensors")
        recipe = replace(plain, token_views=views)
        quantize_checkpoint(source, files[-1], QuantizationSettings(recipe=recipe), data=data)
    one, other = (read_checkpoint(file) for file in files)
    assert all(torch.equal(one.tensor(name), other.tensor(name)) for name in one.names())


def test_the_compensation_token_stays_only_if_the_heads_lose_less_with_it(source, data, tmp_path):
    recipe = replace(QUICK["qvggt"], compensation_judged=True)
    target = tmp_path / "q.safetensors"
    report = quantize_checkpoint(
        source, target, QuantizationSettings(recipe=recipe), data=data, options=FEW
    )
    note = next(note for note in report.notes if "compensation" in note)
    without, joined = (float(part.split()[0]) for part in note.split("loss is ")[1].split(", "))
    assert ("kept" in note) == (joined < without)
    assert ("camera_head.cict_token" in read_checkpoint(target)) == ("kept" in note)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_file(source, data, tmp_path):
    whole, target = tmp_path / "whole.safetensors", tmp_path / "q.safetensors"
    quantize_checkpoint(source, whole, QuantizationSettings(recipe=QUICK["quantvggt"]), data=data)
    workspace = tmp_path / "work"

    def stop(index, total, name):
        if name == "aggregator.global_blocks.1":
            raise KeyboardInterrupt

    settings = QuantizationSettings(recipe=QUICK["quantvggt"])
    others = {"data": data, "workspace": workspace}
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, target, settings, progress=stop, **others)
    assert not target.exists()
    report = quantize_checkpoint(source, target, settings, **others)
    assert report.resumed_blocks == 4
    one, other = read_checkpoint(target), read_checkpoint(whole)
    assert one.metadata == other.metadata
    assert one.names() == other.names()
    assert all(torch.equal(one.tensor(name), other.tensor(name)) for name in one.names())
    assert not workspace.exists()


def test_blocks_of_another_run_are_not_taken_over(source, data, tmp_path):
    workspace = tmp_path / "work"

    def stop(index, total, name):
        if index == 3:
            raise KeyboardInterrupt

    target, settings = tmp_path / "q.safetensors", QuantizationSettings(recipe="gptq")
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, target, settings, data=data, workspace=workspace, progress=stop)
    other = data.part([0, 1, 2])
    report = quantize_checkpoint(source, target, settings, data=other, workspace=workspace)
    assert report.resumed_blocks == 0


@pytest.mark.parametrize("fault", ["flipped bit", "no metadata", "another block"])
def test_a_damaged_block_is_calibrated_again(source, data, tmp_path, fault, caplog):
    workspace, target = tmp_path / "work", tmp_path / "q.safetensors"
    settings = QuantizationSettings(recipe="gptq")

    def stop(index, total, name):
        if index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, target, settings, data=data, workspace=workspace, progress=stop)
    first, second = sorted(workspace.glob("*.safetensors"))
    if fault == "flipped bit":
        content = bytearray(first.read_bytes())
        content[-3] ^= 1
        first.write_bytes(content)
    elif fault == "no metadata":
        save_file(load_file(first), first)
    else:
        second.replace(first)
    report = quantize_checkpoint(source, target, settings, data=data, workspace=workspace)
    assert report.resumed_blocks == (0 if fault == "another block" else 1)
    assert "is calibrated again" in caplog.text
    whole = tmp_path / "whole.safetensors"
    quantize_checkpoint(source, whole, settings, data=data)
    one, other = load_file(target), load_file(whole)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_finished_blocks_stay_until_the_file_is_written(source, data, tmp_path, monkeypatch):
    workspace, target = tmp_path / "work", tmp_path / "q.safetensors"
    settings = QuantizationSettings(recipe="gptq")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("qvggt_core.quantize.pipeline.save_checkpoint", full)
        with pytest.raises(QuantizationError, match=r"No space left.*kept in .*work"):
            quantize_checkpoint(source, target, settings, data=data, workspace=workspace)
    report = quantize_checkpoint(source, target, settings, data=data, workspace=workspace)
    assert report.resumed_blocks == 10
    assert not workspace.exists()


def test_a_folder_of_other_files_is_not_taken_for_a_workspace(source, data, tmp_path):
    workspace = tmp_path / "q.safetensors.partial"
    workspace.mkdir()
    (workspace / "thesis.tex").write_text("mine")
    with pytest.raises(QuantizationError, match="thesis"):
        quantize_checkpoint(
            source,
            tmp_path / "q.safetensors",
            QuantizationSettings(recipe="gptq"),
            data=data,
            workspace=workspace,
        )
    assert (workspace / "thesis.tex").read_text() == "mine"


def test_integer_layers_of_a_recipe_rotate_at_run_time_but_for_proj(source, data, tmp_path):
    target = tmp_path / "q.safetensors"
    quantize_checkpoint(source, target, QuantizationSettings(recipe=QUICK["quantvggt"]), data=data)
    block = load_model(target).aggregator.global_blocks[1]
    layers = {name: linear_of(block, name) for name in LINEARS}
    assert all(isinstance(layer, IntegerLinear) for layer in layers.values())
    rotations = {name: layer.rotation for name, layer in layers.items()}
    assert rotations == {"qkv": 64, "proj": 0, "fc1": 64, "fc2": 256}
    assert layers["proj"].input_scale is None
    assert layers["fc2"].input_scale is not None


def test_a_block_input_is_left_alone(source, data):
    runner = BlockwiseRunner(model_of(source), data.images, batch=6)
    runner.advance()
    given = runner.inputs()[0]
    before = given.x.clone()
    with torch.no_grad():
        run_block(runner.site.block, BlockInput(given.x, given.rope, given.across_frames))
    assert torch.equal(given.x, before)
