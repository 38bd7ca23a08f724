"""Varied worlds, camera paths through them, photographs on their walls, cameras that store them."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from qvggt_core.errors import ParameterError, TrainingError
from qvggt_core.geometry.poses import inverse
from qvggt_core.synthetic import photographs
from qvggt_core.synthetic.families import FAMILIES
from qvggt_core.synthetic.ray_caster import pinhole
from qvggt_core.synthetic.render import Scene
from qvggt_core.synthetic.sensor import photograph
from qvggt_core.synthetic.texture_colour import PhotographTable
from qvggt_core.synthetic.views import random_views
from qvggt_core.synthetic.world import Light, Rectangle, Texture, World
from qvggt_core.training.clips import PoolConfig, render_clip

TANGENT = 0.75


def tiles(count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (count, photographs.TILE, photographs.TILE, 3)
    return rng.integers(0, 256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_makes_the_same_world_twice_and_another_seed_another(family: str) -> None:
    make = FAMILIES[family]
    assert make(4, 0) == make(4, 0)
    assert make(4, 0) != make(6, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_photographs_are_on_surfaces_only_if_there_are_some(family: str) -> None:
    def photos(world: World) -> list[Texture]:
        solids = (*world.rectangles, *world.boxes, *world.spheres, *world.cylinders)
        return [solid.texture for solid in solids if solid.texture.kind == "photo"]

    assert not photos(FAMILIES[family](0, 0))
    found = photos(FAMILIES[family](0, 5))
    assert found
    assert all(0 <= texture.tile < 5 for texture in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_paths_keep_clear_of_surfaces_and_neighbours_see_half_of_each_other(family: str) -> None:
    found = 0
    for seed in (1, 3, 5):
        scene = Scene(FAMILIES[family](seed, 0))
        try:
            poses = random_views(scene, 4, seed, TANGENT)
        except ParameterError:
            # Not every world has room; most do.
            continue
        found += 1
        assert (scene.world.clearance(poses[:, :3, 3]) > 0).all()
        identity = poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1)
        np.testing.assert_allclose(identity, np.tile(np.eye(3), (4, 1, 1)), atol=1e-9)
        # Independent of how the paths were drawn: by the rendered depth.
        matrix = pinhole(36, 48, 2 * math.atan(TANGENT))
        for first, second in pairwise(poses):
            depth = scene.render(first, matrix, 36, 48, samples=0).depth
            rows, columns = np.nonzero(np.isfinite(depth))
            z = depth[rows, columns]
            points = np.stack(
                [
                    (columns - matrix[0, 2]) / matrix[0, 0] * z,
                    (rows - matrix[1, 2]) / matrix[1, 1] * z,
                    z,
                    np.ones_like(z),
                ]
            )
            x, y, ahead, _ = inverse(second) @ first @ points
            seen = (ahead > 0) & (abs(x) < TANGENT * ahead) & (abs(y) < 0.75 * TANGENT * ahead)
            assert seen.mean() > 0.3
    assert found >= 2


def test_paths_differ_in_the_length_of_their_steps_by_more_than_ten_times() -> None:
    scene = Scene(FAMILIES["clutter"](2, 0))
    lengths = []
    for seed in range(0, 40, 2):
        poses = random_views(scene, 3, seed, TANGENT)
        lengths.append(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).mean())
    assert max(lengths) > 8 * min(lengths)


def test_distances_are_those_that_are_rendered() -> None:
    scene = Scene(FAMILIES["rooms"](2, 0))
    pose = random_views(scene, 1, 2, TANGENT)[0]
    matrix = pinhole(6, 8, 1.2)
    depth = scene.render(pose, matrix, 6, 8, samples=0).depth
    rows, columns = np.mgrid[:6, :8]
    rays = np.stack(
        [
            (columns - matrix[0, 2]) / matrix[0, 0],
            (rows - matrix[1, 2]) / matrix[1, 1],
            np.ones((6, 8)),
        ],
        axis=-1,
    )
    found = scene.distances(pose[:3, 3], rays.reshape(-1, 3) @ pose[:3, :3].T).reshape(6, 8)
    np.testing.assert_allclose(found, depth, rtol=1e-5)


def poster(tile: int) -> World:
    """One photograph of two metres, square to a camera in the origin that looks along +x."""
    texture = Texture("photo", (1 / 1.3,) * 3, (0, 0, 0), period=2.0, seed=64, grain=0.0, tile=tile)
    return World(
        name="poster",
        seed=0,
        rectangles=(Rectangle((1, 0, 0), (0, -1, 0), (0, 0, 1), (1, 1), texture),),
        light=Light((0, 0, 0), 1e9, ambient=1.0),
        sky=(0, 0, 0),
        flight_low=(0, 0, 0),
        flight_high=(0, 0, 0),
    )


AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])


def test_a_photograph_is_seen_as_it_is_up_to_mirroring() -> None:
    y, x = np.mgrid[: photographs.TILE, : photographs.TILE]
    picture = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    table = PhotographTable(np.stack([tiles(1)[0], picture]))
    size = photographs.TILE
    seen = Scene(poster(1), photographs=table).render(
        AHEAD, pinhole(size, size, math.pi / 2), size, size, samples=0
    )
    candidates = [picture, picture[::-1], picture[:, ::-1], picture[::-1, ::-1]]
    error = min(np.abs(seen.colour.astype(int) - c).mean() for c in candidates)
    assert error < 3.0


def test_a_distant_photograph_is_averaged_instead_of_flickering() -> None:
    table = PhotographTable(tiles())
    scene = Scene(poster(0), photographs=table)
    seen = scene.render(AHEAD, pinhole(8, 8, math.pi / 2), 8, 8, samples=0)
    # Noise between 0 and 255 with a pixel for every 32 x 32 of it.
    assert seen.colour.astype(float).std() < 20.0
    assert abs(seen.colour.mean() - 127.5) < 20.0


def test_a_scene_with_photographs_and_no_table_says_what_is_missing() -> None:
    with pytest.raises(ParameterError, match="table"):
        Scene(poster(0)).render(AHEAD, pinhole(4, 4, 1.0), 4, 4)


def test_an_atlas_is_cut_from_the_packages_and_opens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photographs.PhotographSource("some-package==1", "CC0", "some", ("*.png",), ("bad",))
    monkeypatch.setattr(photographs, "SOURCES", (source,))
    (tmp_path / "some").mkdir()
    for name in ("good", "bad"):
        cv2.imwrite(str(tmp_path / "some" / f"{name}.png"), tiles(1)[0])
    count = photographs.build_atlas(tmp_path / "atlas.npy", [tmp_path])
    atlas = photographs.open_atlas(tmp_path / "atlas.npy")
    assert len(atlas) == count >= 1
    np.testing.assert_array_equal(atlas[0], tiles(1)[0][..., ::-1])


def test_an_atlas_without_its_packages_names_the_one_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="scikit-image"):
        photographs.build_atlas(tmp_path / "atlas.npy", [tmp_path])


def test_what_is_no_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="build it first"):
        photographs.open_atlas(tmp_path / "none.npy")
    np.save(tmp_path / "other.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(TrainingError, match="no tiles"):
        photographs.open_atlas(tmp_path / "other.npy")


def test_clips_of_varied_worlds_are_repeatable_and_need_an_atlas_if_they_have_photographs(
    tmp_path: Path,
) -> None:
    config = PoolConfig(
        worlds=("rooms", "panels"), layouts=100, frames=2, height=12, width=16, flights=("views",)
    )
    first, again = render_clip(config, 1), render_clip(config, 1)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.world_from_camera, again.world_from_camera)
    with_photographs = PoolConfig(**{**vars(config), "photographs": True})
    with pytest.raises(TrainingError, match="atlas"):
        render_clip(with_photographs, 1)
    np.save(tmp_path / "atlas.npy", tiles())
    seen = render_clip(with_photographs, 1, tmp_path / "atlas.npy")
    assert not np.array_equal(seen.images, first.images)


def test_stored_images_keep_their_scene_and_differ_from_window_to_window() -> None:
    images = torch.from_numpy(tiles(1)[0, :24, :32]).movedim(-1, 0)
    images = (images // 4 + 96).repeat(6, 2, 1, 1, 1)
    stored = photograph(images, np.random.default_rng(0))
    assert stored.shape == images.shape
    assert stored.dtype == torch.float32
    assert 0.0 <= stored.min() <= stored.max() <= 1.0
    means = stored.mean(dim=(1, 2, 3, 4))
    assert means.std() > 0.02
    # The same scene, twice: a pixel that is brighter stays brighter more often than not.
    grey, original = stored.mean(dim=2), images.float().mean(dim=2)
    for window in range(6):
        pair = torch.stack([grey[window].flatten(), original[window].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.4
    torch.testing.assert_close(stored, photograph(images, np.random.default_rng(0)))
