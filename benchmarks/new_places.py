r"""How a network does in worlds, and in recordings, that it was not trained on.

Each window is also answered by the trivial predictor: no rotation, the mean direction, one constant
depth. Worlds of other kinds than those of training come first, then other seeds of the kinds of
training, the room that `small-continued.yaml` trains in, worlds of meshes made for Gazebo, and
recordings with true poses and depth, whose windows have neighbours a fixed number of images apart.
A network that was trained to match answers three times: by poses from matches with the cameras as
predicted, with calibrated cameras, and by its camera head.
Pools are rendered once and kept.

    python benchmarks/new_places.py --network trained=out/varied/model.safetensors \
        --network ships=qvggt_core/models/qvggt-places-int4.safetensors --recording kitchen/
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import load_model
from qvggt_core.stream.frame import Frame, View
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_core.synthetic.mesh_scene import MeshScene
from qvggt_core.synthetic.mesh_world import read_gazebo_world
from qvggt_core.synthetic.ray_caster import pinhole
from qvggt_core.synthetic.views import random_views
from qvggt_core.training.clips import Clip, PoolConfig
from qvggt_core.training.config import TrainConfig
from qvggt_core.training.matching import matched_share
from qvggt_core.training.pool import Pool, build_pool
from qvggt_core.training.seeds import evaluation_seed
from qvggt_core.training.validation import evaluate_matches, evaluate_windows, trivial_metrics
from qvggt_core.training.windows import Windows, evaluation_windows
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.conversions import stamp_ns
from qvggt_ros.io.depth_truth import depth_topic
from qvggt_ros.io.ground_truth import named_ground_truth, read_ground_truth
from qvggt_ros.io.images import decode_depth, decode_image
from qvggt_ros.io.recording import Recording, open_recording
from qvggt_ros.io.topics import choose_topics

CONFIGS = Path(__file__).parents[1] / "qvggt_core/training/configs"
COLUMNS = ("auc_30", "auc_5", "auc_3", "rotation", "translation", "abs_rel", "delta", "matched")
TOLERANCE_NS = 20_000_000
HEIGHT, WIDTH = 96, 128


def main() -> None:
    """Evaluate, print a table and write the raw results."""
    args = _arguments()
    networks, checkpoints = {}, []
    for named in args.network:
        name, _, path = named.partition("=")
        checkpoints.append(Path(path))
        networks[name] = load_model(Path(path), dtype=torch.float32)
    windows = _synthetic(args.pools, args.frames, args.clips)
    for path in args.gazebo:
        windows |= _meshes(path, args.frames, args.windows)
    for path in args.recording:
        windows |= _recorded(path, args.gap, args.windows)
    # Read where it was trained: in the first global block, whose input the first tap keeps.
    matching = {name for name, net in networks.items() if net.config.matching}
    rows = []
    table = Table(title="places that are new to a network")
    for heading in ("place", "frames", "network", *COLUMNS, "windows"):
        table.add_column(heading, justify="right")
    for (place, frames), truth in windows.items():
        answers = {}
        for name, network in networks.items():
            if name in matching:
                answers[name] = evaluate_matches(network, truth)
                answers[f"{name}, calibrated"] = evaluate_matches(network, truth, True)
                answers[f"{name}, camera head"] = evaluate_windows(network, truth)
            else:
                answers[name] = evaluate_windows(network, truth)
        answers["trivial"] = trivial_metrics(truth)
        for name, metrics in answers.items():
            values = metrics.to_dict()
            if name in matching:
                values["matched"] = matched_share(networks[name], truth)
            rows.append({"place": place, "frames": frames, "network": name, **values})
            numbers = [f"{values[column]:.3g}" if column in values else "" for column in COLUMNS]
            table.add_row(place, str(frames), name, *numbers, str(metrics.windows))
    console = Console(width=140)
    console.print(table)
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}
    write_results(args.output, {"parameters": sizes, "rows": rows}, *checkpoints)
    console.print(f"wrote {args.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", required=True, help="NAME=CHECKPOINT")
    parser.add_argument("--gazebo", type=Path, action="append", default=[], help="a .world file")
    parser.add_argument("--recording", type=Path, action="append", default=[])
    parser.add_argument("--gap", type=int, default=10, help="images between a window's neighbours")
    parser.add_argument("--windows", type=int, default=48, help="of a recording or mesh world")
    parser.add_argument("--frames", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--clips", type=int, default=64, help="of each pool")
    parser.add_argument("--pools", type=Path, default=Path("out/new_places"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/new_places.json"))
    return parser.parse_args()


def _synthetic(pools: Path, frames: list[int], clips: int) -> dict[tuple[str, int], Windows]:
    varied = TrainConfig.read(CONFIGS / "varied.yaml")
    room = TrainConfig.read(CONFIGS / "small-continued.yaml")
    places: dict[str, PoolConfig] = {
        "other kinds of worlds": replace(varied.evaluation_pool, clips=clips),
        "other seeds of its kinds": replace(varied.pool, clips=clips, evaluation=True),
        "studio": replace(room.evaluation_pool, clips=min(clips, 24)),
    }
    found = {}
    for place, config in places.items():
        pool = build_pool(config, pools / place.replace(" ", "_"), workers=1)
        for count in frames:
            # One window of each clip: the widest step that it has room for, at most two.
            gap = max(1, min(2, (config.frames - 1) // (count - 1)))
            found[place, count] = evaluation_windows(pool, count, gaps=(gap,))
    return found


def _meshes(path: Path, frames: list[int], count: int) -> dict[tuple[str, int], Windows]:
    """Return windows in a world of meshes, whose models lie beside its file's directory."""
    scene = MeshScene(path.stem, read_gazebo_world(path, path.parents[1] / "models"))
    clips = []
    for index in range(count):
        seed = evaluation_seed(index)
        fov = np.radians(np.random.default_rng(seed).uniform(55.0, 95.0))
        matrix = pinhole(HEIGHT, WIDTH, fov)
        poses = random_views(scene, 8, seed, np.tan(0.5 * fov))
        seen = [scene.render(pose, matrix, HEIGHT, WIDTH, samples=2) for pose in poses]
        images = np.stack([rendering.colour for rendering in seen])
        depth = np.stack([rendering.depth for rendering in seen])
        clips.append(Clip(images, depth.astype(np.float16), poses, matrix))
    config = PoolConfig(clips=count, frames=8, height=HEIGHT, width=WIDTH, evaluation=True)
    names = ("images", "depth", "world_from_camera", "intrinsics")
    pool = Pool(config, *(np.stack([getattr(clip, name) for clip in clips]) for name in names))
    return {
        (path.stem, n): evaluation_windows(pool, n, gaps=(max(1, min(2, 7 // (n - 1))),))
        for n in frames
    }


def _recorded(path: Path, gap: int, count: int) -> dict[tuple[str, int], Windows]:
    """Return windows of 2 and 4 images of a recording, their neighbours `gap` images apart."""
    with open_recording(path) as recording:
        views, poses, depths = _truth(recording)
    found = {}
    for frames in (2, 4):
        starts = np.linspace(0, len(views) - 1 - gap * (frames - 1), count).astype(int)
        rows = [list(range(start, start + gap * (frames - 1) + 1, gap)) for start in starts]
        images = [[views[i].image for i in row] for row in rows]
        matrices = [[views[i].intrinsics for i in row] for row in rows]
        found[f"{path.name}, every {gap}th image", frames] = Windows(
            images=torch.from_numpy(np.array(images)).movedim(-1, -3).contiguous(),
            depth=torch.from_numpy(np.array([[depths[i] for i in row] for row in rows])),
            world_from_camera=torch.from_numpy(np.array([[poses[i] for i in r] for r in rows])),
            intrinsics=torch.from_numpy(np.array(matrices, dtype=np.float64)),
        )
    return found


def _truth(
    recording: Recording,
) -> tuple[list[View], list[NDArray[np.float64]], list[NDArray[np.float32]]]:
    """Return views of WIDTH pixels with their true poses and depth."""
    topics = choose_topics(recording)
    assert topics.camera_info is not None
    info = recording.first(topics.camera_info)
    source = named_ground_truth(recording)
    assert source is not None
    track = read_ground_truth(source, [recording]).track.in_order()
    true_depth = depth_topic(recording, topics.image, None)
    assert true_depth is not None
    depth_at = {
        stamp_ns(message): decode_depth(message) for message in _messages(recording, true_depth)
    }
    depth_stamps, pose_stamps = np.array(sorted(depth_at)), np.array(track.stamps_ns)
    preprocessor = Preprocessor(WIDTH, 8)
    views, poses, depths = [], [], []
    for message in _messages(recording, topics.image):
        image, stamp = decode_image(message), stamp_ns(message)
        pose, depth = (np.abs(stamps - stamp) for stamps in (pose_stamps, depth_stamps))
        if max(pose.min(), depth.min()) > TOLERANCE_NS:
            continue
        camera = camera_from_info(info, image.shape[1], image.shape[0])
        view = preprocessor.view(Frame(stamp, image, camera))
        views.append(view)
        poses.append(track.poses[int(pose.argmin())])
        depths.append(_nearest(depth_at[int(depth_stamps[depth.argmin()])], view.image.shape[:2]))
    return views, poses, depths


def _messages(recording: Recording, topic: str) -> list[object]:
    return [recording.deserialize(data, kind) for _, kind, _, data in recording.messages([topic])]


def _nearest(depth: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a depth image of the same aspect at the middles of `size` rows and columns."""
    rows, columns = (
        ((np.arange(count) + 0.5) * have / count).astype(int)
        for count, have in zip(size, depth.shape, strict=True)
    )
    return depth[rows[:, None], columns]


if __name__ == "__main__":
    main()
