"""The documentation as a site: every page is in it, every link leads somewhere."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.modules import load_script

ROOT = Path(__file__).parents[2]
docs_links = load_script("tools/docs_links.py")


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which names environment variables."""


_Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])


def pages(entries) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [page for value in values for page in pages(value)]


def test_every_page_is_in_the_navigation_once():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    listed = pages(config["nav"])
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert len(listed) == len(set(listed))


def test_there_is_a_page_for_each_question():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    sections = [title for entry in config["nav"] for title in entry]
    for title in ("Start", "Your camera", "Your network", "Metres", "Maps", "Quantize", "Tune"):
        assert title in sections
    assert {"Evaluate", "Develop"} <= set(sections)
    assert "nav2.md" in pages(config["nav"])


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("https://host/q", "see [`setup`](https://host/q/blob/main/setup.py#x)."),
        ("", "see `setup`."),
    ],
)
def test_a_link_out_of_the_documentation_goes_to_the_code_host(repository, expected):
    page = ROOT / "docs/page.md"
    assert docs_links.replaced("see [`setup`](../setup.py#x).", page, ROOT, repository) == expected


def test_a_link_to_a_folder_goes_to_its_tree():
    page = ROOT / "docs/page.md"
    assert docs_links.replaced("[c](../config)", page, ROOT, "h/") == "[c](h/tree/main/config)"


def test_links_within_the_documentation_and_images_stay():
    text = "[a](ros.md) ![b](../docs/images/overview.png) [c](https://host/../x)"
    assert docs_links.replaced(text, ROOT / "docs/page.md", ROOT, "h") == text


def test_a_link_to_what_is_not_there_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        docs_links.replaced("[a](../no-such-file)", ROOT / "docs/page.md", ROOT, "h")
    assert "no-such-file" in caplog.text


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: `make docs` installs it")
    pytest.importorskip("material", reason="MkDocs's theme is not installed: `make docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
