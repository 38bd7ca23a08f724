"""Fixtures that run a test with the C++ kernels of one instruction set or another."""

from pathlib import Path

import pytest
import torch
from qvggt_kernels import native
from support import emulation
from support.instruction_sets import EMULATED, PROCESSOR_HAS


@pytest.fixture(scope="session")
def emulated(request):
    """Processors by their name, as they run the kernels for ARM; each is started once."""
    if (why := emulation.shortfall()) is not None:
        pytest.skip(why)
    built = emulation.build(request.config.cache.mkdir("kernels_for_arm"))
    libraries = {}

    def library(processor):
        if processor not in libraries:
            libraries[processor] = emulation.EmulatedLibrary(processor, *built)
        return libraries[processor]

    yield library
    for each in libraries.values():
        each.close()


@pytest.fixture
def use_instructions(request, monkeypatch):
    """Take the kernels of an instruction set, or skip the test where they cannot run."""

    def use(name):
        monkeypatch.setattr(native, "instruction_set", lambda: name)
        if PROCESSOR_HAS[name]():
            library, status = native.open_library(Path(native.__file__).parent)
            if library is None:
                pytest.skip(f"no kernels for {name}: {status}")
        elif name in EMULATED:
            library = request.getfixturevalue("emulated")(EMULATED[name])
            monkeypatch.setattr(native, "_call", emulation.call)
        else:
            pytest.skip(f"this processor has no {name}")
        monkeypatch.setattr(native, "load", lambda: library)

    return use


@pytest.fixture(params=list(PROCESSOR_HAS))
def instructions(request, use_instructions):
    """Run a test with the kernels of each instruction set that is here or can be emulated."""
    use_instructions(request.param)
    return request.param


@pytest.fixture(params=["avx512", "avx2", "dotprod"])
def short_vectors(request, use_instructions):
    """Run a test with the kernels that are written once for AVX-512, AVX2 and ARM."""
    use_instructions(request.param)


@pytest.fixture
def avx2(use_instructions):
    """Run a test with the kernels for AVX2, whatever else this processor has."""
    use_instructions("avx2")


@pytest.fixture
def threads():
    """Set the number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
