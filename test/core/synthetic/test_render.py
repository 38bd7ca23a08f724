"""The ray caster against distances, normals and colours that are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from support.worlds import made_world

from qvggt_core.geometry.poses import transform, unproject
from qvggt_core.synthetic import world as shapes
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.ray_caster import pinhole
from qvggt_core.synthetic.render import Scene
from qvggt_core.synthetic.sensor import expose

PLAIN = shapes.Texture("noise", (0.5, 0.4, 0.3), (0.9, 0.8, 0.7), 1.0)
# Looks along +x of the world from its origin: image right is -y, image down is -z.
LOOK_X = transform(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=float), np.zeros(3))
HEIGHT, WIDTH = 24, 32
CAMERA = pinhole(HEIGHT, WIDTH, np.radians(60))


def _render(pose: np.ndarray = LOOK_X, **parts: object):
    return Scene(made_world(**parts)).render(pose, CAMERA, HEIGHT, WIDTH, samples=0)


def _directions() -> np.ndarray:
    """World directions, with x = 1, of LOOK_X's pixels: (H, W, 3)."""
    rays = unproject(np.ones((HEIGHT, WIDTH)), CAMERA).astype(np.float64)
    return rays @ LOOK_X[:3, :3].T


def test_a_wall_has_its_distance_and_its_edges() -> None:
    wall = shapes.Rectangle((3.0, 0.2, 0.0), (0, 1, 0), (0, 0, 1), (0.8, 0.5), PLAIN)
    image = _render(rectangles=(wall,))
    hit = 3.0 * _directions()
    inside = (np.abs(hit[..., 1] - 0.2) < 0.8) & (np.abs(hit[..., 2]) < 0.5)
    np.testing.assert_array_equal(np.isfinite(image.depth), inside)
    np.testing.assert_allclose(image.depth[inside], 3.0, rtol=1e-6)
    np.testing.assert_allclose(image.normals[inside], [[-1, 0, 0]] * inside.sum(), atol=1e-6)


def test_a_sphere_has_its_distance_and_normals() -> None:
    centre, radius = np.array([4.0, 0.3, -0.2]), 1.0
    image = _render(spheres=(shapes.Sphere(tuple(centre), radius, PLAIN),))
    d = _directions()
    a, b, c = (d**2).sum(-1), d @ centre, centre @ centre - radius**2
    disc = b**2 - a * c
    expected = np.where(disc > 0, (b - np.sqrt(disc.clip(0))) / a, np.nan)
    np.testing.assert_allclose(image.depth, expected, rtol=2e-5)
    hit = np.isfinite(expected)
    normals = (expected[..., None] * d - centre)[hit] / radius
    np.testing.assert_allclose(image.normals[hit], normals, atol=1e-3)


@pytest.mark.parametrize("yaw", [0.0, 0.6])
def test_a_box_is_where_its_faces_are(yaw: float) -> None:
    half = np.array([0.5, 0.7, 0.4])
    image = _render(boxes=(shapes.Box((3.0, 0.0, 0.1), tuple(half), yaw, PLAIN),))
    hit = np.isfinite(image.depth)
    assert 20 < hit.sum() < hit.size
    points = image.depth[hit][:, None] * _directions()[hit] - [3.0, 0.0, 0.1]
    c, s = np.cos(yaw), np.sin(yaw)
    local = points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]).T
    # On the surface: inside all slabs, and on the boundary of one.
    assert (np.abs(local) <= half + 1e-5).all()
    np.testing.assert_allclose((half - np.abs(local)).min(axis=1), 0.0, atol=1e-5)
    if yaw == 0.0:
        front = np.abs(local[:, 0] + 0.5) < 1e-5
        np.testing.assert_allclose(image.depth[hit][front], 2.5, rtol=1e-6)
        np.testing.assert_allclose(image.normals[hit][front][:, 0], -1.0)


def test_a_cylinder_is_where_its_side_and_caps_are() -> None:
    up_high = LOOK_X.copy()
    up_high[:3, 3] = [0.0, 0.0, 1.2]
    cylinder = shapes.Cylinder((2.5, 0.0, 0.4), 0.5, 0.5, PLAIN)
    image = _render(up_high, cylinders=(cylinder,))
    hit = np.isfinite(image.depth)
    points = up_high[:3, 3] + image.depth[hit][:, None] * _directions()[hit]
    radial = np.hypot(points[:, 0] - 2.5, points[:, 1])
    on_cap = image.normals[hit][:, 2] > 0.9
    assert on_cap.any()
    assert (~on_cap).any()
    np.testing.assert_allclose(points[on_cap, 2], 0.9, atol=1e-5)
    np.testing.assert_allclose(radial[~on_cap], 0.5, atol=1e-5)
    assert (radial[on_cap] < 0.5 + 1e-5).all()


def test_ground_is_hit_where_a_root_finder_says() -> None:
    ground = shapes.HeightField(((0.3, 0.9, 0.2, 0.5), (0.1, -0.7, 1.8, 2.0)), PLAIN)
    pose = LOOK_X.copy()
    pose[:3, 3] = [0.0, 0.0, 1.5]
    image = _render(pose, height_field=ground)
    directions = _directions()
    for row, column in ((HEIGHT - 1, 3), (HEIGHT - 4, 20), (HEIGHT - 2, WIDTH - 1)):
        direction = directions[row, column]

        def above(t: float, direction: np.ndarray = direction) -> float:
            point = pose[:3, 3] + t * direction
            return float(point[2] - ground.height(point[0], point[1]))

        grid = np.linspace(0.05, 40.0, 20000)
        first = next(i for i, t in enumerate(grid) if above(t) < 0)
        expected = brentq(above, grid[first - 1], grid[first])
        assert image.depth[row, column] == pytest.approx(expected, rel=1e-4)
        point = pose[:3, 3] + expected * direction
        e = 1e-4
        slope = [
            (ground.height(point[0] + e, point[1]) - ground.height(point[0] - e, point[1])) / 2 / e,
            (ground.height(point[0], point[1] + e) - ground.height(point[0], point[1] - e)) / 2 / e,
        ]
        normal = np.array([-slope[0], -slope[1], 1.0])
        expected_normal = normal / np.linalg.norm(normal)
        np.testing.assert_allclose(image.normals[row, column], expected_normal, atol=2e-3)


