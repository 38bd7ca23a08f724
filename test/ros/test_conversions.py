"""Messages to frames and geometry to messages, against OpenCV and hand-made references."""

from __future__ import annotations

import io
import sys
import zlib
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from support.recordings import M, camera_info_message, header, image_message, pose_message, stamp_of

from qvggt_core.errors import ImageError
from qvggt_core.geometry.cloud import Cloud, VoxelMap, write_ply
from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream.frame import FrameGeometry, Scale, View
from qvggt_core.stream.frame_cloud import frame_cloud
from qvggt_ros.io import conversions, images
from qvggt_ros.io.camera_info import camera_from_info
from qvggt_ros.io.messages import TYPES, Messages, installed_messages, rosbags_typestore

TYPESTORE = rosbags_typestore()
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
SMOOTH = cv2.GaussianBlur(
    cv2.resize(RGB, (32, 24), interpolation=cv2.INTER_CUBIC), (9, 9), sigmaX=3
)


def message_of(encoding_name, pixels, **changes):
    """A message of contiguous rows."""
    height, width = pixels.shape[:2]
    octets = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    fields = {
        "encoding": encoding_name,
        "height": height,
        "width": width,
        "step": octets.shape[1],
        "data": octets.reshape(-1),
    }
    return image_message(0, **{**fields, **changes})


def compressed(data, image_format):
    return M.CompressedImage(
        header=header(0), format=image_format, data=np.frombuffer(data, dtype=np.uint8)
    )


def encoded(pixels, kind):
    stream = io.BytesIO()
    PilImage.fromarray(pixels).save(stream, format=kind, quality=95)
    return stream.getvalue()


# Raw images


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("8UC3", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, np.full((6, 8), 7, np.uint8)])),
        ("bgra8", np.dstack([RGB[..., ::-1], np.full((6, 8), 7, np.uint8)])),
        ("rgb16", RGB.astype("<u2") * 256 + 99),
    ],
)
def test_colour_encodings_give_rgb(encoding, pixels):
    assert np.array_equal(images.decode_image(message_of(encoding, pixels)), RGB)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_becomes_three_equal_channels(encoding):
    picture = images.decode_image(message_of(encoding, RGB[..., 0]))
    assert np.array_equal(picture, np.repeat(RGB[..., :1], 3, axis=-1))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
@pytest.mark.parametrize(("order", "big"), [("<u2", 0), (">u2", 1)])
def test_16_bits_keep_the_upper_8_in_either_byte_order(encoding, order, big):
    pixels = (RGB[..., 0].astype(np.uint16) * 256 + 255).astype(order)
    picture = images.decode_image(message_of(encoding, pixels, is_bigendian=big))
    assert np.array_equal(picture, np.repeat(RGB[..., :1], 3, axis=-1))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer_mosaics_give_back_the_colours_they_sampled(pattern, bits):
    mosaic = np.zeros(SMOOTH.shape[:2], dtype=np.uint8)
    for index, colour in enumerate(pattern):
        row, column = divmod(index, 2)
        mosaic[row::2, column::2] = SMOOTH[row::2, column::2, "rgb".index(colour)]
    if bits == 16:
        mosaic = mosaic.astype("<u2") * 256
    picture = images.decode_image(message_of(f"bayer_{pattern}{bits}", mosaic))
    error = np.abs(picture.astype(int) - SMOOTH)[2:-2, 2:-2]
    assert error.mean() < 4.0


@pytest.mark.parametrize(
    ("encoding", "order"),
    [
        ("yuv422", "uyvy"),
        ("uyvy", "uyvy"),
        ("yuv422_yuy2", "yuyv"),
        ("YUY2", "yuyv"),
        ("yuyv", "yuyv"),
    ],
)
def test_yuv_422_follows_bt601(encoding, order):
    red, green, blue = 200.0, 90.0, 30.0
    y = 16 + 0.257 * red + 0.504 * green + 0.098 * blue
    u = 128 - 0.148 * red - 0.291 * green + 0.439 * blue
    v = 128 + 0.439 * red - 0.368 * green - 0.071 * blue
    values = {"y": y, "u": u, "v": v}
    quad = np.array([round(values[letter]) for letter in order], dtype=np.uint8)
    picture = images.decode_image(message_of(encoding, np.tile(quad, (4, 3)).reshape(4, 6, 2)))
    assert np.abs(picture.astype(int) - [red, green, blue]).max() <= 3


