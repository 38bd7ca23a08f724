"""Pictures of clouds, checked on scenes that are known."""

from __future__ import annotations

import numpy as np

from qvggt_core.geometry.cloud import Cloud
from qvggt_core.report.pictures import render

SIZE = (80, 60)
EYE, FOCUS = np.array([0.0, -5.0, 0.0]), np.zeros(3)
NO_PATH = np.empty((0, 3))


def cloud_of(*points):
    positions, colors = zip(*points, strict=True)
    return Cloud(
        np.array(positions, np.float32),
        np.array(colors, np.uint8),
        np.ones(len(points), np.float32),
    )


def test_what_is_in_focus_is_in_the_middle_and_the_rest_is_transparent():
    picture = render(cloud_of(((0, 0, 0), (200, 10, 10))), NO_PATH, EYE, FOCUS, SIZE)
    assert picture.shape == (60, 80, 4)
    assert picture[30, 40].tolist() == [200, 10, 10, 255]
    assert picture[5, 5, 3] == 0


def test_up_is_up_and_right_is_right():
    red, blue = (200, 0, 0), (0, 0, 200)
    picture = render(cloud_of(((0, 0, 1), red), ((1, 0, 0), blue)), NO_PATH, EYE, FOCUS, SIZE)
    rows, columns = np.nonzero(picture[..., 0])
    assert rows.mean() < 25
    assert abs(columns.mean() - 40) < 1
    rows, columns = np.nonzero(picture[..., 2])
    assert columns.mean() > 45
    assert abs(rows.mean() - 30) < 1


def test_near_points_hide_far_ones_in_whatever_order_they_come():
    near, far = ((0, -1, 0), (0, 200, 0)), ((0, 2, 0), (200, 0, 0))
    for points in ((near, far), (far, near)):
        picture = render(cloud_of(*points), NO_PATH, EYE, FOCUS, SIZE)
        assert picture[30, 40, :2].tolist() == [0, 200]


def test_the_path_is_drawn_over_the_cloud():
    wall = [((x, -1, z), (50, 50, 50)) for x in np.linspace(-1, 1, 9) for z in (-0.2, 0, 0.2)]
    path = np.array([[-1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    picture = render(cloud_of(*wall), path, EYE, FOCUS, SIZE)
    assert picture[30, 40, :3].tolist() == [255, 140, 26]


def test_nothing_is_behind_the_eye():
    picture = render(cloud_of(((0, -9, 0), (200, 10, 10))), NO_PATH, EYE, FOCUS, SIZE)
    assert not picture.any()
