"""Worlds of textured meshes: read from Gazebo's files, rendered at known distances and colours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from qvggt_core.errors import DatasetError
from qvggt_core.synthetic.ray_caster import pinhole
from qvggt_core.synthetic.views import random_views

pytest.importorskip("open3d", reason="open3d renders meshes: pip install open3d-cpu")
pytest.importorskip("trimesh", reason="trimesh reads meshes: pip install trimesh")

from qvggt_core.synthetic.mesh_scene import MeshScene
from qvggt_core.synthetic.mesh_world import read_gazebo_world

WALL = """mtllib wall.mtl
v 0 -{half} 0
v 0 {half} 0
v 0 {half} {high}
v 0 -{half} {high}
vt 1 0
vt 0 0
vt 0 1
vt 1 1
usemtl wall
f 1/1 2/2 3/3
f 1/1 3/3 4/4
"""
MODEL = """<sdf version="1.6"><model name="wall"><link name="link"><pose>1 0 0 0 0 0</pose>
<visual name="visual"><geometry><mesh><uri>{uri}</uri><scale>1 1 {scale}</scale></mesh></geometry>
</visual></link></model></sdf>"""
WORLD = """<sdf version="1.6"><world name="default">
<model name="a"><include><uri>model://wall</uri></include><pose>2 0 0 0 0 0</pose></model>
<model name="b"><include><uri>model://wall</uri></include><pose>-3 0 0 0 0 3.14159265</pose></model>
<model name="c"><include><uri>model://missing</uri></include></model>
</world></sdf>"""
# Looks along +x from the origin, a metre above the ground.
AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1.0]])


def gazebo(
    root: Path, uri: str = "model://wall/meshes/wall.obj", scale: float = 1.0
) -> tuple[Path, Path]:
    """Write a world of two walls, 3 m before and 4 m behind the origin, left red and right blue."""
    model = root / "models" / "wall"
    (model / "meshes").mkdir(parents=True)
    (model / "materials").mkdir()
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32, 2] = picture[:, 32:, 0] = 200
    cv2.imwrite(str(model / "materials" / "wall.png"), picture)
    (model / "meshes" / "wall.mtl").write_text("newmtl wall\nmap_Kd ../materials/wall.png\n")
    (model / "meshes" / "wall.obj").write_text(WALL.format(half=4, high=4))
    (model / "model.sdf").write_text(MODEL.format(uri=uri, scale=scale))
    world = root / "worlds" / "two.world"
    world.parent.mkdir()
    world.write_text(WORLD)
    return world, root / "models"


def test_walls_stand_where_world_model_and_link_put_them(tmp_path: Path) -> None:
    scene = MeshScene("two", read_gazebo_world(*gazebo(tmp_path)))
    seen = scene.render(AHEAD, pinhole(12, 16, 1.2), 12, 16, samples=0)
    np.testing.assert_allclose(seen.depth[2:-2], 3.0, rtol=1e-5)
    np.testing.assert_allclose(seen.normals[6, 8], [-1, 0, 0], atol=1e-5)
    behind = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AHEAD
    seen = scene.render(behind, pinhole(12, 16, 1.2), 12, 16, samples=0)
    np.testing.assert_allclose(seen.depth[4:-4], 4.0, rtol=1e-5)


def test_a_texture_lies_on_a_wall_as_its_coordinates_say(tmp_path: Path) -> None:
    scene = MeshScene("two", read_gazebo_world(*gazebo(tmp_path)))
    colour = scene.render(AHEAD, pinhole(12, 16, 1.2), 12, 16, samples=0).colour.astype(int)
    left, right = colour[5, 3], colour[5, 12]
    assert left[0] > 2 * left[2]
    assert right[2] > 2 * right[0]


def test_clearance_and_distances_agree_with_the_geometry(tmp_path: Path) -> None:
    scene = MeshScene("two", read_gazebo_world(*gazebo(tmp_path)))
    origin = np.array([0.5, 0.0, 1.0])
    assert scene.place.clearance(origin[None])[0] == pytest.approx(2.5, rel=1e-5)
    found = scene.distances(origin, np.array([[1.0, 0, 0], [-2.0, 0, 0], [0, 0, 1.0]]))
    assert found[:2] == pytest.approx([2.5, 2.25], rel=1e-5)
    assert found[2] >= 1e30


def test_a_visuals_scale_counts(tmp_path: Path) -> None:
    meshes = read_gazebo_world(*gazebo(tmp_path, scale=0.5))
    assert meshes.corners[..., 2].max() == pytest.approx(2.0)


def test_paths_lead_through_a_world_of_meshes(tmp_path: Path) -> None:
    scene = MeshScene("two", read_gazebo_world(*gazebo(tmp_path)))
    poses = random_views(scene, 3, 1, 0.7)
    assert (scene.place.clearance(poses[:, :3, 3]) > 0.05).all()


def test_what_shows_nothing_is_refused_and_no_mesh_is_read_from_outside(tmp_path: Path) -> None:
    outside = tmp_path / "secret.obj"
    outside.write_text(WALL.format(half=1, high=1))
    world, models = gazebo(tmp_path / "set", uri="model://../../secret.obj")
    with pytest.raises(DatasetError, match="shows nothing"):
        read_gazebo_world(world, models)
    with pytest.raises(DatasetError, match="cannot read"):
        read_gazebo_world(tmp_path / "none.world", models)
    world.write_text("<sdf><world>")
    with pytest.raises(DatasetError, match="cannot read"):
        read_gazebo_world(world, models)
