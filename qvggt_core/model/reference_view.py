"""The view of a window that Depth Anything 3 takes as its reference, by the authors' policies.

Nothing is learned here: the policies look at the class tokens of the views, as they enter the
last block that sees one view alone.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from qvggt_core.errors import ParameterError
from qvggt_core.model.settings import ReferenceView

_FEWEST_VIEWS = 3
"""Below so many views the first is the reference, whatever the policy."""


def choose_reference(class_tokens: Tensor, policy: ReferenceView) -> Tensor:
    """Return the index (B,) of the reference view of each window.

    "first" and "middle" go by order. "saddle_sim_range" takes the view whose similarities to the
    others differ most, "saddle_balanced" the one that is nearest the middle of the window's range
    in three respects: mean cosine similarity to the others, length of its token, and variance of
    the normalised token.

    Args:
        class_tokens: (B, S, C), in order of the views.
        policy: see above.

    Raises:
        ParameterError: there is no such policy.
    """
    batch, views, _ = class_tokens.shape
    if policy not in get_args(ReferenceView):
        raise ParameterError(
            f"there is no reference view policy {policy!r}: choose of {get_args(ReferenceView)}"
        )
    if views < _FEWEST_VIEWS or policy == "first":
        return torch.zeros(batch, dtype=torch.long, device=class_tokens.device)
    if policy == "middle":
        return torch.full((batch,), views // 2, device=class_tokens.device)
    tokens = class_tokens.float()
    lengths = tokens.norm(dim=-1)
    directions = tokens / lengths[..., None]
    similarity = directions @ directions.transpose(1, 2)
    similarity = similarity - torch.eye(views, device=tokens.device)
    if policy == "saddle_sim_range":
        return (similarity.amax(dim=-1) - similarity.amin(dim=-1)).argmax(dim=1)
    respects = (similarity.sum(dim=-1) / (views - 1), lengths, directions.var(dim=-1))
    off_centre = sum((_in_unit_range(respect) - 0.5).abs() for respect in respects)
    assert isinstance(off_centre, Tensor)
    return off_centre.argmin(dim=1)


def _in_unit_range(values: Tensor) -> Tensor:
    """Map (B, S) values to [0, 1] within each window."""
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    return (values - low) / (high - low + 1e-8)
