"""Exports, read back by parsers of their own and held against a room whose every point is known."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import known_room as room
from support import mapped_room
from support.colmap_model import parsed_colmap
from support.commands import run
from support.small_result import FRAMES, STAMPS_NS, pose, write_result

from qvggt_core.errors import OutputError, ParameterError, RecordingError
from qvggt_core.export.formats import format_of, write_scene
from qvggt_core.export.scene import PosedImage, Scene
from qvggt_core.export.sources import read_scene
from qvggt_core.geometry.cloud import Cloud, read_ply
from qvggt_core.stream.saved_map import write_map

POSES = room.straight(3)
FX, FY, CX, CY = 80.0, 80.0, 55.5, 41.5
SEEN = 8
"""Every so many pixels per axis become a point."""


def true_point(index: int, column: float, row: float) -> np.ndarray:
    """The point of the room that a pixel shows, its centre at integers, by the box's walls."""
    ray = POSES[index][:3, :3] @ [(column - CX) / FX, (row - CY) / FY, 1.0]
    centre = POSES[index][:3, 3]
    walls = [
        (w - c) / r
        for low, high, c, r in zip(room.LOW, room.HIGH, centre, ray, strict=True)
        for w in (low, high)
        if r
    ]
    return centre + min(distance for distance in walls if distance > 0) * ray


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Three images of the room, and the points that their pixels show."""
    images, positions, colors = [], [], []
    for index, matrix in enumerate(POSES):
        depth, image = room.depth_of(matrix), room.image_of(matrix)
        depth[:2] = np.nan
        images.append(PosedImage(10**9 + index, matrix, room.INTRINSICS, image, depth))
        for row in range(4, room.HEIGHT, SEEN):
            for column in range(4, room.WIDTH, SEEN):
                positions.append(true_point(index, column, row))
                colors.append(image[row, column])
    confidence = np.linspace(1, 9, len(positions), dtype=np.float32)
    cloud = Cloud(np.array(positions, np.float32), np.array(colors, np.uint8), confidence)
    return Scene(cloud, tuple(images), True, "imu")


# Clouds


def parsed_pcd(path: Path) -> tuple[dict[str, list[str]], np.ndarray]:
    content = path.read_bytes()
    end = content.index(b"DATA binary\n") + len(b"DATA binary\n")
    lines = content[:end].decode().splitlines()
    head = {line.split()[0]: line.split()[1:] for line in lines if not line.startswith("#")}
    return head, np.frombuffer(content[end:], "<f4").reshape(-1, 5)


def parsed_glb(path: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    content = path.read_bytes()
    magic, version, size = struct.unpack_from("<4sII", content)
    assert (magic, version, size) == (b"glTF", 2, len(content))
    length, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON"
    assert length % 4 == 0
    document = json.loads(content[20 : 20 + length])
    length_of_data, kind = struct.unpack_from("<I4s", content, 20 + length)
    assert kind == b"BIN\0"
    data = content[28 + length :]
    assert len(data) == length_of_data == document["buffers"][0]["byteLength"]
    arrays = []
    for accessor, (code, columns) in zip(
        document["accessors"], (("<f4", 3), ("<u2", 4)), strict=True
    ):
        view = document["bufferViews"][accessor["bufferView"]]
        part = data[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        arrays.append(np.frombuffer(part, code).reshape(accessor["count"], columns))
    return document, *arrays


def test_a_pcd_has_the_points_colours_and_confidence(scene: Scene, tmp_path: Path) -> None:
    write_scene(tmp_path / "room.pcd", scene, "pcd")
    head, rows = parsed_pcd(tmp_path / "room.pcd")
    assert head["FIELDS"] == ["x", "y", "z", "rgb", "confidence"]
    assert head["TYPE"] == ["F"] * 5
    assert head["SIZE"] == ["4"] * 5
    assert head["WIDTH"] == head["POINTS"] == [str(len(scene.cloud))]
    np.testing.assert_array_equal(rows[:, :3], scene.cloud.positions)
    np.testing.assert_array_equal(rows[:, 4], scene.cloud.confidence)
    packed = rows[:, 3].copy().view(np.uint32)
    rgb = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    np.testing.assert_array_equal(rgb, scene.cloud.colors)
    assert np.isfinite(rows).all()


def test_a_ply_has_them_too(scene: Scene, tmp_path: Path) -> None:
    write_scene(tmp_path / "room.ply", scene, "ply")
    head, _, body = (tmp_path / "room.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[1:] for line in head.decode().splitlines() if "property" in line]
    assert names[:3] == [["float", "x"], ["float", "y"], ["float", "z"]]
    kinds = {"float": "<f4", "uchar": "u1"}
    rows = np.frombuffer(body, [(name, kinds[kind]) for kind, name in names])
    for axis, name in enumerate("xyz"):
        np.testing.assert_array_equal(rows[name], scene.cloud.positions[:, axis])
    for channel, name in enumerate(("red", "green", "blue")):
        np.testing.assert_array_equal(rows[name], scene.cloud.colors[:, channel])


def test_a_glb_is_y_up_in_linear_colours(scene: Scene, tmp_path: Path) -> None:
    colors = scene.cloud.colors.copy()
    colors[0] = [0, 188, 255]
    cloud = replace(scene.cloud, colors=colors)
    write_scene(tmp_path / "room.glb", replace(scene, cloud=cloud), "glb")
    document, positions, linear = parsed_glb(tmp_path / "room.glb")
    accessor = document["accessors"][0]
    np.testing.assert_array_equal(accessor["min"], positions.min(axis=0).astype(float))
    np.testing.assert_array_equal(accessor["max"], positions.max(axis=0).astype(float))
    # The room's height is along y, forward (x) stays, and left (y) comes towards the viewer: -z.
    assert accessor["min"][1] == pytest.approx(room.LOW[2], abs=1e-5)
    assert accessor["max"][1] == pytest.approx(room.HIGH[2], abs=1e-5)
    np.testing.assert_array_equal(positions[:, 0], scene.cloud.positions[:, 0])
    np.testing.assert_array_equal(positions[:, 2], -scene.cloud.positions[:, 1])
    assert document["meshes"][0]["primitives"][0]["mode"] == 0
    # sRGB 188 is half of the light, within its step.
    np.testing.assert_allclose(linear[0] / 65535, [0.0, 0.5029, 1.0, 1.0], atol=2e-4)


def test_no_points_make_no_glb(scene: Scene, tmp_path: Path) -> None:
    empty = replace(scene, cloud=scene.cloud.take(np.empty(0, np.int64)))
    with pytest.raises(OutputError, match="no point"):
        write_scene(tmp_path / "room.glb", empty, "glb")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["ply", "pcd"])
def test_open3d_reads_clouds(scene: Scene, tmp_path: Path, suffix: str) -> None:
    o3d = pytest.importorskip("open3d", reason="open3d is not installed")
    write_scene(tmp_path / f"room.{suffix}", scene, suffix)
    cloud = o3d.io.read_point_cloud(str(tmp_path / f"room.{suffix}"))
    np.testing.assert_allclose(np.asarray(cloud.points), scene.cloud.positions)
    np.testing.assert_allclose(255 * np.asarray(cloud.colors), scene.cloud.colors, atol=1e-6)


@pytest.mark.parametrize("suffix", ["ply", "glb"])
def test_trimesh_reads_clouds(scene: Scene, tmp_path: Path, suffix: str) -> None:
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")
    write_scene(tmp_path / f"room.{suffix}", scene, suffix)
    loaded = trimesh.load(tmp_path / f"room.{suffix}", force="scene")
    (cloud,) = loaded.geometry.values()
    x, y, z = scene.cloud.positions.T
    expected = np.stack([x, z, -y] if suffix == "glb" else [x, y, z], axis=1)
    np.testing.assert_allclose(cloud.vertices, expected)


# COLMAP


def matrix_of(w: float, x: float, y: float, z: float) -> np.ndarray:
    """The rotation of a unit quaternion, written out."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@pytest.fixture(params=["colmap", "colmap-text"])
