"""Checks of a checkpoint: readable, of a known network, complete, and finite."""

from __future__ import annotations

from pathlib import Path

from qvggt_core.doctor.finding import Finding, ok, problem, warn
from qvggt_core.errors import CheckpointError, QvggtError
from qvggt_core.optional import missing_package


def check_checkpoint(path: Path | None) -> list[Finding]:
    """Return findings on a checkpoint; every weight is read once.

    Args:
        path: the file or folder; the network that ships if None.
    """
    try:
        import torch
    except ImportError as error:
        missing = missing_package(error)
        return [problem("checkpoint", "not checked", str(missing or error))]
    from qvggt_core.model import load_model, part_sizes, read_checkpoint, shipped_checkpoint

    try:
        checkpoint = read_checkpoint(path or shipped_checkpoint())
        load_model(checkpoint.path, dtype=torch.float32, heads=_heads(checkpoint.config))
        invalid = [
            name
            for name in checkpoint.names()
            if (tensor := checkpoint.tensor(name)).is_floating_point()
            and not bool(torch.isfinite(tensor).all())
        ]
    except CheckpointError as error:
        return [problem("checkpoint", str(error), _NEW_FILE)]
    except (QvggtError, OSError, RuntimeError, ValueError) as error:
        return [problem("checkpoint", f"{type(error).__name__}: {error}", _NEW_FILE)]
    if invalid:
        shown = ", ".join(invalid[:3])
        return [
            problem(
                "checkpoint",
                f"{checkpoint.path}: {len(invalid)} entries are not finite, first: {shown}",
                _NEW_FILE,
            )
        ]
    sizes = part_sizes(checkpoint).values()
    weights, size = sum(each[0] for each in sizes), sum(each[1] for each in sizes)
    found = (
        f"{checkpoint.path}: {weights:,} weights at {8 * size / max(weights, 1):.2f} bits, "
        "complete and finite"
    )
    findings = [ok("checkpoint", found)]
    if checkpoint.assumptions:
        findings.append(
            warn(
                "checkpoint sizes",
                f"assumed that {'; '.join(checkpoint.assumptions)}",
                "put the config.json that was published with the weights beside the file",
            )
        )
    return findings


_NEW_FILE = "download it again (`qvggt download`), or quantize again (`qvggt quantize`)"


def _heads(config: object) -> tuple[str, ...]:
    """Return the heads that a network of these sizes has."""
    parts = {
        "depth": "depth_head",
        "points": "point_head",
        "rays": "ray_head",
        "conditioning": "camera_encoder",
    }
    return ("camera", *(head for head, part in parts.items() if getattr(config, part, False)))
