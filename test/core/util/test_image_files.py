"""Images and videos as files: natural order, orientation, transparency, 16 bits, focal length."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from qvggt_core.errors import ImageError
from qvggt_core.util.image_files import (
    Video,
    exif_focal_length,
    image_files,
    image_size,
    natural_key,
    read_image,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (42, 56, 3)).astype(np.uint8)
ORIENTATION, EXIF_IFD, FOCAL_35 = 0x0112, 0x8769, 0xA405


def test_names_are_in_the_order_of_their_numbers(tmp_path) -> None:
    names = ["img1.png", "img2.png", "img10.png", "img10b.png", "IMG11.PNG"]
    for name in reversed(names):
        Image.fromarray(PICTURE).save(tmp_path / name)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    assert [path.name for path in image_files(tmp_path)] == names
    assert natural_key(Path("a1.png")) < natural_key(Path("a02.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_comes_as_it_was_taken(tmp_path, orientation) -> None:
    # What the EXIF standard has each value undo, by numpy alone.
    stored = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: np.rot90(PICTURE),
        7: np.rot90(PICTURE, 2).transpose(1, 0, 2),
        8: np.rot90(PICTURE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "picture.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), PICTURE)
    assert image_size(path) == (56, 42)


def test_transparent_pixels_lie_on_white(tmp_path) -> None:
    alpha = np.full(PICTURE.shape[:2], 255, np.uint8)
    alpha[:, :20] = 0
    Image.fromarray(np.dstack([PICTURE, alpha])).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert (found[:, :20] == 255).all()
    np.testing.assert_array_equal(found[:, 20:], PICTURE[:, 20:])


def test_sixteen_bit_grey_is_stretched_over_its_range(tmp_path) -> None:
    thermal = np.linspace(7000, 8000, 42 * 56).reshape(42, 56).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "t.png"), thermal)
    found = read_image(tmp_path / "t.png")
    assert found.shape == (42, 56, 3)
    assert (found.min(), found.max()) == (0, 255)
    assert np.ptp(found, axis=-1).max() == 0


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(PICTURE).convert(mode).save(path)
    assert read_image(path).shape == (42, 56, 3)


def test_what_is_no_image_is_named(tmp_path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(500))
    with pytest.raises(ImageError, match=r"photo\.jpg cannot be read as an image"):
        read_image(path)
    assert image_size(path) is None
    assert exif_focal_length(path) is None


def test_the_focal_length_comes_from_the_35_mm_equivalent(tmp_path) -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[FOCAL_35] = 26
    picture = Image.new("RGB", (4000, 3000))
    picture.save(tmp_path / "phone.jpg", exif=exif)
    picture.save(tmp_path / "bare.jpg")
    # A diagonal of 5000 pixels stands for 43.27 mm.
    assert exif_focal_length(tmp_path / "phone.jpg") == pytest.approx(26 * 5000 / 43.27)
    assert exif_focal_length(tmp_path / "bare.jpg") is None


def write_video(path: Path, frames: int, rate: float = 10.0, codec: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (56, 42))
    assert writer.isOpened()
    for index in range(frames):
        writer.write(np.full((42, 56, 3), 20 * index, np.uint8))
    writer.release()
    return path


def test_a_video_gives_its_frames_at_their_times(tmp_path) -> None:
    video = Video(write_video(tmp_path / "a.avi", 7))
    assert video.rate == pytest.approx(10.0)
    assert len(video) == 7
    frames = list(video.frames())
    np.testing.assert_allclose(np.diff([seconds for seconds, _ in frames]), 0.1, atol=1e-3)
    levels = [float(image.mean()) for _, image in frames]
    np.testing.assert_allclose(levels, 20.0 * np.arange(7), atol=2)


def test_a_streamed_video_without_a_length_is_read_whole(tmp_path) -> None:
    whole = write_video(tmp_path / "whole.webm", 12, codec="VP80")
    data = bytearray(whole.read_bytes())
    at = data.find(b"\x44\x89")  # the duration becomes a void of the same length
    size = data[at + 2] & 0x7F
    data[at : at + 2 + 1] = bytes([0xEC, 0x40, size])
    streamed = tmp_path / "streamed.webm"
    streamed.write_bytes(data)
    assert cv2.VideoCapture(str(streamed)).get(cv2.CAP_PROP_FRAME_COUNT) <= 0
    video = Video(streamed)
    assert len(video) == 12
    times = [seconds for seconds, _ in video.frames()]
    assert len(times) == 12
    assert (np.diff(times) > 0).all()


def test_what_is_no_video_is_named(tmp_path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(ImageError, match=r"a\.mp4 cannot be read as a video"):
        Video(path)
