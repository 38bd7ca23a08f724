"""Quantizing a checkpoint: the numbers, the plan, and the file that comes out."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qvggt_kernels import LAYOUT, Int4Linear, IntegerLinear, PackedWeight, dequantize
from support import small_network
from support.small_network import open_state

from qvggt_core.errors import CheckpointError, QuantizationError
from qvggt_core.model import VGGT, load_model, read_checkpoint, save_checkpoint
from qvggt_core.quantize import (
    PRESETS,
    Plan,
    Precision,
    QuantizationSettings,
    Rule,
    load_plan,
    parse_precision,
    planned_sizes,
    quantize_checkpoint,
)
from qvggt_core.quantize.rounding import quantize_weight

TINY = replace(small_network.TINY, num_heads=4, camera_trunk_depth=2, point_head=True)


@pytest.fixture(scope="module")
def vggt_1b_shapes() -> dict[str, list[int]]:
    path = Path(__file__).parents[1] / "model" / "parity" / "vggt_1b_state_dict.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    state = open_state(TINY)
    state["track_head.anything.weight"] = torch.ones(3)
    save_checkpoint(path, state, TINY, {"licence": "Apache-2.0"})
    return path


def shapes_without(shapes: dict, *prefixes: str) -> dict:
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


# --- round to nearest ---------------------------------------------------------------------


def bfloat16(value: float) -> float:
    """Round to bfloat16 by the bits: to nearest, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(np.uint32(bits).view(np.float32))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    group_size=st.sampled_from((32, 64, 128)),
    magnitude=st.sampled_from((1e-12, 1e-3, 1.0, 1e6)),
)
def test_round_to_nearest_is_the_formula(seed, group_size, magnitude):
    w = (np.random.default_rng(seed).standard_normal((3, 2 * group_size)) * magnitude).astype("f4")
    q, scales = quantize_weight(torch.from_numpy(w), group_size)
    assert q.dtype == torch.int8
    assert scales.dtype == torch.bfloat16
    for row in range(3):
        for group in range(2):
            columns = slice(group * group_size, (group + 1) * group_size)
            part = w[row, columns]
            delta = np.float32(bfloat16(np.max(np.abs(part)) / np.float32(7)))
            expected = np.clip(np.rint(part / delta), -8, 7)
            assert float(scales[row, group]) == delta
            assert np.array_equal(q[row, columns].numpy(), expected)


def test_error_is_at_most_half_a_step_or_the_scales_rounding():
    w = torch.randn(16, 256, generator=torch.Generator().manual_seed(3))
    q, scales = quantize_weight(w, 64)
    step = scales.float().repeat_interleave(64, dim=1)
    # The largest number of a group is up to 7 * 2^-9 steps beyond 7 when its scale rounds down.
    assert ((w - q * step).abs() <= step * (0.5 + 1e-6)).all()


def test_a_group_of_zeros_stays_zero_and_its_neighbours_do_not_notice():
    w = torch.randn(2, 96)
    w[:, 32:64] = 0
    q, scales = quantize_weight(w, 32)
    assert (q[:, 32:64] == 0).all()
    assert (scales[:, 1] == 0).all()
    assert (scales[:, [0, 2]] > 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    w = torch.ones(4, 64)
    w[2, 40] = value
    with pytest.raises(QuantizationError, match="1 of 256 weights are NaN or infinite"):
        quantize_weight(w, 32)


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(QuantizationError, match=r"\(4, 100\) does not divide into groups of 64"):
        quantize_weight(torch.ones(4, 100), 64)


# --- the plan -----------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides():
    plan = Plan(
        rules=(
            Rule(match="a.1.*", bits=16),
            Rule(match="a.*.weight", bits=4, group_size=64),
            Rule(match="*", bits=32),
        )
    )
    assert plan.precision("a.0.weight", (8, 128)) == Precision(4, 64)
    assert plan.precision("a.1.weight", (8, 128)) == Precision(16)
    assert plan.precision("b.weight", (8, 128)) == Precision(32)
    assert Plan(rules=()).precision("b.weight", (8, 128)) == Precision(16)


@pytest.mark.parametrize(
    ("columns", "group_size", "expected"),
    [
        (256, 128, Precision(4, 128)),
        (192, 128, Precision(4, 64)),
        (96, 128, Precision(4, 32)),
        (256, 32, Precision(4, 32)),
        (100, 128, Precision(16)),
        (9, 128, Precision(16)),
    ],
)
def test_a_narrow_weight_takes_the_largest_group_that_divides_it(columns, group_size, expected):
    plan = Plan(rules=(Rule(match="*", bits=4),))
    assert plan.precision("x.weight", (8, columns), group_size) == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [("x.bias", (128,)), ("norm.weight", (128,)), ("conv.weight", (8, 128, 1, 1)), ("t", (8, 128))],
)
def test_only_linear_weights_get_four_bits(name, shape):
    assert Plan(rules=(Rule(match="*", bits=4),)).precision(name, shape) == Precision(16)


