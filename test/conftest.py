"""What tests of several files share."""

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


@pytest.fixture
def without_native_kernels(monkeypatch):
    """Leave the C++ kernels out, as on a processor that they are not for."""
    from qvggt_kernels import native

    monkeypatch.setattr(native, "load", lambda: None)


@pytest.fixture(params=["C++ kernels", "PyTorch"])
def cpu_code(request):
    """Run a test twice: what the CPU computes, it computes with our own kernels and without."""
    from qvggt_kernels import native

    if request.param == "PyTorch":
        request.getfixturevalue("without_native_kernels")
    elif native.load() is None:
        pytest.skip(f"C++ kernels: {native.status()}")
    return request.param
