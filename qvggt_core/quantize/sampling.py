"""Which windows a network is calibrated on: any, or clean and different ones.

Noise-filtered diverse sampling is QuantVGGT's: windows whose deep activations are unlike the
others' are noise and are dropped; the rest are clustered by how each of their frames relates
to the first, and every cluster gives its share.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qvggt_core.errors import QuantizationError
from qvggt_core.model import VGGT
from qvggt_core.optional import import_optional
from qvggt_core.quantize.blockwise import BlockwiseRunner
from qvggt_core.quantize.calibration_inputs import CalibrationSet

Sampling = Literal["random", "diverse"]

_DROPPED = 0.1
"""Share of the windows, the noisiest ones, that diverse sampling leaves out."""

_CLUSTERS = 8
_DEEP = 0.5
"""Blocks behind this share of the aggregator's depth are deep."""


def choose_windows(
    data: CalibrationSet,
    images: int,
    sampling: Sampling,
    seed: int,
    model: VGGT | None = None,
) -> CalibrationSet:
    """Choose windows for about so many images.

    Args:
        data: the windows to choose from.
        images: wanted; rounded up to whole windows, all windows if there are fewer.
        sampling: "random", or "diverse" for noise-filtered diverse sampling.
        seed: of the choice.
        model: full-precision network, which diverse sampling runs.

    Raises:
        QuantizationError: the number of images is not positive, or diverse sampling has no network.
    """
    if images < 1:
        raise QuantizationError(f"{images} calibration images: at least 2 are needed")
    count = min(-(-images // data.images.shape[1]), len(data.images))
    if sampling == "random":
        chosen = np.random.default_rng(seed).permutation(len(data.images))[:count]
        return data.part(chosen.tolist(), f"{count} of {len(data.images)} windows, seed {seed}")
    if model is None:
        raise QuantizationError("diverse sampling runs the network: pass the full-precision one")
    magnitudes, relations = window_features(model, data)
    quiet = quiet_windows(magnitudes)
    chosen = quiet[diverse_choice(relations[quiet], count, seed)]
    dropped = len(data.images) - len(quiet)
    summary = f"{len(chosen)} of {len(data.images)} windows, diverse, {dropped} noisy ones left out"
    return data.part(chosen.tolist(), f"{summary}, seed {seed}")


def window_features(model: VGGT, data: CalibrationSet) -> tuple[NDArray, NDArray]:
    """Return features of each window from deep blocks.

    Returns:
        Statistics (B, 2 * L): logarithms of the mean and of the variance of the tokens'
        magnitude behind each of L deep blocks; and relations (B, S - 1): cosine of each later
        frame's mean patch token with the first frame's, behind the last block.
    """
    runner = BlockwiseRunner(model, data.images, batch=1)
    depth = model.config.depth
    statistics: list[list[NDArray]] = []
    relations = np.zeros((len(data.images), 1))
    while not runner.done and runner.site.part != "camera":
        site = runner.site
        runner.advance()
        if site.part == "encoder" or site.index < _DEEP * depth:
            continue
        tokens = runner.tokens()
        magnitude = [t.norm(dim=-1).flatten() for t in tokens]
        statistics.append([np.array([float(m.mean()), float(m.var())]) for m in magnitude])
        if site.part == "global" and site.index == depth - 1:
            relations = np.stack([_relation(t, site.special_tokens) for t in tokens])
    features = np.stack([np.concatenate(block) for block in zip(*statistics, strict=True)])
    return np.log(features + 1e-12), relations


def _relation(tokens: torch.Tensor, special: int) -> NDArray:
    frames = tokens[0, :, special:].mean(dim=1)
    if len(frames) == 1:
        return np.zeros(1)
    similarity = torch.nn.functional.cosine_similarity(frames[1:], frames[:1], dim=-1)
    return similarity.double().cpu().numpy()


def quiet_windows(statistics: NDArray, dropped: float = _DROPPED) -> NDArray[np.intp]:
    """Return the windows, in order, that are left when the noisiest are dropped.

    A window's noise is the mean |z| of its statistics over all windows.

    Args:
        statistics: (B, F).
        dropped: share that is left out, rounded down.
    """
    spread = statistics.std(axis=0)
    z = (statistics - statistics.mean(axis=0)) / np.where(spread == 0, 1, spread)
    noise = np.abs(z).mean(axis=1)
    count = len(noise) - int(dropped * len(noise))
    return np.sort(np.argsort(noise, kind="stable")[:count])


def diverse_choice(relations: NDArray, count: int, seed: int) -> NDArray[np.intp]:
    """Return windows taken in turn from clusters of alike ones.

    Args:
        relations: (B, F) how each window's frames relate.
        count: of windows wanted; all if there are fewer.
        seed: of clustering and choice.
    """
    clustering = import_optional("sklearn.cluster")
    if count >= len(relations):
        return np.arange(len(relations))
    rng = np.random.default_rng(seed)
    clusters = min(_CLUSTERS, count, len(np.unique(relations, axis=0)))
    labels = clustering.KMeans(clusters, n_init=4, random_state=seed).fit_predict(relations)
    queues = [rng.permutation(np.flatnonzero(labels == c)).tolist() for c in range(clusters)]
    chosen: list[int] = []
    while len(chosen) < count:
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return np.sort(np.array(chosen))
