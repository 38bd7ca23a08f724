"""VGGT's nine numbers for a camera: translation, quaternion (x, y, z, w), fields of view."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 9

_MIN_FOV = 0.01
"""Radians. The head's ReLU may say 0, which would be an infinite focal length."""


def decode_pose(encoding: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the cameras of pose encodings.

    Args:
        encoding: (..., 9): translation (3), quaternion x y z w (4, of any length), vertical and
            horizontal field of view in radians.
        height: image height, pixels.
        width: image width, pixels.

    Returns:
        camera_from_world (..., 3, 4) with optical axes, and intrinsics (..., 3, 3) in pixels
        with the principal point in the middle of the image.
    """
    translation, quat, fov = encoding.split([3, 4, 2], dim=-1)
    x, y, z, w = (quat / quat.norm(dim=-1, keepdim=True).clamp_min(1e-8)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    rotation = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    focal = 0.5 / torch.tan(0.5 * fov.clamp_min(_MIN_FOV))
    intrinsics = encoding.new_zeros(*encoding.shape[:-1], 3, 3)
    intrinsics[..., 0, 0] = focal[..., 1] * width
    intrinsics[..., 1, 1] = focal[..., 0] * height
    intrinsics[..., 0, 2] = 0.5 * width
    intrinsics[..., 1, 2] = 0.5 * height
    intrinsics[..., 2, 2] = 1.0
    return torch.cat([rotation, translation[..., None]], dim=-1), intrinsics


def encode_pose(camera_from_world: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Return the pose encodings (..., 9) of cameras; the inverse of `decode_pose`.

    The principal point is not part of the encoding. Quaternions come with w >= 0.
    """
    quat = _quaternion(camera_from_world[..., :3])
    fov = torch.stack(
        [
            2 * torch.atan(0.5 * height / intrinsics[..., 1, 1]),
            2 * torch.atan(0.5 * width / intrinsics[..., 0, 0]),
        ],
        dim=-1,
    )
    return torch.cat([camera_from_world[..., :3, 3], quat, fov], dim=-1)


def invert_pose(encoding: Tensor) -> Tensor:
    """Return the encodings (..., 9) of the inverse poses; fields of view stay.

    Turns camera-to-world poses into world-to-camera ones and back. Quaternions of any length
    become unit ones with w >= 0.
    """
    translation, quat, fov = encoding.split([3, 4, 2], dim=-1)
    quat = quat / quat.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    quat = torch.where(quat[..., 3:] < 0, -quat, quat)
    axis, w = -quat[..., :3], quat[..., 3:]
    # Rotation of a vector by a unit quaternion (Rodrigues), negated.
    across = 2.0 * torch.linalg.cross(axis, translation)
    moved = translation + w * across + torch.linalg.cross(axis, across)
    return torch.cat([-moved, axis, w, fov], dim=-1)


def _quaternion(rotation: Tensor) -> Tensor:
    """Return unit quaternions (x, y, z, w), w >= 0, of rotations (..., 3, 3)."""
    # All four products 4 q_a q_b are linear in the matrix; the row of the largest component
    # is the one that is divided by a number far from zero (Shepperd 1978).
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    yz, zy = m[..., 2, 1], m[..., 1, 2]
    xz, zx = m[..., 0, 2], m[..., 2, 0]
    xy, yx = m[..., 1, 0], m[..., 0, 1]
    products = [
        [1 + xx - yy - zz, xy + yx, xz + zx, yz - zy],
        [xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, 1 - xx - yy + zz, xy - yx],
        [yz - zy, xz - zx, xy - yx, 1 + xx + yy + zz],
    ]
    table = torch.stack([torch.stack(row, dim=-1) for row in products], dim=-2)
    largest = table.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    quat = table.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    quat = quat / quat.norm(dim=-1, keepdim=True)
    return torch.where(quat[..., 3:] < 0, -quat, quat)
