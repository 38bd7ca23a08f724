"""What the parts measure with: a network of VGGT-1B's shape, a recording, a training run.

    python benchmarks/gpu_day/inputs.py OUTPUT [--clips]

Needs no GPU. What is there is kept; `--clips` renders the clips of the training run too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from qvggt_core.model import ModelConfig
from qvggt_core.quantize.random_checkpoint import write_random_checkpoint
from qvggt_core.training.config import TrainConfig
from qvggt_core.training.pool import build_pool
from qvggt_core.util.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = "vggt-1b-random-int4.safetensors"
RECORDING = "recording"
TRAINING = "training"
CONFIG = "training.yaml"
_CONTINUED = ROOT / "qvggt_core/training/configs/varied-continued.yaml"
_CLIPS, _EVALUATION_CLIPS = 360, 24
"""As many as 16 cores render in half a minute; the run for good has 4,800."""

_SYNTH = "--world studio --flight survey --seed 1 --frames 30 --width 320 --height 240 --step 0.1"


def prepare(output: Path, *, with_clips: bool) -> None:
    """Make what is not there yet."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / CONFIG, training_config(output))
    if not (output / CHECKPOINT).exists():
        print(f"writing {CHECKPOINT}", flush=True)
        write_random_checkpoint(output / CHECKPOINT, ModelConfig.vggt_1b())
    if not (output / RECORDING).exists():
        command = ["-m", "qvggt_ros.cli.app", "synth", "-o", str(output / RECORDING)]
        subprocess.run([sys.executable, *command, *_SYNTH.split()], check=True)
    if with_clips:
        config = TrainConfig.read(output / CONFIG)
        for pool, name in ((config.evaluation_pool, "pool_eval"), (config.pool, "pool_train")):
            print(f"rendering {pool.clips} clips", flush=True)
            build_pool(pool, output / TRAINING / name)


def training_config(output: Path) -> str:
    """Return the run that goes on with the network for new places, with few clips, as YAML."""
    config = yaml.safe_load(_CONTINUED.read_text(encoding="utf-8"))
    weights = _CONTINUED.parent / config["initial_weights"]["file"]
    config["initial_weights"]["file"] = os.path.relpath(weights.resolve(), output.resolve())
    config["pool"]["clips"] = _CLIPS
    config["evaluation_pool"]["clips"] = _EVALUATION_CLIPS
    for stage in config["stages"]:
        stage["clips"] = 0
    config["evaluate_every"] = 250
    return yaml.safe_dump(config, sort_keys=False)


def main(arguments: Sequence[str]) -> None:
    """Prepare the directory that is named."""
    prepare(Path(arguments[0]), with_clips="--clips" in arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
