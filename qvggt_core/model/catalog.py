"""The published networks that this package runs: where they are, what they give, what they may.

Accuracy is that of SpatialBench (May 2026, sparse views), which tested all of them on the same
scenes: AUC@30 of relative poses, and AbsRel of depth. None of it was measured here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qvggt_core.errors import CheckpointError
from qvggt_core.model.config import ModelConfig
from qvggt_core.model.published_sizes import DEPTH_ANYTHING_3, LINGBOT_MAP_STAGE1

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
_APACHE = "Apache-2.0."
_NC = "CC BY-NC 4.0: NON-COMMERCIAL use only."
ACCURACY_SOURCE = "SpatialBench, May 2026, sparse views; not measured by us"


@dataclass(frozen=True)
class PublishedNetwork:
    """A set of published weights.

    Attributes:
        name: as `qvggt download` calls it.
        repository: on the Hugging Face hub.
        licence_id: in a word or two.
        licence: what a user agrees to, in short; the hub's own text is shown with it.
        config: sizes, with every part that the file has; None for a hub name that is in no list.
        gives: outputs.
        filename: of the weights in the repository; empty to find them.
        revision: branch, tag or commit; empty for the newest.
        auc_30: SpatialBench's AUC@30, percent; None where it was not tested.
        abs_rel: SpatialBench's AbsRel; None where it was not tested.
    """

    name: str
    repository: str
    licence_id: str
    licence: str
    config: ModelConfig | None = None
    gives: str = "poses, depth"
    filename: str = ""
    revision: str = ""
    auc_30: float | None = None
    abs_rel: float | None = None


_ANY_VIEW = "poses, depth, rays"
_NETWORKS = (
    PublishedNetwork(
        "da3-small",
        "depth-anything/DA3-SMALL",
        "Apache-2.0",
        _APACHE,
        DEPTH_ANYTHING_3["da3-small"],
        _ANY_VIEW,
        auc_30=47.6,
        abs_rel=0.191,
    ),
    PublishedNetwork(
        "da3-base",
        "depth-anything/DA3-BASE",
        "Apache-2.0",
        _APACHE,
        DEPTH_ANYTHING_3["da3-base"],
        _ANY_VIEW,
        auc_30=56.6,
        abs_rel=0.159,
    ),
    PublishedNetwork(
        "da3-large",
        "depth-anything/DA3-LARGE-1.1",
        "CC BY-NC 4.0",
        _NC,
        DEPTH_ANYTHING_3["da3-large"],
        _ANY_VIEW,
        auc_30=68.8,
        abs_rel=0.128,
    ),
    PublishedNetwork(
        "da3-giant",
        "depth-anything/DA3-GIANT-1.1",
        "CC BY-NC 4.0",
        _NC,
        DEPTH_ANYTHING_3["da3-giant"],
        _ANY_VIEW,
        auc_30=78.5,
        abs_rel=0.095,
    ),
    PublishedNetwork(
        "da3metric-large",
        "depth-anything/DA3METRIC-LARGE",
        "Apache-2.0",
        _APACHE,
        DEPTH_ANYTHING_3["da3metric-large"],
        "metric depth, sky",
    ),
    PublishedNetwork(
        "vggt-1b",
        "facebook/VGGT-1B",
        "non-commercial",
        "VGGT-1B is licensed for NON-COMMERCIAL use only (research and education).",
        ModelConfig.vggt_1b(),
        "poses, depth, points",
        "model.safetensors",
        auc_30=70.0,
        abs_rel=0.105,
    ),
    PublishedNetwork(
        "vggt-1b-commercial",
        "facebook/VGGT-1B-Commercial",
        "no military use",
        "VGGT-1B-Commercial permits commercial use but NO MILITARY, warfare, nuclear or espionage "
        "use, and no ITAR-controlled items: mind this on a UAV. The repository is gated: accept "
        "its terms in your Hugging Face account and log in with `hf auth login`.",
        ModelConfig.vggt_1b(),
        "poses, depth, points",
        "model.safetensors",
    ),
    PublishedNetwork(
        "lingbot-map-stage1",
        "robbyant/lingbot-map",
        "open question",
        "The repository's code is Apache-2.0; which licence its WEIGHTS have is an OPEN QUESTION "
        "that its authors have not answered.",
        LINGBOT_MAP_STAGE1,
        filename="lingbot-map-stage1.pt",
    ),
)
CATALOG = {network.name: network for network in _NETWORKS}


def find_network(name: str) -> PublishedNetwork:
    """Return a published network by its name here, or by a hub name `owner/name[@revision]`.

    Raises:
        CheckpointError: it is neither.
    """
    if name in CATALOG:
        return CATALOG[name]
    if not _HUB_NAME.match(name):
        raise CheckpointError(
            f"there are no weights called {name!r}: choose of {', '.join(CATALOG)}, or give a hub "
            "name like owner/name or owner/name@revision"
        )
    repository, _, revision = name.partition("@")
    known = next((n for n in _NETWORKS if n.repository.lower() == repository.lower()), None)
    if known is None:
        return PublishedNetwork(
            repository.replace("/", "--"),
            repository,
            "see its page",
            "Its licence is what its page on the hub says.",
            revision=revision,
        )
    return PublishedNetwork(**{**known.__dict__, "revision": revision})
