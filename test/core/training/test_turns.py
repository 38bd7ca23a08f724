"""Views cut from one image against what correspondences and true pixels say."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from qvggt_core.training.matching import Correspondences, correspondences
from qvggt_core.training.turns import straightened, turned
from qvggt_core.training.windows import Windows

HEIGHT, WIDTH, FOCAL, PATCH = 96, 128, 90.0, 8


def window(frames: int = 3) -> Windows:
    """One image in smooth colours, slanted depth, repeated; cameras somewhere in the world."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    colour = np.stack([columns * 1.5 + 20, rows * 2.0 + 20, 20 + rows + columns])
    images = torch.from_numpy(colour).byte()[None, None].repeat(2, frames, 1, 1, 1)
    depth = torch.from_numpy(2.0 + columns / WIDTH).float()[None, None].repeat(2, frames, 1, 1)
    poses = torch.eye(4, dtype=torch.float64).repeat(2, frames, 1, 1)
    poses[..., :3, 3] = torch.tensor([4.0, -2.0, 1.0])
    k = torch.tensor([[FOCAL, 0, 63.5], [0, FOCAL, 47.5], [0, 0, 1]], dtype=torch.float64)
    return Windows(
        images=images, depth=depth, world_from_camera=poses, intrinsics=k.repeat(2, frames, 1, 1)
    )


def test_views_share_a_place_and_differ_in_rotation_and_focal_length():
    windows = window()
    views = turned(windows, np.random.default_rng(0))
    torch.testing.assert_close(
        views.world_from_camera[..., :3, 3], windows.world_from_camera[..., :3, 3]
    )
    between = views.world_from_camera[:, 0, :3, :3].mT @ views.world_from_camera[:, 1, :3, :3]
    angle = torch.rad2deg(torch.acos((between.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2))
    assert (angle > 1.0).all()
    assert (views.intrinsics[:, :, 0, 0] > 1.3 * FOCAL).all()


def colours_agree(views: Windows, found: Correspondences) -> None:
    images = views.images.float()
    start = PATCH // 2
    for n in range(len(found.window)):
        shown = images[found.window[n], found.first[n]][:, start::PATCH, start::PATCH].flatten(1)
        place = ((found.place[n] + 0.5) * PATCH - 0.5).round().long()
        row = place[:, 0].clamp(0, HEIGHT - 1)
        column = place[:, 1].clamp(0, WIDTH - 1)
        other = images[found.window[n], found.second[n]][:, row, column]
        difference = (shown - other).abs()[:, found.visible[n]]
        # Half a pixel is worth about one step of grey.
        assert difference.max() <= 4.0


def test_a_point_has_one_colour_in_all_views():
    """Through depth and pose, which know nothing of how the views were cut."""
    views = turned(window(), np.random.default_rng(1))
    found = correspondences(views, PATCH, torch.tensor([[0, 0, 1], [0, 2, 1], [1, 1, 0]]))
    assert found.visible.float().mean() > 0.3
    colours_agree(views, found)


def test_depth_is_along_the_axis_of_the_view():
    """The same points as the source's: planes stay planes."""
    windows = window()
    views = turned(windows, np.random.default_rng(2))
    world = []
    for part, frame in ((windows, 0), (views, 1)):
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        k = part.intrinsics[0, frame].numpy()
        z = part.depth[0, frame].numpy()
        points = np.stack(
            [(columns - k[0, 2]) / k[0, 0] * z, (rows - k[1, 2]) / k[1, 1] * z, z], -1
        )
        pose = part.world_from_camera[0, frame].numpy()
        points = points[np.isfinite(z)] @ pose[:3, :3].T + pose[:3, 3]
        world.append(points - pose[:3, 3])
    # In the source z = 2 + column / WIDTH, so 1 = 2 / z + column / (WIDTH z).
    z = world[1][:, 2]
    column = world[1][:, 0] / z * FOCAL + 63.5
    np.testing.assert_allclose(z, 2.0 + column / WIDTH, atol=0.01)


def moving() -> Windows:
    """Two cameras before a wall in smooth colours, the second further right, nearer and turned."""
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    poses[0, 1, :3, 3] = torch.tensor([0.2, -0.1, 0.3])
    poses[0, 1, :3, :3] = torch.from_numpy(Rotation.from_rotvec([0.05, -0.04, 0.1]).as_matrix())
    k = torch.tensor([[FOCAL, 0, 63.5], [0, FOCAL, 47.5], [0, 0, 1]], dtype=torch.float64)
    depth, images = [], []
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(columns - 63.5) / FOCAL, (rows - 47.5) / FOCAL, np.ones_like(rows)], axis=-1)
    for pose in poses[0].numpy():
        turned_rays = rays @ pose[:3, :3].T
        z = (3.0 - pose[2, 3]) / turned_rays[..., 2]
        points = turned_rays * z[..., None] + pose[:3, 3]
        colour = 110 + 22 * np.stack(
            [points[..., 0], points[..., 1], points[..., 0] - points[..., 1]]
        )
        depth.append(z)
        images.append(colour.clip(0, 255))
    return Windows(
        images=torch.from_numpy(np.array(images)).round().byte()[None],
        depth=torch.from_numpy(np.array(depth)).float()[None],
        world_from_camera=poses,
        intrinsics=k.repeat(1, 2, 1, 1),
    )


def test_straightened_cameras_look_the_same_way_and_stay_where_they_are():
    windows = moving()
    views = straightened(windows, np.random.default_rng(0))
    poses = views.world_from_camera[0]
    torch.testing.assert_close(poses[0, :3, :3], poses[1, :3, :3])
    torch.testing.assert_close(poses[:, :3, 3], windows.world_from_camera[0, :, :3, 3])
    found = correspondences(views, PATCH, torch.tensor([[0, 0, 1], [0, 1, 0]]))
    assert found.visible.float().mean() > 0.6
    colours_agree(views, found)
    # All points lie on the wall.
    z = views.depth[0] + poses[:, 2, 3, None, None].float()
    assert (z - 3.0).abs()[z.isfinite()].max() < 0.01
