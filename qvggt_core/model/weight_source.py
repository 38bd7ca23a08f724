"""Where downloaded weights came from, in a file beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qvggt_core.util.files import read_bounded_text

SOURCE_NAME = "source.json"
MAX_TEXT_BYTES = 1 << 16
"""Of a licence text that is kept."""


@dataclass(frozen=True)
class WeightSource:
    """A download.

    Attributes:
        repository: on the Hugging Face hub.
        commit: of the repository.
        licence: identifier, as its card has it.
        licence_text: what was shown to the user who agreed.
        sha256: of the files, by name, where the hub has a hash.
    """

    repository: str
    commit: str
    licence: str
    licence_text: str
    sha256: Mapping[str, str | None]


def write_source(folder: Path, source: WeightSource) -> None:
    """Write the record of a download into its folder."""
    text = json.dumps(asdict(source), indent=1) + "\n"
    (folder / SOURCE_NAME).write_text(text, encoding="utf-8")


def source_metadata(file: Path) -> dict[str, str]:
    """Return what the record beside a file of weights has of it, as metadata; empty without one."""
    path = file.parent / SOURCE_NAME
    try:
        content = json.loads(read_bounded_text(path, 4 * MAX_TEXT_BYTES))
        source = WeightSource(**content)
        if file.name not in source.sha256:
            return {}
        texts = (source.repository, source.commit, source.licence, source.licence_text)
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    if not all(isinstance(text, str) for text in texts):
        return {}
    return {
        "source": f"{source.repository}@{source.commit}",
        "licence": source.licence,
        "licence_text": source.licence_text[:MAX_TEXT_BYTES],
    }