def model(request, scene: Scene, tmp_path: Path) -> Path:
    write_scene(tmp_path / "model", scene, request.param)
    return tmp_path / "model"


def test_a_colmap_model_projects_points_onto_the_pixels_that_saw_them(
    scene: Scene, model: Path
) -> None:
    cameras, images, points = parsed_colmap(model / "sparse" / "0")
    assert len(images) == len(scene.images)
    assert len(points) == len(scene.cloud)
    checked = 0
    for index, (rotation, translation, camera, name, seen) in enumerate(images.values()):
        kind, size, (fx, fy, cx, cy) = cameras[camera]
        assert (kind, size) == ("PINHOLE", [room.WIDTH, room.HEIGHT])
        picture = cv2.imread(str(model / "images" / name))[..., ::-1]
        for x, y, number in seen:
            place, color, _, _ = points[int(number)]
            in_camera = matrix_of(*rotation) @ place + translation
            u, v = fx * in_camera[0] / in_camera[2] + cx, fy * in_camera[1] / in_camera[2] + cy
            assert abs(u - x) <= 0.501
            assert abs(v - y) <= 0.501
            # The pixel at column 3 has its centre at 3.5, and shows what the room has there.
            column, row = x - 0.5, y - 0.5
            shown = true_point(index, column, row)
            assert np.linalg.norm(shown - place) < 0.06 * in_camera[2]
            if np.linalg.norm(shown - place) < 1e-4:
                assert picture[int(row), int(column)].tolist() == color
                checked += 1
    assert checked >= len(points), "each point comes from a pixel of one image, exactly"


