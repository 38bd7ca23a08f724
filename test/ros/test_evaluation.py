"""A result against its truth, by the real entry points: topics, TF, files, depth, no truth."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.plain_parameters import PLAIN
from support.recordings import (
    HEIGHT,
    INTRINSICS,
    WIDTH,
    M,
    RecognisingNetwork,
    RoomNetwork,
    header,
    image_message,
    load_room_network,
    pose_message,
    ray_cast,
    room_entries,
    stamp_of,
    world_from_camera,
    write_recording,
)
from support.replays import evaluate, replay

from qvggt_core.errors import EvaluationError, MissingPackageError, ParameterError, RecordingError
from qvggt_core.evaluate.track import Track
from qvggt_core.evaluate.trajectory_files import write_tum
from qvggt_core.geometry.poses import FLU_FROM_OPTICAL, inverse, transform
from qvggt_core.results.options import EvaluationOptions
from qvggt_core.results.schema import Metrics, documentation
from qvggt_ros.cli import app as cli
from qvggt_ros.cli import console
from qvggt_ros.io.messages import rosbags_typestore

ROOT = Path(__file__).parents[2]
FRAMES = 14
CAMERA = "camera_optical_frame"
# The camera looks forward from a mast, 1 m ahead of and 2 m above the base.
BASE_FROM_CAMERA = transform(FLU_FROM_OPTICAL[:3, :3], np.array([1.0, 0.0, 2.0]))


def transform_stamped(index, parent, child, pose):
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
    return M.TransformStamped(
        header=header(index, parent),
        child_frame_id=child,
        transform=M.Transform(
            translation=M.Vector3(**dict(zip("xyz", pose[:3, 3].tolist(), strict=True))),
            rotation=M.Quaternion(x=x, y=y, z=z, w=w),
        ),
    )


def odometry(index, pose):
    types = rosbags_typestore().types
    moved = transform_stamped(index, "odom", "base_link", pose)
    zero = M.Vector3(x=0.0, y=0.0, z=0.0)
    place = moved.transform.translation
    return M.Odometry(
        header=moved.header,
        child_frame_id="base_link",
        pose=types["geometry_msgs/msg/PoseWithCovariance"](
            pose=M.Pose(
                position=M.Point(x=place.x, y=place.y, z=place.z),
                orientation=moved.transform.rotation,
            ),
            covariance=np.zeros(36),
        ),
        twist=types["geometry_msgs/msg/TwistWithCovariance"](
            twist=types["geometry_msgs/msg/Twist"](linear=zero, angular=zero),
            covariance=np.zeros(36),
        ),
    )


def depth_image(index, encoding="32FC1", frame_id=CAMERA):
    _, depth = ray_cast(world_from_camera(index), INTRINSICS, WIDTH, HEIGHT)
    pixels = depth if encoding == "32FC1" else np.rint(1000 * depth).astype(np.uint16)
    return M.Image(
        header=header(index, frame_id),
        height=HEIGHT,
        width=WIDTH,
        encoding=encoding,
        is_bigendian=0,
        step=WIDTH * pixels.itemsize,
        data=np.ascontiguousarray(pixels).reshape(-1).view(np.uint8),
    )


def base(index):
    return world_from_camera(index) @ inverse(BASE_FROM_CAMERA)


def rich_entries():
    """The room with its truth in every form that there is, and true depth."""
    entries = room_entries(FRAMES)
    mounted = transform_stamped(0, "base_link", "mast", np.eye(4))
    camera = transform_stamped(0, "mast", CAMERA, BASE_FROM_CAMERA)
    map_from_odom = transform(Rotation.from_rotvec([0, 0, 0.7]).as_matrix(), np.array([5.0, 1, 0]))
    fixed = transform_stamped(0, "map", "odom", map_from_odom)
    entries.append(("/tf_static", "TFMessage", stamp_of(0), M.TFMessage(transforms=[mounted])))
    entries.append(
        ("/tf_static", "TFMessage", stamp_of(0), M.TFMessage(transforms=[camera, fixed]))
    )
    for index in range(FRAMES):
        received = stamp_of(index) + 1
        moved = transform_stamped(index, "odom", "base_link", base(index))
        entries += [
            ("/tf", "TFMessage", received, M.TFMessage(transforms=[moved])),
            ("/odom", "Odometry", received, odometry(index, base(index))),
            ("/vicon/base", "TransformStamped", received, moved),
            ("/camera/depth", "Image", received, depth_image(index)),
        ]
    return entries


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("in") / "room", rich_entries())


@pytest.fixture(scope="module")
def result(room, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "room"
    replay(room, output, RoomNetwork(), PLAIN, report=False, evaluation=None)
    return output


def sim3_error(metrics):
    (segment,) = metrics.accuracy.segments
    return segment.alignments["sim3"]


# Where the truth comes from


@pytest.mark.parametrize(
    ("source", "kind", "frame", "moved"),
    [
        ("/ground_truth/pose", "topic", "", False),
        ("/odom", "topic", "base_link", True),
        ("/vicon/base", "topic", "base_link", True),
        ("/tf:odom", "tf", CAMERA, True),
        (f"/tf:map.{CAMERA}", "tf", CAMERA, True),
    ],
)
def test_topics_and_tf_give_the_same_truth_about_the_camera(result, source, kind, frame, moved):
    metrics = evaluate(result, EvaluationOptions(ground_truth=source))
    truth = metrics.accuracy.truth
    assert (truth.kind, truth.frame, truth.moved_to_camera) == (kind, frame, moved)
    assert metrics.accuracy.segments[0].compared == FRAMES
    found = sim3_error(metrics)
    assert found.translation.rmse < 1e-5
    assert found.rotation_deg.rmse < 1e-3
    assert found.scale == pytest.approx(2.0, abs=1e-4)
    assert [r.span for r in found.relative] == ["frames", "distance", "time"]
    assert max(r.translation.rmse for r in found.relative) < 1e-5


def test_a_lever_arm_that_is_not_known_is_shown(result):
    """The base's poses are 2 m from the camera's; as the camera's they are wrong."""
    metrics = evaluate(result, EvaluationOptions(ground_truth="/tf:odom.base_link"))
    assert metrics.accuracy.truth.frame == "base_link"
    assert not metrics.accuracy.truth.moved_to_camera
    assert sim3_error(metrics).rotation_deg.rmse > 30


