"""Data sets in their makers' layouts: each convention against facts written down by hand, then
every layout against the renderer that it was written from, then what a broken download says."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qvggt_core.datasets import (
    Co3d,
    Euroc,
    Nrgbd,
    RealEstate10k,
    SevenScenes,
    TumRgbd,
    co3d,
    euroc,
    nrgbd,
    seven_scenes,
)
from qvggt_core.datasets.files import read_truth
from qvggt_core.errors import DatasetError, ExcludedSceneError, ParameterError
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse
from qvggt_core.synthetic.dataset_layouts import (
    LAYOUTS,
    CameraChoices,
    FlightChoices,
    write_layout,
)
from qvggt_core.synthetic.flight import fly
from qvggt_core.synthetic.lens import Lens, LensChoice
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.ray_caster import pinhole
from qvggt_core.synthetic.render import Scene

WIDTH, HEIGHT, FRAMES, STEP = 48, 32, 4, 0.1
LOADERS = {
    "co3d": lambda root: Co3d(root, min_images=2),
    "re10k": lambda root: RealEstate10k(root, min_images=2),
    "7scenes": SevenScenes,
    "nrgbd": Nrgbd,
    "tum": TumRgbd,
    "euroc": Euroc,
}


def write(root: Path, layout: str, **options):
    lens = LensChoice(WIDTH, HEIGHT)
    choices = {"world": "studio", "frames": FRAMES, "lens": lens, "step": STEP}
    options = {**choices, **options}
    overwrite = options.pop("overwrite", False)
    camera = {k: options.pop(k) for k in list(options) if k in CameraChoices.__annotations__}
    return write_layout(
        root, layout, FlightChoices(**options), CameraChoices(**camera), overwrite=overwrite
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """One small synthetic data set in each layout."""
    root = tmp_path_factory.mktemp("sets")
    return {layout: write(root / layout, layout) for layout in LAYOUTS}


@pytest.fixture
def copy(sets, tmp_path):
    """A copy of a data set that a test may break."""

    def make(layout: str) -> Path:
        return Path(shutil.copytree(sets[layout].path, tmp_path / layout))

    return make


# Conventions, by hand.


def test_co3d_cameras_follow_pytorch3ds_formulas():
    """World to view is x @ R + T; view to NDC is f * x / z + p; NDC to screen counts from the right
    and from below, half the shorter side a unit, 0 in the middle of the image; screen coordinates
    begin at the outer corner of the first pixel (pytorch3d.org/docs/cameras)."""
    width, height = 200, 100
    rotation = Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix()
    translation = np.array([0.4, -0.1, 2.0])
    focal, principal = np.array([2.0, 2.1]), np.array([0.1, -0.05])
    point = np.array([0.3, 0.2, 1.5])

    view = point @ rotation + translation
    ndc = focal * view[:2] / view[2] + principal
    screen = np.array([width, height]) / 2 - 0.5 * min(width, height) * ndc

    viewpoint = co3d.read_viewpoint(
        {
            "R": rotation.tolist(),
            "T": translation.tolist(),
            "focal_length": focal.tolist(),
            "principal_point": principal.tolist(),
            "intrinsics_format": "ndc_isotropic",
        }
    )
    camera = viewpoint.camera_from_world() @ np.append(point, 1.0)
    pixel = viewpoint.intrinsics(width, height) @ camera[:3]
    # Our pixels have their centre, not their corner, at whole numbers.
    np.testing.assert_allclose(pixel[:2] / pixel[2], screen - 0.5, atol=1e-12)


def test_co3d_number_by_number():
    """A camera at the origin; a point 1 m to the left, 2 m up and 5 m ahead."""
    entry = {"R": np.eye(3).tolist(), "T": [0, 0, 0], "focal_length": [2, 2]}
    entry |= {"principal_point": [0.1, -0.05], "intrinsics_format": "ndc_isotropic"}
    viewpoint = co3d.read_viewpoint(entry)
    # x: 2 * 1 / 5 + 0.1 = 0.5 of 50 pixels left of 100; y: 2 * 2 / 5 - 0.05 = 0.75 of 50 above 50.
    pixel = viewpoint.intrinsics(200, 100) @ (viewpoint.camera_from_world() @ [1, 2, 5, 1])[:3]
    assert pixel[:2] / pixel[2] == pytest.approx([75.0 - 0.5, 12.5 - 0.5])
    # The older format counts in halves of each side: x in 100 pixels, y in 50.
    older = co3d.read_viewpoint({**entry, "intrinsics_format": "ndc_norm_image_bounds"})
    pixel = older.intrinsics(200, 100) @ (older.camera_from_world() @ [1, 2, 5, 1])[:3]
    assert pixel[:2] / pixel[2] == pytest.approx([50.0 - 0.5, 12.5 - 0.5])


def test_realestate10k_number_by_number(tmp_path):
    """A camera at (1, 2, 3) that looks along the world's x, with the world's z down."""
    camera_from_world = [[0, 1, 0, -2], [0, 0, 1, -3], [1, 0, 0, -1]]
    numbers = " ".join(str(v) for row in camera_from_world for v in row)
    line = f"0.5 0.9 0.5 0.25 0.0 0.0 {numbers}"
    text = f"https://www.youtube.com/watch?v=x\n41000 {line}\n82000 {line}\n"
    (tmp_path / "test" / "clip").mkdir(parents=True)
    (tmp_path / "test" / "clip.txt").write_text(text)
    for time in (41000, 82000):
        cv2.imwrite(str(tmp_path / f"test/clip/{time}.jpg"), np.zeros((90, 160, 3), np.uint8))
    frame = RealEstate10k(tmp_path, min_images=2).load("clip").frames[0]
    np.testing.assert_allclose(frame.world_from_camera[:3, 3], [1, 2, 3])
    np.testing.assert_allclose(frame.world_from_camera[:3, 2], [1, 0, 0])
    np.testing.assert_allclose(frame.world_from_camera[:3, 1], [0, 0, 1])
    # 0.5 of 160 columns is 80 from the edge, which is 79.5 in centres of pixels.
    expected = [[80, 0, 79.5], [0, 81, 22.0], [0, 0, 1]]
    np.testing.assert_allclose(frame.camera.intrinsics, expected)
    assert frame.stamp_ns == 41_000_000


def test_seven_scenes_brings_depth_into_the_colour_camera():
    """A point 2 m in front of the depth camera, 100 pixels right of its middle."""
    depth = np.full((480, 640), np.nan, np.float32)
    depth[240, 420] = 2.0
    matrix = np.diag([585.0, 585.0, 1.0])
    matrix[:2, 2] = 320, 240
    colour_matrix = np.diag([525.0, 525.0, 1.0])
    colour_matrix[:2, 2] = 320, 240
    image = seven_scenes.registered(
        depth,
        Camera(640, 480, matrix),
        Camera(640, 480, colour_matrix),
        seven_scenes.COLOUR_FROM_DEPTH,
    )
    x = 100 * 2.0 / 585
    # Row by row of the published Kinect calibration, in metres.
    seen_x = 0.99996518 * x - 0.00790410 * 2.0 - 0.02555894
    seen_y = -0.00274093 * x - 0.00815045 * 2.0 + 0.00010110
    seen_z = 0.00788199 * x + 0.99993555 * 2.0 + 0.00203183
    column, row = 320 + 525 * seen_x / seen_z, 240 + 525 * seen_y / seen_z
    ((found_row, found_column),) = np.argwhere(np.isfinite(image))
    assert (found_row, found_column) == (round(row), round(column))
    assert image[found_row, found_column] == pytest.approx(seen_z, rel=1e-5)
    # The turn and the shorter focal length are worth 20 columns: leaving them out shows.
    assert abs(found_column - 420) > 15


def test_seven_scenes_the_nearer_of_two_points_wins():
    near_and_far = np.array([[3.0, 2.0]], np.float32)
    wide = Camera(2, 1, np.array([[100.0, 0, 0.5], [0, 100.0, 0], [0, 0, 1]]))
    narrow = Camera(1, 1, np.array([[0.1, 0, 0], [0, 0.1, 0], [0, 0, 1]]))
    assert seven_scenes.registered(near_and_far, wide, narrow, np.eye(4)).item() == 2.0


def test_seven_scenes_depth_of_65535_is_none(copy):
    root = copy("7scenes")
    file = root / "studio/seq-01/frame-000000.depth.png"
    cv2.imwrite(str(file), np.full((HEIGHT, WIDTH), 65535, np.uint16))
    assert np.isnan(SevenScenes(root).load("studio/seq-01").frames[0].depth()).all()


def test_nrgbd_poses_are_opengls(tmp_path):
    """With the identity, OpenGL's camera looks along the world's -z, with the world's y up."""
    (tmp_path / "poses.txt").write_text(
        "1 0 0 5\n0 1 0 6\n0 0 1 7\n0 0 0 1\n" + "nan nan nan nan\n" * 4
    )
    pose, unknown = nrgbd.read_poses(tmp_path / "poses.txt")
    assert unknown is None
    three_ahead = pose @ [0, 0, 3, 1]
    one_below = pose @ [0, 1, 0, 1]
    assert three_ahead.tolist() == [5, 6, 4, 1]
    assert one_below.tolist() == [5, 5, 7, 1]


