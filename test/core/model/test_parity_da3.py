"""The network equals the original Depth Anything 3 on the golden figures of four networks."""

import functools
import json

import pytest
import torch
from support.golden import PARITY, assert_matches, golden_images, golden_tensor

from qvggt_core.model import VGGT, ComputeSettings, decode_pose
from qvggt_core.model.published_names import depth_anything_3_names
from qvggt_core.model.published_sizes import DEPTH_ANYTHING_3

LARGE = pytest.mark.vggt_1b
CASES = [
    "da3-small_1x70x98",
    "da3-small_2x56x84",
    "da3-small_2x56x84_posed",
    "da3-small_3x56x84_first",
    "da3-small_3x56x84_middle",
    "da3-small_4x70x56",
    "da3-base_2x56x84",
    "da3-base_3x70x56_posed",
    "da3-base_5x42x70",
    pytest.param("da3-large_3x42x56", marks=LARGE),
    pytest.param("da3metric-large_1x56x84", marks=LARGE),
    pytest.param("da3metric-large_2x70x42", marks=LARGE),
]


@functools.lru_cache(maxsize=1)
def golden_network(name: str) -> VGGT:
    """A network whose weights are drawn from its published parameter names."""
    with torch.device("meta"):
        model = VGGT(DEPTH_ANYTHING_3[name])
    entries = model.state_dict()
    published = depth_anything_3_names(entries)
    state = {
        name: torch.from_numpy(golden_tensor(published[name], tuple(entry.shape))).float()
        for name, entry in entries.items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_inference_equals_the_original(name: str) -> None:
    golden = json.loads((PARITY / f"{name}.json").read_text())
    model = golden_network(golden["model"])
    model.configure(ComputeSettings(reference_view=golden["reference_view"]))
    height, width = golden["height"], golden["width"]
    images = golden_images(golden["frames"], height, width)[None]
    with torch.inference_mode():
        tokens = model.encode(images)
        if golden["pose_conditioned"]:
            tokens = conditioned(model, tokens, golden, height, width)
        check_outputs(model, tokens, golden, (height, width))


def conditioned(model, tokens, golden, height, width):
    given = golden["condition"]
    pose, intrinsics = (
        torch.tensor(given[key], dtype=torch.float32)[None] for key in ("extrinsics", "intrinsics")
    )
    tokens = model.condition(tokens, pose[..., :3, :], intrinsics, (height, width))
    assert_matches(tokens[:, :, 0], given["camera_tokens"], "camera tokens of known cameras")
    return tokens


def check_outputs(model, tokens, golden, size) -> None:
    grid = (size[0] // 14, size[1] // 14)
    if golden["pose_conditioned"]:
        patches, camera, _ = model.aggregator(tokens, *grid, conditioned=True)
    else:
        patches, camera, _ = model.aggregator(tokens, *grid)
    for number, tap in enumerate(patches):
        assert_matches(tap, golden["tokens"][str(number)], f"tap {number}")
    found = model.decode(patches, camera, *grid)
    assert_matches(found.depth, golden["depth"], "depth")
    if camera is None:
        assert_matches(found.sky, golden["sky"], "sky")
        return
    assert_matches(camera, golden["camera_tokens"], "camera tokens")
    assert_matches(found.depth_confidence, golden["depth_conf"], "confidence")
    assert_matches(found.rays, golden["ray"], "rays")
    assert_matches(found.rays_confidence, golden["ray_conf"], "confidence of rays")
    assert_matches(model.camera_head(camera)[-1], golden["pose_enc"], "pose encodings")
    check_cameras(found, golden, size)


def check_cameras(found, golden, size) -> None:
    camera_from_world, _ = decode_pose(found.pose_encodings[-1], *size)
    assert_matches(camera_from_world, golden["final_extrinsics"], "world-to-camera poses")


@pytest.mark.parametrize("name", sorted(DEPTH_ANYTHING_3))
def test_names_and_shapes_are_those_of_the_published_file(name: str) -> None:
    path = PARITY / f"{name}_state_dict.json"
    if not path.exists():
        pytest.skip("no list of the published names")
    published = {k: tuple(v) for k, v in json.loads(path.read_text()).items()}
    with torch.device("meta"):
        entries = VGGT(DEPTH_ANYTHING_3[name]).state_dict()
    theirs = depth_anything_3_names(entries)
    ours = {theirs[key]: tuple(entry.shape) for key, entry in entries.items()}
    assert ours.items() <= published.items()
    # Levels of the ray branch that nothing reads.
    assert all("_aux." in key for key in published.keys() - ours.keys())
