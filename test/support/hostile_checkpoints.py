"""Checkpoints that are wrong: descriptions, tensors, bytes and pickles, made from a seed."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load, save

from qvggt_core.model import load_model, save_checkpoint
from qvggt_core.quantize import QuantizationSettings, quantize_checkpoint
from support.small_network import ENCODED, TINY, open_state

PRECISIONS = ("float", "w4a16", "w8a8")
VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 5, 7, 1000, 10**9, 10**30, -(10**30), 2**63, 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), True, False, None, "", "4", "\u0000", "x" * 5000, [], {}, [[]]),
    *([1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0], [1e9] * 4, ["a"] * 4, {"a": 1}, [None] * 100),
    *({"embed_dim": 64}, {"embed_dim": 64, "depth": 10**9, "num_heads": 1}, {"depth": "a"}),
)
TEXTS = (
    "",
    "{",
    "[]",
    "null",
    "3",
    '"x"',
    "[" * 5000,
    "{}",
    "\x00",
    "NaN",
    '{"a": 1e999}',
    "é" * 99,
)


@lru_cache
def base(precision: str, encoded: bool = False) -> bytes:
    """Return the bytes of a small checkpoint."""
    config = ENCODED if encoded else TINY
    with TemporaryDirectory() as folder:
        path = Path(folder) / "full.safetensors"
        save_checkpoint(path, open_state(config), config, {"licence": "Apache-2.0"})
        if precision != "float":
            target = Path(folder) / "packed.safetensors"
            settings = QuantizationSettings(precision=precision, group_size=32)
            quantize_checkpoint(path, target, settings)
            path = target
        return path.read_bytes()


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a file."""
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    """Return a file of a header and data, whatever they promise."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def description(rng: random.Random) -> bytes:
    """Return a file whose description of the network is wrong in one to three places."""
    header, data = header_of(base(rng.choice(PRECISIONS), rng.random() < 0.5))
    config = json.loads(header["__metadata__"]["config"])
    for _ in range(rng.randint(1, 3)):
        place = rng.random()
        if place < 0.65:
            config[rng.choice(sorted(config))] = rng.choice(VALUES)
        elif place < 0.8:
            config["encoder"] = {
                name: rng.choice(VALUES)
                for name in rng.sample(("embed_dim", "depth", "num_heads", "more"), 3)
            }
        elif place < 0.87:
            config["stack"] = {"alternate_from": rng.choice(VALUES), "feed_forward": "swiglu"}
        elif place < 0.94 and len(config) > 1:
            del config[rng.choice(sorted(config))]
        else:
            config[rng.choice(("more", "", "0"))] = rng.choice(VALUES)
    text = json.dumps(config) if rng.random() < 0.9 else rng.choice(TEXTS)
    header["__metadata__"]["config"] = text
    return with_header(header, data)


def linears(rng: random.Random) -> bytes:
    """Return a file whose metadata of packed linears, layouts or format is wrong."""
    header, data = header_of(base(rng.choice(PRECISIONS[1:])))
    metadata = header["__metadata__"]
    packed = [name.removesuffix(".qweight") for name in header if name.endswith(".qweight")]
    described = json.loads(metadata.get("linears", "{}"))
    for _ in range(rng.randint(1, 3)):
        entry = described.setdefault(rng.choice([*packed, "nowhere", ""]), {})
        if isinstance(entry, dict):
            key = rng.choice(("rotation", "weight_bits", "activation_bits", "more"))
            entry[key] = rng.choice(VALUES)
    metadata["linears"] = json.dumps(described) if rng.random() < 0.8 else rng.choice(TEXTS)
    if rng.random() < 0.2:
        key = rng.choice(("layout", "integer_layouts", "qvggt_format", "plan", "licence"))
        metadata[key] = rng.choice(TEXTS)
    return with_header(header, data)


def tensors(rng: random.Random) -> bytes:
    """Return a file with entries of other shapes, types, names or values."""
    raw = base(rng.choice(PRECISIONS), rng.random() < 0.3)
    state, metadata = load(raw), header_of(raw)[0]["__metadata__"]
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(state))
        tensor = state[name]
        kind = rng.randrange(9)
        if kind == 0:
            shape = rng.choice(((), (0,), (1,), (3, 0), (1, 1, 1), (7,), (2, 2, 2, 2, 2)))
            state[name] = torch.zeros(shape, dtype=tensor.dtype)
        elif kind == 1:
            state[name] = tensor.flatten()
        elif kind == 2:
            dtypes = (torch.int64, torch.float64, torch.bool, torch.uint8, torch.int16)
            state[name] = tensor.to(rng.choice(dtypes))
        elif kind == 3:
            del state[name]
        elif kind == 4:
            state[rng.choice((name + "x", "", "a" * 3000, "camera_head.cict_token"))] = tensor
        elif kind == 5 and tensor.is_floating_point():
            value = rng.choice((float("nan"), float("inf"), 0.0, -1.0, 1e30, 1e-40))
            state[name] = torch.full_like(tensor, value)
        elif kind == 6:
            state[name.rpartition(".")[0] + rng.choice((".zeros", ".input_scale", ".clip"))] = (
                torch.full((rng.choice((1, 64, 128)),), 255, dtype=torch.uint8)
            )
        elif kind == 7 and tensor.dim() > 1:
            state[name] = tensor.transpose(0, 1).contiguous()
        elif tensor.dim() > 0:
            state[name] = tensor[: len(tensor) // 2].contiguous()
    return save({key: value.clone() for key, value in state.items()}, metadata)


def damaged(rng: random.Random) -> bytes:
    """Return a file that is cut, or has flipped bits, or lies about its places."""
    raw = bytearray(base(rng.choice(PRECISIONS)))
    size = int.from_bytes(raw[:8], "little")
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(raw[: rng.randrange(len(raw))])
    if kind == 1:
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(8 + size)] ^= 1 << rng.randrange(8)
        return bytes(raw)
    if kind == 2:
        for _ in range(rng.randint(1, 200)):
            raw[rng.randrange(8 + size, len(raw))] ^= 1 << rng.randrange(8)
        return bytes(raw)
    if kind == 3:
        raw[:8] = rng.choice((0, 1, size - 1, size + 1, 2**40, 2**63, 2**64 - 1)).to_bytes(
            8, "little"
        )
        return bytes(raw)
    header, data = header_of(bytes(raw))
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    key = rng.choice(("data_offsets", "shape", "dtype"))
    entry[key] = rng.choice(
        ([0, 0], [0, 2**62], [5, 1], [-1, 4], [0, len(data)], [2**62, 2**62], "F32", "I16", None)
    )
    return with_header(header, data)


class Intruder:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._marker), "w")


def torch_file(rng: random.Random, marker: Path) -> bytes:
    """Return a PyTorch file that is damaged, hostile or holds something else."""
    buffer = io.BytesIO()
    state: Any = dict(load(base("float")))
    kind = rng.randrange(10)
    if kind == 0:
        state = rng.choice(([], 3, None, {}, {1: torch.ones(2)}, {"model": []}, torch.ones(3), "x"))
    elif kind == 1:
        state = {1: next(iter(state.values())), **state}
    elif kind == 2:
        name = rng.choice(sorted(state))
        state[name] = rng.choice((torch.eye(2).to_sparse(), torch.ones(2, device="meta"), None))
    elif kind == 3:
        state = {"model": {"state_dict": {"model": state}}}
    elif kind == 4:
        state = {"model": state, "step": Intruder(marker)}
    torch.save(state, buffer, pickle_module=pickle)
    raw = bytearray(buffer.getvalue())
    if kind == 5:
        return bytes(raw[: rng.randrange(4, len(raw))])
    if kind == 6:
        for _ in range(rng.randint(1, 20)):
            raw[rng.randrange(4, len(raw))] ^= 1 << rng.randrange(8)
        return bytes(raw)
    if kind in (7, 8):
        return _rewritten(bytes(raw), rng, marker)
    return bytes(raw)


def _rewritten(raw: bytes, rng: random.Random, marker: Path) -> bytes:
    """Return an archive with another pickle, entries missing, or entries that unpack large."""
    target = io.BytesIO()
    hostile = rng.choice(
        (
            pickle.dumps(Intruder(marker)),
            b"",
            b"\x80\x02.",
            b"\x80\x02" + b"(" * 100_000,
            b"\x80\x02]q\x00" + b"h\x00a" * 10,
            b"\x80\x02X" + struct.pack("<I", 2**31) + b"a",
            bytes(100 << 20),
        )
    )
    with zipfile.ZipFile(io.BytesIO(raw)) as source, zipfile.ZipFile(target, "w") as archive:
        for each in source.infolist():
            content = source.read(each)
            if each.filename.endswith("data.pkl"):
                packed = zipfile.ZIP_DEFLATED if rng.random() < 0.5 else zipfile.ZIP_STORED
                packed = zipfile.ZIP_DEFLATED if len(hostile) > 1 << 20 else packed
                archive.writestr(each.filename, hostile, packed)
            elif rng.random() < 0.9:
                archive.writestr(each.filename, content)
    return target.getvalue()


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "description": description,
    "linears": linears,
    "tensors": tensors,
    "damaged": damaged,
}


def load_and_run(path: Path) -> None:
    """Load a network on the CPU and, if that succeeds, run it on two small images."""
    model = load_model(path, dtype=torch.float32, heads=("camera", "depth"))
    patch = model.config.patch_size
    if patch <= 32:
        with torch.inference_mode():
            model(torch.rand(1, 2, 3, 2 * patch, 3 * patch))