def test_tum_poses_have_the_quaternion_in_the_order_x_y_z_w(tmp_path):
    text = "# timestamp tx ty tz qx qy qz qw\n1305031453.3595 1 2 3 0 0 0.70710678 0.70710678\n"
    (tmp_path / "groundtruth.txt").write_text(text)
    truth = read_truth(tmp_path / "groundtruth.txt")
    assert truth.stamps_ns == [1_305_031_453_359_500_000]
    # A quarter turn about z brings the camera's x to the world's y.
    np.testing.assert_allclose(truth.poses[0] @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-8)


def test_tum_depth_has_5000_units_a_metre_and_freiburg_cameras_go_by_name(tmp_path):
    sequence = tmp_path / "rgbd_dataset_freiburg2_desk"
    sequence.mkdir()
    cv2.imwrite(str(sequence / "c.png"), np.zeros((480, 640, 3), np.uint8))
    depth = np.full((480, 640), 7500, np.uint16)
    depth[0, 0] = 0
    cv2.imwrite(str(sequence / "d.png"), depth)
    (sequence / "rgb.txt").write_text("10.00 c.png\n")
    (sequence / "depth.txt").write_text("10.015 d.png\n")
    (sequence / "groundtruth.txt").write_text("9.0 0 0 0 0 0 0 1\n")
    (frame,) = TumRgbd(tmp_path).load(sequence.name).frames
    assert np.isnan(frame.depth()[0, 0])
    assert frame.depth()[1, 1] == pytest.approx(1.5)
    assert frame.camera.intrinsics[0, 0] == 520.9
    assert frame.camera.distortion == (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)
    assert frame.world_from_camera is None, "the only pose is a second away"