def test_a_plan_moves_to_other_bits_and_keeps_what_it_protects():
    plan = PRESETS["qvggt-paper"].at(4, 8)
    protected = "aggregator.frame_blocks.14.mlp.fc1.weight"
    assert plan.precision(protected, (4096, 1024)) == Precision(16)
    quantized = "aggregator.frame_blocks.13.mlp.fc1.weight"
    assert plan.precision(quantized, (4096, 1024)) == Precision(4, 1024, 8)
    assert plan.precision(quantized, (4095, 1024)) == Precision(16), "4-bit rows come in pairs"
    with pytest.raises(QuantizationError, match="8-bit weights"):
        plan.at(8, 16)


def test_one_scale_a_row_is_a_group_size_of_its_own():
    plan = Plan(rules=(Rule(match="*", bits=3, group_size="channel"),))
    assert plan.precision("x.weight", (8, 384)) == Precision(3, 384)
    assert PRESETS["uniform"].precision(
        "camera_head.trunk.0.mlp.fc2.weight", (512, 2048), "channel"
    ) == Precision(4, 2048)


@pytest.mark.parametrize(
    ("text", "bits"), [("w4a16", (4, 16)), ("W8A8", (8, 8)), ("w3a16", (3, 16))]
)
def test_a_precision_is_read_from_its_name(text, bits):
    assert parse_precision(text) == bits


@pytest.mark.parametrize("text", ["int4", "w4", "w8a16", "w4a7", "w16a16", ""])
def test_a_precision_that_is_none_is_refused(text):
    with pytest.raises(QuantizationError):
        parse_precision(text)


@pytest.mark.parametrize("plan", PRESETS.values(), ids=PRESETS)
def test_plans_survive_yaml(plan):
    assert Plan.from_yaml(plan.to_yaml()) == plan


def test_a_plan_is_read_from_a_file_or_by_its_name(tmp_path):
    assert load_plan("uniform") is PRESETS["uniform"]
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nrules:\n- {match: '*.weight', bits: 4, group_size: 64}\n")
    assert load_plan(path).precision("x.weight", (8, 128)) == Precision(4, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules:\n- {match: a, bits: 5}", r"rules\.1\.bits: .*3, 4, 8, 16 or 32, found 5"),
        ("rules:\n- {match: a, bits: 8}", r"rules\.1: .*8-bit weights are multiplied by"),
        ("rules:\n- {match: a, bits: 16, activations: 8}", r"rules\.1: .*need integer weights"),
        ("rules:\n- {match: a, bits: 16}\n- {match: b, bits: 4, group_size: 48}", r"rules\.2\.gr"),
        ("rules:\n- {bits: 4}", r"rules\.1\.match: .*found nothing"),
        ("rules:\n- {match: a, bits: 4, speed: 9}", r"rules\.1\.speed: .*found 9"),
        ("rules: 7", r"rules: .*found 7"),
        ("just text", r"document: .*found 'just text'"),
        ("rules: [", "not YAML"),
    ],
)
def test_a_wrong_plan_is_refused_by_rule_and_value(text, message):
    with pytest.raises(QuantizationError, match=message):
        Plan.from_yaml(text)


def test_a_plan_that_is_not_there_is_refused_with_what_there_is():
    with pytest.raises(QuantizationError, match=r"'unifrom' is no preset \(uniform, qvggt-paper\)"):
        load_plan("unifrom")


