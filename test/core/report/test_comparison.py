"""The page that compares runs, without a browser."""

import html
import re
from pathlib import Path

import pytest
from support.recordings import RoomNetwork, room_entries, write_recording
from support.replays import replay

from qvggt_core.parameters import Parameters
from qvggt_core.report import write_comparison
from qvggt_core.results.result import Result


@pytest.mark.parametrize(
    "name", ["javascript:alert(1)", "data:text,x", "a#b?c%d", "plain", 'quote"d']
)
def test_a_link_is_a_path_whatever_the_name_of_a_result(name: str, tmp_path: Path) -> None:
    bag = write_recording(tmp_path / "room", room_entries(3))
    output = tmp_path / "results" / name
    replay(bag, output, RoomNetwork(), Parameters(), report=False)
    (output / "report.html").touch()
    page = tmp_path / "results" / "compare.html"
    write_comparison(page, {output: Result.read(output)})
    links = re.findall(r'<a[^>]*href="([^"]*)"', page.read_text())
    (link,) = [html.unescape(link) for link in links if "report.html" in link]
    assert link.startswith("./")
    assert not set(link[2:]) & set(':#?"')
