"""The curves of a training run, drawn from its log."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

_PANELS = (
    ("auc_30", "AUC@30"),
    ("rotation", "rotation error, degrees"),
    ("translation", "translation direction error, degrees"),
    ("abs_rel", "depth AbsRel"),
)


def draw_curves(log: Path, output: Path) -> None:
    """Draw the loss and the held-out errors, beside the trivial answer's, as a PNG."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "model" in line]
    figure = Figure(figsize=(14, 3), layout="constrained")
    axes = figure.subplots(1, 1 + len(_PANELS))
    axes[0].plot([line["step"] for line in steps], [line["loss"] for line in steps], lw=0.8)
    axes[0].set_title("loss")
    for axis, (name, title) in zip(axes[1:], _PANELS, strict=True):
        for who in ("model", "trivial"):
            axis.plot(
                [line["step"] for line in evaluations],
                [line[who][name] for line in evaluations],
                label=who,
            )
        axis.set_title(title)
        axis.set_ylim(bottom=0.0)
    axes[1].legend()
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(output, dpi=90)