def test_euroc_cameras_sit_on_a_body_whose_quaternion_begins_with_w(tmp_path):
    (tmp_path / "data.csv").write_text(
        "#timestamp\n1403715000000000000,1,2,3,0.70710678,0,0,0.70710678,0,0,0,0,0,0,0,0,0\n"
    )
    (tmp_path / "sensor.yaml").write_text(
        "T_BS:\n  cols: 4\n  rows: 4\n  data: [1, 0, 0, 0.1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]\n"
        "resolution: [752, 480]\nintrinsics: [458.654, 457.296, 367.215, 248.375]\n"
        "distortion_model: radial-tangential\n"
        "distortion_coefficients: [-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05]\n"
    )
    camera, body_from_camera = euroc.read_sensor(tmp_path / "sensor.yaml")
    bodies = read_truth(tmp_path / "data.csv")
    assert bodies.stamps_ns == [1403715000000000000]
    # 10 cm ahead on a body at (1, 2, 3) that was turned left by a quarter.
    np.testing.assert_allclose(bodies.poses[0] @ body_from_camera @ [0, 0, 0, 1], [1, 2.1, 3, 1])
    assert camera.distortion_model == "plumb_bob"
    assert camera.distortion == (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)


# Every layout against the renderer.


def _truth(seed: int):
    scene = Scene(make_world("studio", 0))
    poses = fly(scene.world, "survey", FRAMES, seed, step=STEP)
    k = pinhole(HEIGHT, WIDTH, np.radians(80.0))
    return poses, k, [scene.render(pose, k, HEIGHT, WIDTH) for pose in poses]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_is_what_was_rendered(sets, layout):
    written = sets[layout]
    dataset = LOADERS[layout](written.path)
    contents = dataset.contents()
    assert contents.scenes == tuple(sorted(written.scenes))
    assert not contents.problems
    for number, name in enumerate(written.scenes):
        poses, k, renderings = _truth(1 + 2 * number)
        scene = dataset.load(name)
        # Files have nine digits after the point.
        np.testing.assert_allclose(scene.poses(list(range(FRAMES))), poses, atol=5e-9)
        assert len({frame.stamp_ns for frame in scene.frames}) == FRAMES
        for frame, rendering in zip(scene.frames, renderings, strict=True):
            np.testing.assert_allclose(frame.camera.intrinsics, k, atol=1e-6)
            expected = rendering.colour.astype(int)
            if layout == "euroc":
                expected = cv2.cvtColor(rendering.colour, cv2.COLOR_RGB2GRAY)[..., None].astype(int)
            difference = np.abs(frame.image().astype(int) - expected)
            # CO3D's images are JPEG.
            assert difference.mean() < (3.0 if layout == "co3d" else 0.01)


