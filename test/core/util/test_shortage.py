"""Memory that is not there is recognised in every library's words."""

import pytest

from qvggt_core.util.shortage import is_no_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    ],
)
def test_every_way_in_which_memory_runs_out_is_known(error: Exception) -> None:
    assert is_no_memory(error)


@pytest.mark.parametrize("text", ["could not create a primitive descriptor", "a primitive", ""])
def test_what_a_library_has_no_code_for_is_no_lack_of_memory(text: str) -> None:
    assert not is_no_memory(RuntimeError(text))
