"""A mask of what stands still is honoured from the message to the depth and the cloud."""

import numpy as np
import pytest
from scipy.ndimage import zoom
from support.plain_parameters import PLAIN
from support.recordings import (
    HEIGHT,
    WIDTH,
    M,
    RoomNetwork,
    header,
    image_message,
    read_recording,
    room_entries,
    stamp_of,
    write_recording,
)
from support.replays import replay

from qvggt_core.errors import RecordingError
from qvggt_core.geometry.camera import Camera
from qvggt_core.stream.frame import Frame
from qvggt_core.stream.preprocess import Preprocessor
from qvggt_ros.io.images import decode_depth
from qvggt_ros.masks import Masks

FRAMES = 8
MOVING = (slice(10, 25), slice(20, 40))
RNG = np.random.default_rng(0)


def mask_message(index=0, stamp_ns=None, encoding="mono8", moving=MOVING, size=(HEIGHT, WIDTH)):
    pixels = np.full(size, 255, np.uint8)
    pixels[moving] = 0
    return M.Image(
        header=header(index, stamp_ns=stamp_ns),
        height=size[0],
        width=size[1],
        encoding=encoding,
        is_bigendian=0,
        step=size[1],
        data=pixels.reshape(-1),
    )


def masks(*messages):
    reasons = []
    found = Masks(reasons.append)
    for message in messages:
        found.add(message)
    return found, reasons


def test_the_mask_of_an_image_has_its_stamp_or_lies_shortly_beside_it_or_holds_for_all():
    found, reasons = masks(mask_message(0), mask_message(4, moving=(slice(0, 5), slice(0, 5))))
    assert found.at(stamp_of(0), WIDTH, HEIGHT)[MOVING].max() == 0
    assert found.at(stamp_of(2), WIDTH, HEIGHT)[MOVING].max() == 0
    assert found.at(stamp_of(4), WIDTH, HEIGHT)[MOVING].min() == 255
    assert found.at(stamp_of(7), WIDTH, HEIGHT) is None
    found.add(mask_message(stamp_ns=0))
    assert found.at(stamp_of(7), WIDTH, HEIGHT)[MOVING].max() == 0
    assert not reasons


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoding": "rgb8"}, "send mono8"),
        ({"size": (HEIGHT, WIDTH // 2), "moving": (slice(5), slice(5))}, "send it in the image's"),
    ],
)
def test_a_mask_that_does_not_fit_is_rejected_with_what_to_do(changes, reason):
    found, reasons = masks(mask_message(0, **changes))
    assert found.at(stamp_of(0), WIDTH, HEIGHT) is None
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_few_masks_are_kept():
    found, _ = masks(*(mask_message(index) for index in range(100)))
    assert found.at(stamp_of(0), WIDTH, HEIGHT) is None
    assert found.at(stamp_of(99), WIDTH, HEIGHT) is not None


@pytest.mark.parametrize("parameters", [PLAIN, PLAIN.with_values(refine=True)])
def test_what_moves_has_no_depth_and_no_points(parameters, tmp_path):
    entries = room_entries(FRAMES)
    entries += [("/mask", "Image", stamp_of(i), mask_message(i)) for i in range(FRAMES)]
    entries.sort(key=lambda entry: (entry[2], entry[0] != "/mask"))
    bag = write_recording(tmp_path / "in", entries)
    clouds, depths = [], []
    for name, options in (("with", {"mask_topic": "/mask"}), ("without", {})):
        output = replay(
            bag, tmp_path / name, RoomNetwork(), parameters, report=False, **options
        ).output
        messages = read_recording(output / "bag")
        depths.append([decode_depth(m) for _, _, m in messages["/qvggt/depth/image"]])
        clouds.append([m.width for _, _, m in messages["/qvggt/points"]])
    assert len(depths[0]) == len(depths[1]) == FRAMES
    for masked, whole in zip(*depths, strict=True):
        assert np.isnan(masked[MOVING]).all()
        if not parameters.refine:
            outside = np.isnan(masked) & ~np.isnan(whole)
            outside[MOVING] = False
            assert not outside.any()
    if not parameters.refine:
        assert sum(clouds[0]) < sum(clouds[1])


def test_a_topic_that_holds_no_images_is_refused(tmp_path):
    bag = write_recording(tmp_path / "in", room_entries(3))
    with pytest.raises(RecordingError, match="/nothing"):
        replay(bag, tmp_path / "out", RoomNetwork(), PLAIN, report=False, mask_topic="/nothing")


@pytest.mark.parametrize("distorted", [False, True])
def test_a_mask_is_resized_and_rectified_as_its_image_is(distorted):
    height, width = 120, 160
    blobs = zoom(RNG.random((6, 8)), 20, order=1) > 0.6
    mask = np.where(blobs, 0, 255).astype(np.uint8)
    matrix = np.array([[120.0, 0, 80], [0, 120.0, 60], [0, 0, 1]])
    lens = (-0.2, 0.05, 0.0, 0.0, 0.0) if distorted else ()
    camera = Camera(width, height, matrix, "plumb_bob" if distorted else "", lens)
    # The image shows the mask itself, so that its view shows where it has to lie.
    image = np.repeat(mask[:, :, None], 3, axis=2)
    view = Preprocessor(70, 14).view(Frame(0, image, camera, mask=mask))
    assert view.mask.shape == view.image.shape[:2]
    static = view.image[:, :, 0]
    assert (static[view.mask] > 240).all()
    assert (view.mask[static > 254]).mean() > 0.95


def test_without_a_mask_a_view_has_none():
    image = image_message(0)
    frame = Frame(0, np.zeros((image.height, image.width, 3), np.uint8))
    assert Preprocessor(56, 14).view(frame).mask is None