@pytest.mark.parametrize(
    ("layout", "rounding"),
    [("co3d", 2.0**-11), ("nrgbd", 0.0005), ("tum", 0.0001)],
)
def test_depth_comes_back_up_to_the_files_precision(sets, layout, rounding):
    written = sets[layout]
    scene = LOADERS[layout](written.path).load(written.scenes[0])
    _, _, renderings = _truth(1)
    for frame, rendering in zip(scene.frames, renderings, strict=True):
        depth = frame.depth()
        assert np.isfinite(rendering.depth).all(), "the studio is closed"
        # CO3D keeps 11 bits of each number, the others a fixed step.
        error = np.abs(depth - rendering.depth) / (rendering.depth if layout == "co3d" else 1.0)
        assert error.max() <= 1.001 * rounding


def test_seven_scenes_depth_agrees_with_the_colour_camera(sets):
    """It was rendered from the depth camera; where no edge is near, registration finds it."""
    written = sets["7scenes"]
    scene = SevenScenes(written.path).load(written.scenes[0])
    _, _, renderings = _truth(1)
    for frame, rendering in zip(scene.frames, renderings, strict=True):
        depth = frame.depth()
        both = np.isfinite(depth)
        assert both.mean() > 0.6
        error = np.abs(depth - rendering.depth)[both] / rendering.depth[both]
        # Rounding to pixels moves a point by up to half of one: 2 % of depth on a slanted floor.
        assert np.median(error) < 0.01
        assert np.quantile(error, 0.8) < 0.04


def test_depth_and_poses_agree_between_frames_of_every_layout_with_depth(sets):
    """Points of one frame, moved by the poses, lie on the surface that the next one sees."""
    for layout in ("co3d", "7scenes", "nrgbd", "tum"):
        written = sets[layout]
        first, *_, last = LOADERS[layout](written.path).load(written.scenes[0]).frames
        k = first.camera.intrinsics
        rows, columns = np.nonzero(np.isfinite(first.depth()))
        rays = np.stack([columns, rows, np.ones_like(rows)], axis=1) @ np.linalg.inv(k).T
        points = rays * first.depth()[rows, columns][:, None]
        last_from_first = inverse(last.world_from_camera) @ first.world_from_camera
        points = points @ last_from_first[:3, :3].T + last_from_first[:3, 3]
        pixels = np.rint((points @ k.T)[:, :2] / points[:, 2:]).astype(int)
        seen = np.all((pixels >= 0) & (pixels < [WIDTH, HEIGHT]), axis=1)
        depth = last.depth()[pixels[seen, 1], pixels[seen, 0]]
        ratio = depth[np.isfinite(depth)] / points[seen, 2][np.isfinite(depth)]
        assert seen.mean() > 0.4, layout
        assert np.mean(np.abs(ratio - 1) < 0.08) > 0.75, layout


def test_a_distorted_euroc_image_undistorts_to_the_plain_one(tmp_path):
    choices = {"scenes": 1, "frames": 1, "lens": LensChoice(160, 120)}
    plain, bent = (
        Euroc(written.path).load(written.scenes[0]).frames[0]
        for written in (
            write(tmp_path / "plain", "euroc", **choices),
            write(tmp_path / "bent", "euroc", **choices, distorted=True),
        )
    )
    camera = bent.camera
    straight = cv2.undistort(bent.image(), camera.intrinsics, np.array(camera.distortion))
    middle = np.s_[15:-15, 20:-20]
    expected = plain.image().astype(int)
    untouched = np.abs(bent.image().astype(int) - expected)[middle].mean()
    assert np.abs(straight.astype(int) - expected)[middle].mean() < 0.4 * untouched


