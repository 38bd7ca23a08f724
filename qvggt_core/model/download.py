"""Gets published weights from the Hugging Face hub, after their licence was shown and agreed to.

An interrupted download goes on where it stopped. Files are checked against the hashes that the
hub has of them, and `source.json` beside them keeps where they came from and under which licence.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import (
    HfApi,
    ModelInfo,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from qvggt_core.errors import CheckpointError
from qvggt_core.model.catalog import PublishedNetwork, find_network
from qvggt_core.model.weight_files import INDEX_NAME, SINGLE_NAME, open_weights, weight_map
from qvggt_core.model.weight_source import MAX_TEXT_BYTES, WeightSource, write_source

_LICENCE_NAMES = ("license", "license.txt", "license.md", "licence", "licence.txt")
_CARD = "README.md"
_CONFIG = "config.json"
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class HubFile:
    """A file in a repository; the hash is that of its bytes where the hub has one."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Offer:
    """What would be downloaded, and under which licence.

    Attributes:
        network: the entry of the catalogue.
        commit: of the repository.
        files: all of them, weights last.
        licence_id: as the card has it, e.g. "apache-2.0"; "unknown" if it has none.
        licence_text: the repository's licence file, else its card.
    """

    network: PublishedNetwork
    commit: str
    files: tuple[HubFile, ...]
    licence_id: str
    licence_text: str

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def download(
    name: str,
    directory: Path,
    agree: Callable[[Offer], bool],
    endpoint: str | None = None,
) -> Path:
    """Download published weights and return the path to load them from.

    Args:
        name: of the catalogue, or a hub name `owner/name[@revision]`.
        directory: gets a folder of that name.
        agree: shows the licence and returns whether the user agrees to it.
        endpoint: address of the hub; None takes the public one, or HF_ENDPOINT.

    Raises:
        CheckpointError: the name is unknown, the licence was not agreed to, the repository is
            gated for this account, has no weights, or cannot be reached, the disk is too small,
            or a file is not what the hub promised.
    """
    network = find_network(name)
    folder = directory / network.name
    with _explained(network):
        info = HfApi(endpoint=endpoint).model_info(
            network.repository, revision=network.revision or None, files_metadata=True
        )
        offer = _offer(network, info, endpoint)
    if not agree(offer):
        raise CheckpointError(f"{name} was not downloaded: its licence was not agreed to")
    _check_space(folder, offer)
    for file in offer.files:
        with _explained(network):
            _fetch(network, file, offer.commit, folder, endpoint)
        _check(folder / file.name, file)
    source = WeightSource(
        network.repository,
        offer.commit,
        offer.licence_id,
        offer.licence_text,
        {file.name: file.sha256 for file in offer.files},
    )
    write_source(folder, source)
    weights = folder / offer.files[-1].name
    open_weights(weights)
    return weights


def _offer(network: PublishedNetwork, info: ModelInfo, endpoint: str | None) -> Offer:
    present = {}
    for entry in info.siblings or ():
        sha256 = None if entry.lfs is None else entry.lfs.sha256
        present[entry.rfilename] = HubFile(entry.rfilename, entry.size or 0, sha256)
    commit = info.sha or network.revision
    if not _COMMIT.match(commit):
        raise CheckpointError(f"the hub has no commit of {network.repository}, but {commit!r}")
    weights = _weight_names(network, sorted(present), endpoint, commit)
    extras = [name for name in (_CONFIG,) if name in present]
    card = info.card_data
    licence_id = str((card.get("license") if card is not None else None) or "unknown")
    text = _licence_text(network, present, endpoint, commit)
    files = tuple(present[name] for name in (*extras, *weights))
    outside = [file.name for file in files if Path(file.name).name != file.name]
    if outside:
        raise CheckpointError(f"{network.repository} names a file outside its folder: {outside[0]}")
    return Offer(network, commit, files, licence_id, text)


