"""Calibrations are checked; rectified, resized and cropped views fit their intrinsics."""

import cv2
import numpy as np
import pytest

from qvggt_core.errors import ImageError, ParameterError
from qvggt_core.geometry.camera import Camera, rectified_intrinsics, resized_intrinsics
from qvggt_core.stream import Frame, Preprocessor

SIZE = (640, 480)
K = np.array([[460.0, 0, 323.5], [0, 455.0, 236.0], [0, 0, 1]])
BARREL = ("plumb_bob", (-0.28, 0.07, 0.001, -0.0005, 0.0))
PINCUSHION = ("plumb_bob", (0.12, 0.02, 0.0, 0.0, 0.0))
RATIONAL = ("rational_polynomial", (0.3, -0.1, 0.0005, 0.001, 0.01, 0.6, -0.05, 0.02))
EQUIDISTANT = ("equidistant", (0.02, -0.005, 0.001, 0.0))
LENSES = {
    "barrel": BARREL,
    "pincushion": PINCUSHION,
    "rational": RATIONAL,
    "equidistant": EQUIDISTANT,
}


def camera(lens=("", ()), intrinsics=K, size=SIZE):
    return Camera(*size, intrinsics, *lens)


def distort(normalised, camera):
    """Return pixels of points on the plane z = 1, by OpenCV."""
    points = np.concatenate([normalised, np.ones_like(normalised[:, :1])], axis=1)[:, None]
    model = cv2.fisheye if camera.distortion_model == "equidistant" else cv2
    coefficients = np.array(camera.distortion)
    pixels, _ = model.projectPoints(
        points, np.zeros(3), np.zeros(3), camera.intrinsics, coefficients
    )
    return pixels[:, 0]


def coordinate_image(width, height, camera=None):
    """Return an image whose red and green are where on the plane z = 1 a pixel looks.

    Without a camera they are the pixel's place between the outer edges of the image.
    """
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    if camera is None:
        x, y = (columns + 0.5) / width, (rows + 0.5) / height
    else:
        pixels = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2).astype(np.float64)
        model = cv2.fisheye if camera.distortion_model == "equidistant" else cv2
        rays = model.undistortPoints(pixels, camera.intrinsics, np.array(camera.distortion))
        x, y = (rays.reshape(height, width, 2) / 2 + 0.5).transpose(2, 0, 1)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = (np.clip(np.rint(255 * v), 0, 255) for v in (x, y))
    return image


def looks_at(view):
    """Return where the view's pixels look by its intrinsics, coded as in `coordinate_image`."""
    height, width = view.image.shape[:2]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    x = (columns - view.intrinsics[0, 2]) / view.intrinsics[0, 0]
    y = (rows - view.intrinsics[1, 2]) / view.intrinsics[1, 1]
    return np.stack([x, y], axis=-1) * 127.5 + 127.5


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
@pytest.mark.parametrize("width", [518, 140])
def test_rectified_views_look_where_their_intrinsics_say(lens, width):
    distorted = camera(lens)
    frame = Frame(1, coordinate_image(*SIZE, distorted), distorted, "cam")
    view = Preprocessor(width, 14).view(frame)
    assert view.image.shape == (14 * round(width * 0.75 / 14), width, 3)
    expected = looks_at(view)
    shown = view.image[..., :2].astype(float)
    # Half a grey level is rounding; one level is about 1.8 pixels of the camera.
    inner = (expected > 4).all(axis=-1) & (expected < 251).all(axis=-1)
    assert inner.mean() > 0.8
    error = (shown - expected)[inner]
    assert np.abs(error).max() < 1.5
    assert np.abs(error.mean(axis=0)).max() < 0.05  # a tenth of a pixel


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
def test_rectified_pixels_are_those_that_opencv_projects_to(lens):
    distorted = camera(lens)
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), (0, 0), 6)
    view = Preprocessor(560, 14).view(Frame(1, image, distorted))
    rows, columns = (rng.integers(0, n, 300) for n in view.image.shape[:2])
    ray = np.stack([columns, rows, np.ones(300)], axis=1) @ np.linalg.inv(view.intrinsics).T
    pixels = distort(ray[:, :2], distorted).astype(np.float32)
    sampled = cv2.remap(image, pixels[None], None, cv2.INTER_CUBIC, borderMode=1)[0]
    assert np.abs(view.image[rows, columns].astype(int) - sampled).max() <= 3


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
def test_rectified_views_show_nothing_that_the_lens_did_not_see(lens):
    distorted = camera(lens)
    pinhole = rectified_intrinsics(distorted)
    edge = np.stack(np.meshgrid(np.arange(640.0), np.arange(480.0)), axis=-1)[[0, -1]].reshape(
        -1, 2
    )
    seen = distort((edge - pinhole[:2, 2]) / np.diag(pinhole)[:2], distorted)
    assert (seen >= -0.51).all()
    assert (seen <= np.array(SIZE) - 0.49).all()
    # The smallest zoom that does it: none for a barrel, whose corners lie inside.
    zoom = pinhole[0, 0] / K[0, 0]
    assert pinhole[1, 1] / K[1, 1] == pytest.approx(zoom)
    assert (zoom > 1.02) == (lens is PINCUSHION)