def planar_yuv(picture, encoding, padding=0):
    """BT.601, colour of every 2x2 pixels from its upper left one, all of them for nv24."""
    rgb = picture.astype(float)
    y = 16 + rgb @ [0.257, 0.504, 0.098]
    u = 128 + rgb @ [-0.148, -0.291, 0.439]
    v = 128 + rgb @ [0.439, -0.368, -0.071]
    every = 1 if encoding == "nv24" else 2
    pairs = (v, u) if encoding == "nv21" else (u, v)
    colour = np.stack([plane[::every, ::every] for plane in pairs], axis=-1)
    colour = colour.reshape(colour.shape[0], -1)
    parts = [y, colour]
    if padding:
        width = y.shape[1]
        parts = [
            np.pad(part, ((0, 0), (0, padding * part.shape[1] // width)), constant_values=255)
            for part in parts
        ]
    return np.concatenate([np.rint(part).astype(np.uint8).reshape(-1) for part in parts])


QUARTERS = np.zeros((4, 6, 3), np.uint8)
QUARTERS[:2, :2], QUARTERS[:2, 2:] = (200, 90, 30), (20, 60, 220)
QUARTERS[2:, :4], QUARTERS[2:, 4:] = (40, 180, 70), (128, 128, 128)


@pytest.mark.parametrize("encoding", ["nv12", "nv21", "nv24", "NV12"])
@pytest.mark.parametrize(("step", "padding"), [(6, 0), (8, 2), (9, 0), (18, 0)])
def test_semi_planar_yuv_follows_bt601_in_rows_of_any_step(encoding, step, padding):
    message = image_message(
        0,
        encoding=encoding,
        height=4,
        width=6,
        step=step,
        data=planar_yuv(QUARTERS, encoding.lower(), padding),
    )
    picture = images.decode_image(message)
    assert picture.flags.writeable
    assert np.abs(picture.astype(int) - QUARTERS).max() <= 3


@pytest.mark.parametrize("changes", [{"data": np.zeros(35, np.uint8)}, {"step": 5}, {"height": 3}])
def test_semi_planar_yuv_that_is_short_or_odd_is_refused(changes):
    fields = {
        "encoding": "nv12",
        "height": 4,
        "width": 6,
        "step": 6,
        "data": np.zeros(36, np.uint8),
    }
    if "step" in changes:
        fields["data"] = np.zeros(40, np.uint8)
    with pytest.raises(ImageError, match="nv12"):
        images.decode_image(image_message(0, **{**fields, **changes}))


def test_rows_may_be_padded():
    padded = np.full((6, 40), 255, dtype=np.uint8)
    padded[:, :24] = RGB.reshape(6, 24)
    message = message_of("rgb8", RGB, step=40, data=padded.reshape(-1))
    assert np.array_equal(images.decode_image(message), RGB)


def test_a_picture_does_not_share_memory_with_its_message():
    message = message_of("rgb8", RGB.copy())
    message.data.setflags(write=False)
    picture = images.decode_image(message)
    picture[:] = 0
    assert message.data.any()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 20}, r"step of 20 .* 8 pixels of rgb8 need 24"),
        ({"height": 7}, r"144 bytes, but 7 rows of 24 bytes make 168"),
        ({"width": 0}, "0x6"),
        ({"height": 0, "data": np.zeros(0, np.uint8)}, "8x0"),
        ({"width": 1 << 20, "height": 1 << 20, "step": 3 << 20}, "limit"),
        ({"encoding": "32FC1"}, "'32FC1' is not a picture"),
    ],
)
def test_a_wrong_image_is_refused_with_its_numbers(changes, reason):
    with pytest.raises(ImageError, match=reason):
        images.decode_image(message_of("rgb8", RGB, **changes))


