"""A plugin of pytest: what needs a package that is not installed is skipped, with its name.

It is no conftest: pytest asks those of a folder only once the folder's own is imported.
"""

from __future__ import annotations

import pytest

from support.packages import blamed


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skip files and folders of tests that need a package that is not installed."""
    report = yield
    if report.failed and (reason := blamed(_error_of(report.call), on_import=True)):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), None, f"Skipped: {reason}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip a test that comes upon a package that is not installed."""
    report = yield
    if report.failed and (reason := blamed(_error_of(call), on_import=False)):
        path, line, _ = item.location
        report.outcome = "skipped"
        report.longrepr = (path, line, f"Skipped: {reason}")
    return report


def _error_of(call):
    return None if call.excinfo is None else call.excinfo.value