@pytest.mark.parametrize("layout", ["7scenes", "nrgbd", "tum", "euroc"])
def test_the_real_data_sets_camera_needs_no_file_of_ours(tmp_path, monkeypatch, layout):
    # Full-size rendering is not what this is about.
    def picture(self, scene, pose, samples=4):
        return (
            np.zeros((self.height, self.width, 3), np.uint8),
            np.ones((self.height, self.width), np.float32),
        )

    monkeypatch.setattr(Lens, "picture", picture)
    written = write(tmp_path / layout, layout, scenes=1, frames=2, of_dataset=True)
    assert not list(written.path.rglob("calibration.txt"))
    frame = LOADERS[layout](written.path).load(written.scenes[0]).frames[0]
    focal = {"7scenes": 525.0, "nrgbd": 554.2562584220408, "tum": 535.4, "euroc": 458.654}
    assert frame.camera.intrinsics[0, 0] == pytest.approx(focal[layout])


# Broken downloads.


@pytest.mark.parametrize(
    ("layout", "scene", "files"),
    [
        ("co3d", "studio/1_1", ["studio/1_1/images/frame000002.jpg"]),
        ("7scenes", "studio/seq-01", ["studio/seq-01/frame-000001.pose.txt"]),
        ("7scenes", "studio/seq-01", ["studio/seq-01/frame-000000.depth.png"]),
        ("nrgbd", "studio_1", ["studio_1/images/img2.png"]),
        ("nrgbd", "studio_1", ["studio_1/depth/depth3.png"]),
        ("nrgbd", "studio_1", ["studio_1/poses.txt"]),
        ("tum", "rgbd_dataset_studio_1", ["rgbd_dataset_studio_1/groundtruth.txt"]),
        ("euroc", "studio_1", ["studio_1/mav0/cam0/sensor.yaml"]),
        ("euroc", "studio_1", ["studio_1/mav0/state_groundtruth_estimate0/data.csv"]),
    ],
)
def test_what_is_missing_is_named_file_by_file(copy, layout, scene, files):
    root = copy(layout)
    for file in files:
        (root / file).unlink()
    with pytest.raises(DatasetError, match=f"lacks {len(files)} file") as caught:
        LOADERS[layout](root).load(scene)
    assert caught.value.missing == tuple(root / file for file in files)
    for file in files:
        assert str(root / file) in str(caught.value)


def test_images_that_a_list_names_are_looked_for(copy):
    for layout, pattern in (("tum", "rgb/*.png"), ("euroc", "mav0/cam0/data/*.png")):
        root = copy(layout)
        scene = LOADERS[layout](root).contents().scenes[0]
        gone = sorted((root / scene).glob(pattern))[1:]
        for file in gone:
            file.unlink()
        with pytest.raises(DatasetError, match="lacks 3 file") as caught:
            LOADERS[layout](root).load(scene)
        assert caught.value.missing == tuple(gone)


def test_realestate10k_names_the_frames_that_were_not_cut_from_the_video(copy):
    root = copy("re10k")
    name = RealEstate10k(root, min_images=2).contents().scenes[0]
    gone = sorted((root / f"frames/test/{name}").iterdir())[2]
    gone.unlink()
    scene = RealEstate10k(root, min_images=2).load(name)
    assert len(scene.frames) == FRAMES, "what a protocol draws does not depend on the download"
    with pytest.raises(DatasetError, match="lacks 1 file") as caught:
        scene.require_images(list(range(FRAMES)))
    assert caught.value.missing == (gone,)
    shutil.rmtree(root / f"frames/test/{name}")
    with pytest.raises(DatasetError, match=f"clip {name} lacks {FRAMES} file"):
        RealEstate10k(root, min_images=2).load(name)


def test_realestate10k_s_first_line_may_be_gone(copy):
    root = copy("re10k")
    name = RealEstate10k(root, min_images=2).contents().scenes[0]
    whole = RealEstate10k(root, min_images=2).load(name)
    path = next(root.rglob(f"{name}.txt"))
    path.write_text(path.read_text().split("\n", 1)[1])
    found = RealEstate10k(root, min_images=2).load(name)
    assert [frame.stamp_ns for frame in found.frames] == [f.stamp_ns for f in whole.frames]


def test_realestate10k_as_pixelsplat_packs_it_is_recognised(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "000000.torch").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"000000\.torch is a chunk .* pixelSplat"):
        RealEstate10k(tmp_path).contents()