def test_a_pose_of_a_named_frame_is_moved_to_the_camera(room, result, tmp_path):
    track = Track([stamp_of(i) for i in range(FRAMES)], [base(i) for i in range(FRAMES)])
    write_tum(tmp_path / "base.tum", track)
    options = EvaluationOptions(ground_truth=str(tmp_path / "base.tum"), truth_frame="base_link")
    metrics = evaluate(result, options)
    assert metrics.accuracy.truth.source == "base.tum"
    assert metrics.accuracy.truth.moved_to_camera
    assert sim3_error(metrics).translation.rmse < 1e-5
    unknown = EvaluationOptions(ground_truth=str(tmp_path / "base.tum"), truth_frame="imu")
    (note, *_) = evaluate(result, unknown).accuracy.problems
    assert "'imu'" in note
    assert "constant error" in note


def test_a_clock_that_is_off_is_given_estimated_or_aligned_at_the_start(result, tmp_path):
    track = Track(
        [stamp_of(i) - 1_234_000_000 for i in range(FRAMES)],
        [world_from_camera(i) for i in range(FRAMES)],
    )
    write_tum(tmp_path / "t.tum", track)
    for choice, source in (("1.234", "given"), ("first", "first poses")):
        options = EvaluationOptions(ground_truth=str(tmp_path / "t.tum"), clock_offset=choice)
        accuracy = evaluate(result, options).accuracy
        assert (accuracy.clock_offset_s, accuracy.clock_offset_source) == (
            pytest.approx(1.234),
            source,
        )
        assert accuracy.segments[0].compared == FRAMES
        assert accuracy.segments[0].alignments["sim3"].translation.rmse < 1e-5
    with pytest.raises(EvaluationError, match=r"nearest is .* s away"):
        evaluate(result, EvaluationOptions(ground_truth=str(tmp_path / "t.tum"), tolerance_s=0.001))


