"""A map on the disk is what it was, whole or not there; what is wrong is refused with a reason."""

import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import mapped_room
from support.figures import outcome
from support.hostile_checkpoints import TEXTS, VALUES, header_of, with_header

from qvggt_core.errors import MapError, OutputError
from qvggt_core.geometry.similarities import similarity
from qvggt_core.stream.loop_finder import LoopFinder
from qvggt_core.stream.saved_map import KEYFRAMES_FILE, MANIFEST_FILE, SavedMap, read_map, write_map


@pytest.fixture(scope="module")
def saved():
    """Five keyframes, with tokens."""
    whole = mapped_room.saved()
    tokens = np.random.default_rng(0).normal(size=(5, 7, 16)).astype(np.float16)
    keyframes = [
        replace(each, tokens=token) for each, token in zip(whole.keyframes[:5], tokens, strict=True)
    ]
    return replace(
        whole, poses=whole.poses[:5], keyframes=tuple(keyframes), places=whole.places[:5]
    )


@pytest.fixture
def box(saved, tmp_path):
    write_map(tmp_path / "box", saved)
    return tmp_path / "box"


def test_a_map_is_read_as_it_was_written(box, saved):
    found = read_map(box)
    assert sorted(path.name for path in box.iterdir()) == [KEYFRAMES_FILE, MANIFEST_FILE]
    for name in ("name", "network", "is_metric", "up_source"):
        assert getattr(found, name) == getattr(saved, name)
    np.testing.assert_array_equal(found.poses, saved.poses)
    np.testing.assert_array_equal(found.places, saved.places)
    for one, other in zip(found.keyframes, saved.keyframes, strict=True):
        assert (one.stamp_ns, one.unit) == (other.stamp_ns, other.unit)
        assert (one.corners.focal, one.corners.area) == (other.corners.focal, other.corners.area)
        for name in ("image", "intrinsics", "tokens", "depth"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("rays", "depth"):
            np.testing.assert_array_equal(getattr(one.corners, name), getattr(other.corners, name))
        np.testing.assert_array_equal(
            one.corners.features.descriptors, other.corners.features.descriptors
        )
        np.testing.assert_array_equal(one.corners.features.pixels, other.corners.features.pixels)


def test_the_same_map_is_the_same_bytes(box, saved, tmp_path):
    write_map(tmp_path / "again", saved)
    for name in (MANIFEST_FILE, KEYFRAMES_FILE):
        assert (box / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_former_map_is_replaced_only_if_asked_and_nothing_else_ever(box, saved, tmp_path):
    with pytest.raises(OutputError, match="exists"):
        write_map(box, saved)
    write_map(box, replace(saved, is_metric=False), overwrite=True)
    assert not read_map(box).is_metric
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="no saved map"):
        write_map(tmp_path / "mine", saved, overwrite=True)


def test_a_map_that_cannot_be_written_leaves_nothing(saved, tmp_path):
    uneven = replace(saved.keyframes[1], image=saved.keyframes[1].image[:-2])
    wrong = replace(saved, keyframes=(saved.keyframes[0], uneven, *saved.keyframes[2:]))
    with pytest.raises(ValueError, match="same shape"):
        write_map(tmp_path / "box", wrong)
    assert list(tmp_path.iterdir()) == []


def corrected(worlds, corrections):
    """Return the keyframes of the mapped room with what loops made of them."""
    finder, count = LoopFinder(), len(worlds)
    known = mapped_room.mapped()
    for keyframe, pose in zip(known.store.keyframes[:count], known.chains.poses, strict=False):
        finder.store.append(keyframe)
        finder.chains.append(pose, np.eye(7), 0 if len(finder.chains) < 2 else 1)
    finder._solved = (np.array(worlds), corrections)
    finder._metric = {0: True, 1: False}
    return finder


def test_what_is_saved_is_where_loops_put_it_in_the_unit_of_the_map():
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moves = np.stack([similarity(1.0 + 0.1 * i, turn, np.array([i, 2.0, 3.0])) for i in range(5)])
    finder = corrected([0] * 5, moves)
    saved = SavedMap.of(finder, "", "imu")
    for index, keyframe in enumerate(saved.keyframes):
        before, pose = finder.store.keyframes[index], finder.chains.poses[index]
        scale = 1.0 + 0.1 * index
        np.testing.assert_allclose(saved.poses[index][:3, :3], turn @ pose[:3, :3], atol=1e-12)
        expected = scale * turn @ pose[:3, 3] + [index, 2.0, 3.0]
        np.testing.assert_allclose(saved.poses[index][:3, 3], expected, atol=1e-12)
        assert keyframe.unit == pytest.approx(scale * before.unit)
        np.testing.assert_allclose(keyframe.corners.depth, scale * before.corners.depth, rtol=1e-6)


def test_the_largest_world_is_saved_and_its_unit_is_known_or_not():
    finder = corrected([0, 0, 1, 1, 1], np.tile(np.eye(4), (5, 1, 1)))
    saved = SavedMap.of(finder, "", "imu")
    assert [each.stamp_ns for each in saved.keyframes] == [
        each.stamp_ns for each in finder.store.keyframes[2:]
    ]
    assert not saved.is_metric
    finder._scale_sigma = 0.02
    assert SavedMap.of(finder, "", "imu").is_metric
    other = corrected([0, 0, 1], np.tile(np.eye(4), (3, 1, 1)))
    assert SavedMap.of(other, "", "imu").is_metric
    assert mapped_room.saved().is_metric
    assert not mapped_room.saved(False).is_metric


def test_without_keyframes_there_is_no_map():
    with pytest.raises(MapError, match="no map to save"):
        SavedMap.of(LoopFinder(), "", "imu")


def test_tokens_of_another_network_are_refused(saved):
    saved.check_network(mapped_room.NETWORK)
    with pytest.raises(MapError, match="another network"):
        saved.check_network("00" * 32)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(box, share):
    path = box / KEYFRAMES_FILE
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(MapError, match=r"keyframes\.safetensors cannot be read"):
        read_map(box)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "map format 2, this qvggt reads 1"),
        ({"format": "qvggt-metrics"}, "no saved map"),
        ({"keyframes": 10**12}, "keyframes is 1000000000000"),
        ({"keyframes": True}, "keyframes is True"),
        ({"keyframes": 4}, "save the map again"),
        ({"unit": "feet"}, "unit is 'feet'"),
        ({"network_sha256": None}, "network_sha256 is None"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(box, change, message):
    path = box / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(MapError, match=message):
        read_map(box)


def test_what_is_missing_is_named(box, tmp_path):
    with pytest.raises(MapError, match="nowhere is no saved map"):
        read_map(tmp_path / "nowhere")
    (box / KEYFRAMES_FILE).unlink()
    with pytest.raises(MapError, match=r"keyframes\.safetensors"):
        read_map(box)


def _rewrite(box, name, change):
    tensors = load_file(box / KEYFRAMES_FILE)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, box / KEYFRAMES_FILE)