def test_uniform_puts_every_block_of_vggt_1b_into_four_bits(vggt_1b_shapes):
    plan = PRESETS["uniform"]
    quantized = {
        name: shape
        for name, shape in vggt_1b_shapes.items()
        if plan.precision(name, shape) == Precision(4, 128)
    }
    assert len(quantized) == 4 * (24 + 24 + 24 + 4)
    assert sum(n * k for n, k in quantized.values()) == 603_979_776 + 301_989_888 + 201_326_592
    assert all(
        fnmatch.fnmatch(name, "*.attn.*.weight") or fnmatch.fnmatch(name, "*.mlp.*.weight")
        for name in quantized
    )
    assert plan.unused_rules(list(vggt_1b_shapes)) == ("camera_head.fc_*",)


def test_the_papers_plan_protects_its_fragile_blocks(vggt_1b_shapes):
    paper, uniform = PRESETS["qvggt-paper"], PRESETS["uniform"]
    differs = {
        name
        for name, shape in vggt_1b_shapes.items()
        if paper.precision(name, shape) != uniform.precision(name, shape)
    }
    blocks = ("frame_blocks.14", "frame_blocks.17", "frame_blocks.23", "global_blocks.23")
    expected = {
        f"aggregator.{block}.{linear}.weight"
        for block in blocks
        for linear in ("attn.qkv", "mlp.fc1", "mlp.fc2")
    }
    assert differs == expected
    assert {paper.precision(name, vggt_1b_shapes[name]).bits for name in differs} == {16}
    assert paper.unused_rules(list(vggt_1b_shapes)) == ("camera_head.fc_*",)


def test_vggt_1b_in_four_bits_fits_in_three_quarters_of_a_gigabyte(vggt_1b_shapes):
    kept = shapes_without(vggt_1b_shapes, "point_head.", "track_head.")
    sizes = planned_sizes(PRESETS["uniform"], kept)
    assert sum(size.weights for size in sizes.values()) == 1_157_941_492
    assert sum(size.nbytes for size in sizes.values()) <= 0.75e9
    trunk = shapes_without(kept, "depth_head.", "camera_head.p", "camera_head.e")
    blocks = sum(size.nbytes for size in planned_sizes(PRESETS["uniform"], trunk).values())
    bits = 8 * blocks / 1_107_296_256
    assert 4.125 < bits < 4.2


def test_smaller_groups_cost_what_their_scales_cost():
    shapes = {"camera_head.trunk.0.mlp.fc1.weight": (64, 256)}
    for group_size in (32, 64, 128):
        size = planned_sizes(PRESETS["uniform"], shapes, group_size)["camera head"]
        assert size.nbytes == 64 * 256 // 2 + 64 * (256 // group_size) * 2


# --- the file -----------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [32, 64])
def test_the_file_holds_the_rounded_network_and_runs_alone(source, tmp_path, group_size):
    """The 4-bit network equals a float network whose weights were rounded by hand."""
    target = tmp_path / "sub" / "int4.safetensors"
    report = quantize_checkpoint(source, target, QuantizationSettings(group_size=group_size))
    network = load_model(target, dtype=torch.float32)
    assert sum(isinstance(module, Int4Linear) for module in network.modules()) == 40

    full = load_model(source, dtype=torch.float32)
    state = full.state_dict()
    for layer in report.layers:
        q, scales = quantize_weight(state[layer.name], group_size)
        state[layer.name] = q * scales.float().repeat_interleave(group_size, dim=1)
    rounded = {layer.name for layer in report.layers}
    for name in state:
        if name not in rounded and PRESETS["uniform"].precision(name, state[name].shape).bits == 16:
            state[name] = state[name].bfloat16().float()
    exact = load_model(source, dtype=torch.float32)
    exact.load_state_dict(state)

    images = torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs, original = (net(images) for net in (network, exact, full))
    for pick in (lambda p: p.depth, lambda p: p.pose_encodings[-1]):
        from_rounded = (pick(ours) - pick(theirs)).norm()
        from_original = (pick(ours) - pick(original)).norm()
        assert from_rounded < 0.01 * from_original


def test_the_file_says_what_it_is(source, tmp_path):
    target = tmp_path / "int4.safetensors"
    quantize_checkpoint(source, target, QuantizationSettings(plan="qvggt-paper", group_size=64))
    checkpoint = read_checkpoint(target)
    metadata = checkpoint.metadata
    assert metadata["qvggt_format"] == "1"
    assert metadata["layout"] == LAYOUT
    assert metadata["recipe"] == "rtn"
    assert metadata["group_size"] == "64"
    assert metadata["calibration"] == "none"
    assert metadata["base_model"] == "tiny.safetensors"
    assert metadata["base_sha256"] == read_checkpoint(source).sha256()
    assert metadata["licence"] == "Apache-2.0"
    assert Plan.from_yaml(metadata["plan"]) == PRESETS["qvggt-paper"]
    assert checkpoint.config == replace(TINY, point_head=False)