def test_between_transforms_the_pose_is_interpolated(tmp_path):
    """TF half as often as images: every image has a true pose, the ones between nearly so."""
    entries = room_entries(FRAMES)
    for index in range(0, FRAMES, 2):
        moved = transform_stamped(index, "world", CAMERA, world_from_camera(index))
        entries.append(("/tf", "TFMessage", stamp_of(index), M.TFMessage(transforms=[moved])))
    bag = write_recording(tmp_path / "in", entries)
    options = EvaluationOptions(ground_truth=f"/tf:world.{CAMERA}")
    replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False, evaluation=options)
    metrics = Metrics.read(tmp_path / "out" / "metrics.json")
    assert metrics.accuracy.segments[0].compared == FRAMES - 1  # nothing after the last transform
    # A chord of two steps lies below the arc y = 0.8 sin(0.12 i) by at most its bend by 8.
    assert sim3_error(metrics).translation.maximum < 0.8 * 0.12**2 * 2**2 / 8


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/nothing", "no topic with poses .*such topics are: /ground_truth/pose, /odom, /vicon"),
        ("/camera/depth", "no file and no topic"),
        ("/tf:map.moon", r"no two frames of TF; .*its frames are: .*base_link"),
        ("nowhere.tum", "is no file"),
    ],
)
def test_a_truth_that_is_not_there_is_answered_with_what_is(result, source, says):
    with pytest.raises(RecordingError, match=says):
        evaluate(result, EvaluationOptions(ground_truth=source))


# Depth


def test_true_depth_is_found_and_agrees(result):
    metrics = evaluate(result, EvaluationOptions())
    depth = metrics.accuracy.depth
    assert (depth.topic, depth.frames) == ("/camera/depth", FRAMES)
    assert set(depth.alignments) == {"trajectory", "median"}
    for found in depth.alignments.values():
        assert found.abs_rel < 1e-5
        assert found.delta_1 == 1.0
        assert found.scale == pytest.approx(2.0, rel=1e-4)
    rows = (result / "depth_errors.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * FRAMES


def test_depth_in_millimetres_and_in_metres_known_scale(tmp_path):
    entries = room_entries(11)
    entries += [("/d", "Image", stamp_of(i), depth_image(i, "16UC1")) for i in range(11)]
    bag = write_recording(tmp_path / "in", entries)
    parameters = PLAIN.with_values(metres_per_unit=2.2)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), parameters, report=False)
    depth = summary.metrics["accuracy"]["depth"]["alignments"]
    assert set(depth) == {"none", "trajectory", "median"}
    # The map's metre is 10 % too long; millimetres round.
    assert depth["none"]["abs_rel"] == pytest.approx(0.1, abs=1e-3)
    assert depth["trajectory"]["abs_rel"] < 1e-3
    assert summary.metrics["accuracy"]["alignment"] == "se3"


def test_depth_of_another_place_is_not_taken_for_the_cameras(tmp_path):
    entries = room_entries(11)
    entries += [("/d", "Image", stamp_of(i), depth_image(i, frame_id="lidar")) for i in range(11)]
    bag = write_recording(tmp_path / "in", entries)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    assert summary.metrics["accuracy"]["depth"] is None
    with pytest.raises(RecordingError, match="no depth images on /camera/image_raw"):
        evaluate(tmp_path / "out", EvaluationOptions(depth_topic="/camera/image_raw"))


# Replay and evaluation give the same


