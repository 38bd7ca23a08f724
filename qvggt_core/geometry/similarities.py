"""Similarities of space, Sim(3), as 4x4 matrices [s R, t; 0, 1], and their small motions.

A small motion is (7,): rotation in radians, translation, logarithm of the scale. Exponential and
logarithm are those of the group: Strasdat, "Local accuracy and global consistency for efficient
visual SLAM", 2012, section 2.4.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

_NODES, _WEIGHTS = leggauss(12)
_PLACES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS


def similarity(
    scale: float | NDArray, rotation: NDArray, translation: NDArray
) -> NDArray[np.float64]:
    """Return similarities (..., 4, 4) of scales (...), rotations (..., 3, 3), shifts (..., 3)."""
    result = np.zeros((*np.shape(rotation)[:-2], 4, 4))
    result[..., :3, :3] = np.asarray(scale)[..., None, None] * rotation
    result[..., :3, 3] = translation
    result[..., 3, 3] = 1.0
    return result


def scale_of(similarities: NDArray) -> NDArray[np.float64]:
    """Return the scales (...) of similarities (..., 4, 4)."""
    return np.sqrt(np.square(similarities[..., :3, :3]).sum(axis=(-1, -2)) / 3.0)


def rotation_of(similarities: NDArray) -> NDArray[np.float64]:
    """Return the rotations (..., 3, 3) of similarities (..., 4, 4)."""
    return similarities[..., :3, :3] / scale_of(similarities)[..., None, None]


def rigid(similarities: NDArray) -> NDArray[np.float64]:
    """Return similarities (..., 4, 4) with a scale of 1 and the same rotation and shift."""
    result = np.array(similarities, np.float64)
    result[..., :3, :3] = rotation_of(similarities)
    return result


def inverse_similarity(similarities: NDArray) -> NDArray[np.float64]:
    """Return the inverse of similarities (..., 4, 4)."""
    scale, rotation = scale_of(similarities), np.swapaxes(rotation_of(similarities), -1, -2)
    shift = -np.einsum("...ij,...j->...i", rotation, similarities[..., :3, 3]) / scale[..., None]
    return similarity(1.0 / scale, rotation, shift)


def moved_by(motions: NDArray) -> NDArray[np.float64]:
    """Return the similarities (..., 4, 4) of motions (..., 7): the exponential."""
    motions = np.asarray(motions, np.float64)
    flat = motions.reshape(-1, 7)
    rotation = Rotation.from_rotvec(flat[:, :3]).as_matrix()
    shift = np.einsum("nij,nj->ni", _shift_matrix(flat), flat[:, 3:6])
    result = similarity(np.exp(flat[:, 6]), rotation, shift)
    return result.reshape(*motions.shape[:-1], 4, 4)


def motion_of(similarities: NDArray) -> NDArray[np.float64]:
    """Return the motions (..., 7) of similarities (..., 4, 4): the logarithm."""
    flat = np.asarray(similarities, np.float64).reshape(-1, 4, 4)
    motions = np.zeros((len(flat), 7))
    motions[:, :3] = Rotation.from_matrix(rotation_of(flat)).as_rotvec()
    motions[:, 6] = np.log(scale_of(flat))
    motions[:, 3:6] = np.linalg.solve(_shift_matrix(motions), flat[:, :3, 3:])[..., 0]
    return motions.reshape(*np.shape(similarities)[:-2], 7)


def adjoint_of(b_from_a: NDArray) -> NDArray[np.float64]:
    """Return the matrices (..., 7, 7) that take small motions of a to those of b."""
    b_from_a = np.asarray(b_from_a, np.float64)
    scale, rotation, shift = scale_of(b_from_a), rotation_of(b_from_a), b_from_a[..., :3, 3]
    result = np.zeros((*b_from_a.shape[:-2], 7, 7))
    result[..., :3, :3] = rotation
    result[..., 3:6, :3] = cross_matrices(shift) @ rotation
    result[..., 3:6, 3:6] = scale[..., None, None] * rotation
    result[..., 3:6, 6] = -shift
    result[..., 6, 6] = 1.0
    return result


def inverse_right_jacobian(motions: NDArray) -> NDArray[np.float64]:
    """Return d motion_of(X exp(d)) / d d at d = 0, (..., 7, 7), for X = moved_by(motions).

    The series to its second order: off by 2e-6 at 0.2 rad.
    """
    motions = np.asarray(motions, np.float64)
    bracket = np.zeros((*motions.shape[:-1], 7, 7))
    turn = cross_matrices(motions[..., :3])
    bracket[..., :3, :3] = turn
    bracket[..., 3:6, :3] = cross_matrices(motions[..., 3:6])
    bracket[..., 3:6, 3:6] = turn + motions[..., 6, None, None] * np.eye(3)
    bracket[..., 3:6, 6] = -motions[..., 3:6]
    return np.eye(7) + 0.5 * bracket + bracket @ bracket / 12.0


def cross_matrices(vectors: NDArray) -> NDArray[np.float64]:
    """Return the matrices (..., 3, 3) that multiply like the cross product of (..., 3)."""
    result = np.zeros((*np.shape(vectors), 3))
    x, y, z = np.moveaxis(np.asarray(vectors), -1, 0)
    result[..., 0, 1], result[..., 0, 2], result[..., 1, 2] = -z, y, -x
    result[..., 1, 0], result[..., 2, 0], result[..., 2, 1] = z, -y, x
    return result


def _shift_matrix(motions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the integrals (N, 3, 3) of exp(u (turn + scale)) over u from 0 to 1.

    By quadrature (twelve places are exact to 1e-12 for any turn and scales up to 20), as the
    closed form has four limits where an angle or a scale is small.
    """
    angle = np.linalg.norm(motions[:, :3], axis=1)[:, None]
    growth = _WEIGHTS * np.exp(_PLACES * motions[:, 6:])
    sine = _PLACES * np.sinc(_PLACES * angle / np.pi)
    cosine = 0.5 * (_PLACES * np.sinc(0.5 * _PLACES * angle / np.pi)) ** 2
    turn = cross_matrices(motions[:, :3])
    return (
        growth.sum(axis=1)[:, None, None] * np.eye(3)
        + (growth * sine).sum(axis=1)[:, None, None] * turn
        + (growth * cosine).sum(axis=1)[:, None, None] * (turn @ turn)
    )
