"""What the README promises is so: its parameter table, its files and its commands."""

import re
from pathlib import Path

from typer.main import get_command

from qvggt_core.parameters import Parameters
from qvggt_ros.cli import app
from qvggt_ros.commands.parameters import parameter_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def test_the_parameter_table_is_the_schemas() -> None:
    table = re.search(r"<!-- parameters -->\n(.*?)\n<!-- /parameters -->", README, re.DOTALL)
    assert table
    assert table[1] == parameter_table(Parameters).strip()


def test_linked_files_exist() -> None:
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", page) if "://" not in link]
        assert links
        for link in links:
            assert (path.parent / link).exists(), link


def test_commands_exist() -> None:
    known = set(get_command(app).commands)
    for path in PAGES:
        code = " ".join(re.findall(r"```(.*?)```", path.read_text(encoding="utf-8"), re.S))
        used = set(re.findall(r"qvggt (\w+) ", code))
        assert used or path.name != "README.md"
        assert used <= known, path


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
