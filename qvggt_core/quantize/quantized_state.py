"""The entries of a quantized checkpoint, tensor by tensor."""

from __future__ import annotations

import mmap

import torch
from qvggt_kernels import PackedLinear
from torch import Tensor

from qvggt_core.errors import QuantizationError
from qvggt_core.model import Checkpoint
from qvggt_core.quantize.block_calibration import LinearReport
from qvggt_core.quantize.calibrate import Calibrated
from qvggt_core.quantize.plan import Plan, Precision
from qvggt_core.quantize.quantization_report import LayerReport
from qvggt_core.quantize.rounding import quantized_linear, represented_weight

_DTYPES = {16: torch.bfloat16, 32: torch.float32}


class QuantizedState:
    """The entries of a quantized checkpoint, each in the precision of the plan.

    Attributes:
        state: the entries by name.
        linears: the packed linears by path, without their tensors.
        layers: what was quantized, in the order in which it was added.
    """

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, group_size: int | str, calibrated: Calibrated
    ) -> None:
        """Begin with no entries.

        Args:
            checkpoint: full precision.
            plan: which tensor is stored how.
            group_size: for rules that name none.
            calibrated: the blocks that calibration has quantized.
        """
        self._checkpoint = checkpoint
        self._plan = plan
        self._group_size = group_size
        self._calibrated = calibrated
        self._reports: dict[str, LinearReport] = {r.name: r for r in calibrated.reports}
        self.state: dict[str, Tensor] = {}
        self.linears: dict[str, PackedLinear] = {}
        self.layers: list[LayerReport] = []

    def add(self, name: str) -> None:
        """Add the entries that replace a tensor of the full-precision checkpoint."""
        shape = self._checkpoint.shape(name)
        precision = self._plan.precision(name, shape, self._group_size)
        if precision.quantized:
            self._add_linear(name, precision)
            return
        tensor = self._calibrated.state.get(name)
        if tensor is None:
            tensor = self._checkpoint.tensor(name)
        self.state[name] = _off_the_heap(_rounded(name, tensor, _DTYPES[precision.bits]))

    def add_new_entries(self) -> None:
        """Add the entries of calibration that belong to no tensor and no linear."""
        known = {*self._checkpoint.names(), *self.state}
        for name, tensor in self._calibrated.state.items():
            if name not in known:
                self.state[name] = tensor

    def _add_linear(self, name: str, precision: Precision) -> None:
        path = name.removesuffix(".weight")
        linear = self._calibrated.linears.get(path)
        weight = self._checkpoint.tensor(name)
        if linear is None:
            try:
                linear = quantized_linear(weight, None, precision)
            except QuantizationError as error:
                raise QuantizationError(f"{name}: {error}") from None
            report = LinearReport(name, None, _relative_error(linear, weight), 0.0)
        else:
            report = self._reports[name]
        stored = {key: tensor for key, tensor in linear.state_dict().items() if key != "bias"}
        for key, tensor in stored.items():
            self.state[f"{path}.{key}"] = _off_the_heap(tensor)
        # The packed tensors are in pages of their own from here on.
        self.linears[path] = linear.to("meta")
        calibrated = name in self._reports
        self.layers.append(
            LayerReport(
                name=name,
                shape=(weight.shape[0], weight.shape[1]),
                precision=precision,
                bits_per_weight=8 * sum(t.nbytes for t in stored.values()) / weight.numel(),
                relative_error=report.weight_error,
                output_error=report.output_error if calibrated else None,
                alpha=report.alpha,
            )
        )


def _relative_error(linear: PackedLinear, weight: Tensor) -> float:
    wrong = represented_weight(linear).sub_(weight.float())
    norm = float(weight.float().norm())
    return float(wrong.norm()) / norm if norm else 0.0


def _off_the_heap(tensor: Tensor) -> Tensor:
    """Return a copy in pages of its own.

    Results that are kept between large temporaries that are freed fragment the C library's
    heap: quantizing VGGT-1B would take over 4 GB where 0.7 GB are alive.
    """
    pages = mmap.mmap(-1, tensor.nbytes)
    return torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = tensor.to(dtype)
    if not torch.isfinite(rounded).all():
        raise QuantizationError(
            f"{name} holds NaN, infinity or numbers too large for {dtype}: "
            "the checkpoint is damaged or its training diverged"
        )
    return rounded
