"""Compiles every shipped Triton kernel for GPUs that are not there and keeps what came of it.

python benchmarks/triton_static.py [--processes 2] [--out benchmarks/results/triton_static.json]

test/kernels/test_offline.py holds the compiler to the figures that are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import triton
from qvggt_kernels.offline import compiler
from rich.console import Console

TABLE = Path(__file__).parent / "results" / "triton_static.json"


def main() -> None:
    """Compile, print what breaks a rule, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    console = Console()
    found = compiler.survey(processes=arguments.processes)
    broken = {name: result.pop("broken") for name, result in found.items()}
    for name, rules in broken.items():
        for rule in rules:
            console.print(f"{name}: {rule}", style="red")
    lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    content = ",\n ".join(lines)
    arguments.out.write_text(
        f'{{"triton": {json.dumps(triton.__version__)}, "kernels": {{\n {content}\n}}}}\n',
        encoding="utf-8",
    )
    console.print(f"wrote {arguments.out}: {len(found)} kernels")


if __name__ == "__main__":
    main()