def test_an_odd_width_cannot_share_colours():
    with pytest.raises(ImageError, match="odd width, 7"):
        images.decode_image(message_of("uyvy", np.zeros((4, 7, 2), np.uint8)))


# Compressed images


def test_png_is_exact_and_jpeg_is_close():
    png = images.decode_image(compressed(encoded(SMOOTH, "PNG"), "rgb8; png compressed bgr8"))
    jpeg = images.decode_image(compressed(encoded(SMOOTH, "JPEG"), "jpeg"))
    assert np.array_equal(png, SMOOTH)
    assert np.abs(jpeg.astype(int) - SMOOTH).mean() < 3


def test_16_bit_png_keeps_the_upper_8():
    grey = (SMOOTH[..., 0].astype(np.uint16) << 8) + 17
    _, data = cv2.imencode(".png", grey)
    picture = images.decode_image(compressed(data.tobytes(), "16UC1; png compressed"))
    assert np.array_equal(picture[..., 1], SMOOTH[..., 0])


def test_a_compressed_mosaic_is_demosaiced():
    mosaic = np.zeros((8, 8), np.uint8)
    mosaic[::2, ::2] = 200  # only the red samples of RGGB
    message = compressed(encoded(mosaic, "PNG"), "bayer_rggb8; png compressed bayer_rggb8")
    centre = images.decode_image(message)[4, 4]
    assert centre.tolist() == [200, 0, 0]


def test_a_jpeg_that_was_cut_off_is_refused_not_filled_with_grey():
    data = encoded(SMOOTH, "JPEG")
    with pytest.raises(ImageError, match="broken"):
        images.decode_image(compressed(data[: len(data) * 9 // 10], "jpeg"))


def test_a_picture_is_measured_before_it_is_decoded():
    size = b"IHDR" + (9000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    checksum = zlib.crc32(size).to_bytes(4, "big")
    start = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + size + checksum
    bomb = start + (1 << 20).to_bytes(4, "big") + b"IDAT" + bytes(16)
    with pytest.raises(ImageError, match="9000x9000 pixels is larger"):
        images.decode_image(compressed(bomb, "png"))


@pytest.mark.parametrize(
    ("data", "image_format", "reason"),
    [
        (b"", "jpeg", "no JPEG or PNG header"),
        (b"GIF89a" + bytes(64), "jpeg", "no JPEG or PNG header"),
        (encoded(RGB, "PNG"), "16UC1; compressedDepth", "depth, not a picture"),
    ],
)
def test_what_is_no_picture_is_refused(data, image_format, reason):
    with pytest.raises(ImageError, match=reason):
        images.decode_image(compressed(data, image_format))


# Calibration


def test_a_calibration_is_taken_as_it_is():
    info = camera_info_message(0, d=np.array([0.1, -0.05, 0.001, 0.002, 0.0]))
    camera = camera_from_info(info, info.width, info.height)
    assert np.array_equal(camera.intrinsics.ravel(), info.k)
    assert camera.distortion_model == "plumb_bob"
    assert camera.distortion == (0.1, -0.05, 0.001, 0.002, 0.0)


def test_zero_coefficients_are_no_distortion():
    camera = camera_from_info(camera_info_message(0), 56, 42)
    assert not camera.is_distorted


def test_zero_coefficients_of_an_equidistant_lens_are_one():
    info = camera_info_message(0, distortion_model="equidistant", d=np.zeros(4))
    assert camera_from_info(info, 56, 42).is_distorted


def test_an_uncalibrated_camera_has_no_camera():
    info = camera_info_message(0, k=np.zeros(9))
    assert camera_from_info(info, 56, 42) is None


def test_region_of_interest_and_binning_describe_the_delivered_image():
    roi = M.RegionOfInterest(x_offset=10, y_offset=4, height=32, width=40, do_rectify=False)
    info = camera_info_message(0, roi=roi, binning_x=2, binning_y=4)
    camera = camera_from_info(info, 20, 8)
    fx, fy = info.k[0], info.k[4]
    cx, cy = info.k[2], info.k[5]
    expected = [[fx / 2, 0, (cx - 10) / 2], [0, fy / 4, (cy - 4) / 4], [0, 0, 1]]
    assert np.allclose(camera.intrinsics, expected)


def test_a_resized_image_scales_its_calibration_about_the_pixels_edge():
    camera = camera_from_info(camera_info_message(0), 112, 84)
    assert np.allclose(camera.intrinsics[0], [88.0, 0.0, 28.5 * 2 - 0.5])
    assert np.allclose(camera.intrinsics[1], [0.0, 88.0, 21.5 * 2 - 0.5])


def test_a_rectified_image_takes_the_projection_matrix():
    projection = np.array([40.0, 0, 27, 0, 0, 41, 20, 0, 0, 0, 1, 0])
    info = camera_info_message(0, p=projection, d=np.array([0.1, 0, 0, 0, 0]))
    camera = camera_from_info(info, 56, 42, rectified=True)
    assert np.allclose(camera.intrinsics, projection.reshape(3, 4)[:, :3])
    assert not camera.is_distorted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"k": np.array([np.nan, 0, 1, 0, 1, 1, 0, 0, 1])}, "K that is not finite"),
        ({"d": np.array([np.inf, 0, 0, 0, 0])}, "D that is not finite"),
        ({"k": np.array([-5.0, 0, 1, 0, 5, 1, 0, 0, 1])}, "not positive"),
        ({"width": 100}, "100x42 pixels, the image has 56x42"),
        ({"binning_x": 200}, "binning 200x0"),
    ],
)
def test_a_wrong_calibration_is_refused_with_its_numbers(changes, reason):
    with pytest.raises(ImageError, match=reason):
        camera_from_info(camera_info_message(0, **changes), 56, 42)


