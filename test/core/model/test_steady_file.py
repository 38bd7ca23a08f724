"""A file of weights that others write while it is read: an error, never SIGBUS or a mixture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.small_network import TINY, open_state

from qvggt_core.errors import CheckpointError
from qvggt_core.model import Checkpoint, read_checkpoint, save_checkpoint
from qvggt_core.model.steady_file import SafetensorsFile

LAST = "depth_head.scratch.output_conv2.2.weight"


@pytest.fixture(params=["network.safetensors", "network.pt"])
def path(tmp_path, request) -> Path:
    state, path = open_state(), tmp_path / request.param
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_checkpoint(path, state, TINY)
    return path


def read_all(checkpoint: Checkpoint) -> None:
    for name in checkpoint.names():
        checkpoint.tensor(name).sum()


def test_the_tensors_are_those_that_were_written(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    for name, tensor in open_state().items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.dtype(name) == tensor.dtype


@pytest.mark.parametrize("kept", [0, 1000, 100_000])
def test_a_file_that_is_cut_is_an_error(path: Path, kept: int) -> None:
    checkpoint = read_checkpoint(path)
    os.truncate(path, kept)
    with pytest.raises(CheckpointError, match=f"was changed while it was read .*{kept} now"):
        read_all(checkpoint)


def test_a_file_that_is_written_anew_in_place_is_an_error_and_no_mixture(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    checkpoint.tensor(LAST)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        read_all(checkpoint)


def test_a_file_that_is_replaced_under_its_name_or_removed_is_read_on_as_it_was(path: Path) -> None:
    checkpoint, expected = read_checkpoint(path), open_state()[LAST]
    (path.parent / "new").write_bytes(b"something else")
    (path.parent / "new").replace(path)
    assert torch.equal(checkpoint.tensor(LAST), expected)
    path.unlink()
    assert torch.equal(checkpoint.tensor(LAST), expected)


def test_a_tensor_does_not_change_with_its_file(path: Path) -> None:
    tensor = read_checkpoint(path).tensor(LAST)
    before = tensor.clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(tensor, before)


def test_every_type_is_read_as_the_formats_own_library_reads_it(tmp_path) -> None:
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
    types += [torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    types += [torch.bool, torch.complex64]
    from safetensors.torch import save_file

    values = torch.arange(6).reshape(2, 3)
    state = {str(kind): values.to(kind) for kind in types}
    state |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3.5)}
    save_file(state, tmp_path / "all.safetensors")
    file = SafetensorsFile(tmp_path / "all.safetensors")
    for name, expected in load_file(tmp_path / "all.safetensors").items():
        found = file.read(name)
        assert found.dtype == expected.dtype == file.dtype(name)
        assert found.shape == expected.shape == file.shapes[name]
        assert torch.equal(
            found.view(torch.uint8) if found.dim() else found,
            expected.view(torch.uint8) if found.dim() else expected,
        )


def test_files_that_were_read_are_closed(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_checkpoint(path)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
