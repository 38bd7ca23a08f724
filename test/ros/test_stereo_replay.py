"""A recording of two cameras beside each other comes out in metres, standing still, by itself."""

import numpy as np
import pytest
from support.nonsense import Nonsense
from support.recordings import image_message
from support.replays import replay

from qvggt_core.errors import RecordingError
from qvggt_core.parameters import Parameters
from qvggt_core.synthetic.lens import LensChoice
from qvggt_ros.drivers.stereo_pairs import FIRST, SECOND, StereoPairs
from qvggt_ros.drivers.synthesize import BagOptions, ImageFlaws, write_bag

LENS = LensChoice(240, 180)
TOPICS = {"image_topic": "/camera/image_raw", "stereo_topic": "/right/image_raw"}


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """Ten images of two cameras, 0.2 m apart, that stand still."""
    path = tmp_path_factory.mktemp("standing") / "bag"
    write_bag(
        path,
        BagOptions(
            flight="hover",
            world_seed=5,
            jitter=0.0,
            baseline=0.2,
            frames=10,
            lens=LENS,
            flaws=ImageFlaws(exposure=0.0, shutter=0.0),
        ),
    )
    return path


def run(bag, output, **options):
    network = Nonsense(112, 14, LENS.lens().intrinsics * [[112 / 240], [112 / 240], [1.0]])
    return replay(bag, output, network, Parameters(), odometry=False, report=False, **options)


def test_two_cameras_that_stand_still_give_metres_and_no_drift(standing, tmp_path):
    summary = run(standing, tmp_path / "out", **TOPICS)
    metrics = summary.metrics
    assert metrics["result"]["scale_state"] == "metric"
    assert metrics["result"]["scale_source"] == "baseline"
    assert metrics["recording"]["scale_topics"] == ["/right/image_raw"]
    path = np.loadtxt(tmp_path / "out" / "trajectory.tum")
    assert len(path) == 10
    assert np.linalg.norm(path[:, 1:4] - path[0, 1:4], axis=1).max() < 0.01
    depth = metrics["accuracy"]["depth"]["alignments"]
    assert depth["median"]["scale"] == pytest.approx(1.0, abs=0.05)


def test_one_camera_alone_gives_no_metres(standing, tmp_path):
    summary = run(standing, tmp_path / "out", image_topic="/camera/image_raw")
    assert summary.metrics["result"]["scale_state"] != "metric"


@pytest.mark.parametrize("topic", ["/camera/image_raw", "/no/image", "/odom"])
def test_a_second_camera_is_another_topic_with_images(topic, standing, tmp_path):
    with pytest.raises(RecordingError, match=r"second camera|no topic"):
        run(standing, tmp_path / "out", image_topic="/camera/image_raw", stereo_topic=topic)


def test_images_are_put_together_by_their_stamps_in_either_order():
    first, other = ([image_message(index) for index in range(3)] for _ in range(2))
    pairs = StereoPairs(0.03)
    assert pairs.other(other[0]) == []
    assert pairs.first(first[0]) == [{FIRST: first[0], SECOND: other[0]}]
    assert pairs.first(first[1]) == []
    assert pairs.other(other[1]) == [{FIRST: first[1], SECOND: other[1]}]


def test_an_image_whose_other_one_is_missing_goes_alone():
    first = [image_message(index) for index in range(3)]
    pairs = StereoPairs(0.03)
    assert pairs.first(first[0]) == []
    assert pairs.first(first[1]) == [{FIRST: first[0]}]
    assert pairs.other(image_message(2)) == []
    assert pairs.rest() == [{FIRST: first[1]}]
    assert pairs.rest() == []
