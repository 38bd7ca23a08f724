"""Tests of what is not installed are skipped with its name; all else that fails has failed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.packages import blamed

from qvggt_core.optional import OPTIONAL_PACKAGES

TESTS = Path(__file__).parents[1]
CONFTEST = """
from support import skips
def pytest_configure(config): config.pluginmanager.register(skips)
"""


@pytest.fixture
def absent():
    for module in OPTIONAL_PACKAGES:
        if importlib.util.find_spec(module) is None:
            return module
    return pytest.skip("all optional packages are installed, bondpy of ROS too")


@pytest.fixture
def outcome(tmp_path):
    """Runs test files by name, and returns what pytest prints of each: its status and reason."""

    def run(files):
        for name, content in {"conftest.py": CONFTEST, **files}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", tmp_path],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(tmp_path)])},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return re.findall(r"^(SKIPPED|FAILED|ERROR|PASSED) (.*)", done.stdout, re.MULTILINE)

    return run


@pytest.mark.parametrize(
    "files",
    [
        {"test_a.py": "import {0}\ndef test(): pass"},
        {"test_a.py": "import ours\ndef test(): pass", "ours.py": "from {0} import thing"},
        {"sub/conftest.py": "import {0}", "sub/test_a.py": "def test(): pass"},
        {"test_a.py": "def test(): import {0}"},
        {
            "test_a.py": "from qvggt_core.optional import import_optional\n"
            "def test(): import_optional('{0}')"
        },
        {"test_a.py": "from support.packages import needs\ndef test(): needs('{0}')"},
    ],
    ids=["a module", "what it imports", "a folder's conftest", "a test", "our sentence", "asked"],
)
def test_what_needs_it_is_skipped_with_its_name(files, absent, outcome):
    files = {name: content.format(absent) for name, content in files.items()}
    (found,) = outcome(files)
    assert found[0] == "SKIPPED"
    assert f"needs {absent}, which is not installed" in found[1]


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"test_a.py": "import no_such_module\ndef test(): pass"}, "ERROR"),
        ({"test_a.py": "def test(): import no_such_module"}, "FAILED"),
        ({"test_a.py": "def test(): assert not '{0}'"}, "FAILED"),
    ],
    ids=["no package of the list", "nor in a test", "a failed test"],
)
def test_what_else_fails_has_failed(files, status, absent, outcome):
    (found,) = outcome({name: content.format(absent) for name, content in files.items()})
    assert found[0] == status


def test_our_code_that_stumbles_over_what_is_absent_has_failed(absent, tmp_path, monkeypatch):
    (tmp_path / "qvggt_core").mkdir()
    (tmp_path / "qvggt_core" / "stumbling.py").write_text(f"def work(): import {absent}")
    monkeypatch.syspath_prepend(tmp_path / "qvggt_core")
    import stumbling

    with pytest.raises(ModuleNotFoundError) as caught:
        stumbling.work()
    assert blamed(caught.value, on_import=False) is None
    assert absent in blamed(caught.value, on_import=True)
