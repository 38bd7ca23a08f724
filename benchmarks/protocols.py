"""The papers' protocols on synthetic sets in the data sets' layouts, 4-bit beside full precision.

Flights with held-out seeds through the room that the small network was trained in, 128x96 pixels,
80 degrees. The sets are rendered once and kept. Both networks compute in float32, so that a
difference between them is the weights' alone.

    python benchmarks/protocols.py --full-precision training/model.safetensors
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from held_out import networks_parser

from qvggt_core.measure.provenance import write_results
from qvggt_core.model import shipped_checkpoint
from qvggt_core.protocols import PROTOCOLS, make_benchmark

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
MARKS = ("<!-- results -->", "<!-- /results -->")
LEAST_FITNESS = 0.2
SCENES = {"co3d": 12, "re10k": 12, "7scenes": 6, "nrgbd": 12, "tum": 4, "euroc": 4}
SET = ("--world", "studio", "--seed", "1", "--width", "128", "--height", "96", "--fov", "80")


def main() -> None:
    """Render what is missing, run every protocol, write the raw results and one page of tables."""
    parser = networks_parser(__doc__)
    parser.add_argument("--sets", type=Path, default=Path("out/sets"))
    parser.add_argument("--runs", type=Path, default=Path("out/protocols"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/protocols.json"))
    args = parser.parse_args()

    models = [args.int4 or shipped_checkpoint()]
    if args.full_precision:
        models.append(args.full_precision)
    results: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        data, run = args.sets / protocol, args.runs / protocol
        if not (data / "synthetic.json").exists():
            qvggt("synth", "--format", protocol, "--scenes", SCENES[protocol], *SET, "-o", data)
        chosen = [option for model in models for option in ("--model", model)]
        settings = ("--set", "compute_dtype=float32", "--set", "device=cpu", "--overwrite")
        qvggt("benchmark", protocol, "--data", data, "-o", run, *chosen, *settings)
        results[protocol] = json.loads((run / "results.json").read_text())
        results[protocol]["data"] = json.loads((data / "synthetic.json").read_text())
        # All scenes of the real data set are absent.
        del results[protocol]["absent"]
    for result in results.values():
        for model in result["models"]:
            del model["groups"]  # sums over scenes, which are there
    write_results(args.output, {"protocols": results}, *models, digits=5)
    write_page(results)
    print(f"wrote {args.output} and the tables in {PAGE}")


def write_page(results: dict[str, Any]) -> None:
    """Put the tables into docs/benchmarks.md."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(before + MARKS[0] + "\n\n" + page(results) + MARKS[1] + after)


def page(results: dict[str, Any]) -> str:
    """Return the tables."""
    lines = []
    for protocol, result in results.items():
        columns = make_benchmark(protocol).columns
        headings = [f"{c.heading} {'↑' if c.higher_is_better else '↓'}" for c in columns]
        lines += ["| `" + protocol + "` | " + " | ".join(headings) + " | scenes |"]
        lines += ["|---|" + "---|" * (len(columns) + 1)]
        for model in result["models"]:
            numbers = [f"{model['summary'][c.key]:.{c.digits}f}" for c in columns]
            row = [model["name"], *numbers, str(len(model["scenes"]))]
            lines += ["| " + " | ".join(row) + " |"]
        lines += ["", *_misaligned(protocol, result["models"])]
    models = next(iter(results.values()))["models"]
    files = "; ".join(
        f"{model['name']}: {model['megabytes']} MB, SHA-256 {model['sha256'][:16]}..."
        for model in models
    )
    return "\n".join([*lines, f"Networks: {files}.", ""])


def _misaligned(protocol: str, models: list[dict[str, Any]]) -> list[str]:
    """Return a sentence on scenes whose clouds the protocol's alignment left apart."""
    task = make_benchmark(protocol)
    sentences = []
    for model in models:
        scenes = model["scenes"]
        apart = [name for name, s in scenes.items() if s.get("icp_fitness", 1.0) < LEAST_FITNESS]
        rest = {name: scene for name, scene in scenes.items() if name not in apart}
        if apart and rest:
            accuracy = task.summarise(rest)["accuracy_mean"]
            sentences.append(f"{model['name']}: {', '.join(apart)} (without: {accuracy:.3f})")
    if not sentences:
        return []
    return [
        f"Scenes that the alignment left apart (`icp_fitness` below {LEAST_FITNESS}), and the mean "
        f"accuracy without them: {'; '.join(sentences)}.",
        "",
    ]


def qvggt(*arguments: object) -> None:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "qvggt_ros.cli.app", *map(str, arguments)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