def test_a_lens_that_folds_back_is_zoomed_to_where_it_does_not():
    # At k1 = -0.6 the distorted radius turns back at 0.745, within the image.
    pinhole = rectified_intrinsics(camera(("plumb_bob", (-0.6, 0, 0, 0, 0))))
    corner = np.abs(np.array([[0, 0], [639, 479]]) - pinhole[:2, 2]) / np.diag(pinhole)[:2]
    assert np.linalg.norm(corner, axis=1).max() < 1.01 * np.sqrt(1 / 1.8)
    with pytest.raises(ImageError, match="cannot be rectified"):
        rectified_intrinsics(camera(("plumb_bob", (-80.0, 0, 0, 0, 0))))


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        ((640, 480), 518, (392, 518)),  # 4:3, rounded up from 388.5
        ((1920, 1080), 518, (294, 518)),  # 16:9, rounded up from 291.4
        ((480, 640), 518, (518, 518)),  # portrait, cropped from 686
        ((1080, 1920), 518, (518, 518)),  # 9:16, cropped from 924
        ((100, 75), 518, (392, 518)),  # enlarged
        ((3000, 400), 112, (14, 112)),  # never less than a patch
    ],
)
def test_views_map_pixels_as_their_intrinsics_say(size, width, expected):
    # Intrinsics under which a pixel looks at its place between the image's outer edges.
    edges = np.array([[size[0] / 2, 0, size[0] / 2 - 0.5], [0, size[1] / 2, size[1] / 2 - 0.5]])
    intrinsics = np.vstack([edges, [0, 0, 1]])
    frame = Frame(1, coordinate_image(*size), camera(intrinsics=intrinsics, size=size))
    view = Preprocessor(width, 14).view(frame)
    assert view.image.shape == (*expected, 3)
    error = view.image[..., :2].astype(float) - looks_at(view)
    assert np.abs(error).max() < 2.6  # enlarging holds the outermost half pixels
    assert np.abs(error.mean(axis=(0, 1))).max() < 0.05


def test_intrinsics_are_mapped_per_axis_to_the_exact_half_pixel():
    mapped = resized_intrinsics(K, (0.5, 0.25), (0.0, 7.0))
    point = np.array([0.3, -0.2, 1.0])
    before, after = K @ point, mapped @ point
    # Outer edges stay outer edges: u + 0.5 scales, and integer coordinates are pixel centres.
    assert after[0] == pytest.approx((before[0] + 0.5) * 0.5 - 0.5)
    assert after[1] == pytest.approx((before[1] + 0.5) * 0.25 - 0.5 - 7)