def test_the_licence_is_unknown_unless_somebody_says_it(source, tmp_path):
    target = tmp_path / "int4.safetensors"
    quantize_checkpoint(source, target, QuantizationSettings(licence="CC-BY-NC-4.0"))
    assert read_checkpoint(target).metadata["licence"] == "CC-BY-NC-4.0"
    checkpoint = read_checkpoint(source)
    checkpoint.metadata.clear()
    quantize_checkpoint(checkpoint, target)
    assert read_checkpoint(target).metadata["licence"] == "unknown"


def test_heads_are_kept_as_asked_and_the_track_head_never(source, tmp_path):
    target = tmp_path / "int4.safetensors"

    def heads_of(names):
        return {name.split(".")[0] for name in names} - {"aggregator"}

    quantize_checkpoint(source, target)
    assert heads_of(read_checkpoint(target).names()) == {"camera_head", "depth_head"}
    quantize_checkpoint(source, target, QuantizationSettings(heads=("camera", "depth", "points")))
    everything = heads_of(read_checkpoint(target).names())
    assert everything == {"camera_head", "depth_head", "point_head"}
    assert load_model(target, heads=("points",)).point_head is not None
    quantize_checkpoint(source, target, QuantizationSettings(heads=()))
    assert heads_of(read_checkpoint(target).names()) == {"camera_head"}


def test_the_report_counts_what_the_file_holds(source, tmp_path):
    target = tmp_path / "int4.safetensors"
    seen = []
    report = quantize_checkpoint(
        source, target, progress=lambda index, total, name: seen.append((index, total, name))
    )
    checkpoint = read_checkpoint(target)
    stored = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    assert sum(size.nbytes for size in report.parts.values()) == sum(
        tensor.nbytes for tensor in stored.values()
    )
    assert report.file_bytes == target.stat().st_size
    assert len(report.layers) == sum(name.endswith(".qweight") for name in stored)
    assert report.dropped == sum(
        name.startswith(("point_head.", "track_head.")) for name in read_checkpoint(source).names()
    )
    assert report.unused_rules == ("camera_head.fc_*",)
    assert [index for index, _, _ in seen] == list(range(seen[0][1]))
    original = read_checkpoint(source)
    for layer in report.layers:
        path = layer.name.removesuffix(".weight")
        packed = PackedWeight(stored[f"{path}.qweight"], stored[f"{path}.scales"])
        kept = dequantize(packed, torch.float64)
        weight = original.tensor(layer.name).double()
        assert layer.relative_error == pytest.approx(
            float((weight - kept).norm() / weight.norm()), rel=1e-5
        )
        assert layer.bits_per_weight == 4 + 16 / layer.precision.group_size
        assert layer.output_error is None
    assert json.loads(json.dumps(report.to_dict()))["plan"] == "uniform"


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a4", "w3a16"])
def test_other_bits_run_alone_and_come_close_as_their_bits_allow(source, tmp_path, precision):
    report = quantize_checkpoint(
        source, tmp_path / "q.safetensors", QuantizationSettings(precision=precision)
    )
    network = load_model(report.target, dtype=torch.float32)
    packed = IntegerLinear if precision != "w3a16" else Int4Linear
    assert sum(isinstance(module, packed) for module in network.modules()) == 40
    assert report.file_bytes == report.target.stat().st_size
    images = torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    full = load_model(source, dtype=torch.float32)
    with torch.inference_mode():
        found, exact = network(images).depth, full(images).depth
    assert (found - exact).norm() < {"w8a8": 0.01}.get(precision, 0.2) * exact.norm()


def test_a_file_gives_the_same_bits_each_time_it_is_loaded(source, tmp_path):
    images = torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    for precision in ("w4a16", "w4a4"):
        target = tmp_path / f"{precision}.safetensors"
        quantize_checkpoint(source, target, QuantizationSettings(precision=precision))
        first, second = (load_model(target, dtype=torch.float32) for _ in range(2))
        with torch.inference_mode():
            one, other = first(images), second(images)
        assert torch.equal(one.depth, other.depth)
        assert torch.equal(one.pose_encodings[-1], other.pose_encodings[-1])


