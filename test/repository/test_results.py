"""Raw results carry their origin, and what the documents quote was measured on what ships."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from qvggt_core.measure.provenance import provenance, write_results
from qvggt_core.model import shipped_checkpoint

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
COMPILED = {"triton_static.json"}
"""Figures of a compiler, whose version they carry: no machine and no weights were measured."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHA256 = re.compile(r"[0-9a-f]{64}")


def raw_files() -> list[Path]:
    return [path for path in sorted(RESULTS.glob("*.json")) if path.name not in COMPILED]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", raw_files(), ids=lambda path: path.name)
def test_a_raw_result_carries_commit_checkpoints_and_machine(path: Path) -> None:
    found = read(path)
    assert re.fullmatch(r"[0-9a-f]{40}\+?", found["commit"])
    assert all(SHA256.fullmatch(sha) for sha in found["checkpoints"].values())
    assert found["machine"]["cpu"]
    assert found["machine"]["torch"]


@pytest.mark.parametrize("path", raw_files(), ids=lambda path: path.name)
def test_a_result_of_the_shipped_name_was_measured_on_the_file_that_ships(path: Path) -> None:
    """A document that quotes an earlier file names it by the beginning of its SHA-256."""
    ships = shipped_checkpoint()
    now = hashlib.sha256(ships.read_bytes()).hexdigest()
    measured = read(path)["checkpoints"].get(ships.name, now)
    if measured == now:
        return
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if path.name in line:
                assert f"`{measured[:8]}…`" in line, (
                    f"{page.name} quotes an earlier network: {line}"
                )


def test_every_raw_result_is_quoted_by_a_document() -> None:
    quoted = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for path in RESULTS.iterdir():
        assert path.name in quoted, path.name


def test_the_origin_of_results_is_written_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "results/new.json"
    write_results(path, {"rows": [1 / 3]}, shipped_checkpoint())
    found = read(path)
    assert found["rows"] == [1 / 3]
    ships = shipped_checkpoint()
    assert found["checkpoints"] == {ships.name: hashlib.sha256(ships.read_bytes()).hexdigest()}
    assert found["machine"] == json.loads(json.dumps(provenance()["machine"]))
    write_results(path, {"rows": [1 / 3, {"value": 2.0}]}, digits=3)
    assert read(path)["rows"] == [0.333, {"value": 2.0}]
    assert read(path)["checkpoints"] == {}


@pytest.mark.parametrize("path", raw_files(), ids=lambda path: path.name)
def test_what_a_raw_result_says_of_its_machine_names_no_folder(path: Path) -> None:
    folders = [
        value
        for value in read(path).get("machine", {}).values()
        if isinstance(value, str) and re.search(r"(^|\s)/\w", value)
    ]
    assert not folders
