"""What tests of several files share."""

import pytest
from support import skips


def pytest_configure(config):
    """Skip what needs a package that is not installed, folders whose conftest does too."""
    config.pluginmanager.register(skips)


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