def test_a_replay_evaluates_as_evaluate_does(room, result, tmp_path):
    options = EvaluationOptions(ground_truth="/odom", rpe_distances=(0.3, 0.5))
    evaluate(result, options)
    replay(room, tmp_path / "out", RoomNetwork(), PLAIN, report=False, evaluation=options)
    for name in ("metrics.json", "errors.csv", "depth_errors.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (result / name).read_bytes()


def test_errors_are_written_pose_by_pose_in_the_maps_frame(result):
    evaluate(result, EvaluationOptions())
    table = np.genfromtxt(result / "errors.csv", delimiter=",", names=True)
    assert len(table) == FRAMES
    for axis in "xyz":
        assert np.allclose(table[axis], table[f"truth_{axis}"], atol=1e-5)
    assert np.isfinite(table["scale_ratio"]).sum() >= 3


def test_a_result_without_its_recording_still_compares_poses(result, room, tmp_path):
    run = json.loads((result / "run.json").read_text())
    moved = tmp_path / "elsewhere"
    room.rename(moved)
    try:
        metrics = evaluate(result, EvaluationOptions())
        assert sim3_error(metrics).translation.rmse < 1e-5
        assert metrics.accuracy.depth is None
        assert str(run["recording"]) in metrics.accuracy.problems[0]
        assert evaluate(result, EvaluationOptions(), recording=moved).accuracy.depth is not None
    finally:
        moved.rename(room)


# What cannot be compared


def test_a_recording_without_truth_is_reconstructed_unless_truth_is_asked_for(tmp_path):
    entries = [entry for entry in room_entries(3) if entry[0] != "/ground_truth/pose"]
    bag = write_recording(tmp_path / "in", entries)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    assert summary.metrics["accuracy"] is None
    with pytest.raises(RecordingError, match="no topic that is called ground truth"):
        replay(bag, tmp_path / "2", RoomNetwork(), PLAIN, truth_required=True)
    assert not (tmp_path / "2").exists()


def late_truth(frames):
    entries = [entry for entry in room_entries(frames) if entry[0] != "/ground_truth/pose"]
    for index in range(frames):
        message = pose_message(index)
        message.header.stamp.sec += 1000
        entries.append(("/ground_truth/pose", "PoseStamped", stamp_of(index), message))
    return entries


def test_no_overlap_in_time_is_a_warning_or_an_error_with_the_times(tmp_path):
    bag = write_recording(tmp_path / "in", late_truth(4))
    summary = replay(bag, tmp_path / "1", RoomNetwork(), PLAIN, report=True)
    assert "999.700 s away" in summary.warnings[-1]
    assert "the ground truth from 1700001000.000 s" in summary.warnings[-1]
    assert Metrics.read(tmp_path / "1" / "metrics.json").warnings == list(summary.warnings)
    with pytest.raises(EvaluationError, match="the reconstruction is in"):
        replay(bag, tmp_path / "2", RoomNetwork(), PLAIN, truth_required=True, report=False)
    assert (tmp_path / "2" / "bag" / "metadata.yaml").exists()


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_few_compared_poses_give_no_score(frames, tmp_path):
    """Two positions always fit: the error of whatever estimate would be zero."""
    bag = write_recording(tmp_path / "in", room_entries(frames))
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=True)
    assert summary.metrics["accuracy"] is None
    assert f"only {frames} of its {frames} poses have a true one" in summary.warnings[-1]
    assert "there is no score" in summary.warnings[-1]


def test_ten_compared_poses_give_a_score(tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(10))
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    assert summary.metrics["accuracy"]["segments"][0]["compared"] == 10


def test_a_truth_that_stands_still_says_so(tmp_path):
    entries = [entry for entry in room_entries(11) if entry[0] != "/ground_truth/pose"]
    for index in range(11):
        message = pose_message(0)
        message.header.stamp = header(index).stamp
        entries.append(("/ground_truth/pose", "PoseStamped", stamp_of(index), message))
    bag = write_recording(tmp_path / "in", entries)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    assert "all 11 true positions are the same" in summary.warnings[-1]


def test_a_truth_that_knows_one_segment_of_two_gives_that_one(tmp_path):
    def late(index):
        message = pose_message(index)
        message.header.stamp = header(500 + index).stamp
        return ("/ground_truth/pose", "PoseStamped", stamp_of(500 + index), message)

    entries = [entry for entry in room_entries(6) if entry[0] != "/ground_truth/pose"]
    for index in range(11):
        image = image_message(index, header=header(500 + index))
        entries.append(("/camera/image_raw", "Image", stamp_of(500 + index), image))
        entries.append(late(index))
    bag = write_recording(tmp_path / "in", entries)
    network = RecognisingNetwork()
    summary = replay(bag, tmp_path / "out", network, PLAIN, report=True)
    first, second = summary.metrics["accuracy"]["segments"]
    assert (first["compared"], second["compared"]) == (0, 11)
    assert "nearest is" in first["problems"][0]
    assert second["alignments"]["sim3"]["translation"]["rmse"] < 1e-5


def test_broken_true_poses_are_left_out_and_counted(tmp_path):
    entries = room_entries(12)
    for topic, _, _, message in entries:
        if topic == "/ground_truth/pose" and message.header.stamp == header(2).stamp:
            message.pose.position.x = float("nan")
    bag = write_recording(tmp_path / "in", entries)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    accuracy = summary.metrics["accuracy"]
    assert accuracy["segments"][0]["compared"] == 11
    # The replay has not copied it; the truth itself says it.
    assert any("1 poses of /ground_truth/pose are broken" in p for p in accuracy["problems"])


