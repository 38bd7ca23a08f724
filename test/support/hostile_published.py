"""Networks as publishers have them, that are wrong: a folder, its `config.json`, its shards.

What a hub or another tool left behind describes itself in more places than a file of ours: names,
shapes, a `config.json`, an index of shards, a record of the download. Each is made wrong here,
from a seed, and so is what the paths themselves are: links, pipes, folders.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qvggt_core.model import ModelConfig
from qvggt_core.model.checkpoint import read_checkpoint
from qvggt_core.model.load import check_complete
from qvggt_core.model.part_sizes import part_sizes
from qvggt_core.model.published_names import depth_anything_3_names
from support.hostile_checkpoints import TEXTS, VALUES, load_and_run
from support.shards import two_shards
from support.small_network import ENCODED, SINGLE_VIEW_STACK, STACK, TINY, open_state

CONFIGS: tuple[ModelConfig, ...] = (STACK, SINGLE_VIEW_STACK, TINY, ENCODED)
DIGITS = "9" * 400
LONG_TEXTS = (
    "[" * (1 << 20),
    '{"config":' * 100_000,
    '{"a":' * 900 + "1" + "}" * 900,
    f'{{"config": {{"net": {{"out_layers": [{DIGITS}, 5, 7, 9]}}}}}}',
    '{"config": {"net": {"out_layers": [1e999, -1e999, NaN, Infinity]}}}',
    '{"config": {"net": {"out_layers": ' + "[" * 500 + "]" * 500 + "}}}",
    "\ufeff{}",
    '"\\ud800"',
    '{"model_name": "\\ud800"}',
    '{"weight_map": ' + "[" * 100_000,
)
LAYERS: tuple[Any, ...] = (
    *([3, 5, 7, 9], [9, 7, 5, 3], [0, 0, 0, 0], [-1, -2, -3, -4], [3, 5, 7, 10], [2, 3, 4, 10**9]),
    *([3.7, 5, 7, 9], ["3", "5", "7", "9"], [True, 5, 7, 9], [None] * 4, [[3], 5, 7, 9], [3, 5]),
    *([float("inf"), 5, 7, 9], [float("nan")] * 4, [10**30, 5, 7, 9], ["é", 5, 7, 9], [{}] * 4),
    *(["9" * 5000, 5, 7, 9], list(range(100_000)), [1, 3, 5, 7], [3, 5, 7, -1]),
)


@lru_cache
def published_state(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Return a network's entries under the names that its publisher gives them."""
    state = open_state(config)
    if config.stack is None:
        return state
    return {theirs: state[ours] for ours, theirs in depth_anything_3_names(state).items()}


def right_json(config: ModelConfig) -> dict[str, Any]:
    """Return the `config.json` of a network."""
    if config.stack is None:
        return {"img_size": config.img_size, "taps": list(config.taps), "camera_num_heads": 4}
    return {"model_name": "toy", "config": {"net": {"out_layers": list(config.taps)}}}


def write_folder(
    folder: Path, config: ModelConfig, state: dict[str, torch.Tensor], stated: str | None
) -> Path:
    """Write a network as a hub has it; without `config.json` where its text is None."""
    folder.mkdir()
    file = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in state.items()}, file)
    if stated is not None:
        (folder / "config.json").write_bytes(stated.encode("utf-8", "surrogatepass"))
    return folder


def wrong_json(rng: random.Random, folder: Path) -> Path:
    """Write a network beside a `config.json` that lies or is none."""
    config = rng.choice(CONFIGS)
    content = right_json(config)
    kind = rng.random()
    if kind < 0.25:
        text: str | None = rng.choice((*TEXTS, *LONG_TEXTS))
    elif kind < 0.5 and config.stack is not None:
        content["config"]["net"]["out_layers"] = rng.choice(LAYERS)
        text = json.dumps(content)
    else:
        places: list[dict[str, Any]] = [content]
        places += [content["config"], content["config"]["net"]] if "config" in content else []
        for _ in range(rng.randint(1, 3)):
            keys = ("img_size", "taps", "camera_num_heads", "camera_iterations", "model_name")
            rng.choice(places)[rng.choice((*content, *keys, "net", "out_layers"))] = rng.choice(
                VALUES
            )
        text = json.dumps(content)
    return write_folder(folder, config, published_state(config), text)


def wrong_entries(rng: random.Random, folder: Path) -> Path:
    """Write a network with entries missing, more, of other types, shapes or values."""
    config = rng.choice(CONFIGS)
    state = dict(published_state(config))
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(sorted(state))
        _spoil(state, name, rng)
    stated = json.dumps(right_json(config)) if rng.random() < 0.8 else None
    return write_folder(folder, config, state, stated)