# Geometry to messages


def geometry():
    rng = np.random.default_rng(1)
    angle = 0.3
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]]
    )
    depth = rng.uniform(2.0, 2.05, (4, 6)).astype(np.float32)
    depth[1, 2] = np.nan
    return FrameGeometry(
        view=View(1_700_000_000_123_456_789, RGB[:4, :6], None, "optical"),
        map_from_camera=transform(rotation, np.array([1.0, -2.0, 0.5])),
        intrinsics=np.array([[5.0, 0, 2.5], [0, 5.5, 1.5], [0, 0, 1]]),
        depth=depth,
        confidence=rng.uniform(1, 9, (4, 6)).astype(np.float32),
    )


def cdr(message, name):
    return bytes(TYPESTORE.serialize_cdr(message, TYPES[name]))


def test_stamps_are_exact_both_ways():
    for nanoseconds in (0, 999_999_999, 1_700_000_000_123_456_789):
        message = SimpleNamespace(header=conversions.header(M, nanoseconds, "map"))
        assert conversions.stamp_ns(message) == nanoseconds


def test_pose_and_transform_place_the_optical_frame_in_the_world():
    message = conversions.pose_message(M, geometry(), "map")
    transforms = conversions.transform_message(
        M, geometry().map_from_camera, "map", "optical", 5
    ).transforms
    assert message.header.frame_id == transforms[0].header.frame_id == "map"
    assert transforms[0].child_frame_id == "optical"
    assert np.allclose(conversions.read_pose(message), geometry().map_from_camera)
    q, t = transforms[0].transform.rotation, transforms[0].transform.translation
    # By quaternion algebra, not by matrices: the world point that the camera has at its origin.
    assert np.allclose([t.x, t.y, t.z], geometry().map_from_camera[:3, 3])
    assert np.isclose(np.linalg.norm([q.x, q.y, q.z, q.w]), 1.0)
    assert np.isclose(2 * np.arctan2(q.z, q.w), 0.3)


def test_a_pose_and_its_inverse_cancel():
    pose = conversions.read_pose(pose_message(3))
    assert np.allclose(pose @ inverse(pose), np.eye(4))


