"""The documents are true: their parameter table, files and commands, and the README's length."""

import json
import re
from pathlib import Path

from typer.main import get_command

from qvggt_core.parameters import Parameters
from qvggt_core.protocols import PROTOCOLS, make_benchmark
from qvggt_ros.cli.app import app
from qvggt_ros.cli.parameters import parameter_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def test_the_parameter_table_is_the_schemas() -> None:
    page = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- parameters -->\n(.*?)\n<!-- /parameters -->", page, re.DOTALL)
    assert table
    assert table[1] == parameter_table(Parameters).strip()


def test_the_readme_is_short_and_opens_with_what_was_and_was_not_run() -> None:
    lines = README.splitlines()
    assert len(lines) <= 135
    opening = "\n".join(lines[:30])
    assert "No published VGGT-1B" in opening
    assert "no GPU" in opening


def test_linked_files_exist() -> None:
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", page) if "://" not in link]
        assert links or path.name != "README.md"
        for link in links:
            assert (path.parent / link).exists(), link


def test_commands_exist() -> None:
    known = set(get_command(app).commands)
    for path in PAGES:
        code = " ".join(re.findall(r"```(.*?)```", path.read_text(encoding="utf-8"), re.S))
        used = set(re.findall(r"qvggt (\w+) ", code))
        assert used or path.name != "README.md"
        assert used <= known, path


def test_the_protocols_tables_are_the_raw_results() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    raw = json.loads((ROOT / "benchmarks/results/protocols.json").read_text(encoding="utf-8"))
    assert tuple(raw["protocols"]) == PROTOCOLS
    for protocol, result in raw["protocols"].items():
        task = make_benchmark(protocol)
        assert result["settings"] == task.settings, (
            "measured with other choices than the protocol's"
        )
        assert len(result["models"]) == 2
        for model in result["models"]:
            assert model["scenes"]
            assert not model["failures"]
            # Summed up anew from the scenes.
            summary = task.summarise(model["scenes"])
            numbers = [f"{summary[column.key]:.{column.digits}f}" for column in task.columns]
            row = [model["name"], *numbers, str(len(model["scenes"]))]
            assert "| " + " | ".join(row) + " |" in page, (protocol, model["name"])


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
