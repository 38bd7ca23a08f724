"""Camera information compensation: one token for the camera head, made of camera tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from qvggt_core.errors import QuantizationError
from qvggt_core.optional import import_optional


def compensation_token(camera_tokens: Tensor, patch_norm: float, directions: int = 32) -> Tensor:
    """Return QVGGT's camera information compensation token (section 3.3).

    With mu the mean of the camera tokens and V the principal directions around it, each token
    is projected, z_i = V^T (x_i - mu), the projections are averaged and reconstructed,
    c = mu + V mean(z), and c is brought to the length of patch tokens.

    Over one and the same set the mean of the z_i is zero by construction, so that c = mu and
    the principal directions change nothing but rounding. It is computed as it is written.

    Args:
        camera_tokens: (n, 2C) at the camera head's input.
        patch_norm: mean length of patch tokens there.
        directions: K; at most n - 1 and 2C exist.

    Returns:
        (2C,) float32.

    Raises:
        QuantizationError: fewer than two tokens, or tokens whose mean is zero.
    """
    decomposition = import_optional("sklearn.decomposition")
    if len(camera_tokens) < 2:
        raise QuantizationError(
            f"{len(camera_tokens)} camera token has no principal directions: give more images"
        )
    samples = camera_tokens.double().cpu().numpy()
    count = min(directions, len(samples) - 1, samples.shape[1])
    analysis = decomposition.PCA(n_components=count, svd_solver="full").fit(samples)
    projections = analysis.transform(samples)
    token = torch.from_numpy(analysis.inverse_transform(projections.mean(axis=0)[None])[0])
    length = float(token.norm())
    if length == 0.0:
        raise QuantizationError("the mean camera token is zero: the network is not trained")
    return (token * (patch_norm / length)).float()
