"""YAML that is a bomb, a pipe, nonsense or fine."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hostile_texts import BOMB, FRAGMENTS

from qvggt_core.util.quoting import cut, short
from qvggt_core.util.yaml_text import MOST_BYTES, load_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "its aliases stand for more than"),
        ("&a [*a]", "its aliases stand for more than"),
        ("[" * 5000, "nested deeper than 32"),
        ("x" * (MOST_BYTES + 1), "longer than"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("!!bool maybe", "maybe"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: b: c", "mapping values are not allowed"),
        ("a\0", "unacceptable character"),
    ],
)
def test_what_is_no_bounded_yaml_is_one_kind_of_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        load_yaml(text)
    assert len(str(caught.value)) < 400


def test_documents_with_aliases_are_read() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 3}}") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": 3},
    }
    assert load_yaml("") is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=20), max_size=6))
def test_any_text_is_read_or_refused(parts: list[str]) -> None:
    with suppress(ValueError):
        load_yaml("\n".join(parts))


def test_pipes_devices_and_folders_are_refused_before_they_are_opened(tmp_path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero"):
        with pytest.raises(ValueError, match="a pipe or a device"):
            read_yaml(type(pipe)(path))
    with pytest.raises(IsADirectoryError):
        read_yaml(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "nothing.yaml")


def test_values_are_quoted_at_a_bounded_length() -> None:
    nested: list = []
    for _ in range(30):
        nested = [nested] * 9
    for value in ("x" * 10**6, nested, {"k" * 5000: [1] * 10**5}, 10**4000):
        assert len(short(value)) <= 243
    assert short("a") == "'a'"
    assert cut(ValueError("no")) == "no"