def _weight_names(
    network: PublishedNetwork, names: Sequence[str], endpoint: str | None, commit: str
) -> list[str]:
    """Return the files of weights, the one to load from last."""
    if network.filename:
        if network.filename not in names:
            raise CheckpointError(
                f"{network.repository} has no {network.filename} (revision {commit}): it has "
                f"{', '.join(names[:8]) or 'no files'}"
            )
        return [network.filename]
    if SINGLE_NAME in names:
        return [SINGLE_NAME]
    if INDEX_NAME in names:
        index = _read_text(network, INDEX_NAME, endpoint, commit)
        places = weight_map(index, f"{network.repository}/{INDEX_NAME}")
        shards = sorted(set(places.values()))
        missing = [name for name in shards if name not in names]
        if missing:
            raise CheckpointError(f"{network.repository} names {missing[0]} and does not have it")
        return [*shards, INDEX_NAME]
    found = [name for name in names if name.endswith(_SUFFIXES)]
    if len(found) != 1:
        raise CheckpointError(
            f"{network.repository} has {len(found)} files of weights "
            f"({', '.join(found[:5]) or 'none'}) and none of them is {SINGLE_NAME}"
        )
    return found


def _licence_text(
    network: PublishedNetwork, present: dict[str, HubFile], endpoint: str | None, commit: str
) -> str:
    names = [name for name in present if name.lower() in _LICENCE_NAMES]
    names += [_CARD] if _CARD in present else []
    for name in names:
        if present[name].size <= MAX_TEXT_BYTES:
            return _read_text(network, name, endpoint, commit)
    return "The repository has neither a licence file nor a card."


def _read_text(network: PublishedNetwork, name: str, endpoint: str | None, commit: str) -> str:
    # Nothing of it stays if the licence is not agreed to.
    with tempfile.TemporaryDirectory() as folder:
        path = hf_hub_download(
            network.repository, name, revision=commit, local_dir=folder, endpoint=endpoint
        )
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _fetch(
    network: PublishedNetwork, file: HubFile, commit: str, folder: Path, endpoint: str | None
) -> None:
    """Bring a file into a folder; what an earlier run has of it is kept and continued."""
    target = folder / file.name
    if target.exists() and target.stat().st_size == file.size:
        return
    part = folder / f"{file.name}.{commit[:12]}.part"
    url = hf_hub_url(network.repository, file.name, revision=commit, endpoint=endpoint)
    headers = build_hf_headers()
    location = get_hf_file_metadata(url, headers=headers).location
    if urlparse(location).netloc != urlparse(url).netloc:
        # The token is the hub's, not that of where it stores its files.
        headers.pop("authorization", None)
    present = part.stat().st_size if part.exists() else 0
    with part.open("ab") as content:
        if present < file.size or not file.size:
            http_get(
                location,
                content,
                resume_size=present,
                headers=headers,
                expected_size=file.size or None,
                displayed_filename=file.name,
            )
    part.replace(target)


def _check_space(folder: Path, offer: Offer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # What an interrupted download has left counts as there.
    present = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if offer.nbytes > free + present:
        raise CheckpointError(
            f"{offer.network.name} takes {offer.nbytes / 1e9:.2f} GB, and the disk of {folder} has "
            f"{free / 1e9:.2f} GB left: choose another directory with --output"
        )


def _check(path: Path, file: HubFile) -> None:
    """Compare a file with what the hub promised; remove one that is damaged."""
    size = path.stat().st_size
    if file.size and size != file.size:
        path.unlink()
        raise CheckpointError(
            f"{path} has {size} bytes, the hub has {file.size}: it was removed, download it again"
        )
    if file.sha256 is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        path.unlink()
        raise CheckpointError(
            f"{path} has the hash {digest.hexdigest()[:16]}..., the hub has "
            f"{file.sha256[:16]}...: it was damaged on the way and removed, download it again"
        )


@contextmanager
def _explained(network: PublishedNetwork) -> Iterator[None]:
    """Turn the hub's errors into ours."""
    repository = network.repository
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository} and "
            "log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        revision = f" at revision {network.revision}" if network.revision else ""
        raise CheckpointError(
            f"the hub has no {repository}{revision}, or your account may not see it: check the "
            "name, or log in with `hf auth login`"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{repository} could not be downloaded: {first}; run the same command again to go on "
            "where it stopped"
        ) from error