def test_its_tracks_and_images_name_each_other(model: Path) -> None:
    _, images, points = parsed_colmap(model / "sparse" / "0")
    named = {(image, place) for image, (*_, seen) in images.items() for place in range(len(seen))}
    lengths = []
    for number, (_, _, error, track) in points.items():
        for image, place in track.tolist():
            assert images[image][4][place, 2] == number
            named.remove((image, place))
        lengths.append(len(track))
        assert 0 <= error < 0.71
    assert not named
    assert max(lengths) == len(images), "points in the middle are seen by all images"


def test_pycolmap_reads_it(scene: Scene, model: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    found = pycolmap.Reconstruction(str(model / "sparse" / "0"))
    assert found.num_reg_images() == len(scene.images)
    assert found.compute_mean_reprojection_error() < 0.71
    for image in found.images.values():
        for seen in image.points2D:
            projected = image.project_point(found.points3D[seen.point3D_id].xyz)
            np.testing.assert_allclose(projected, seen.xy, atol=0.501)


# nerfstudio


def test_a_nerfstudio_data_set_has_opengl_cameras_and_depth(scene: Scene, tmp_path: Path) -> None:
    write_scene(tmp_path / "set", scene, "nerfstudio")
    document = json.loads((tmp_path / "set" / "transforms.json").read_text())
    assert len(read_ply(tmp_path / "set" / document["ply_file_path"])) == len(scene.cloud)
    for index, frame in enumerate(document["frames"]):
        picture = cv2.imread(str(tmp_path / "set" / frame["file_path"]))[..., ::-1]
        np.testing.assert_array_equal(picture, scene.images[index].image)
        depth = cv2.imread(str(tmp_path / "set" / frame["depth_file_path"]), cv2.IMREAD_UNCHANGED)
        assert depth.dtype == np.uint16
        assert (depth[:2] == 0).all(), "what is unknown is zero"
        world_from_camera = np.array(frame["transform_matrix"])
        for column, row in ((0, 5), (111, 83), (50, 40)):
            metres = 1e-3 * depth[row, column]
            x = (column + 0.5 - frame["cx"]) / frame["fl_x"]
            y = (row + 0.5 - frame["cy"]) / frame["fl_y"]
            # OpenGL looks along -z, and y is up.
            point = world_from_camera @ [metres * x, -metres * y, -metres, 1.0]
            np.testing.assert_allclose(point[:3], true_point(index, column, row), atol=2e-3)


def test_depth_that_sixteen_bits_cannot_hold_is_unknown(scene: Scene, tmp_path: Path) -> None:
    far = replace(scene.images[0], depth_unit=1000.0)
    write_scene(tmp_path / "set", replace(scene, images=(far,)), "nerfstudio")
    depth = cv2.imread(str(tmp_path / "set" / "depth" / f"{far.name}.png"), cv2.IMREAD_UNCHANGED)
    assert not depth.any()


# Sources


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    write_map(tmp_path / "map", mapped_room.saved())
    return tmp_path / "map"


def test_a_saved_map_gives_its_keyframes_and_their_points(saved: Path) -> None:
    found = read_scene([saved])
    keyframes = mapped_room.saved().keyframes
    assert [image.stamp_ns for image in found.images] == [each.stamp_ns for each in keyframes]
    assert found.is_metric
    low, high = mapped_room.flights.LOW, mapped_room.flights.HIGH
    corners = np.stack([low, high])
    in_room = found.cloud.positions - mapped_room.MAP_FROM_ROOM[:3, 3]
    in_room = in_room @ mapped_room.MAP_FROM_ROOM[:3, :3]
    off = np.abs(in_room[:, None, :] - corners).min(axis=(1, 2))
    assert np.quantile(off, 0.99) < 0.03, "all points are on the walls"


def test_a_result_gives_its_points_and_six_images(tmp_path: Path) -> None:
    found = read_scene([write_result(tmp_path / "result")])
    assert len(found.images) == 6
    assert not found.is_metric
    assert f"6 images of {FRAMES} poses" in found.notes[0]
    for image in found.images:
        expected = pose(STAMPS_NS.index(image.stamp_ns))[:3, 3] / 2
        np.testing.assert_allclose(image.map_from_camera[:3, 3], expected, atol=1e-8)
    in_wall = np.isclose(found.cloud.positions[:, 2:].min(), found.images[0].depth.min(), atol=0.05)
    assert in_wall


def test_sources_that_are_not_of_one_run_are_refused(saved: Path, tmp_path: Path) -> None:
    result = write_result(tmp_path / "result")
    with pytest.raises(RecordingError, match="not of the run"):
        read_scene([result, saved])
    with pytest.raises(RecordingError, match="neither a result"):
        read_scene([tmp_path])
    with pytest.raises(RecordingError, match="one of each at most"):
        read_scene([saved, saved])
    with pytest.raises(RecordingError, match="no segment 3; segments: 0"):
        read_scene([result], 3)


# Outputs


def test_what_is_there_is_left_alone(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "room.ply").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        write_scene(tmp_path / "room.ply", scene, "ply")
    assert (tmp_path / "room.ply").read_text() == "mine"
    write_scene(tmp_path / "room.ply", scene, "ply", overwrite=True)
    assert len(read_ply(tmp_path / "room.ply")) == len(scene.cloud)
    (tmp_path / "model" / "sparse" / "0").mkdir(parents=True)
    (tmp_path / "model" / "sparse" / "0" / "cameras.bin").write_text("mine")
    with pytest.raises(OutputError, match="no export"):
        write_scene(tmp_path / "model", scene, "colmap", overwrite=True)
    assert (tmp_path / "model" / "sparse" / "0" / "cameras.bin").read_text() == "mine"


def test_a_former_export_is_replaced_whole(scene: Scene, tmp_path: Path) -> None:
    write_scene(tmp_path / "out", scene, "nerfstudio")
    with pytest.raises(OutputError, match="--overwrite"):
        write_scene(tmp_path / "out", scene, "colmap")
    write_scene(tmp_path / "out", replace(scene, images=scene.images[:1]), "colmap", overwrite=True)
    assert not (tmp_path / "out" / "transforms.json").exists()
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_formats_with_images_need_images(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="needs images"):
        write_scene(tmp_path / "out", replace(scene, images=()), "colmap")
    assert not list(tmp_path.iterdir())


def test_a_format_is_named_or_shown_by_the_suffix() -> None:
    assert format_of(Path("a/room.PCD"), None) == "pcd"
    assert format_of(Path("a/room.ply"), "colmap") == "colmap"
    for output, name in (("room", None), ("room.obj", None), ("room.ply", "obj")):
        with pytest.raises(ParameterError, match="choose --format ply, pcd, glb"):
            format_of(Path(output), name)


def test_the_command_writes_and_says_what_is_missing(saved: Path, tmp_path: Path, capsys) -> None:
    status, out, err = run(
        capsys,
        "export",
        saved,
        "-o",
        tmp_path / "set",
        "--format",
        "colmap",
        "--max-images",
        2,
        "--max-points",
        500,
    )
    assert status == 0, err
    assert "metres" in out
    assert "no confidence" in err
    _, images, points = parsed_colmap(tmp_path / "set" / "sparse" / "0")
    assert (len(images), len(points)) == (2, 500)
    status, _, err = run(capsys, "export", saved, "-o", saved, "--format", "colmap", "--overwrite")
    assert status == 2
    assert "lies in the output" in err