def _with(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("poses", _with((1, 0, 3), np.nan)),
        ("poses", _with((1, 2, 3), np.inf)),
        ("poses", _with((1, 0, 0), 1.5)),
        ("poses", _with((1, 3), [0, 0, 0, 2])),
        ("poses", lambda poses: poses * [[-1.0], [-1.0], [-1.0], [1.0]]),
        ("intrinsics", _with((0, 0, 0), -1.0)),
        ("intrinsics", _with((0, 1, 2), np.nan)),
        ("places", _with((0, 0), np.nan)),
        ("corners", _with(0, -3)),
        ("corners", _with(0, 2**62)),
        ("corner_rays", _with((0, 0), np.inf)),
        ("corner_pixels", _with((0, 0), np.nan)),
        ("corner_depth", _with(0, -1.0)),
        ("depth_unit", _with(0, 0.0)),
        ("corner_focal", _with(0, np.nan)),
        ("corner_area", _with(0, np.inf)),
    ],
)
def test_values_that_no_map_has_are_refused(box, name, change):
    _rewrite(box, name, change)
    with pytest.raises(MapError, match=f"{name} holds values"):
        read_map(box)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("poses", lambda poses: poses[:4]),
        ("poses", lambda poses: poses.astype(np.float32)),
        ("images", lambda images: images[:, :, :, :2]),
        ("images", lambda images: images[0]),
        ("tokens", lambda tokens: tokens[0]),
        ("depth", lambda depth: depth[:, :-1]),
        ("places", lambda places: places[:, :0]),
        ("corner_descriptors", lambda descriptors: descriptors[:, :64]),
        ("corner_rays", lambda rays: rays[:-1]),
    ],
)
def test_shapes_that_do_not_fit_are_refused_before_anything_is_read(box, name, change, monkeypatch):
    _rewrite(box, name, change)
    monkeypatch.setattr("qvggt_core.stream.saved_map._check_values", lambda *_: pytest.fail("read"))
    with pytest.raises(MapError, match=rf"{name}|images"):
        read_map(box)


def test_a_tensor_too_many_is_refused(box):
    tensors = load_file(box / KEYFRAMES_FILE)
    save_file({**tensors, "more": np.zeros(3)}, box / KEYFRAMES_FILE)
    with pytest.raises(MapError, match="more"):
        read_map(box)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_is_read_or_refused(box, seed):
    rng = random.Random(seed)
    kind = seed % 3
    if kind == 0:
        path = box / MANIFEST_FILE
        manifest = json.loads(path.read_text())
        manifest[rng.choice(sorted(manifest))] = rng.choice(VALUES)
        path.write_text(json.dumps(manifest) if rng.random() < 0.7 else rng.choice(TEXTS))
    else:
        path = box / KEYFRAMES_FILE
        raw = bytearray(path.read_bytes())
        header, data = header_of(bytes(raw))
        if kind == 1:
            entry = header[rng.choice([name for name in header if name != "__metadata__"])]
            entry[rng.choice(("data_offsets", "shape", "dtype"))] = rng.choice(
                ([0, 0], [0, 2**62], [5, 1], [-1, 4], [0, len(data)], [2**40, 2**40], "F32", None)
            )
            raw = bytearray(with_header(header, data))
        else:
            for _ in range(200):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
    found = outcome(lambda: read_map(box))
    assert 0 < len(found) < 2000


def test_poses_that_are_no_exact_rotations_any_more_are_put_right(tmp_path):
    finder = corrected([0] * 3, np.tile(np.eye(4), (3, 1, 1)))
    finder.chains.poses = finder.chains.poses * (1.0 + 1e-4 * np.eye(4)[[0, 1, 2, 3]])
    finder.chains.poses[:, 3, 3] = 1.0
    write_map(tmp_path / "box", SavedMap.of(finder, "", "imu"))
    rotations = read_map(tmp_path / "box").poses[:, :3, :3]
    products = rotations @ np.swapaxes(rotations, 1, 2)
    np.testing.assert_allclose(products, np.tile(np.eye(3), (3, 1, 1)), atol=1e-12)