def truth_of(tmp_path, source, far, frames=FRAMES):
    """A true path in the room, some of whose poses are far away: as a topic, in TF, in a file."""
    track, entries = Track(), [entry for entry in room_entries(FRAMES) if entry[1] != "PoseStamped"]
    for index in range(FRAMES):
        pose = world_from_camera(index).copy()
        pose[0, 3] += far if index in frames else 0.0
        track.add(stamp_of(index), pose)
        moving = transform_stamped(index, "world", CAMERA, pose)
        if source == "topic":
            entries.append(("/ground_truth/pose", "TransformStamped", stamp_of(index), moving))
        elif source == "tf":
            message = M.TFMessage(transforms=[moving])
            entries.append(("/tf", "TFMessage", stamp_of(index), message))
    write_tum(tmp_path / "truth.tum", track)
    bag = write_recording(tmp_path / "in", entries)
    names = {"topic": "/ground_truth/pose", "tf": f"/tf:world.{CAMERA}"}
    return bag, names.get(source, str(tmp_path / "truth.tum"))


@pytest.mark.parametrize("source", ["topic", "tf", "file"])
@pytest.mark.parametrize("far", [20.0, 1e8])
def test_a_true_pose_where_nothing_gets_to_is_left_out_and_named(source, far, tmp_path):
    bag, truth = truth_of(tmp_path, source, far, frames=[6])
    options = EvaluationOptions(ground_truth=truth)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False, evaluation=options)
    accuracy = summary.metrics["accuracy"]
    assert accuracy["segments"][0]["compared"] == FRAMES - 1
    assert accuracy["segments"][0]["alignments"]["sim3"]["translation"]["rmse"] < 1e-5
    assert accuracy["truth"]["length"] < 10.0
    assert any("1 of 14 true poses lie where nothing" in text for text in accuracy["problems"])


@pytest.mark.parametrize("source", ["topic", "tf", "file"])
@pytest.mark.parametrize("far", [20.0, 1e8])
def test_a_truth_that_jumps_and_stays_gives_no_score(source, far, tmp_path):
    bag, truth = truth_of(tmp_path, source, far, frames=range(8, FRAMES))
    options = EvaluationOptions(ground_truth=truth)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False, evaluation=options)
    assert summary.metrics["accuracy"] is None
    assert "6 of 14 true poses lie where nothing gets to" in summary.warnings[-1]
    assert "there is no score" in summary.warnings[-1]


def test_a_truth_in_several_frames_is_named(tmp_path):
    entries = room_entries(FRAMES)
    for index, (_, _, _, message) in enumerate(e for e in entries if e[1] == "PoseStamped"):
        message.header.frame_id = ("map", "odom")[index % 2]
    bag = write_recording(tmp_path / "in", entries)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    problems = summary.metrics["accuracy"]["problems"]
    assert any("are in several frames (map, odom)" in text for text in problems)


def test_a_true_position_beyond_the_moon_is_none(tmp_path):
    bag, _ = truth_of(tmp_path, "topic", 1e12, frames=[6])
    summary = replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False)
    accuracy = summary.metrics["accuracy"]
    assert accuracy["segments"][0]["compared"] == FRAMES - 1
    assert any("1 poses of /ground_truth/pose are broken" in text for text in accuracy["problems"])


@pytest.mark.parametrize(("factor", "is_named"), [(1.0, False), (1000.0, True), (0.01, True)])
def test_a_truth_in_another_unit_is_named(factor, is_named, tmp_path):
    track = Track()
    for index in range(FRAMES):
        pose = world_from_camera(index).copy()
        pose[:3, 3] *= factor
        track.add(stamp_of(index), pose)
    write_tum(tmp_path / "truth.tum", track)
    bag = write_recording(tmp_path / "in", room_entries(FRAMES))
    options = EvaluationOptions(ground_truth=str(tmp_path / "truth.tum"))
    metres = PLAIN.with_values(metres_per_unit=2.0)
    summary = replay(bag, tmp_path / "out", RoomNetwork(), metres, report=False, evaluation=options)
    problems = summary.metrics["accuracy"]["problems"]
    assert any(f"{factor:.3g} times as long" in text for text in problems) == is_named
    assert any("another unit" in text for text in problems) == is_named


def test_a_path_shorter_than_the_distance_of_rpe_says_how_long_it_is(result):
    metrics = evaluate(result, EvaluationOptions(rpe_distances=(100.0,)))
    (segment,) = metrics.accuracy.segments
    assert [r.span for r in segment.alignments["sim3"].relative] == ["frames", "time"]
    reason = f"no two of {FRAMES} poses are 100 apart: the whole way is {segment.truth_length:g}"
    assert any(reason in problem for problem in segment.problems)


