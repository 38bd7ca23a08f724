"""Pictures of clouds, and what a report says, checked on scenes that are known."""

from __future__ import annotations

import numpy as np

from qvggt_core.cloud import Cloud
from qvggt_ros.report import render
from qvggt_ros.results import Track, compare, write_tum

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


def test_tum_keeps_nanoseconds(tmp_path):
    track = Track()
    pose = np.eye(4)
    pose[:3, 3] = [1.0, -2.0, 0.5]
    track.add(1_700_000_000_000_000_007, pose)
    write_tum(tmp_path / "t.tum", track)
    words = (tmp_path / "t.tum").read_text().split()
    assert words[0] == "1700000000.000000007"
    assert [float(word) for word in words[1:]] == [1, -2, 0.5, 0, 0, 0, 1]


def track_of(positions, stamps_ns):
    track = Track()
    for stamp, position in zip(stamps_ns, positions, strict=True):
        pose = np.eye(4)
        pose[:3, 3] = position
        track.add(int(stamp), pose)
    return track


def test_a_reference_is_matched_by_stamp_and_brought_into_the_map():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(20, 3)).cumsum(axis=0)
    stamps = np.arange(20) * 100_000_000
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    estimate = 0.3 * truth[::2] @ turn.T + [5.0, 6, 7]
    # The reference is denser, shuffled, 4 ms late, and has a gap at its end.
    order = rng.permutation(16)
    reference = track_of(truth[order], stamps[order] + 4_000_000)
    found = compare("/gt", track_of(estimate, stamps[::2]), reference)
    assert np.allclose(found.seconds, np.arange(8) * 0.2)
    assert found.ate < 1e-9
    assert np.allclose(found.reference_in_map, estimate[:8])


def test_no_comparison_without_common_stamps_or_without_motion():
    stamps = np.arange(5) * 100_000_000
    line = np.outer(np.arange(5.0), [1, 0, 0])
    late = track_of(line, stamps + 20_000_000)
    assert compare("/gt", track_of(line, stamps), late) is None
    assert compare("/gt", track_of(np.zeros((5, 3)), stamps), track_of(line, stamps)) is None