def test_co3d_s_single_sequence_subset_is_recognised_by_its_lists(copy):
    root = copy("co3d")
    path = root / "studio/set_lists/set_lists_fewview_dev.json"
    path.rename(path.with_name("set_lists_manyview_test_0.json"))
    contents = Co3d(root, min_images=2).contents()
    assert contents.scenes == ()
    (problem,) = contents.problems
    assert "set_lists_manyview_test_0.json: this protocol draws from" in str(problem)
    assert "needs the full data set" in str(problem)
    assert problem.missing == (path,)
    chosen = Co3d(root, set_list="set_lists_manyview_test_0", min_images=2)
    assert len(chosen.contents().scenes) == 2


@pytest.mark.parametrize("value", [0, 3])
def test_a_black_image_is_no_image(copy, value):
    root = copy("co3d")
    scene = Co3d(root, min_images=2).load("studio/1_1")
    file = scene.frames[1].image_file
    cv2.imwrite(str(file), np.full_like(cv2.imread(str(file)), value))
    assert scene.frames[0].image().max() > 100
    with pytest.raises(DatasetError, match="is black: was it redacted"):
        scene.frames[1].image()


def test_a_sequence_that_is_still_zipped_says_so(copy):
    root = copy("7scenes")
    shutil.rmtree(root / "studio/seq-02")
    (root / "studio/seq-02.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"seq-02\.zip is not unpacked"):
        SevenScenes(root).load("studio/seq-02")


def test_a_broken_category_of_co3d_leaves_the_others(copy):
    root = copy("co3d")
    shutil.copytree(root / "studio", root / "apple")
    annotations = root / "apple" / co3d.SEQUENCE_ANNOTATIONS
    annotations.write_bytes(annotations.read_bytes()[:20])
    contents = Co3d(root, min_images=2).contents()
    assert contents.scenes == ("studio/1_1", "studio/2_3")
    (problem,) = contents.problems
    assert f"cannot read {annotations} (20 bytes)" in str(problem)
    assert "apple" not in contents.absent
    assert "banana" in contents.absent


def test_co3d_leaves_out_what_the_protocol_leaves_out(copy):
    root = copy("co3d")
    path = root / "studio" / co3d.SEQUENCE_ANNOTATIONS
    entries = json.loads(gzip.decompress(path.read_bytes()))
    entries[0]["viewpoint_quality_score"] = 0.5
    path.write_bytes(gzip.compress(json.dumps(entries).encode()))
    assert Co3d(root, min_images=2).contents().scenes == ("studio/2_3",)
    assert Co3d(root).contents().scenes == (), "the protocol wants 50 images"
    path = root / "studio" / co3d.FRAME_ANNOTATIONS
    frames = json.loads(gzip.decompress(path.read_bytes()))
    frames[0]["viewpoint"]["T"] = [1e6, 0, 0]
    path.write_bytes(gzip.compress(json.dumps(frames).encode()))
    with pytest.raises(ExcludedSceneError, match="frame 1: T = "):
        Co3d(root, min_images=2).load("studio/1_1")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_directory_without_the_data_set_says_what_was_looked_for(tmp_path, layout):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(DatasetError, match=r"looked for .*/"):
        LOADERS[layout](tmp_path).contents()
    with pytest.raises(DatasetError, match="there is no directory"):
        LOADERS[layout](tmp_path / "nowhere").contents()


@pytest.mark.parametrize(
    ("layout", "file", "content", "message"),
    [
        ("7scenes", "studio/seq-01/frame-000000.pose.txt", "1 0 0", "3 numbers, not the 16"),
        ("7scenes", "studio/seq-01/frame-000000.pose.txt", "2 " * 16, "no rotation matrix"),
        ("7scenes", "studio/seq-01/frame-000000.pose.txt", "nan " * 16, "not finite"),
        ("nrgbd", "studio_1/poses.txt", "1 2 3", "3 numbers, no multiple of 16"),
        ("tum", "rgbd_dataset_studio_1/groundtruth.txt", "1 2 3\n", "line 1: '1 2 3' is no pose"),
        (
            "tum",
            "rgbd_dataset_studio_1/groundtruth.txt",
            "1 0 0 0 0 0 0 0\n",
            "a quaternion of",
        ),
        ("tum", "rgbd_dataset_studio_1/groundtruth.txt", "1e400 0 0 0 0 0 0 1\n", "no time"),
        ("tum", "rgbd_dataset_studio_1/calibration.txt", "1 2 3 4 5\n", "lines must be fx fy cx"),
        ("euroc", "studio_1/mav0/cam0/sensor.yaml", "rate_hz: 20", "does not describe a camera"),
        ("euroc", "studio_1/mav0/cam0/data.csv", "x,y.png\n", "no time in nanoseconds"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(copy, layout, file, content, message):
    root = copy(layout)
    (root / file).write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        LOADERS[layout](root).load("/".join(file.split("/")[: 2 if layout == "7scenes" else 1]))
    assert str(root / file) in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "file", "content"),
    [
        ("tum", "rgbd_dataset_studio_1/rgb.txt", "1.0 /etc/passwd\n"),
        ("tum", "rgbd_dataset_studio_1/depth.txt", "1.0 ../../secret.png\n"),
        ("euroc", "studio_1/mav0/cam0/data.csv", "1,../../../secret.png\n"),
    ],
)
def test_annotations_do_not_lead_out_of_the_data_set(copy, layout, file, content):
    root = copy(layout)
    (root / file).write_text(content)
    with pytest.raises(DatasetError, match="leads out of"):
        LOADERS[layout](root).load(file.split("/")[0])


def test_an_image_of_another_size_or_a_truncated_one_is_named(copy):
    root = copy("tum")
    frame = TumRgbd(root).load("rgbd_dataset_studio_1").frames[1]
    cv2.imwrite(str(frame.image_file), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(DatasetError, match="has 20x10 pixels, its calibration is for 48x32"):
        frame.image()
    frame.image_file.write_bytes(frame.image_file.read_bytes()[:30])
    with pytest.raises(DatasetError, match=r"\(30 bytes\) cannot be decoded"):
        frame.image()


def test_a_camera_that_is_not_known_is_asked_for(copy):
    root = copy("tum")
    (root / "rgbd_dataset_studio_1/calibration.txt").unlink()
    with pytest.raises(DatasetError, match="which camera took rgbd_dataset_studio_1"):
        TumRgbd(root).load("rgbd_dataset_studio_1")


# The writers.


def test_equal_arguments_give_equal_bytes(tmp_path):
    for layout in LAYOUTS:
        contents = []
        for name in ("a", "b"):
            root = write(tmp_path / name / layout, layout, scenes=1, frames=2).path
            files = sorted(path for path in root.rglob("*") if path.is_file())
            contents.append([(path.relative_to(root), path.read_bytes()) for path in files])
        assert contents[0] == contents[1]


def test_what_exists_is_only_replaced_when_asked_and_ours(tmp_path):
    write(tmp_path / "set", "nrgbd", scenes=1, frames=1)
    with pytest.raises(DatasetError, match="exists"):
        write(tmp_path / "set", "tum", scenes=1, frames=1)
    write(tmp_path / "set", "tum", scenes=1, frames=1, overwrite=True)
    assert not (tmp_path / "set/studio_1").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="is not overwritten"):
        write(tmp_path / "mine", "tum", overwrite=True)
    assert (tmp_path / "mine/thesis.txt").exists()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"layout": "kitti"}, "there is no layout 'kitti'; known: co3d"),
        ({"distorted": True}, "has no distortion"),
        ({"layout": "co3d", "of_dataset": True}, "has no one camera"),
        ({"lens": LensChoice(8, 48)}, "sides must be 16 to 4096"),
        ({"scenes": 0}, "at least one scene"),
        ({"frames": 0}, "frames 0"),
        ({"step": 0.0}, "step 0"),
    ],
)
def test_choices_that_make_no_sense_are_refused(tmp_path, choices, message):
    with pytest.raises(ParameterError, match=message):
        write(tmp_path / "set", **{"layout": "tum", **choices})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("model", ["[a, b]", "{a}", "{a: 1}", "3", "null"])
def test_a_lens_that_is_no_name_is_refused(tmp_path, model):
    path = tmp_path / "sensor.yaml"
    path.write_text(
        f"T_BS: {{data: {np.eye(4).ravel().tolist()}}}\nresolution: [752, 480]\n"
        f"intrinsics: [458, 457, 367, 248]\ndistortion_model: {model}\n"
        "distortion_coefficients: [0, 0, 0, 0]\n"
    )
    with pytest.raises(DatasetError, match="distortion_model"):
        euroc.read_sensor(path)