def test_a_straight_path_says_that_its_rotation_is_not_determined(result, tmp_path):
    track = Track()
    for index in range(FRAMES):
        pose = world_from_camera(index).copy()
        pose[1:3, 3] = 0.0
        track.add(stamp_of(index), pose)
    write_tum(tmp_path / "line.tum", track)
    metrics = evaluate(result, EvaluationOptions(ground_truth=str(tmp_path / "line.tum")))
    assert any("width is 0.0% of its length" in p for p in metrics.accuracy.segments[0].problems)


# The commands


def command(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(console, "out", console.Terminal(width=200))
    monkeypatch.setattr(console, "err", console.Terminal(width=200, stderr=True))
    monkeypatch.setattr("qvggt_core.stream.load_network.load_network", load_room_network)
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def test_evaluate_prints_a_table_and_writes_the_report_anew(capsys, monkeypatch, result):
    status, printed, errors = command(
        capsys,
        monkeypatch,
        *("evaluate", result, "--ground-truth", "/odom", "--rpe-distance", "0.5"),
        *("--rpe-distance", "100"),
    )
    assert status == 0
    assert "/odom, sim3 alignment" in printed
    assert "RPE over 0.5 m, rmse" in printed
    assert "depth, scaled by median" in printed
    assert "100 apart: the whole way is" in errors
    assert f"wrote {result / 'report.html'}" in printed
    assert "/odom" in (result / "report.html").read_text()


PLAIN_OPTIONS = (
    "--set",
    "keyframe_min_motion=0",
    "--set",
    "confirm=false",
    "--set",
    "refine=false",
)


def test_replay_compares_unless_asked_not_to(capsys, monkeypatch, room, tmp_path):
    def replayed(name, *options):
        arguments = ("--limit", "14", "--no-report", *PLAIN_OPTIONS, *options)
        return command(capsys, monkeypatch, "replay", room, "-o", tmp_path / name, *arguments)

    status, printed, _ = replayed("1", "--no-evaluate")
    assert (status, "ATE" in printed) == (0, False)
    status, printed, _ = replayed("2", "--ground-truth", "/tf:odom")
    assert status == 0
    assert f"/tf:odom.{CAMERA}, sim3 alignment" in printed
    status, _, errors = replayed("3", "--ground-truth", "/moon")
    assert status == 2
    assert "such topics are: /ground_truth/pose" in errors
    assert not (tmp_path / "3").exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [("--clock-offset", "soon", "'soon' is no number"), ("--tolerance", "-1", "tolerance of -1.0")],
)
def test_senseless_options_are_explained(capsys, monkeypatch, result, option, value, says):
    status, _, errors = command(capsys, monkeypatch, "evaluate", result, option, value)
    assert status == 2
    assert says in errors


def test_the_live_view_names_what_it_lacks(monkeypatch):
    from qvggt_ros.viewer import LiveView

    with pytest.raises(ParameterError, match="a port of 0"):
        LiveView(0)
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(MissingPackageError, match=r"qvggt_ros\[viz\]"):
        LiveView()


# The schema


def test_the_documentation_of_the_metrics_is_the_schemas():
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == documentation()


def test_metrics_are_what_they_are_documented_to_be(result):
    evaluate(result, EvaluationOptions())
    text = (result / "metrics.json").read_text()
    metrics = Metrics.read(result / "metrics.json")
    assert metrics.to_json() == text
    assert (metrics.format, metrics.version) == ("qvggt-metrics", 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 3}, "version 3, this qvggt knows 2"),
        ({"result": {}}, "result.received: Field required"),
        ({"format": "other"}, "format"),
    ],
)
def test_metrics_of_another_form_are_refused(result, change, says, tmp_path):
    content = json.loads((result / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(content | change))
    with pytest.raises(EvaluationError, match=says):
        Metrics.read(tmp_path / "metrics.json")


def test_names_that_came_later_are_skipped(result, tmp_path):
    content = json.loads((result / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(content | {"comes_later": 1}))
    assert Metrics.read(tmp_path / "metrics.json") == Metrics.read(result / "metrics.json")


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "trajectory.tum"])
def test_a_directory_that_is_no_result_says_what_it_lacks(result, name, tmp_path):
    for file in result.iterdir():
        if file.is_file() and file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises((EvaluationError, RecordingError), match=name):
        evaluate(tmp_path, EvaluationOptions())