@pytest.mark.parametrize("lens", [("", ()), BARREL], ids=["pinhole", "barrel"])
def test_fine_texture_does_not_alias(lens):
    size, intrinsics = (1920, 1440), np.diag([3, 3, 1]) @ K
    stripes = np.zeros((1440, 1920, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than any pixel of the view
    view = Preprocessor(280, 14).view(Frame(1, stripes, camera(lens, intrinsics, size)))
    assert view.image.std() < 12
    assert view.image.mean() == pytest.approx(127.5, abs=3)


def test_distortion_is_ignored_when_rectify_is_off_and_views_without_calibration_have_none():
    image = coordinate_image(*SIZE)
    plain = Preprocessor(518, 14).view(Frame(5, image, None, "cam"))
    off = Preprocessor(518, 14, rectify=False).view(Frame(5, image, camera(BARREL)))
    assert plain.intrinsics is None
    assert (plain.stamp_ns, plain.frame_id) == (5, "cam")
    np.testing.assert_array_equal(plain.image, off.image)
    assert off.intrinsics is not None


def test_rectification_follows_a_calibration_that_changes():
    preprocessor = Preprocessor(518, 14)
    image = coordinate_image(*SIZE, camera(BARREL))
    barrel = preprocessor.view(Frame(1, image, camera(BARREL)))
    preprocessor.view(Frame(2, image, camera(PINCUSHION)))
    again = preprocessor.view(Frame(3, image, camera(BARREL)))
    np.testing.assert_array_equal(barrel.image, again.image)


def test_a_view_never_shares_memory_with_its_frame():
    image = np.zeros((392, 518, 3), np.uint8)
    view = Preprocessor(518, 14).view(Frame(1, image))
    assert not np.shares_memory(view.image, image)


def test_read_only_and_strided_images_are_taken():
    image = coordinate_image(*SIZE)[::-1, ::-1]
    image.setflags(write=False)
    for lens in (("", ()), BARREL):
        assert Preprocessor(140, 14).view(Frame(1, image, camera(lens))).image.shape[1] == 140


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 640, 3), np.uint8), "empty: 640x0"),
        (np.zeros((480, 640), np.uint8), r"shape \(480, 640\)"),
        (np.zeros((480, 640, 4), np.uint8), r"shape \(480, 640, 4\)"),
        (np.zeros((480, 640, 3), np.float32), "float32 is not uint8"),
        (np.zeros((1, 640, 3), np.uint8), "640x1 is more than 8 times"),
        (np.zeros((2200, 16400, 3), np.uint8), "16400x2200 is beyond 16384"),
    ],
)
def test_broken_images_are_refused(image, message):
    with pytest.raises(ImageError, match=message):
        Preprocessor(518, 14).view(Frame(1, image))


def test_an_image_of_another_size_than_its_calibration_is_refused():
    with pytest.raises(ImageError, match="320x240 pixels, its calibration is for 640x480"):
        Preprocessor(518, 14).view(Frame(1, np.zeros((240, 320, 3), np.uint8), camera()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"intrinsics": np.full((3, 3), np.nan)}, "not finite"),
        ({"intrinsics": np.diag([0.0, 460, 1])}, "focal lengths 0, 460 are not positive"),
        ({"intrinsics": np.diag([-460.0, 460, 1])}, "focal lengths -460, 460"),
        ({"intrinsics": np.eye(4)}, r"shape \(4, 4\)"),
        ({"intrinsics": K + np.array([[0, 3, 0], [0, 0, 0], [0, 0, 0]])}, "skew"),
        ({"size": (0, 480)}, "0x480"),
        ({"lens": ("thin_prism", (0.1,) * 8)}, "thin_prism"),
        ({"lens": ("plumb_bob", (0.1, 0.1))}, "2 coefficients, not with 0 or 4 or 5"),
        ({"lens": ("plumb_bob", (0.1, np.inf, 0, 0, 0))}, "not finite"),
        ({"lens": ("", (0.1,))}, "1 coefficients"),
    ],
)
def test_broken_calibrations_are_refused_with_their_numbers(values, message):
    with pytest.raises(ImageError, match=message):
        camera(**values)


def test_what_counts_as_distortion():
    assert not camera(("plumb_bob", (0.0,) * 5)).is_distorted
    assert not camera(("equidistant", ())).is_distorted
    # Angles stay proportional to radii: not a pinhole, whatever the coefficients.
    assert camera(("equidistant", (0.0,) * 4)).is_distorted


@pytest.mark.parametrize(("width", "height"), [(520, None), (0, None), (518, 100)])
def test_a_network_image_of_broken_patches_is_refused(width, height):
    with pytest.raises(ParameterError, match="patch size 14"):
        Preprocessor(width, 14, max_height=height)
