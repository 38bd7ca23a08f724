"""What each public data set's directory looks like: files, units, axes and rounding."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from qvggt_core.datasets import co3d, nrgbd, seven_scenes, tum
from qvggt_core.datasets.files import CALIBRATION_FILE, rigid
from qvggt_core.errors import DatasetError
from qvggt_core.geometry.poses import inverse, quaternion
from qvggt_core.synthetic.lens import Lens
from qvggt_core.synthetic.render import Scene

_EPOCH_NS = 1_700_000_000_000_000_000
_JPEG = [
    cv2.IMWRITE_JPEG_QUALITY,
    98,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]
_EUROC_BODY_FROM_CAMERA = np.array(
    [
        [0.0148655429818, -0.999880929698, 0.00414029679422, -0.0216401454975],
        [0.999557249008, 0.0149672133247, 0.025715529948, -0.064676986768],
        [-0.0257744366974, 0.00375618835797, 0.999660727178, 0.00981073058949],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@dataclass(frozen=True)
class Flight:
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
        """Inverse poses (N, 4, 4)."""
        return inverse(self.poses)

    def stamps_ns(self) -> list[int]:
        """Return times in nanoseconds, whole microseconds."""
        return [_EPOCH_NS + 1000 * round(i * 1e6 / self.rate_hz) for i in range(len(self.poses))]

    def pictures(self) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.float32]]]:
        """Yield number, colour and depth of each frame."""
        for index, pose in enumerate(self.poses):
            yield index, *self.lens.picture(self.scene, pose)
            self.rendered()


def write_co3d(root: Path, world: str, flights: list[Flight]) -> list[str]:
    """Write a category of CO3D: JPEG, float16 depth in PNG, annotations in PyTorch3D's axes."""
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
                    **_co3d_frame(flight, index, image, depth_path, mask_path),
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
    write_text(category / "set_lists/set_lists_fewview_dev.json", json.dumps(lists))
    return names


def _co3d_frame(flight: Flight, index: int, image: str, depth: str, mask: str) -> dict[str, object]:
    """Return a frame's annotation: paths of its files, and its camera."""
    return {
        "image": {"path": image, "size": [flight.lens.height, flight.lens.width]},
        "depth": {"path": depth, "scale_adjustment": 1.0, "mask_path": mask},
        "mask": None,
        "viewpoint": _viewpoint(flight.camera_from_world[index], flight.lens),
        "meta": None,
    }


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


def write_realestate10k(root: Path, world: str, flights: list[Flight]) -> list[str]:
    """Write RealEstate10K's camera files, with the images that they refer to."""
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
        write_text(root / f"test/{name}.txt", "\n".join(lines) + "\n")
    return names


def write_seven_scenes(root: Path, world: str, flights: list[Flight]) -> list[str]:
    """Write a scene of 7-Scenes: depth in millimetres from the depth camera's own place."""
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
            write_text(sequence / f"{stem}.pose.txt", "\n".join(rows) + "\n")
    lens = flights[0].lens
    if _numbers(lens) != list(seven_scenes.COLOUR_CAMERA):
        depth_numbers = [ratio * value for value in _numbers(lens)[:2]] + _numbers(lens)[2:]
        _write_calibration(root, [_numbers(lens), depth_numbers])
    write_text(directory / "TrainSplit.txt", "")
    split = "".join(f"sequence{flight.number}\n" for flight in flights)
    write_text(directory / "TestSplit.txt", split)
    return names


def write_nrgbd(root: Path, world: str, flights: list[Flight]) -> list[str]:
    """Write scenes of Neural RGB-D: OpenGL poses, depth in millimetres."""
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
        write_text(root / name / "poses.txt", "\n".join(rows) + "\n")
        write_text(root / name / "focal.txt", f"{float(flight.lens.intrinsics[0, 0])!r}\n")
    return names


def write_tum(root: Path, world: str, flights: list[Flight]) -> list[str]:
    """Write TUM RGB-D sequences: lists with times, poses as quaternions, depth in 1/5000 m."""
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
            write_text(
                directory / f"{kind}.txt", "\n".join(["# timestamp filename", *lines]) + "\n"
            )
        write_text(directory / "groundtruth.txt", "\n".join(truth) + "\n")
        if not is_freiburg3:
            _write_calibration(directory, [_numbers(flight.lens)])
    return names


def write_euroc(root: Path, world: str, flights: list[Flight]) -> list[str]:
    """Write EuRoC sequences: times in nanoseconds, poses of the body, sensor.yaml."""
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
        write_text(base / "cam0/data.csv", "\n".join(images) + "\n")
        write_text(base / "cam0/sensor.yaml", _euroc_sensor(flight, body_from_camera))
        write_text(base / "state_groundtruth_estimate0/data.csv", "\n".join(truth) + "\n")
    return names


def _euroc_sensor(flight: Flight, body_from_camera: NDArray) -> str:
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
    write_text(directory / CALIBRATION_FILE, "# fx fy cx cy [k1 k2 p1 p2 [k3]]\n" + text)


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


def write_text(path: Path, text: str) -> None:
    """Write a text file and the directories that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