def test_depth_keeps_its_values_and_its_holes():
    message = conversions.depth_message(M, geometry())
    values = np.frombuffer(message.data.tobytes(), dtype="<f4").reshape(4, 6)
    assert message.encoding == "32FC1"
    assert message.step == 24
    assert np.array_equal(values, geometry().depth, equal_nan=True)


def test_depth_comes_with_the_calibration_of_its_own_pixels():
    message = conversions.depth_info_message(M, geometry())
    assert (message.width, message.height) == (6, 4)
    assert message.d.size == 0
    assert np.array_equal(message.k.reshape(3, 3), geometry().intrinsics)
    assert np.array_equal(message.p.reshape(3, 4)[:, :3], geometry().intrinsics)
    assert np.array_equal(message.r.reshape(3, 3), np.eye(3))


def test_a_cloud_reads_back_by_its_own_field_description():
    cloud = frame_cloud(geometry(), max_depth_edge=1.0)
    message = conversions.cloud_message(M, cloud, 5, "optical")
    octets = message.data.tobytes()
    values = {
        field.name: np.array(
            [
                np.frombuffer(octets, "<f4", 1, start + field.offset)[0]
                for start in range(0, message.row_step, message.point_step)
            ]
        )
        for field in message.fields
    }
    assert list(values) == ["x", "y", "z", "rgb", "confidence"]
    assert message.width == 23
    assert message.height == 1
    assert len(octets) == message.row_step
    rows, columns = np.nonzero(np.isfinite(geometry().depth))
    z = geometry().depth[rows, columns]
    assert np.allclose(values["z"], z)
    assert np.allclose(values["x"], (columns - 2.5) / 5.0 * z)
    assert np.allclose(values["y"], (rows - 1.5) / 5.5 * z)
    assert np.array_equal(values["confidence"], geometry().confidence[rows, columns])
    packed = values["rgb"].astype("<f4").view("<u4")
    colours = np.stack([packed >> 16, (packed >> 8) & 255, packed & 255], axis=-1)
    assert np.array_equal(colours, RGB[rows, columns])


def test_an_empty_cloud_is_a_message():
    nothing = Cloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, "<f4"))
    message = conversions.cloud_message(M, nothing, 5, "optical")
    assert (message.width, message.row_step) == (0, 0)
    assert cdr(message, "PointCloud2")


def test_equal_geometry_gives_equal_bytes():
    def all_bytes():
        cloud = frame_cloud(geometry(), max_depth_edge=1.0)
        pose = conversions.pose_message(M, geometry(), "map")
        return [
            cdr(pose, "PoseStamped"),
            cdr(
                conversions.transform_message(M, geometry().map_from_camera, "map", "optical", 5),
                "TFMessage",
            ),
            cdr(conversions.depth_message(M, geometry()), "Image"),
            cdr(conversions.depth_info_message(M, geometry()), "CameraInfo"),
            cdr(conversions.cloud_message(M, cloud, 5, "optical"), "PointCloud2"),
            cdr(conversions.path_message(M, [pose]), "Path"),
        ]

    assert all_bytes() == all_bytes()


def test_the_world_is_named_for_its_unit_and_its_segment():
    parameters = Parameters()
    assert conversions.world_frame(parameters, Scale(), 0) == "qvggt_unscaled"
    assert conversions.world_frame(parameters, Scale(2.0, "parameter"), 0) == "map"
    assert conversions.world_frame(parameters, Scale(2.0, "parameter"), 2) == "map_2"


# Clouds and maps


def test_points_on_depth_edges_are_left_out():
    depth = np.ones((5, 6), np.float32)
    depth[:, 3:] = 2.0
    edge = FrameGeometry(
        np.eye(4),
        depth,
        np.ones_like(depth),
        view=View(0, np.zeros((5, 6, 3), np.uint8)),
        intrinsics=np.eye(3),
    )
    assert len(frame_cloud(edge, max_depth_edge=0.5)) == 5 * 4
    assert len(frame_cloud(edge, max_depth_edge=1.0)) == 5 * 6
    assert len(frame_cloud(edge, max_depth_edge=1.0, stride=2)) == 3 * 3