def test_a_failure_leaves_the_old_file_and_no_other(source, tmp_path):
    target = tmp_path / "int4.safetensors"
    target.write_bytes(b"precious")
    state = {name: read_checkpoint(source).tensor(name) for name in read_checkpoint(source).names()}
    state["camera_head.trunk.1.mlp.fc2.weight"] = torch.full((128, 512), float("nan"))
    save_checkpoint(tmp_path / "damaged.safetensors", state, TINY)
    with pytest.raises(QuantizationError, match=r"trunk\.1\.mlp\.fc2\.weight"):
        quantize_checkpoint(tmp_path / "damaged.safetensors", target)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["damaged.safetensors", "int4.safetensors"]
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("entry", "value"),
    [("aggregator.frame_blocks.1.mlp.fc1.weight", "nan"), ("depth_head.norm.weight", "inf")],
)
def test_damaged_weights_are_named(tmp_path, entry, value):
    state = VGGT(TINY).initialise().state_dict()
    state[entry].view(-1)[3] = float(value)
    save_checkpoint(tmp_path / "damaged.safetensors", state, TINY)
    with pytest.raises(QuantizationError, match=f"{entry}.* NaN"):
        quantize_checkpoint(tmp_path / "damaged.safetensors", tmp_path / "int4.safetensors")
    assert not (tmp_path / "int4.safetensors").exists()


def test_what_cannot_be_asked_is_refused(source, tmp_path):
    target = tmp_path / "int4.safetensors"
    with pytest.raises(QuantizationError, match="no recipe 'gtpq'; known: rtn"):
        quantize_checkpoint(source, target, QuantizationSettings(recipe="gtpq"))
    with pytest.raises(QuantizationError, match="the recipe gptq needs images"):
        quantize_checkpoint(source, target, QuantizationSettings(recipe="gptq"))
    with pytest.raises(QuantizationError, match="group size 256 is not one of"):
        quantize_checkpoint(source, target, QuantizationSettings(group_size=256))
    with pytest.raises(QuantizationError, match=r"no heads \['track'\]"):
        quantize_checkpoint(source, target, QuantizationSettings(heads=("camera", "track")))
    quantize_checkpoint(source, target)
    with pytest.raises(QuantizationError, match="has no points head"):
        quantize_checkpoint(
            without_point_head(tmp_path),
            tmp_path / "other.safetensors",
            QuantizationSettings(heads=("points",)),
        )
    with pytest.raises(QuantizationError, match="is quantized already"):
        quantize_checkpoint(target, tmp_path / "twice.safetensors")


def without_point_head(folder: Path) -> Path:
    config = replace(TINY, point_head=False)
    save_checkpoint(folder / "no_points.safetensors", VGGT(config).state_dict(), config)
    return folder / "no_points.safetensors"


def test_an_output_that_would_lose_something_is_refused_before_the_work(source, tmp_path):
    copy = tmp_path / "network.safetensors"
    copy.write_bytes(source.read_bytes())
    link = tmp_path / "link.safetensors"
    link.symlink_to(copy)
    for target in (copy, link):
        with pytest.raises(QuantizationError, match="is the file that is read"):
            quantize_checkpoint(copy, target)
    assert copy.read_bytes() == source.read_bytes()
    with pytest.raises(QuantizationError, match="is a directory: name the file"):
        quantize_checkpoint(copy, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantizationError, match="cannot make the directory"):
        quantize_checkpoint(copy, tmp_path / "file" / "q.safetensors")


def test_a_checkpoint_with_missing_or_foreign_entries_is_refused(source, tmp_path):
    checkpoint = read_checkpoint(source)
    state = {name: checkpoint.tensor(name).clone() for name in checkpoint.names()}
    name = "aggregator.frame_blocks.0.attn.qkv.weight"
    adapter = {f"{name}.lora_A": torch.zeros(4, 4), **state}
    part = {key: value for key, value in state.items() if key != name}
    for entries, reason in ((adapter, "unexpected"), (part, "missing")):
        path = tmp_path / "odd.safetensors"
        save_checkpoint(path, entries, checkpoint.config)
        with pytest.raises(CheckpointError, match=rf"1 {reason}, first: {name}"):
            quantize_checkpoint(path, tmp_path / "q.safetensors")
        assert not (tmp_path / "q.safetensors").exists()
