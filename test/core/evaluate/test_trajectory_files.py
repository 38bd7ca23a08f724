"""Trajectory files: what is read of each format, and what is refused with its line."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.errors import EvaluationError
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory_files import read_trajectory, write_tum
from qvggt_core.geometry.poses import transform

START_NS = 1_700_000_000_000_000_007


@pytest.fixture
def track():
    turns = Rotation.random(6, random_state=4).as_matrix()
    places = np.random.default_rng(4).normal(size=(6, 3))
    poses = [transform(turn, place) for turn, place in zip(turns, places, strict=True)]
    return Track([START_NS + 50_000_000 * index for index in range(6)], poses)


def same(found, expected, atol=1e-8):
    assert found.stamps_ns == expected.stamps_ns
    assert np.allclose(found.matrices, expected.matrices, atol=atol)


def test_tum_keeps_nanoseconds_and_poses(track, tmp_path):
    write_tum(tmp_path / "t.tum", track)
    assert (tmp_path / "t.tum").read_text().split()[0] == "1700000000.000000007"
    same(read_trajectory(tmp_path / "t.tum"), track)


def test_euroc_has_w_first_and_columns_after_the_pose(track, tmp_path):
    lines = ["#timestamp [ns], p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], ..."]
    for stamp, pose in zip(track.stamps_ns, track.poses, strict=True):
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        numbers = [*pose[:3, 3], w, x, y, z, *np.zeros(9)]
        lines.append(",".join([str(stamp), *map(repr, map(float, numbers))]))
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    same(read_trajectory(tmp_path / "data.csv"), track)


def test_kitti_takes_its_times_from_the_file_beside_it_or_a_named_one(track, tmp_path):
    rows = [" ".join(map(repr, map(float, pose[:3].ravel()))) for pose in track.poses]
    (tmp_path / "00.txt").write_text("\n".join(rows))
    times = "".join(f"{s // 10**9}.{s % 10**9:09d}\n" for s in track.stamps_ns)
    (tmp_path / "times.txt").write_text(times)
    same(read_trajectory(tmp_path / "00.txt"), track)
    (tmp_path / "times.txt").rename(tmp_path / "my_times.txt")
    same(read_trajectory(tmp_path / "00.txt", tmp_path / "my_times.txt"), track)
    with pytest.raises(EvaluationError, match=r"no times, and there is no .*times\.txt"):
        read_trajectory(tmp_path / "00.txt")
    (tmp_path / "my_times.txt").write_text("0.0\n")
    with pytest.raises(EvaluationError, match=r"1 times, but .* has 6 poses"):
        read_trajectory(tmp_path / "00.txt", tmp_path / "my_times.txt")


def test_poses_come_in_the_order_of_time_and_once(tmp_path):
    (tmp_path / "t").write_text("2 2 0 0 0 0 0 1\n1 1 0 0 0 0 0 1\n2 9 0 0 0 0 0 1\n")
    found = read_trajectory(tmp_path / "t")
    assert found.stamps_ns == [10**9, 2 * 10**9]
    assert found.positions[:, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no pose"),
        ("# only words\n", "holds no pose"),
        ("1 2 3\n", r"line 1: '1 2 3' is no pose"),
        ("1 0 0 0 0 0 0 1\n2 nan 0 0 0 0 0 1\n", r"line 2: .*not finite"),
        ("1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 0\n", r"line 2: a quaternion of .* is no rotation"),
        ("1 0 0 0 0 0 0 1\n2 0 0\n", "line 2: 3 numbers"),
        ("1 0 0 zero 0 0 0 1\n", "line 1: could not convert"),
        ("soon 0 0 0 0 0 0 1\n# a heading goes, a pose does not\n", "holds no pose"),
        ("1e999x 0 0 0 0 0 0 1\n", "line 1: '1e999x' is no time"),
        ("1e400 0 0 0 0 0 0 1\n", "line 1: '1e400' is no time"),
        ("1 0 0 0 0 0 0 1\nnan 0 0 0 0 0 0 1\n", "line 2: 'nan' is no time"),
        ("2 0 0 0 0 1 0 0 0 0 1 0\n", "3x3 part is no rotation"),
    ],
)
def test_what_is_no_trajectory_is_refused_with_its_line(text, says, tmp_path):
    (tmp_path / "t").write_text(text)
    (tmp_path / "times.txt").write_text("0\n")
    with pytest.raises(EvaluationError, match=says):
        read_trajectory(tmp_path / "t")


@pytest.mark.parametrize("form", ["{} 0 0 0 0 0 0 1\n", "#timestamp\n{},0,0,0,1,0,0,0\n"])
def test_a_time_of_thousands_of_digits_is_quoted_short(form, tmp_path):
    (tmp_path / "t").write_text(form.format("9" * 20_000))
    with pytest.raises(EvaluationError, match="is no time") as refusal:
        read_trajectory(tmp_path / "t")
    assert len(str(refusal.value)) < 1000


def test_a_missing_or_binary_file_is_named(tmp_path):
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    for name in ("b", "nowhere"):
        with pytest.raises(EvaluationError, match=f"cannot read the trajectory .*{name}"):
            read_trajectory(tmp_path / name)


STAMPS = [1_700_000_000_000_000_000 + 100_000_000 * index for index in range(6)]


def pose_rows(order="xyzw"):
    """Numbers of six poses, with the quaternion in some order, and the poses."""
    rows, track = [], Track()
    for index, stamp in enumerate(STAMPS):
        rotation = Rotation.from_euler("zyx", [0.3 * index, 0.1, -0.2])
        position = [0.5 * index, -1.0, 0.25]
        quaternion = dict(zip("xyzw", rotation.as_quat(), strict=True))
        rows.append([*position, *(quaternion[letter] for letter in order)])
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation.as_matrix(), position
        track.add(stamp, matrix)
    return rows, track


def joined(rows, times, separator, header=""):
    lines = [
        separator.join([*times(stamp), *(f"{value:.9f}" for value in row)])
        for stamp, row in zip(STAMPS, rows, strict=True)
    ]
    return "\n".join([*([header] if header else []), *lines]) + "\n"


def seconds(stamp):
    return [f"{stamp // 10**9}.{stamp % 10**9:09d}"]


@pytest.mark.parametrize(
    ("order", "times", "separator", "header"),
    [
        ("xyzw", seconds, " ", ""),
        ("xyzw", seconds, ", ", ""),
        ("xyzw", seconds, ";", ""),
        ("xyzw", lambda s: [f"{s}.000000"], " ", ""),
        ("xyzw", lambda s: [str(s // 1000)], " ", ""),
        ("wxyz", lambda s: [str(s)], ",", ""),
        (
            "wxyz",
            lambda s: [str(s)],
            ",",
            "#timestamp [ns],p_RS_R_x [m],p_RS_R_y [m],p_RS_R_z [m],"
            "q_RS_w [],q_RS_x [],q_RS_y [],q_RS_z []",
        ),
        ("xyzw", lambda s: [str(s)], ",", "#timestamp [ns],x [m],y [m],z [m],qx,qy,qz,qw"),
        ("wxyz", seconds, " ", "# timestamp tx ty tz qw qx qy qz"),
        ("xyzw", lambda s: [str(s // 10**9), str(s % 10**9)], ",", "#sec,nsec,x,y,z,qx,qy,qz,qw"),
        ("xyzw", lambda s: ["7", *seconds(s)], " ", "num t x y z qx qy qz qw"),
    ],
)
def test_columns_are_taken_by_their_names_and_times_by_their_size(
    order, times, separator, header, tmp_path
):
    rows, expected = pose_rows(order)
    (tmp_path / "truth").write_text(joined(rows, times, separator, header))
    found = read_trajectory(tmp_path / "truth")
    assert found.stamps_ns == expected.stamps_ns
    np.testing.assert_allclose(found.matrices, expected.matrices, atol=1e-8)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["1.7e9 0 0 0 0 0 0 1"] * 5, "5 lines have 1 different times"),
        (["1700000000000000000,1,2,3"] * 2, "is no pose; known are TUM"),
        (["1 0 0 0 nan 0 0 1"], "is not finite"),
        (["1 0 0 0 1e-200 0 0 0"], "is no rotation"),
        (["1 1e308 0 0 0 0 0 1"], "is no pose"),
        (["num t x y z qx qy qz qw", "0 1 2 3"], "a pose needs 9 here"),
    ],
)
def test_a_file_that_is_none_says_what_it_lacks(lines, says, tmp_path):
    (tmp_path / "truth").write_text("\n".join(lines))
    with pytest.raises(EvaluationError, match=says):
        read_trajectory(tmp_path / "truth")
