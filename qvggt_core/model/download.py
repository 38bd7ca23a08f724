"""Gets VGGT-1B's published weights, after its licence was shown and agreed to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from qvggt_core.errors import CheckpointError


@dataclass(frozen=True)
class PublishedModel:
    """A set of published weights.

    Attributes:
        repository: its name on the Hugging Face hub.
        filename: the file in that repository.
        size_gb: what will be downloaded.
        licence: what a user must agree to, in short, and where the full text is.
    """

    repository: str
    filename: str
    size_gb: float
    licence: str


PUBLISHED = {
    "vggt-1b": PublishedModel(
        "facebook/VGGT-1B",
        "model.safetensors",
        5.03,
        "VGGT-1B is licensed for NON-COMMERCIAL use only (research and education). "
        "Full text: https://huggingface.co/facebook/VGGT-1B",
    ),
    "vggt-1b-commercial": PublishedModel(
        "facebook/VGGT-1B-Commercial",
        "model.safetensors",
        5.03,
        "VGGT-1B-Commercial permits commercial use but NO MILITARY, warfare, nuclear or "
        "espionage use, and no ITAR-controlled items: mind this on a UAV. The repository is "
        "gated: accept its terms in your Hugging Face account and log in with `hf auth login`. "
        "Full text: https://huggingface.co/facebook/VGGT-1B-Commercial",
    ),
}


def download(name: str, directory: Path, agree: Callable[[PublishedModel], bool]) -> Path:
    """Download published weights into a directory and return the file's path.

    Args:
        name: a key of `PUBLISHED`.
        directory: where the file goes.
        agree: shows the licence and returns whether the user agrees to it.

    Raises:
        CheckpointError: the name is unknown, the licence was not agreed to, the repository is
            gated for this account, or the hub cannot be reached.
    """
    if name not in PUBLISHED:
        raise CheckpointError(f"there are no weights called {name!r}: choose of {list(PUBLISHED)}")
    model = PUBLISHED[name]
    if not agree(model):
        raise CheckpointError(f"{name} was not downloaded: its licence was not agreed to")
    try:
        path = hf_hub_download(model.repository, model.filename, local_dir=directory)
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model.repository} is gated: accept its terms at "
            f"https://huggingface.co/{model.repository} and log in with `hf auth login`"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{model.repository}/{model.filename} ({model.size_gb} GB) could not be downloaded: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return Path(path)
