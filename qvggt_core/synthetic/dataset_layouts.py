"""Flights through synthetic worlds, written in the layouts of public data sets.

What lands on disk is what `qvggt_core.datasets` reads: the same files, units, axes and
rounding as in the real data sets, with exact poses and depth behind them. So protocols can be tried
and tested without the data.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from qvggt_core.datasets import co3d, nrgbd, seven_scenes, tum
from qvggt_core.datasets.files import CALIBRATION_FILE, rigid
from qvggt_core.errors import DatasetError, ParameterError
from qvggt_core.geometry.poses import inverse, quaternion
from qvggt_core.synthetic.flight import fly
from qvggt_core.synthetic.lens import Lens
from qvggt_core.synthetic.render import Scene, pinhole
from qvggt_core.synthetic.world import make_world

_MARKER = "synthetic.json"
_EPOCH_NS = 1_700_000_000_000_000_000
_MAX_FRAMES = 1_000_000
_JPEG = [
    cv2.IMWRITE_JPEG_QUALITY,
    98,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]
# k1 k2 p1 p2 of EuRoC's left camera.
_EUROC_DISTORTION = (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)
_EUROC_CAMERA = (458.654, 457.296, 367.215, 248.375)
_EUROC_SIZE = (752, 480)
_EUROC_BODY_FROM_CAMERA = np.array(
    [
        [0.0148655429818, -0.999880929698, 0.00414029679422, -0.0216401454975],
        [0.999557249008, 0.0149672133247, 0.025715529948, -0.064676986768],
        [-0.0257744366974, 0.00375618835797, 0.999660727178, 0.00981073058949],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@dataclass(frozen=True)
class SyntheticDataset:
    """What was written.

    Attributes:
        path: directory of the data set.
        scenes: their names, as the data set's loader calls them.
        frames: images per scene.
        path_lengths: metres that the camera travelled in each.
    """

    path: Path
    scenes: tuple[str, ...]
    frames: int
    path_lengths: tuple[float, ...]


@dataclass(frozen=True)
class _Flight:
    """One scene to write: poses (N, 4, 4), and what the camera sees from them."""

    seed: int
    number: int
    poses: NDArray[np.float64]
    scene: Scene
    lens: Lens
    rate_hz: float
    rendered: Callable[[], None]

    @property
    def camera_from_world(self) -> NDArray[np.float64]:
        return inverse(self.poses)

    def stamps_ns(self) -> list[int]:
        """Return times in nanoseconds, whole microseconds."""
        return [_EPOCH_NS + 1000 * round(i * 1e6 / self.rate_hz) for i in range(len(self.poses))]

    def pictures(self) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.float32]]]:
        """Yield number, colour and depth of each frame."""
        for index, pose in enumerate(self.poses):
            yield index, *self.lens.picture(self.scene, pose)
            self.rendered()


@dataclass(frozen=True)
class _Layout:
    """How one data set lies on disk.

    Attributes:
        write: writes flights below a root and returns the scenes' names.
        camera: the real data set's own camera, if it has one.
        frames: images per scene that its protocol needs.
        step: metres between images that make a scene of a few metres of them.
    """

    write: Callable[[Path, str, list[_Flight]], list[str]]
    camera: Lens | None
    frames: int
    step: float


def write_layout(
    output: Path,
    layout: str,
    *,
    world: str = "room",
    flight: str = "survey",
    seed: int = 1,
    world_seed: int = 0,
    scenes: int = 2,
    frames: int | None = None,
    width: int = 320,
    height: int = 240,
    rate_hz: float = 10.0,
    step: float | None = None,
    horizontal_fov: float = 80.0,
    dataset_camera: bool = False,
    distortion: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticDataset:
    """Render flights and write them as a data set lies on disk; equal arguments, equal bytes.

    Args:
        output: directory to create.
        layout: one of LAYOUTS.
        world: family, see `make_world`.
        flight: kind, see `fly`.
        seed: of the first flight; each further one's is larger by 2, so that all are of one split
            (odd seeds were never trained on).
        world_seed: of the world's layout.
        scenes: number of flights.
        frames: images per scene; None takes what the data set's protocol needs.
        width: image columns.
        height: image rows.
        rate_hz: images per second, where the layout has times.
        step: metres between images; None takes what keeps a scene within a few metres.
        horizontal_fov: degrees.
        dataset_camera: take the real data set's camera instead of width, height and field of view.
        distortion: whether the images are bent as EuRoC's are (only that layout can say so).
        overwrite: whether a former synthetic data set at `output` is replaced.
        progress: called with the images done and the images in all.

    Raises:
        ParameterError: an argument is unknown or out of range, or no such flight fits.
        DatasetError: `output` exists and is not to be replaced, or is not of our making.
    """
    if layout not in _LAYOUTS:
        raise ParameterError(f"there is no layout {layout!r}; known: {', '.join(LAYOUTS)}")
    form = _LAYOUTS[layout]
    frames = form.frames if frames is None else frames
    step = form.step if step is None else step
    lens = _lens(layout, form, dataset_camera, distortion, height, width, horizontal_fov)
    if scenes < 1 or rate_hz <= 0 or scenes * frames > _MAX_FRAMES:
        raise ParameterError(
            f"{scenes} scenes of {frames} frames at {rate_hz} Hz: there must be at least one "
            f"scene, a positive rate, and at most {_MAX_FRAMES} frames"
        )
    scene = Scene(make_world(world, world_seed))
    total, done = scenes * frames, 0

    def rendered() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    seeds = [seed + 2 * i for i in range(scenes)]
    flights = [
        _Flight(
            s, i + 1, fly(scene.world, flight, frames, s, step=step), scene, lens, rate_hz, rendered
        )
        for i, s in enumerate(seeds)
    ]
    _make_way(output, overwrite)
    made = {"layout": layout, "world": world, "world_seed": world_seed, "flight": flight}
    _write_text(
        output / _MARKER,
        json.dumps({**made, "seeds": seeds, "frames": frames, "step": step}) + "\n",
    )
    names = form.write(output, world, flights)
    lengths = [np.linalg.norm(np.diff(f.poses[:, :3, 3], axis=0), axis=1).sum() for f in flights]
    return SyntheticDataset(output, tuple(names), frames, tuple(float(n) for n in lengths))


def _lens(
    layout: str,
    form: _Layout,
    dataset_camera: bool,
    distortion: bool,
    height: int,
    width: int,
    horizontal_fov: float,
) -> Lens:
    if distortion and layout != "euroc":
        raise ParameterError(f"the layout {layout} has no distortion: leave it out, or take euroc")
    if dataset_camera:
        if form.camera is None:
            raise ParameterError(f"the data set {layout} has no one camera: leave the choice out")
        return form.camera
    if not (16 <= width <= 4096 and 16 <= height <= 4096 and 10.0 <= horizontal_fov <= 150.0):
        raise ParameterError(
            f"{width}x{height} pixels, {horizontal_fov} degrees: sides must be 16 to 4096 pixels "
            "and the field of view 10 to 150 degrees"
        )
    intrinsics = pinhole(height, width, np.radians(horizontal_fov))
    return Lens(intrinsics, height, width, _EUROC_DISTORTION if distortion else ())


def _write_co3d(root: Path, world: str, flights: list[_Flight]) -> list[str]:
    category = root / world
    frame_annotations, sequence_annotations, listed, names = [], [], [], []
    for flight in flights:
        sequence = f"{flight.number}_{flight.seed}"
        names.append(f"{world}/{sequence}")
        base = f"{world}/{sequence}"
        for index, colour, depth in flight.pictures():
            number = index + 1
            image = f"{base}/images/frame{number:06d}.jpg"
            depth_path = f"{base}/depths/frame{number:06d}.jpg.geometric.png"
            mask_path = f"{base}/depth_masks/frame{number:06d}.png"
            _write_image(root / image, colour, _JPEG)
            bits = np.nan_to_num(depth, nan=0.0).astype(np.float16).view(np.uint16)
            _write_image(root / depth_path, bits)
            _write_image(root / mask_path, (np.isfinite(depth) * 255).astype(np.uint8))
            frame_annotations.append(
                {
                    "sequence_name": sequence,
                    "frame_number": number,
                    "frame_timestamp": index / flight.rate_hz,
                    "image": {"path": image, "size": [flight.lens.height, flight.lens.width]},
                    "depth": {
                        "path": depth_path,
                        "scale_adjustment": 1.0,
                        "mask_path": mask_path,
                    },
                    "mask": None,
                    "viewpoint": _viewpoint(flight.camera_from_world[index], flight.lens),
                    "meta": None,
                }
            )
            listed.append([sequence, number, image])
        sequence_annotations.append(
            {
                "sequence_name": sequence,
                "category": world,
                "video": None,
                "point_cloud": None,
                "viewpoint_quality_score": 1.0,
            }
        )
    for name, content in (
        (co3d.FRAME_ANNOTATIONS, frame_annotations),
        (co3d.SEQUENCE_ANNOTATIONS, sequence_annotations),
    ):
        # Without the time of writing, which gzip would add.
        data = gzip.compress(json.dumps(content).encode(), mtime=0)
        (category / name).write_bytes(data)
    lists = {"train": [], "val": [], "test": listed}
    _write_text(category / "set_lists/set_lists_fewview_dev.json", json.dumps(lists))
    return names


def _viewpoint(camera_from_world: NDArray, lens: Lens) -> dict[str, object]:
    view_from_world = co3d.OPTICAL_FROM_PYTORCH3D @ camera_from_world
    unit = 0.5 * min(lens.width, lens.height)
    fx, fy = lens.intrinsics[0, 0], lens.intrinsics[1, 1]
    cx, cy = lens.intrinsics[0, 2], lens.intrinsics[1, 2]
    return {
        "R": view_from_world[:3, :3].T.tolist(),
        "T": view_from_world[:3, 3].tolist(),
        "focal_length": [fx / unit, fy / unit],
        "principal_point": [
            (0.5 * lens.width - (cx + 0.5)) / unit,
            (0.5 * lens.height - (cy + 0.5)) / unit,
        ],
        "intrinsics_format": "ndc_isotropic",
    }


def _write_realestate10k(root: Path, world: str, flights: list[_Flight]) -> list[str]:
    names = []
    for flight in flights:
        name = f"{flight.seed:016x}"
        names.append(name)
        k, width, height = flight.lens.intrinsics, flight.lens.width, flight.lens.height
        shares = (
            k[0, 0] / width,
            k[1, 1] / height,
            (k[0, 2] + 0.5) / width,
            (k[1, 2] + 0.5) / height,
        )
        lines = ["https://www.youtube.com/watch?v=synthetic"]
        poses = flight.camera_from_world
        for index, colour, _ in flight.pictures():
            time = round(index * 1e6 / flight.rate_hz)
            _write_image(root / f"frames/test/{name}/{time}.png", colour)
            values = (*shares, 0.0, 0.0, *poses[index, :3].reshape(-1))
            lines.append(" ".join([str(time), *(f"{value:.9f}" for value in values)]))
        _write_text(root / f"test/{name}.txt", "\n".join(lines) + "\n")
    return names


def _write_seven_scenes(root: Path, world: str, flights: list[_Flight]) -> list[str]:
    directory = root / world
    names = []
    colour_from_depth = rigid(seven_scenes.COLOUR_FROM_DEPTH, "7-Scenes")
    ratio = seven_scenes.DEPTH_CAMERA[0] / seven_scenes.COLOUR_CAMERA[0]
    for flight in flights:
        sequence = directory / f"seq-{flight.number:02d}"
        names.append(f"{world}/{sequence.name}")
        depth_matrix = flight.lens.intrinsics.copy()
        depth_matrix[[0, 1], [0, 1]] *= ratio
        depth_lens = Lens(depth_matrix, flight.lens.height, flight.lens.width)
        for index, colour, _ in flight.pictures():
            pose = flight.poses[index]
            _, depth = depth_lens.picture(flight.scene, pose @ colour_from_depth, samples=0)
            stem = f"frame-{index:06d}"
            _write_image(sequence / f"{stem}.color.png", colour)
            _write_image(
                sequence / f"{stem}.depth.png",
                _quantized(depth, seven_scenes.MILLIMETRES, invalid=65535),
            )
            rows = ["\t".join(f"{value: .9e}" for value in row) for row in pose]
            _write_text(sequence / f"{stem}.pose.txt", "\n".join(rows) + "\n")
    lens = flights[0].lens
    if _numbers(lens) != list(seven_scenes.COLOUR_CAMERA):
        depth_numbers = [ratio * value for value in _numbers(lens)[:2]] + _numbers(lens)[2:]
        _write_calibration(root, [_numbers(lens), depth_numbers])
    _write_text(directory / "TrainSplit.txt", "")
    split = "".join(f"sequence{flight.number}\n" for flight in flights)
    _write_text(directory / "TestSplit.txt", split)
    return names


def _write_nrgbd(root: Path, world: str, flights: list[_Flight]) -> list[str]:
    names = []
    for flight in flights:
        name = f"{world}_{flight.seed}"
        names.append(name)
        for index, colour, depth in flight.pictures():
            _write_image(root / name / f"images/img{index}.png", colour)
            _write_image(
                root / name / f"depth/depth{index}.png", _quantized(depth, nrgbd.MILLIMETRES)
            )
        opengl = flight.poses @ nrgbd.OPTICAL_FROM_OPENGL
        rows = [" ".join(f"{value:.9f}" for value in row) for row in opengl.reshape(-1, 4)]
        _write_text(root / name / "poses.txt", "\n".join(rows) + "\n")
        _write_text(root / name / "focal.txt", f"{float(flight.lens.intrinsics[0, 0])!r}\n")
    return names


def _write_tum(root: Path, world: str, flights: list[_Flight]) -> list[str]:
    names = []
    for flight in flights:
        # The real camera goes by the name of its sequences.
        is_freiburg3 = _numbers(flight.lens) == list(tum.CALIBRATIONS["freiburg3"])
        name = f"rgbd_dataset_{'freiburg3_' if is_freiburg3 else ''}{world}_{flight.seed}"
        names.append(name)
        directory = root / name
        lists: dict[str, list[str]] = {"rgb": [], "depth": []}
        truth = ["# ground truth trajectory", "# timestamp tx ty tz qx qy qz qw"]
        stamps = flight.stamps_ns()
        for index, colour, depth in flight.pictures():
            time = f"{stamps[index] // 10**9}.{stamps[index] % 10**9 // 1000:06d}"
            _write_image(directory / f"rgb/{time}.png", colour)
            _write_image(directory / f"depth/{time}.png", _quantized(depth, tum.UNITS_PER_METRE))
            for kind, lines in lists.items():
                lines.append(f"{time} {kind}/{time}.png")
            pose = flight.poses[index]
            values = (*pose[:3, 3], *quaternion(pose[:3, :3]))
            truth.append(" ".join([time, *(f"{value:.9f}" for value in values)]))
        for kind, lines in lists.items():
            _write_text(
                directory / f"{kind}.txt", "\n".join(["# timestamp filename", *lines]) + "\n"
            )
        _write_text(directory / "groundtruth.txt", "\n".join(truth) + "\n")
        if not is_freiburg3:
            _write_calibration(directory, [_numbers(flight.lens)])
    return names


def _write_euroc(root: Path, world: str, flights: list[_Flight]) -> list[str]:
    body_from_camera = rigid(_EUROC_BODY_FROM_CAMERA, "EuRoC")
    names = []
    for flight in flights:
        name = f"{world}_{flight.seed}"
        names.append(name)
        base = root / name / "mav0"
        images = ["#timestamp [ns],filename"]
        truth = [
            "#timestamp [ns],p_RS_R_x [m],p_RS_R_y [m],p_RS_R_z [m],q_RS_w [],q_RS_x [],q_RS_y [],"
            "q_RS_z [],v_RS_R_x [m s^-1],v_RS_R_y [m s^-1],v_RS_R_z [m s^-1],b_w_RS_S_x [rad s^-1],"
            "b_w_RS_S_y [rad s^-1],b_w_RS_S_z [rad s^-1],b_a_RS_S_x [m s^-2],b_a_RS_S_y [m s^-2],"
            "b_a_RS_S_z [m s^-2]"
        ]
        stamps = flight.stamps_ns()
        bodies = flight.poses @ inverse(body_from_camera)
        positions = bodies[:, :3, 3]
        velocities = np.zeros_like(positions)
        if len(positions) > 1:
            velocities = np.gradient(positions, axis=0) * flight.rate_hz
        for index, colour, _ in flight.pictures():
            stamp = stamps[index]
            _write_image(base / f"cam0/data/{stamp}.png", cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY))
            images.append(f"{stamp},{stamp}.png")
            x, y, z, w = quaternion(bodies[index, :3, :3])
            values = (*positions[index], w, x, y, z, *velocities[index], *np.zeros(6))
            truth.append(",".join([str(stamp), *(f"{value:.9f}" for value in values)]))
        _write_text(base / "cam0/data.csv", "\n".join(images) + "\n")
        _write_text(base / "cam0/sensor.yaml", _euroc_sensor(flight, body_from_camera))
        _write_text(base / "state_groundtruth_estimate0/data.csv", "\n".join(truth) + "\n")
    return names


def _euroc_sensor(flight: _Flight, body_from_camera: NDArray) -> str:
    lens = flight.lens
    sensor = {
        "sensor_type": "camera",
        "comment": "synthetic",
        "T_BS": {"cols": 4, "rows": 4, "data": body_from_camera.reshape(-1).tolist()},
        "rate_hz": flight.rate_hz,
        "resolution": [lens.width, lens.height],
        "camera_model": "pinhole",
        "intrinsics": [float(value) for value in _numbers(lens)[:4]],
        "distortion_model": "radial-tangential",
        "distortion_coefficients": list(lens.distortion) or [0.0] * 4,
    }
    return yaml.safe_dump(sensor, sort_keys=False)


def _numbers(lens: Lens) -> list[float]:
    """Return fx fy cx cy and the distortion."""
    k = lens.intrinsics
    values = (k[0, 0], k[1, 1], k[0, 2], k[1, 2], *lens.distortion)
    return [float(value) for value in values]


def _write_calibration(directory: Path, lines: list[list[float]]) -> None:
    text = "".join(" ".join(repr(value) for value in line) + "\n" for line in lines)
    _write_text(directory / CALIBRATION_FILE, "# fx fy cx cy [k1 k2 p1 p2 [k3]]\n" + text)


def _quantized(
    depth: NDArray[np.float32], units_per_metre: float, invalid: int = 0
) -> NDArray[np.uint16]:
    """Return depth in whole units; `invalid` where there is none or it does not fit."""
    units = np.rint(np.nan_to_num(depth, nan=np.inf).astype(np.float64) * units_per_metre)
    return np.where((units > 0) & (units < 65535), units, invalid).astype(np.uint16)


def _write_image(path: Path, pixels: NDArray, options: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    if not cv2.imwrite(str(path), np.ascontiguousarray(pixels), options or []):
        raise DatasetError(f"cannot write {path}: is the disk full?")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _make_way(output: Path, overwrite: bool) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise DatasetError(f"{output} exists: choose another path or ask to overwrite it")
        # Only what was made here is ever removed.
        if not (output / _MARKER).is_file():
            raise DatasetError(f"{output} is no synthetic data set and is not overwritten")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)


def _real_lens(
    values: tuple[float, ...], size: tuple[int, int], distortion: tuple[float, ...] = ()
) -> Lens:
    fx, fy, cx, cy = values
    matrix = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    return Lens(matrix, size[1], size[0], distortion)


_NRGBD_CAMERA = (nrgbd.FOCAL_LENGTH, nrgbd.FOCAL_LENGTH, 320.0, 240.0)
_LAYOUTS: dict[str, _Layout] = {
    "co3d": _Layout(_write_co3d, None, 60, 0.1),
    "re10k": _Layout(_write_realestate10k, None, 60, 0.1),
    "7scenes": _Layout(
        _write_seven_scenes,
        _real_lens(seven_scenes.COLOUR_CAMERA, seven_scenes.SIZE),
        601,
        0.004,
    ),
    "nrgbd": _Layout(_write_nrgbd, _real_lens(_NRGBD_CAMERA, nrgbd.SIZE), 41, 0.05),
    "tum": _Layout(_write_tum, _real_lens(tum.CALIBRATIONS["freiburg3"], tum.SIZE), 150, 0.05),
    "euroc": _Layout(
        _write_euroc, _real_lens(_EUROC_CAMERA, _EUROC_SIZE, _EUROC_DISTORTION), 150, 0.05
    ),
}
LAYOUTS = tuple(_LAYOUTS)
