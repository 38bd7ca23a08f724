"""Similarities against SciPy's matrix exponential and numerical derivatives."""

import numpy as np
import pytest
from scipy.linalg import expm

from qvggt_core.geometry.poses import exactly_rigid
from qvggt_core.geometry.similarities import (
    adjoint_of,
    cross_matrices,
    inverse_right_jacobian,
    inverse_similarity,
    motion_of,
    moved_by,
    rigid,
    rotation_of,
    scale_of,
)

MOTIONS = np.random.default_rng(0).normal(0, [0.8] * 3 + [3.0] * 3 + [0.7], (40, 7))
MOTIONS[0], MOTIONS[1, :3], MOTIONS[2, 6], MOTIONS[3, :3] = 0.0, 0.0, 0.0, 1e-7


def generator(motion):
    matrix = np.zeros((4, 4))
    matrix[:3, :3] = cross_matrices(motion[:3]) + motion[6] * np.eye(3)
    matrix[:3, 3] = motion[3:6]
    return matrix


def test_the_exponential_is_that_of_the_matrices():
    expected = np.stack([expm(generator(motion)) for motion in MOTIONS])
    np.testing.assert_allclose(moved_by(MOTIONS), expected, atol=1e-10)


def test_the_logarithm_undoes_the_exponential():
    np.testing.assert_allclose(motion_of(moved_by(MOTIONS)), MOTIONS, atol=1e-9)


def test_the_inverse_is_that_of_the_matrix():
    matrices = moved_by(MOTIONS)
    np.testing.assert_allclose(inverse_similarity(matrices), np.linalg.inv(matrices), atol=1e-9)


def test_parts_put_together_are_the_whole():
    matrices = moved_by(MOTIONS)
    np.testing.assert_allclose(scale_of(matrices), np.exp(MOTIONS[:, 6]))
    np.testing.assert_allclose(np.linalg.det(rotation_of(matrices)), 1.0)
    np.testing.assert_allclose(rigid(matrices)[:, :3, 3], matrices[:, :3, 3])
    np.testing.assert_allclose(scale_of(rigid(matrices)), 1.0)


def test_the_adjoint_takes_a_motion_to_another_frame():
    frames, motions = moved_by(MOTIONS[:20]), MOTIONS[20:]
    there = np.einsum("nij,nj->ni", adjoint_of(frames), motions)
    np.testing.assert_allclose(
        moved_by(there) @ frames, frames @ moved_by(motions), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("size", [0.03, 0.2])
def test_the_jacobian_is_the_numerical_one_where_motions_are_small(size):
    step = 1e-6
    for motion in size * MOTIONS[4:12]:
        numerical = np.stack(
            [(motion_of(moved_by(motion) @ moved_by(d)) - motion) / step for d in step * np.eye(7)],
            axis=1,
        )
        np.testing.assert_allclose(
            inverse_right_jacobian(motion), numerical, atol=2e-5 + 0.2 * size**4
        )


def test_what_rounding_has_left_of_a_rotation_becomes_one_and_nothing_else_changes():
    rng = np.random.default_rng(4)
    exact = np.stack([rigid(moved_by(motion)) for motion in rng.normal(size=(5, 7))])
    rounded = exact.copy()
    rounded[:, :3, :3] += 1e-4 * rng.normal(size=(5, 3, 3))
    found = exactly_rigid(rounded)
    turns = found[:, :3, :3]
    products = turns @ np.swapaxes(turns, 1, 2)
    np.testing.assert_allclose(products, np.tile(np.eye(3), (5, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(found, exact, atol=5e-4)
    np.testing.assert_array_equal(found[:, :3, 3], exact[:, :3, 3])
    np.testing.assert_allclose(exactly_rigid(rounded[0]), found[0], atol=1e-15)
