"""Checks of what a kernel is given: the kernels trust the sizes that they get."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..weight import IntegerWeight, PackedWeight


def require(fits: bool, message: str) -> None:
    """Raise ValueError with a message unless something holds."""
    if not fits:
        raise ValueError(message)


def fitting(
    x: Tensor, weight: PackedWeight | IntegerWeight, bias_dtype: torch.dtype, multiple: int
) -> tuple[Tensor, list[Any], Tensor]:
    """Return tokens (M, K), the parts of a weight and an empty result (..., N) for a kernel.

    Raises:
        PackingError: the arguments do not fit together.
        ValueError: the kernels do not take the dtype or the number of columns.
    """
    weight.check(x)
    require(
        x.dtype in (torch.float32, torch.bfloat16) and weight.columns % multiple == 0,
        f"tokens of {weight.columns} numbers of {x.dtype}: this kernel takes multiples of "
        f"{multiple}, float32 or bfloat16",
    )
    if weight.bias is not None:
        weight = weight._replace(bias=weight.bias.to(bias_dtype))
    parts = [aligned(part.contiguous()) if isinstance(part, Tensor) else part for part in weight]
    out = torch.empty(*x.shape[:-1], weight.outputs, dtype=x.dtype, device="cpu")
    return aligned(x.reshape(-1, weight.columns).contiguous()), parts, out


def aligned(part: Tensor) -> Tensor:
    """Return a tensor whose numbers lie at multiples of their size; files may lay them anywhere."""
    return part.clone() if part.data_ptr() % part.element_size() else part


def names(dtypes: Iterable[torch.dtype]) -> str:
    """Return dtypes as a message names them."""
    return " or ".join(str(dtype) for dtype in dtypes)
