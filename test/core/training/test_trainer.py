"""Losses against hand-computed values; windows; and training that learns, stops and goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from qvggt_kernels import PackedWeight, dequantize
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

from qvggt_core.errors import TrainingError
from qvggt_core.geometry.poses import inverse, unproject
from qvggt_core.model import (
    VGGT,
    ModelConfig,
    decode_pose,
    encode_pose,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from qvggt_core.quantize import quantize_checkpoint
from qvggt_core.training.clips import Pool, PoolConfig, build_pool, open_pool
from qvggt_core.training.config import TrainConfig, learning_rate
from qvggt_core.training.init_weights import load_initial_weights
from qvggt_core.training.losses import (
    camera_loss,
    depth_loss,
    relative_pose_loss,
    window_targets,
)
from qvggt_core.training.trainer import train
from qvggt_core.training.validation import summarise, trivial_metrics
from qvggt_core.training.windows import (
    Places,
    Windows,
    draw_scattered_windows,
    draw_windows,
    evaluation_windows,
    gather,
    view_overlap,
)

CONFIGS = Path(__file__).parents[3] / "qvggt_core" / "training" / "configs"

TINY = {
    "model": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "num_register_tokens": 1,
        "layer_scale": 0.2,
        "encoder": None,
        "camera_trunk_depth": 1,
        "camera_num_heads": 2,
        "dpt_features": 16,
        "dpt_out_channels": [16, 16, 16, 16],
        "taps": [0, 1, 2, 3],
        "point_head": False,
    },
    "pool": {
        "worlds": ["studio"],
        "clips": 6,
        "frames": 4,
        "height": 24,
        "width": 32,
        "samples": 0,
    },
    "evaluation_pool": {
        "worlds": ["studio"],
        "clips": 2,
        "frames": 4,
        "height": 24,
        "width": 32,
        "samples": 0,
        "evaluation": True,
    },
    "stages": [
        {"until": 25, "images": 8, "frames": [2], "max_gap": 2, "dense_frames": 4},
        {"until": 50, "images": 8, "frames": [2], "scattered": 0.5, "dense_frames": 4},
    ],
    "warmup": 5,
    "relative_weight": 1.0,
    "average": 0.8,
    "log_every": 10,
    "evaluate_every": 50,
    "checkpoint_every": 20,
    "evaluation_clips": 2,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pools")
    config = TrainConfig.model_validate(TINY)
    build_pool(config.pool, directory / "pool_train", workers=1)
    build_pool(config.evaluation_pool, directory / "pool_eval", workers=1)
    return directory


@pytest.fixture(scope="module")
def pool(pools: Path) -> Pool:
    return open_pool(pools / "pool_train")


def test_camera_loss_by_hand() -> None:
    target = torch.zeros(1, 1, 9)
    first, last = target.clone(), target.clone()
    first[..., 0] = 0.5  # linear part: 0.5 - delta / 2, on one of three
    last[..., 3] = 0.01  # quadratic part: 0.01^2 / (2 delta), on one of four
    last[..., 8] = 0.3  # half weight, on one of two
    last_loss = 0.01**2 / (2 * 0.02) / 4 + 0.5 * (0.3 - 0.01) / 2
    first_loss = (0.5 - 0.01) / 3
    expected = (last_loss + 0.6 * first_loss) / 1.6
    assert camera_loss([first, last], target).item() == pytest.approx(expected, rel=1e-5)


def test_relative_pose_loss_is_the_error_of_motions_per_baseline() -> None:
    rng = np.random.default_rng(3)

    def cameras() -> np.ndarray:
        turns = Rotation.from_rotvec(0.4 * rng.standard_normal((6, 3))).as_matrix()
        poses = np.tile(np.eye(4), (2, 3, 1, 1))
        poses[..., :3, :3] = turns.reshape(2, 3, 3, 3)
        poses[..., :3, 3] = rng.standard_normal((2, 3, 3))
        return poses

    def encode(poses: np.ndarray) -> torch.Tensor:
        pinhole = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]).expand(2, 3, 3, 3)
        return encode_pose(torch.from_numpy(poses[..., :3, :]).float(), pinhole, 48, 64)

    def error(estimate: np.ndarray, truth: np.ndarray) -> float:
        total = 0.0
        for b in range(2):
            for i, j in ((0, 1), (0, 2), (1, 2)):
                mine, true = (p[b, j] @ np.linalg.inv(p[b, i]) for p in (estimate, truth))
                chord = np.linalg.norm(mine[:3, :3] - true[:3, :3]) / np.sqrt(2)
                off = np.abs(mine[:3, 3] - true[:3, 3]).sum()
                total += 3 * chord + off / np.hypot(np.linalg.norm(true[:3, 3]), 0.02)
        return total / 6

    truth, first, last = cameras(), cameras(), cameras()
    found = relative_pose_loss([encode(first), encode(last)], encode(truth)).item()
    expected = (error(last, truth) + 0.6 * error(first, truth)) / 1.6
    assert found == pytest.approx(expected, rel=1e-3)
    # Another world frame is none of its business.
    assert relative_pose_loss([encode(truth @ first[:, :1])], encode(truth)).item() < 2e-3


def test_depth_loss_by_hand() -> None:
    target = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
    depth = torch.tensor([[1.5, 2.0], [9.0, 3.0]])
    confidence = torch.tensor([[2.0, 3.0], [5.0, 4.0]])
    values = (2 * 0.5 - 0.2 * np.log(2)) + (-0.2 * np.log(3)) + (4 * 1.0 - 0.2 * np.log(4))
    # Errors are 0.5, 0, -, -1: one valid pair down (|-1 - 0|, confidence 3) and one across.
    expected = values / 3 + 3 * 1.0 + 2 * 0.5
    assert depth_loss(depth, confidence, target).item() == pytest.approx(expected, rel=1e-5)


def test_pixels_without_depth_carry_no_gradient() -> None:
    target = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    depth = torch.ones(2, 2, requires_grad=True)
    confidence = torch.full((2, 2), 2.0, requires_grad=True)
    depth_loss(depth, confidence, target).backward()
    assert depth.grad is not None
    assert confidence.grad is not None
    assert torch.isfinite(depth.grad).all()
    assert depth.grad[0, 1] == 0
    assert confidence.grad[0, 1] == 0


def test_targets_are_in_the_first_cameras_gauge(pool: Pool) -> None:
    windows = gather(pool, [[(0, 2), (0, 0), (0, 3)], [(1, 1), (1, 2), (1, 3)]])
    targets = window_targets(windows.depth, windows.world_from_camera, windows.intrinsics)
    identity = torch.tensor([0.0, 0, 0, 0, 0, 0, 1])
    torch.testing.assert_close(targets.pose_encodings[:, 0, :7], identity.expand(2, 7))
    lengths = torch.linalg.vector_norm(targets.points, dim=-1).flatten(1).mean(dim=1)
    torch.testing.assert_close(lengths, torch.ones(2))
    # Unprojecting with the encoded cameras gives the same points, by the host's own geometry.
    camera_from_first, intrinsics = decode_pose(targets.pose_encodings, 24, 32)
    for b in range(2):
        for s in range(3):
            matrix = np.eye(4)
            matrix[:3] = camera_from_first[b, s].numpy()
            in_camera = unproject(targets.depth[b, s].numpy(), intrinsics[b, s].numpy())
            first_from_camera = inverse(matrix)
            points = in_camera @ first_from_camera[:3, :3].T + first_from_camera[:3, 3]
            np.testing.assert_allclose(points, targets.points[b, s].numpy(), atol=1e-4)


def test_overlap_is_full_with_itself_and_small_with_the_far_side(pool: Pool) -> None:
    overlap = view_overlap(pool, len(pool))
    np.testing.assert_allclose(np.diagonal(overlap, axis1=1, axis2=2), 1.0)
    turned = Pool(
        pool.config, pool.images, pool.depth, pool.world_from_camera.copy(), pool.intrinsics
    )
    turned.world_from_camera[:, 1, :3, :3] = pool.world_from_camera[:, 0, :3, :3] @ np.diag(
        [-1.0, 1.0, -1.0]
    )
    assert view_overlap(turned, len(pool))[:, 0, 1].max() == 0.0


def test_drawn_windows_overlap_and_depend_on_the_seed_alone(pool: Pool) -> None:
    overlap = view_overlap(pool, len(pool))

    def draw(seed: int) -> torch.Tensor:
        return _draw(pool, overlap, seed, 0.5).images

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    with pytest.raises(TrainingError, match="overlap"):
        _draw(pool, 0 * overlap, 0, 0.5)


def test_drawn_windows_run_forward_unless_shuffled(pool: Pool) -> None:
    # The clips' poses are replaced by their own frame numbers.
    numbered = replace(pool, world_from_camera=np.zeros_like(pool.world_from_camera))
    numbered.world_from_camera[:] = np.arange(pool.config.frames)[:, None, None]
    overlap = view_overlap(pool, len(pool))
    ordered = _draw(numbered, overlap, 1, 0.0).world_from_camera[..., 0, 0]
    assert (ordered.diff(dim=1) > 0).all()
    shuffled = _draw(numbered, overlap, 1, 1.0).world_from_camera[..., 0, 0]
    assert (shuffled.diff(dim=1) < 0).any()


def test_scattered_windows_take_near_frames_of_any_clips(pool: Pool) -> None:
    places = Places(pool, len(pool), reach=1.0, angle=40.0)
    poses = pool.world_from_camera.reshape(-1, 4, 4)
    for frame in (0, 7):
        distance = np.linalg.norm(poses[:, :3, 3] - poses[frame, :3, 3], axis=1)
        turn = np.degrees(np.arccos((poses[:, :3, 2] @ poses[frame, :3, 2]).clip(-1, 1)))
        expected = np.flatnonzero((distance <= 1.0) & (turn <= 40.0))
        np.testing.assert_array_equal(places.near(frame), expected[expected != frame])
    windows = draw_scattered_windows(pool, places, 40, 2, np.random.default_rng(0))
    clips = [
        [
            np.linalg.norm(pool.world_from_camera - pose.numpy(), axis=(2, 3)).min(1).argmin()
            for pose in window
        ]
        for window in windows.world_from_camera
    ]
    assert any(one != other for one, other in clips)
    several = replace(pool, config=replace(pool.config, layouts=2))
    with pytest.raises(TrainingError, match="several worlds"):
        Places(several, len(pool))


def _draw(pool: Pool, overlap: np.ndarray, seed: int, shuffled: float) -> Windows:
    return draw_windows(
        pool,
        overlap,
        8,
        2,
        max_gap=2,
        min_overlap=0.3,
        shuffled=shuffled,
        rng=np.random.default_rng(seed),
    )


def test_the_truth_has_no_error_and_the_trivial_answer_has(pool: Pool) -> None:
    windows = evaluation_windows(pool, 4)
    truth = inverse(windows.world_from_camera.numpy())
    shrunk = truth.copy()
    shrunk[..., :3, 3] *= 0.25
    perfect = summarise(shrunk, 0.25 * windows.depth.numpy(), windows)
    assert (perfect.auc_30, perfect.delta) == (pytest.approx(100), pytest.approx(1))
    assert perfect.abs_rel == pytest.approx(0, abs=1e-6)
    trivial = trivial_metrics(windows)
    assert trivial.auc_30 < 60
    assert trivial.abs_rel > 0.1


def test_a_pool_goes_on_where_it_stopped(tmp_path: Path, pool: Pool) -> None:
    build_pool(pool.config, tmp_path, workers=1)
    description = json.loads((tmp_path / "pool.json").read_text())
    description["done"] = 2
    (tmp_path / "pool.json").write_text(json.dumps(description))
    np.lib.format.open_memmap(tmp_path / "images.npy", "r+")[2:] = 0
    assert len(open_pool(tmp_path)) == 2
    again = build_pool(pool.config, tmp_path, workers=1)
    np.testing.assert_array_equal(again.images, pool.images)
    with pytest.raises(TrainingError, match="another description"):
        build_pool(PoolConfig(clips=1, frames=1), tmp_path)


def test_fifty_steps_lower_the_loss(tmp_path: Path, pools: Path) -> None:
    result = train(TrainConfig.model_validate(TINY), tmp_path, device="cpu", pool_directory=pools)
    assert result.step == 50
    assert np.mean(result.losses[-10:]) < 0.6 * np.mean(result.losses[:5])
    assert result.metrics is not None
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"model", "trivial"} <= lines[-1].keys()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    checkpoint = read_checkpoint(result.checkpoint)
    assert checkpoint.config.embed_dim == 32
    assert checkpoint.metadata["training_step"] == "50"


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, pools: Path) -> None:
    config = TrainConfig.model_validate(TINY)

    def run(name: str, *stops: int) -> tuple[list[float], dict]:
        losses: list[float] = []
        for stop in stops:
            result = train(config, tmp_path / name, steps=stop, device="cpu", pool_directory=pools)
            losses += result.losses
        return losses, torch.load(tmp_path / name / "state.pt", weights_only=True)

    whole, state = run("whole", 30)
    parts, resumed = run("parts", 13, 30)
    assert parts == whole
    for kind in ("network", "averaged", "auxiliary"):
        for name, value in state[kind].items():
            assert torch.equal(value, resumed[kind][name]), name


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, pools: Path) -> None:
    config = TrainConfig.model_validate(TINY)
    train(config, tmp_path, steps=1, device="cpu", pool_directory=pools)
    other = TrainConfig.model_validate({**TINY, "model": {**TINY["model"], "embed_dim": 64}})
    with pytest.raises(TrainingError, match="other sizes"):
        train(other, tmp_path, steps=2, device="cpu", pool_directory=pools)


@pytest.mark.parametrize("bits", [4, 32])
def test_a_run_starts_from_the_weights_that_it_names(
    tmp_path: Path, pools: Path, bits: int
) -> None:
    wide = {**TINY["model"], "embed_dim": 128, "camera_trunk_depth": 1}
    network = VGGT(ModelConfig.from_dict(wide)).initialise()
    save_checkpoint(tmp_path / "start.safetensors", network.state_dict(), network.config)
    if bits == 4:
        quantize_checkpoint(tmp_path / "start.safetensors", tmp_path / "start4.safetensors")
        (tmp_path / "start4.safetensors").replace(tmp_path / "start.safetensors")
    start = {
        "file": "start.safetensors",
        "sha256": hashlib.sha256((tmp_path / "start.safetensors").read_bytes()).hexdigest(),
    }
    values = {**TINY, "model": wide, "initial_weights": start, "learning_rate": 1e-12}

    def begin(name: str, **changes: object) -> dict[str, torch.Tensor]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**values, **changes}))
        config = TrainConfig.read(tmp_path / "config.yaml")
        train(config, tmp_path / name, steps=1, device="cpu", pool_directory=pools)
        return load_file(tmp_path / name / "model.safetensors")

    expected = load_model(tmp_path / "start.safetensors", dtype=torch.float32).state_dict()
    trained = begin("run")
    name = "aggregator.frame_blocks.0.attn.qkv"
    if bits == 4:
        packed = PackedWeight(expected[f"{name}.qweight"], expected[f"{name}.scales"])
        weight = dequantize(packed, torch.float32)
    else:
        weight = expected[f"{name}.weight"]
    torch.testing.assert_close(trained[f"{name}.weight"], weight, atol=1e-6, rtol=0)

    with pytest.raises(TrainingError, match="SHA-256"):
        begin("another", initial_weights={**start, "sha256": 64 * "0"})
    with pytest.raises(TrainingError, match="cannot start from"):
        begin("missing", initial_weights={**start, "file": "none.safetensors"})
    with pytest.raises(TrainingError, match="cannot start from"):
        begin("other", model={**wide, "depth": 5, "taps": [0, 1, 2, 4]})


def test_the_rate_rises_holds_and_falls() -> None:
    config = TrainConfig.model_validate({**TINY, "decay_start": 20})
    rates = [learning_rate(config, step) / config.learning_rate for step in range(51)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5:20] == pytest.approx([1.0] * 15)
    assert rates[35] == pytest.approx((1 + 0.02) / 2)
    assert rates[50] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pool": {**TINY["pool"], "evaluation": True}}, "judged on flights"),
        ({"evaluation_pool": TINY["pool"]}, "judged on flights"),
        ({"stages": [{"until": 9}, {"until": 5}]}, "each must end later"),
        ({"pace": 3}, "pace"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path: Path, change: dict, says: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, **change}))
    with pytest.raises(TrainingError, match=says):
        TrainConfig.read(path)


def test_committed_configurations_are_valid_and_their_widths_fit_a_group_of_64() -> None:
    paths = sorted(CONFIGS.glob("*.yaml"))
    assert paths
    for path in paths:
        config = TrainConfig.read(path)
        assert config.model["embed_dim"] % 64 == 0
        assert config.pool.width == config.model["img_size"]
        if config.initial_weights is not None:
            network = VGGT(ModelConfig.from_dict(config.model))
            load_initial_weights(network, config.initial_weights, config.directory)