def test_the_nearest_surface_wins_and_nothing_is_sky() -> None:
    near, far = (
        shapes.Sphere((2.0, 0.0, 0.0), 0.5, PLAIN),
        shapes.Sphere((5.0, 0.0, 0.0), 1.0, PLAIN),
    )
    image = _render(spheres=(far, near))
    assert image.depth[HEIGHT // 2, WIDTH // 2] == pytest.approx(1.5, rel=1e-5)
    assert np.isnan(image.depth[0, 0])
    assert np.isnan(image.normals[0, 0]).all()


def test_one_point_looks_alike_from_two_cameras() -> None:
    scene = Scene(make_world("studio", 0))
    k = pinhole(48, 64, np.radians(60))
    first = LOOK_X.copy()
    first[:3, 3] = [-1.5, 0.1, 1.4]
    second = first.copy()
    second[:3, 3] += [0.0, 0.25, 0.0]
    here, there = (scene.render(pose, k, 48, 64) for pose in (first, second))
    points = unproject(here.depth, k).reshape(-1, 3) - [-0.25, 0.0, 0.0]
    points[:, 0] += 0.0
    u = np.rint(points[:, 0] / points[:, 2] * k[0, 0] + k[0, 2]).astype(int)
    v = np.rint(points[:, 1] / points[:, 2] * k[1, 1] + k[1, 2]).astype(int)
    inside = (u >= 0) & (u < 64) & (v >= 0) & (v < 48)
    seen = np.abs(there.depth[v[inside], u[inside]] - points[inside, 2]) < 0.02
    colours = here.colour.reshape(-1, 3)[inside][seen].astype(float)
    moved = there.colour[v[inside], u[inside]][seen].astype(float)
    assert seen.mean() > 0.7
    assert np.median(np.abs(colours - moved)) < 8
    shuffled = np.random.default_rng(0).permutation(colours)
    assert np.abs(colours - moved).mean() < 0.35 * np.abs(shuffled - moved).mean()


@pytest.mark.parametrize("kind", ["noise", "checker", "bricks", "stripes", "poster"])
def test_textures_are_deterministic_and_have_structure(kind: str) -> None:
    def wall(seed: int) -> shapes.Rectangle:
        texture = shapes.Texture(kind, (0.9, 0.2, 0.1), (0.1, 0.3, 0.8), 0.5, seed)
        return shapes.Rectangle((2.0, 0.0, 0.0), (0, 1, 0), (0, 0, 1), (5, 5), texture)

    first, again, other = (_render(rectangles=(wall(s),)).colour for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.reshape(-1, 3).std(axis=0).max() > 10


def test_more_samples_smooth_and_keep_the_depth() -> None:
    scene = Scene(make_world("studio", 0))
    pose = LOOK_X.copy()
    pose[:3, 3] = [-2.0, 0.0, 1.3]
    coarse, fine = (scene.render(pose, CAMERA, HEIGHT, WIDTH, samples=n) for n in (0, 4))
    np.testing.assert_array_equal(coarse.depth, fine.depth)
    rough, smooth = (np.abs(np.diff(r.colour.astype(int), axis=1)).mean() for r in (coarse, fine))
    assert smooth < rough


def test_exposure_and_noise_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((40, 40, 3), 100, dtype=np.uint8)
    assert expose(grey, 1.5, 0.0, rng).mean() == pytest.approx(150)
    assert expose(grey, 1.0, 0.02, rng).std() == pytest.approx(5.1, rel=0.1)
    assert expose(grey, 4.0, 0.0, rng).max() == 255


def test_a_camera_that_moves_during_the_exposure_sees_the_mean_of_what_it_passes() -> None:
    black = shapes.Texture("noise", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0)
    scene = Scene(
        made_world(
            rectangles=(
                shapes.Rectangle((3.0, 50.0, 0.0), (0, 1, 0), (0, 0, 1), (50.0, 50.0), black),
            ),
            sky=(1.0, 1.0, 1.0),
        )
    )
    poses = np.stack([LOOK_X] * 4)
    poses[:, 1, 3] = [-0.6, -0.2, 0.2, 0.6]
    still = scene.render(LOOK_X, CAMERA, HEIGHT, WIDTH)
    moved = scene.render(LOOK_X, CAMERA, HEIGHT, WIDTH, sample_poses=poses)
    np.testing.assert_array_equal(moved.depth, still.depth)
    # The wall ends at y = 0: a ray from y0 that has run to x = 3 at y0 + 3 slope sees the sky
    # below that. shapes.Light adds up before the display's gamma.
    slope = _directions()[HEIGHT // 2, :, 1]
    beyond = [3 * slope + y < 0 for y in (0.0, -0.6, -0.2, 0.2, 0.6)]
    expected = 255 * np.mean(beyond, axis=0) ** (1 / 2.2)
    middle = moved.colour[HEIGHT // 2, :, 0].astype(float)
    assert len(np.unique(middle)) == 6
    # Rays of a pixel are spread over it, which shifts an edge by less than a pixel.
    assert np.mean(np.abs(middle - expected) < 1) > 0.8
