"""docs/torture.md, written from the raw figures of `make torture`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("cases", "explained", "tracebacks", "killed", "lost", "peak_mb", "slowest_s")
WHAT = {
    "checkpoints": "networks and their descriptions: cut, flipped, lying, hostile pickles",
    "faults": "commands killed, on full, read-only and vanished disks, short of memory; run again",
    "kernels": "random calls of the kernels, in processes of 200",
    "live": "a running session: its checkpoint, folder, subscriber, clock, camera, memory",
    "load": "four cameras at 60 Hz into a network that is too slow and fails; memory, threads flat",
    "messages": "images, calibrations, odometry, transforms that are wrong; a network's nonsense",
    "parameters": "parameter, plan, study, training and truth files",
    "recordings": "MCAP and sqlite3: cut, flipped, zeroed, spliced, lying sizes",
}
PAGE = """# Torture

Wrong input, faults and load for as long as one wants, in processes of their own:

```
make torture                                    # at most 20 minutes on two cores
cd test && python -m torture messages --minutes 60
cd test && python -m torture --minutes 600      # about a million cases
cd test && python -m torture.kernels --sanitize --batches 20   # AddressSanitizer, UBSan
```

A slice of it is in `make test`. A case ends with a result or an error of ours (*explained*), with
any other exception (*traceback*), or the process ends with it (*killed*). *Lost* counts what is
wrong without a word: an image in no counter, numbers that are no geometry, half an output that
looks whole, a file of the user that is gone. `make torture` fails unless the last three are 0.

{table}

{parts}

Measured at commit `{commit}` on {cpu}, {threads} threads, load {load:.1f} when it began,
{seconds} s in all; raw figures: [torture.json](../benchmarks/results/torture.json).
{sanitizers}
"""


def table(results: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Return the figures in Markdown."""
    rows = [f"| part | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for part, figures in results.items():
        rows.append(f"| {part} | {' | '.join(f'{figures[name]:,}' for name in columns)} |")
    return "\n".join(rows)


def page(raw: Mapping[str, Any]) -> str:
    """Return the whole page."""
    parts, found = raw["parts"], raw.get("sanitizers")
    sanitizers = ""
    if found is not None:
        sanitizers = (
            f"The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer: "
            f"{found['killed']} of {found['batches']} batches of 200 calls died, "
            f"{found['equal']:,} of {found['cases']:,} calls computed something and were compared "
            f"({found['instructions']}); {found['lost']} differed from plain PyTorch by more than "
            f"the tolerance{': ' + found['note'] if 'note' in found else ''}."
        )
    return (
        PAGE.format(
            table=table(parts),
            parts="\n".join(f"- {name}: {WHAT[name]}" for name in parts),
            commit=raw["commit"][:12] + "+" * raw["commit"].endswith("+"),
            cpu=raw["machine"]["cpu"],
            threads=raw["machine"]["threads"],
            load=raw["load"],
            seconds=sum(part["seconds"] for part in parts.values()),
            sanitizers=sanitizers,
        ).rstrip()
        + "\n"
    )