def test_a_voxel_keeps_the_mean_of_its_points():
    def cloud(x, red):
        return Cloud(
            np.array([[x, 0.5, -0.5]], np.float32),
            np.array([[red, 0, 9]], np.uint8),
            np.array([2.0], np.float32),
        )

    voxels = VoxelMap(voxel_fraction=0.1)
    for x, red in ((0.2, 10), (0.4, 30), (3.0, 77)):
        voxels.add(cloud(x, red), median_depth=10.0)
    found = voxels.cloud()
    assert np.allclose(found.positions, [[0.3, 0.5, -0.5], [3.0, 0.5, -0.5]])
    assert found.colors.tolist() == [[20, 0, 9], [77, 0, 9]]


def test_a_map_that_outgrows_its_bound_gets_coarser_and_loses_no_part():
    rng = np.random.default_rng(2)
    positions = rng.uniform(-5, 5, (4000, 3)).astype(np.float32)
    voxels = VoxelMap(voxel_fraction=0.001, max_points=500)
    voxels.add(Cloud(positions, np.zeros((4000, 3), np.uint8), np.ones(4000, np.float32)), 1.0)
    found = voxels.cloud().positions
    assert 50 < len(found) <= 500
    assert np.all(found.min(axis=0) < -3)
    assert np.all(found.max(axis=0) > 3)


def test_a_ply_file_reads_back_by_its_header(tmp_path):
    cloud = frame_cloud(geometry(), max_depth_edge=1.0)
    write_ply(tmp_path / "cloud.ply", cloud)
    head, body = (tmp_path / "cloud.ply").read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 23"]
    sizes = {"float": "<f4", "uchar": "u1"}
    dtype = [
        (words[2], sizes[words[1]]) for words in map(str.split, lines) if words[0] == "property"
    ]
    vertices = np.frombuffer(body, dtype=dtype)
    assert np.array_equal(vertices["z"], cloud.positions[:, 2])
    assert np.array_equal(vertices["green"], cloud.colors[:, 1])


# An installed ROS


def test_classes_of_an_installed_ros_get_their_octets_by_frombytes(monkeypatch):
    from array import array

    class RosMessage:
        """Refuses what rosidl's classes refuse or take slowly: arrays of numpy."""

        def __init__(self, **fields):
            assert not any(isinstance(value, np.ndarray) for value in fields.values())
            self.data = array("B")
            self.__dict__.update(fields)

    for package in {name.split("/")[0] for name in TYPES.values()}:
        module = ModuleType(f"{package}.msg")
        for full_name in TYPES.values():
            if full_name.startswith(package + "/"):
                name = full_name.split("/")[-1]
                members = {"FLOAT32": 7} if name == "PointField" else {}
                setattr(module, name, type(name, (RosMessage,), members))
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.msg", module)
    ros: Messages = installed_messages()
    message = conversions.depth_message(ros, geometry())
    assert message.data.tobytes() == conversions.depth_message(M, geometry()).data.tobytes()
    info = conversions.depth_info_message(ros, geometry())
    assert info.k == array("d", geometry().intrinsics.ravel())
    cloud = conversions.cloud_message(ros, frame_cloud(geometry(), 1.0), 5, "optical")
    assert len(cloud.data) == 23 * cloud.point_step


def test_stamps_are_moved_wherever_they_are_and_nothing_else():
    path = M.Path(header=header(3, "map"), poses=[pose_message(1), pose_message(2)])
    before = [pose.pose for pose in path.poses]
    conversions.move_stamps(path, lambda stamp: stamp + 5_000_000_001)
    stamps = [conversions.stamp_ns(message) for message in (path, *path.poses)]
    assert stamps == [stamp_of(index) + 5_000_000_001 for index in (3, 1, 2)]
    assert [pose.pose for pose in path.poses] == before
    assert path.header.frame_id == "map"


def test_a_stamp_of_zero_is_none_and_stays():
    message = image_message(0, header=header(0, stamp_ns=0))
    conversions.move_stamps(message, lambda stamp: pytest.fail("there is no stamp"))
    assert conversions.stamp_ns(message) == 0
