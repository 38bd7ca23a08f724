"""Depth Anything 3 as it is published, from the hub to a map: random weights of its shape."""

import functools
import json

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from support.commands import run
from support.golden import PARITY
from support.hub import Hub, running
from support.recordings import image_message, room_entries, write_recording

from qvggt_core.model.download import download
from qvggt_core.model.published_names import is_ray_part, own_names
from qvggt_core.quantize import PRESETS, planned_sizes

LIMITS_MB = {"da3-small": 25.0, "da3-base": 90.0}
REPOSITORIES = {"da3-small": "depth-anything/DA3-SMALL", "da3-base": "depth-anything/DA3-BASE"}


def published_shapes(name: str) -> dict[str, list[int]]:
    return json.loads((PARITY / f"{name}_state_dict.json").read_text())


@pytest.mark.parametrize("name", LIMITS_MB)
def test_a_four_bit_file_is_small_enough_for_a_robot(name) -> None:
    shapes = published_shapes(name)
    kept = {
        ours: shapes[theirs]
        for ours, theirs in own_names(PARITY, shapes).items()
        if not is_ray_part(ours) and not ours.startswith("camera_encoder.")
    }
    sizes = planned_sizes(PRESETS["uniform"], kept)
    # The header, with a line per entry and a licence text, takes less than a tenth of a megabyte.
    assert sum(size.nbytes for size in sizes.values()) / 1e6 + 0.1 < LIMITS_MB[name]


def random_weights(name: str) -> bytes:
    state = {}
    for entry, shape in published_shapes(name).items():
        generator = torch.Generator().manual_seed(len(state))
        values = torch.randn(shape, generator=generator)
        if entry.endswith(".gamma"):
            values = torch.full(shape, 0.1)
        elif len(shape) == 1:
            is_gain = "norm" in entry and entry.endswith("weight")
            values = torch.ones(shape) if is_gain else torch.zeros(shape)
        elif entry.endswith("weight"):
            values /= torch.Size(shape[1:]).numel() ** 0.5
        state[entry] = values
    # Cameras of a random network see nothing: a right angle keeps their focal length finite.
    state["model.cam_dec.fc_fov.0.bias"] = torch.full((2,), 1.2)
    state["model.cam_dec.fc_qvec.bias"] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    return save(state)


@pytest.fixture(scope="module", params=list(LIMITS_MB))
def quantized(request, tmp_path_factory):
    """The 4-bit file of a network that came from the stand-in of the hub, and its name."""
    name, folder = request.param, tmp_path_factory.mktemp("checkpoints")
    files = {
        "model.safetensors": random_weights(name),
        "config.json": json.dumps({"model_name": name}).encode(),
        "LICENSE": b"Apache License, Version 2.0",
    }
    with running(Hub(REPOSITORIES[name], files)) as hub, pytest.MonkeyPatch.context() as patch:
        from_stand_in = functools.partial(download, endpoint=hub.endpoint)
        patch.setattr("qvggt_core.model.download.download", from_stand_in)
        path = from_stand_in(name, folder, lambda offer: True)
    return name, path, folder / f"{name}-int4.safetensors"


@pytest.mark.slow
def test_from_the_hub_to_a_map(quantized, capsys, tmp_path) -> None:
    name, source, target = quantized
    status, _, errors = run(capsys, "quantize", source, "-o", target)
    assert status == 0, errors
    assert target.stat().st_size / 1e6 < LIMITS_MB[name]
    with safe_open(target, framework="pt") as file:
        assert file.metadata()["licence"] == "apache-2.0"
        assert "Apache License" in file.metadata()["licence_text"]
    status, printed, _ = run(capsys, "info", target)
    assert status == 0
    assert "depth head" in printed

    bag = write_recording(tmp_path / "room", room_entries(9))
    video = tmp_path / "flight.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (56, 42))
    for index in range(9):
        pixels = np.frombuffer(image_message(index).data, np.uint8).reshape(42, 56, 3)
        writer.write(np.ascontiguousarray(pixels[..., ::-1]))
    writer.release()
    for recording in (bag, video):
        output = tmp_path / f"{recording.name}_out"
        status, printed, errors = run(
            capsys,
            *("replay", recording, "-o", output, "--no-report", "--checkpoint", target),
            *("--set", "image_width=56", "--set", "keyframe_min_motion=0"),
            *("--set", "max_scale_spread=10"),
        )
        assert status == 0, errors
        metrics = json.loads((output / "metrics.json").read_text())
        assert metrics["result"]["published"] == 9