def _spoil(state: dict[str, torch.Tensor], name: str, rng: random.Random) -> None:
    tensor, kind = state[name], rng.randrange(9)
    if kind == 0:
        del state[name]
    elif kind == 1:
        more = ("model.x", "model.backbone.pretrained.blocks.99999999.x", "aggregator.x", "", "a.b")
        state[rng.choice((*more, "model." + name, name + ".", "\u202e", "metric." + name))] = tensor
    elif kind == 2:
        for each in list(state):
            state[each] = state[each].to(
                rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn))
            )
    elif kind == 3:
        kinds = (torch.int64, torch.bool, torch.uint8, torch.int16, torch.complex64)
        state[name] = tensor.to(rng.choice(kinds))
    elif kind == 4:
        value = rng.choice((float("nan"), float("inf"), 0.0, -1.0, 1e30, 1e-40, 65519.0))
        state[name] = torch.full(tensor.shape, value)
    elif kind == 5:
        shapes: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 0), (1, 1, 1, 1, 1), (10**6,))
        state[name] = torch.zeros(rng.choice(shapes))
    elif kind == 6:
        state[name] = tensor.transpose(0, -1).contiguous() if tensor.dim() else tensor[None]
    elif kind == 7:
        prefix = rng.choice(("module.", "_orig_mod.", "net.", "aggregator.", "a." * 500))
        for each in list(state):
            state[prefix + each] = state.pop(each)
    else:
        # What sizes are taken from.
        ends = (
            "pos_embed",
            "patch_embed.proj.weight",
            "camera_token",
            "q_norm.weight",
            "fc1.weight",
        )
        for each in list(state):
            if each.endswith(rng.choice(ends)):
                shape = [rng.choice((0, 1, 2, size, 3 * size)) for size in state[each].shape]
                state[each] = torch.zeros(shape)


def wrong_shards(rng: random.Random, folder: Path) -> Path:
    """Write a network in two files whose index lies, or that are not what it says."""
    config = rng.choice(CONFIGS)
    state = published_state(config)
    shards, places = two_shards(state)
    write_folder(folder, config, {}, json.dumps(right_json(config)))
    (folder / "model.safetensors").unlink()
    for shard, names in shards.items():
        save_file({name: state[name].clone() for name in names}, folder / shard)
    index: Any = {"metadata": {"total_size": 1}, "weight_map": dict(places)}
    kind, name = rng.randrange(7), rng.choice(sorted(places))
    wrong: tuple[Any, ...] = ("../x", "/etc/passwd", "", ".", "..", "\x00", "a" * 5000, *VALUES)
    if kind == 0:
        index["weight_map"][name] = rng.choice(wrong)
    elif kind == 1:
        index["weight_map"] = rng.choice(VALUES)
    elif kind == 2:
        index["weight_map"][name] = rng.choice(sorted(shards))
    elif kind == 3:
        del index["weight_map"][name]
    elif kind == 4:
        path = folder / rng.choice(sorted(shards))
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    elif kind == 5:
        index["weight_map"]["more"] = "model.safetensors.index.json"
    text = rng.choice((*TEXTS, *LONG_TEXTS)) if kind == 6 else json.dumps(index)
    file = folder / "model.safetensors.index.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    return rng.choice((folder, file))


def wrong_places(rng: random.Random, folder: Path) -> Path:
    """Lay something that is no file, or an endless one, where a file of a network is looked for."""
    config = rng.choice(CONFIGS)
    write_folder(folder, config, published_state(config), json.dumps(right_json(config)))
    name = rng.choice(("model.safetensors", "config.json", "source.json", "network.pt"))
    path = folder / name
    path.unlink(missing_ok=True)
    makers: tuple[Callable[[], Any], ...] = (
        path.mkdir,
        partial(os.mkfifo, path),
        partial(path.symlink_to, path),
        partial(path.symlink_to, "/dev/zero"),
        partial(path.symlink_to, "/dev/urandom"),
        partial(path.symlink_to, "/dev/null"),
        partial(path.symlink_to, "/proc/self/mem"),
        partial(path.symlink_to, folder),
        partial(path.symlink_to, "nowhere"),
        partial(_socket, path),
        partial(_sparse, path),
    )
    rng.choice(makers)()
    return rng.choice((folder, path))


def _socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path) if len(str(path)) > 100 else str(path))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


KINDS: dict[str, Callable[[random.Random, Path], Path]] = {
    "config.json": wrong_json,
    "entries": wrong_entries,
    "shards": wrong_shards,
    "places": wrong_places,
}


def use(path: Path) -> None:
    """Do with a published network what commands do: describe, check, load and run it."""
    checkpoint = read_checkpoint(path)
    part_sizes(checkpoint)
    if not any(name.endswith(".qweight") for name in checkpoint.names()):
        check_complete(checkpoint, ("camera", "depth"))
    load_and_run(path)
