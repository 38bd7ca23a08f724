"""Loads the network that the parameters name."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from qvggt_kernels import fastest_dtype, fastest_linears, native

from qvggt_core.errors import CheckpointError, ParameterError
from qvggt_core.model import (
    VGGT,
    ComputeSettings,
    load_model,
    read_checkpoint,
    shipped_checkpoint,
)
from qvggt_core.model.memory_plan import MemoryPlan, plan_memory, weight_memory
from qvggt_core.parameters import Parameters
from qvggt_core.stream import TorchNetwork
from qvggt_core.stream.metric_depth import MetricDepthNetwork
from qvggt_core.util.process_settings import freeze_long_lived, limit_blas_threads

logger = logging.getLogger(__name__)

_METADATA_KEYS = ("base_model", "recipe", "group_size", "licence", "note")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that is ready to run.

    Attributes:
        network: the network.
        parameters: the given ones, with what was left to choose filled in: with these, another
            run computes the same on the same kind of machine.
        metric_depth: gives the scale, None unless the parameters name a `scale_network`.
        facts: for reports: `file`, `megabytes`, what the file says of itself, and `memory`, how
            the network keeps to its budget, if it has one.
    """

    network: TorchNetwork
    parameters: Parameters
    facts: dict[str, Any]
    metric_depth: MetricDepthNetwork | None = None


def load_network(parameters: Parameters, with_points: bool = False) -> LoadedNetwork:
    """Load the network that the parameters name, or the one that ships.

    The process is made ready for it, see `process_settings`.

    Args:
        parameters: which file, and how it computes.
        with_points: whether its point head is loaded too.

    Raises:
        CheckpointError: the file is missing or does not fit.
        ParameterError: the device is not there, or the memory budget is too small.
    """
    path = Path(parameters.checkpoint) if parameters.checkpoint else shipped_checkpoint()
    device = device_of(parameters.device)
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    limit_blas_threads()
    dtype = _dtype(parameters, device)
    model = load_model(path, device=device, dtype=dtype, heads=_heads(parameters, with_points))
    if parameters.condition_on != "none" and model.camera_encoder is None:
        raise CheckpointError(
            f"condition_on is {parameters.condition_on}, and {path} has no camera encoder that "
            "takes known cameras: quantize a Depth Anything 3 with --conditioning, or choose none"
        )
    poses_from = parameters.poses_from
    if poses_from == "auto":
        poses_from = "matches" if model.config.matching else "camera_head"
    if poses_from == "matches" and not model.config.matching:
        raise CheckpointError(
            f"poses_from is matches, and {path} was not trained to match views: choose "
            "camera_head or auto"
        )
    network = TorchNetwork(
        model,
        device,
        parameters.image_width,
        with_points,
        parameters.cuda_graphs,
        with_matches=poses_from == "matches",
    )
    linears = parameters.linears if parameters.linears != "auto" else fastest_linears(device)
    settings, window_size, memory = _fitted(parameters, model, network.image_width, dtype)
    settings = replace(
        settings,
        attention=parameters.attention,
        linears=linears,
        reference_view=parameters.reference_view,
    )
    model.configure(settings)
    effective = parameters.with_values(
        checkpoint=str(path),
        window_size=window_size,
        device=device,
        compute_dtype=str(dtype).removeprefix("torch."),
        linears=linears,
        threads=torch.get_num_threads(),
        image_width=network.image_width,
        poses_from=poses_from,
    )
    metric_depth = None
    if parameters.scale_network:
        metric = load_model(Path(parameters.scale_network), device, dtype, ("depth",))
        metric_depth = MetricDepthNetwork(metric.configure(settings), device)
    freeze_long_lived()
    return LoadedNetwork(network, effective, _facts(path, memory), metric_depth)


def checkpoint_sha256(parameters: Parameters) -> str:
    """Return the hash of the network that the parameters of a `LoadedNetwork` name.

    Raises:
        CheckpointError: it is not there any more.
    """
    return read_checkpoint(Path(parameters.checkpoint)).sha256()


def _dtype(parameters: Parameters, device: str) -> torch.dtype:
    if torch.device(device).type == "cpu" and (why := native.shortfall()) is not None:
        logger.warning("the network will be slower than it could be: C++ kernels %s", why)
    if parameters.compute_dtype == "auto":
        return fastest_dtype(device)
    return getattr(torch, parameters.compute_dtype)


def _heads(parameters: Parameters, with_points: bool) -> list[str]:
    heads = ["camera", "depth"]
    heads += ["points"] if with_points else []
    heads += ["conditioning"] if parameters.condition_on != "none" else []
    return heads


def _fitted(
    parameters: Parameters, model: VGGT, image_width: int, dtype: torch.dtype
) -> tuple[ComputeSettings, int, dict[str, str]]:
    """Return settings and window size that keep to the memory budget, and how, for reports."""
    if not parameters.memory_budget_mb:
        return ComputeSettings(), parameters.window_size, {}
    plan = _plan(parameters, model, image_width, dtype)
    return plan.settings, plan.window_size, {"memory": _memory_message(plan, parameters)}


def _facts(path: Path, memory: dict[str, str]) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    return {
        "file": path.name,
        "megabytes": round(checkpoint.nbytes / 1e6, 1),
        **{key: value for key, value in checkpoint.metadata.items() if key in _METADATA_KEYS},
        **memory,
    }


def _plan(parameters: Parameters, model: VGGT, image_width: int, dtype: torch.dtype) -> MemoryPlan:
    # Views are cropped to squares at most, whatever camera comes.
    return plan_memory(
        parameters.memory_budget_mb,
        model.config,
        weight_memory(model),
        parameters.window_size,
        min(parameters.window_size, max(parameters.window_stride + 1, len(parameters.cameras))),
        height=image_width,
        width=image_width,
        dtype=dtype,
    )


def _memory_message(plan: MemoryPlan, parameters: Parameters) -> str:
    megabytes = plan.estimate.total / 1e6
    return (
        f"{megabytes:.0f} of {parameters.memory_budget_mb} MB with windows of {plan.window_size} "
        f"(asked for: {parameters.window_size}), {plan.settings.mlp_rows} tokens per slice and "
        f"{plan.settings.dense_pixels} pixels per chunk of depth"
    )


def device_of(name: str) -> str:
    """Return the device that a parameter's value means here.

    Raises:
        ParameterError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ParameterError(f"there is no {name}: PyTorch sees no GPU; choose auto or cpu")
    return name
