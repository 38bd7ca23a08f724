"""Depth Anything 3 whole, ours beside the authors' code and other runtimes, in one run.

    python benchmarks/da3_peers.py --original CLONE --weights checkpoints/da3-small \
        --quantized da3-small-int4.safetensors -o benchmarks/results/da3_peers.json

`CLONE` is the authors' repository (github.com/ByteDance-Seed/Depth-Anything-3) beside this one,
with addict, einops and omegaconf installed; it is imported, nothing of it is part of this package.
Every contender answers the same windows in turn, round by round, so that all meet the same machine;
the best round counts. CPU seconds are of all threads: on a busy machine they are the steadier
measure. The reference view is the first: 16 bits may choose another one, and all poses with it.
Deviation is from the authors' float32 on the same input. OpenVINO takes part where it is
installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import ComputeSettings, load_model
from qvggt_core.model.aggregator import ImageNormaliser

Run = Callable[[], tuple[Tensor, Tensor]]
"""Returns depth (S, H, W) and translations and rotations (S, 3, 4), world-to-camera."""

ORIGINAL = "authors, float32"


def window(frames: int, height: int, width: int) -> Tensor:
    """Return smooth images (1, S, 3, H, W) in [0, 1] that move a little from view to view."""
    s, c, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) for n in (frames, 3, height, width)), indexing="ij"
    )
    wave = torch.sin(0.05 * (c + 1) * x + 0.3 * s) * torch.cos(0.04 * (c + 2) * y - 0.2 * s)
    return (0.5 + 0.5 * wave)[None]


class Original(nn.Module):
    """The authors' network on normalised images, with what they return of depth and cameras."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (1, S, 3, H, W) to depth (1, S, H, W) and extrinsics (1, S, 3, 4)."""
        found = self.network(images, ref_view_strategy="first")
        return found["depth"], found["extrinsics"]


def original_network(clone: Path, weights: Path) -> Original:
    """Load published weights into the authors' code."""
    sys.path.insert(0, str(clone / "src"))
    from depth_anything_3.cfg import create_object, load_config
    from depth_anything_3.registry import MODEL_REGISTRY
    from depth_anything_3.utils.logger import logger
    from safetensors.torch import load_file

    logger.level = 0
    name = json.loads((weights / "config.json").read_text())["model_name"]
    network = create_object(load_config(MODEL_REGISTRY[name])).eval()
    state = load_file(weights / "model.safetensors")
    network.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    return Original(network.requires_grad_(False))


def original_runs(network: Original, images: Tensor) -> dict[str, Run]:
    """Return the authors' network as they run it on a GPU, on this CPU."""
    normalised = ImageNormaliser()(images, torch.float32)[None]

    def plain() -> tuple[Tensor, Tensor]:
        depth, pose = network(normalised)
        return depth[0], pose[0]

    def mixed() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain()

    return {ORIGINAL: plain, "authors, bfloat16 autocast": mixed}


def our_runs(weights: Path, quantized: Path, images: Tensor) -> dict[str, Run]:
    """Return this package's networks."""
    from qvggt_core.model import decode_pose

    def loaded(path: Path, dtype: torch.dtype, linears: Any) -> Run:
        settings = ComputeSettings(linears=linears, reference_view="first")
        model = load_model(path, dtype=dtype).configure(settings)

        def run() -> tuple[Tensor, Tensor]:
            found = model(images, heads=("camera", "depth"))
            assert found.depth is not None
            pose, _ = decode_pose(found.pose_encodings[-1].double(), *images.shape[-2:])
            return found.depth[0], pose[0]

        return run

    return {
        "qvggt, float32": loaded(weights, torch.float32, "float"),
        "qvggt, bfloat16": loaded(weights, torch.bfloat16, "float"),
        "qvggt, INT4": loaded(quantized, torch.bfloat16, "float"),
        "qvggt, INT4, 8-bit products": loaded(quantized, torch.bfloat16, "int8"),
    }


def openvino_runs(network: Original, images: Tensor, threads: int) -> dict[str, Run]:
    """Return OpenVINO's compilations of the authors' network, none where it is not installed."""
    try:
        import openvino as ov
    except ImportError:
        return {}
    _without_what_openvino_lacks()
    normalised = ImageNormaliser()(images, torch.float32)[None]
    converted = ov.convert_model(network, example_input=normalised)
    converted.reshape(list(normalised.shape))
    runs: dict[str, Run] = {}
    for name, hint in (("OpenVINO, float32", "f32"), ("OpenVINO, bfloat16 hint", "bf16")):
        options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        compiled = ov.Core().compile_model(converted, "CPU", options)

        def run(compiled: Any = compiled) -> tuple[Tensor, Tensor]:
            depth, pose = compiled([normalised.numpy()]).values()
            return torch.from_numpy(depth)[0], torch.from_numpy(pose)[0]

        runs[name] = run
    return runs


def _without_what_openvino_lacks() -> None:
    """Replace two operators that OpenVINO cannot convert by others that compute the same."""
    import depth_anything_3.model.da3 as original

    def product(*axes: Tensor) -> Tensor:
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)

    def inverse(pose: Tensor) -> Tensor:
        rotation = pose[..., :3, :3].transpose(-1, -2)
        upper = torch.cat([rotation, -rotation @ pose[..., :3, 3:]], dim=-1)
        return torch.cat([upper, pose[..., 3:, :]], dim=-2)

    torch.cartesian_prod = product
    original.affine_inverse = inverse


def deviation(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the mean relative difference of depth, and the mean angle between rotations."""
    relative = (found[0].float() / wanted[0].float() - 1.0).abs().mean()
    rotations = [pose[:, :, :3].double() for pose in (found[1], wanted[1])]
    product = rotations[0] @ rotations[1].transpose(-1, -2)
    trace = product.diagonal(dim1=-2, dim2=-1).sum(-1)
    angle = torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1))).mean()
    return {"depth": float(relative), "rotation_deg": float(angle)}


def measure(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Time all runs in turn; the first round sets caches up and does not count."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            if number:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    return {
        name: {"wall_ms": 1e3 * min(wall[name]), "cpu_ms": 1e3 * min(cpu[name])} for name in runs
    }


@torch.inference_mode()
def main() -> None:
    """Measure, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--original", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--quantized", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sizes", nargs="+", default=["252x196", "336x252", "504x378"])
    parser.add_argument("--note", default="", help="What else the machine was doing.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = original_network(args.original, args.weights)
    cases = []
    for size in args.sizes:
        width, height = (int(side) for side in size.split("x"))
        for frames in args.frames:
            images = window(frames, height, width)
            runs = {
                **original_runs(network, images),
                **our_runs(args.weights, args.quantized, images),
                **openvino_runs(network, images, args.threads),
            }
            wanted = runs[ORIGINAL]()
            moved = {name: deviation(run(), wanted) for name, run in runs.items()}
            times = measure(runs, args.rounds)
            cases.append(
                {
                    "size": size,
                    "frames": frames,
                    "contenders": {name: {**times[name], **moved[name]} for name in runs},
                }
            )
            for name in runs:
                row = cases[-1]["contenders"][name]
                print(
                    f"{size} x{frames} {name:30} {row['wall_ms']:8.0f} ms "
                    f"{row['cpu_ms']:8.0f} CPU ms  depth {row['depth']:.2%} "
                    f"rotation {row['rotation_deg']:.3f} deg",
                    flush=True,
                )
            # The weights are random: speed does not depend on them.
            results = {"note": args.note, "threads": args.threads, "cases": cases}
            write_results(args.output, results)


if __name__ == "__main__":
    main()
