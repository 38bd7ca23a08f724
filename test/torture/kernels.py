"""Random calls of the kernels, in batches of 200 that each have a process of their own.

    cd test && python -m torture.kernels --seconds 60
    cd test && python -m torture.kernels --sanitize --batches 20

With `--sanitize` the C++ code is built with AddressSanitizer and UndefinedBehaviorSanitizer, into a
temporary directory, and every batch runs with them: a read or write past a tensor ends the batch,
and counts as killed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvggt_kernels import native

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CALLS = 200
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
TIMEOUT_S = 900.0


@contextmanager
def sanitized_library() -> Iterator[tuple[list[str], dict[str, str]]]:
    """Build the kernels with sanitizers; yield what a batch needs: arguments and environment."""
    if native.instruction_set() is None:
        sys.exit("this processor runs no kernels, so there is nothing to look at")
    compiler = os.environ.get("CXX", "g++")
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    with tempfile.TemporaryDirectory() as directory:
        # Optimised further, instrumented code takes minutes to compile.
        flags = {"QVGGT_CXXFLAGS": f"-O1 -g {SANITIZERS}", "LDFLAGS": SANITIZERS}
        build = ["build_ext", f"--build-lib={directory}", f"--build-temp={directory}/objects"]
        subprocess.run(
            [sys.executable, "setup.py", "-q", *build],
            cwd=ROOT,
            env={**os.environ, **flags},
            check=True,
        )
        library = Path(directory) / "qvggt_kernels" / "native"
        if not list(library.glob("_library*")):
            sys.exit("the kernels cannot be built with sanitizers here")
        environment = {
            "LD_PRELOAD": " ".join(runtimes),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }
        yield ["--library", str(library)], environment


def batch(seed: int, extra: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a batch in a process of its own; return its figures."""
    command = [sys.executable, "-m", "support.random_calls", "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--calls", str(CALLS), *extra],
        cwd=HERE.parent,
        env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode == 0:
        figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return {**figures, "killed": 0}
    print(f"seed {seed}: status {done.returncode}\n{done.stderr[-3000:]}", file=sys.stderr)
    return {"cases": CALLS, "killed": 1}


def main() -> None:
    """Run batches for a while and print their sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="begin no batch after this")
    parser.add_argument("--batches", type=int, help="this many instead")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--sanitize", action="store_true")
    arguments = parser.parse_args()
    total = {"cases": 0, "explained": 0, "tracebacks": 0, "killed": 0, "lost": 0, "equal": 0}
    total |= {"batches": 0, "slowest_s": 0.0}
    start = time.monotonic()

    def goes_on() -> bool:
        if arguments.batches is not None:
            return total["batches"] < arguments.batches
        return time.monotonic() - start < arguments.seconds

    def run_all(extra: list[str], environment: dict[str, str]) -> None:
        while goes_on():
            figures = batch(arguments.seed + int(total["batches"]), extra, environment)
            total["batches"] += 1
            total["slowest_s"] = max(total["slowest_s"], figures.get("slowest_s", 0.0))
            for name in ("cases", "explained", "tracebacks", "killed", "lost", "equal"):
                total[name] += figures.get(name, 0)
            for example in figures.get("examples", ()):
                print(example, file=sys.stderr)

    if arguments.sanitize:
        with sanitized_library() as (extra, environment):
            run_all(extra, environment)
    else:
        run_all([], {})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps({**total, "slowest_s": round(total["slowest_s"], 3), "peak_mb": round(peak)}))


if __name__ == "__main__":
    main()
