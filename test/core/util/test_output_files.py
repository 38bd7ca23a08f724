"""Files written by their names: what is somebody else's, or is read, is left alone."""

import json

import pytest

from qvggt_core.errors import OutputError
from qvggt_core.util.output_files import check_file, directory_of, json_with

OURS = json_with("machine")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"[]", b'{"other": 1}', b"\xff\xfe", b"[" * 100_000],
    ids=["empty", "text", "list", "other", "bytes", "deep"],
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path, content):
    path = tmp_path / "bench.json"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="left alone"):
        check_file(path, OURS)
    with pytest.raises(OutputError, match="left alone"):
        directory_of(tmp_path, ("bench.json", "bench.md"), OURS)
    assert path.read_bytes() == content


def test_any_of_the_files_counts_where_no_former_run_has_been(tmp_path):
    (tmp_path / "bench.md").write_text("notes")
    with pytest.raises(OutputError, match=r"bench\.md"):
        directory_of(tmp_path, ("bench.json", "bench.md"), OURS)


def test_a_dangling_link_is_somebody_s(tmp_path):
    (tmp_path / "bench.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="left alone"):
        check_file(tmp_path / "bench.json", OURS)


def test_a_former_run_is_replaced_and_what_else_is_there_does_not_matter(tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps({"machine": "this"}))
    (tmp_path / "bench.md").write_text("of that run")
    (tmp_path / "notes.txt").write_text("hello")
    assert directory_of(tmp_path, ("bench.json", "bench.md"), OURS) == tmp_path


def test_a_directory_is_made_and_a_file_is_none(tmp_path):
    made = directory_of(tmp_path / "new" / "one", ("bench.json",), OURS)
    assert made.is_dir()
    (tmp_path / "file").write_text("hello")
    with pytest.raises(OutputError, match="is a file: name a directory"):
        directory_of(tmp_path / "file", ("bench.json",), OURS)
    with pytest.raises(OutputError, match="is a directory: name a file"):
        check_file(made, OURS)


def test_nothing_is_written_into_what_is_read(tmp_path):
    (tmp_path / "result").mkdir()
    for output in (tmp_path / "result", tmp_path / "result" / "page.html"):
        with pytest.raises(OutputError, match="which is read"):
            check_file(output, lambda path: True, [tmp_path / "result"])
    (tmp_path / "link").symlink_to(tmp_path / "result")
    with pytest.raises(OutputError, match="which is read"):
        check_file(tmp_path / "link" / "x", lambda path: True, [tmp_path / "result"])
