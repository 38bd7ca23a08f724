"""Verdicts, poses and certainty on streams without a scene, turns, standing still, and lies.

A camera of 320x240 in the studio that the shipped network knows, with sensor noise. Rotations are
compared with the truth, both against the first frame; a rotation's error is given in degrees and
as a share of its standard deviation (root of the covariance's trace).

    python benchmarks/hard_streams.py -o benchmarks/results/hard_streams.json
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.spatial.transform import Rotation

from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import rotation_angle
from qvggt_core.measure.provenance import write_results
from qvggt_core.model import shipped_checkpoint
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, FrameGeometry, Reconstruction, Reconstructor
from qvggt_core.stream.load_network import load_network
from qvggt_core.synthetic.flight import fly
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.ray_caster import pinhole
from qvggt_core.synthetic.render import Scene
from qvggt_core.synthetic.sensor import expose

_WIDTH, _HEIGHT, _FOV = 320, 240, np.radians(80.0)
_FRAMES = 40
_PERIOD_NS = 100_000_000
_NOISE = 0.01
_COVERED_FROM = 20

Images = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Stream:
    """Images, and the true rotations of their camera if it is known where it looks.

    Attributes:
        images: (H, W, 3) uint8 each.
        world_from_camera: (N, 4, 4), None where there is no truth.
        has_scene: whether there is a scene in the images; if not, no depth may come of them.
    """

    images: Images
    world_from_camera: NDArray[np.float64] | None = None
    has_scene: bool = True


class Studio:
    """Renders the known room."""

    def __init__(self, seed: int = 0) -> None:
        self._scene = Scene(make_world("studio"))
        self.intrinsics = pinhole(_HEIGHT, _WIDTH, _FOV)
        self.flight = fly(self._scene.world, "survey", _FRAMES, seed=1, step=0.08)
        self._seed = seed
        self.begin()
        self.clean = [self.image(pose) for pose in self.flight]

    def begin(self) -> None:
        """Begin the noise anew, so that a stream does not depend on those before it."""
        self._rng = np.random.default_rng([7, self._seed])

    def image(self, pose: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return what a camera sees, without noise."""
        return self._scene.render(pose, self.intrinsics, _HEIGHT, _WIDTH, samples=2).colour

    def seen(self, images: Images, gain: float = 1.0) -> Images:
        """Return images as a sensor stores them."""
        return [expose(image, gain, _NOISE, self._rng) for image in images]

    def plain(self, value: tuple[int, int, int]) -> Stream:
        """Return images of one colour."""
        image = np.full((_HEIGHT, _WIDTH, 3), value, np.uint8)
        return Stream([image] * _FRAMES, has_scene=False)

    def noise(self) -> Stream:
        """Return new noise each time."""
        shape = (_HEIGHT, _WIDTH, 3)
        return Stream(
            [self._rng.integers(0, 256, shape).astype(np.uint8) for _ in range(_FRAMES)],
            has_scene=False,
        )

    def chessboard(self) -> Stream:
        """Return a pattern that stands still."""
        board = np.kron(np.indices((12, 16)).sum(axis=0) % 2, np.ones((20, 20)))
        image = np.repeat((255 * board)[:, :, None], 3, axis=2).astype(np.uint8)
        return Stream(self.seen([image] * _FRAMES), np.tile(np.eye(4), (_FRAMES, 1, 1)))

    def scenes(self) -> Stream:
        """Return images of a place and a world of its own each."""
        images = []
        for index in range(_FRAMES):
            scene = Scene(make_world(("room", "corridor", "arena")[index % 3], seed=index))
            pose = fly(scene.world, "hover", 1, seed=index)[0]
            images.append(scene.render(pose, self.intrinsics, _HEIGHT, _WIDTH, samples=1).colour)
        return Stream(self.seen(images), has_scene=False)

    def exposed(self, gains: tuple[float, ...]) -> Stream:
        """Return the flight with gains that follow each other in turn."""
        images = [
            expose(image, gains[index % len(gains)], _NOISE, self._rng)
            for index, image in enumerate(self.clean)
        ]
        return Stream(images, self.flight)

    def covered(self) -> Stream:
        """Return the flight with a cap put on the lens on the way."""
        black = [np.zeros_like(self.clean[0])] * (_FRAMES - _COVERED_FROM)
        return Stream(self.seen(self.clean[:_COVERED_FROM]) + black, self.flight)

    def standing(self) -> Stream:
        """Return the first view again and again."""
        poses = np.tile(self.flight[0], (3 * _FRAMES, 1, 1))
        return Stream(self.seen([self.clean[0]] * (3 * _FRAMES)), poses)

    def turning(self, degrees: float) -> Stream:
        """Return a turn on the spot about the vertical, by so many degrees an image."""
        poses = np.tile(self.flight[0], (_FRAMES, 1, 1))
        yaws = Rotation.from_rotvec(
            np.radians(degrees) * np.outer(np.arange(_FRAMES), (0, 0, 1))
        ).as_matrix()
        poses[:, :3, :3] = yaws @ poses[:, :3, :3]
        return Stream(self.seen([self.image(pose) for pose in poses]), poses)

    def passing(self, share: float, since: int) -> Stream:
        """Return the flight behind a textured thing that moves by itself.

        Args:
            share: of the image that it covers.
            since: image in which it appears.
        """
        height, width = round(_HEIGHT * share**0.5), round(_WIDTH * share**0.5)
        coarse = self._rng.integers(60, 200, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
        thing = np.kron(coarse, np.ones((6, 6, 1), np.uint8))[:height, :width]
        covered = []
        for index, image in enumerate(self.clean):
            image = image.copy()
            if index >= since:
                # To and fro, 3 pixels an image, so that it stays in view.
                reach = _HEIGHT - height
                top = reach - abs((3 * (index - since)) % (2 * max(reach, 1)) - reach)
                image[top : top + height, 40 : 40 + width] = thing
            covered.append(image)
        return Stream(self.seen(covered), self.flight)


def streams(studio: Studio) -> dict[str, Callable[[], Stream]]:
    """Return all streams by name."""
    found: dict[str, Callable[[], Stream]] = {
        "the flight itself": lambda: Stream(studio.seen(studio.clean), studio.flight),
        "black": lambda: studio.plain((0, 0, 0)),
        "white": lambda: studio.plain((255, 255, 255)),
        "grey": lambda: studio.plain((127, 127, 127)),
        "red": lambda: studio.plain((200, 0, 0)),
        "noise": studio.noise,
        "chessboard that stands still": studio.chessboard,
        "burnt out (exposure x8)": lambda: studio.exposed((8.0,)),
        "exposure flickers x4, /4": lambda: studio.exposed((4.0, 0.25)),
        "exposure flickers x1.3, /1.3": lambda: studio.exposed((1.3, 1 / 1.3)),
        "exposure flickers x1.1, /1.1": lambda: studio.exposed((1.1, 1 / 1.1)),
        "another scene each image": studio.scenes,
        "lens covered from image 20 on": studio.covered,
        "standing still, 120 images": studio.standing,
    }
    for degrees in (1, 2, 3, 6, 9, 12):
        found[f"turns by {degrees} deg an image"] = lambda by=degrees: studio.turning(by)
    for share in (0.1, 0.25, 0.4):
        for since in (0, 15):
            name = f"{share:.0%} moves by itself, from image {since} on"
            found[name] = lambda by=share, at=since: studio.passing(by, at)
    return found


def run(
    stream: Stream, intrinsics: NDArray[np.float64], network: Any, parameters: Parameters
) -> Any:
    """Return all reconstructions of a stream."""
    camera = Camera(_WIDTH, _HEIGHT, intrinsics)
    reconstructor = Reconstructor(network, parameters)
    results: list[Reconstruction] = []
    for index, image in enumerate(stream.images):
        results += reconstructor.add(Frame(index * _PERIOD_NS, image, camera))
    return results + list(reconstructor.flush())


def measure(results: list[Reconstruction], stream: Stream) -> dict[str, Any]:
    """Return the figures of a stream."""
    verdicts = Counter(r.confirmation.verdict.value for r in results if r.confirmation)
    frames = [frame for result in results for frame in result.frames]
    segments = [result.segment for result in results for _ in result.frames]
    sigma = np.array([_sigma(frame) for frame in frames])
    found = {
        **{f"windows_{name}": count for name, count in sorted(verdicts.items())},
        "segments": len(set(segments)),
        "lost": sum(frame.is_lost for frame in frames),
        "valid_depth": float(np.mean([np.isfinite(frame.depth).mean() for frame in frames])),
        "largest_step": _largest_step(frames, segments),
        "position_sigma_last": float(sigma[-1, 0]),
        "rotation_sigma_last_deg": float(np.degrees(sigma[-1, 1])),
        "has_scene": stream.has_scene,
    }
    if stream.world_from_camera is not None:
        error = _rotation_errors(frames, segments, stream.world_from_camera)
        known = np.isfinite(error)
        found["rotation_error_largest_deg"] = float(np.degrees(error[known].max()))
        found["rotation_error_largest_in_sigma"] = float((error / sigma[:, 1])[known].max())
    return found


def _sigma(frame: FrameGeometry) -> tuple[float, float]:
    if frame.covariance is None:
        return np.nan, np.nan
    position, rotation = frame.covariance[:3, :3], frame.covariance[3:, 3:]
    return float(np.sqrt(np.trace(position))), float(np.sqrt(np.trace(rotation)))


def _largest_step(frames: list[FrameGeometry], segments: list[int]) -> float:
    steps = [
        float(np.linalg.norm(there.map_from_camera[:3, 3] - here.map_from_camera[:3, 3]))
        for here, there, one, other in zip(frames, frames[1:], segments, segments[1:], strict=False)
        if one == other
    ]
    return max(steps, default=0.0)


def _rotation_errors(
    frames: list[FrameGeometry], segments: list[int], truth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return radians (N,) against the first frame of each segment, NaN there."""
    errors, first = [], None
    for index, (frame, segment) in enumerate(zip(frames, segments, strict=True)):
        true = truth[frame.view.stamp_ns // _PERIOD_NS][:3, :3]
        here = frame.map_from_camera[:3, :3]
        if index == 0 or segment != segments[index - 1]:
            first = here @ true.T
            errors.append(np.nan)
        else:
            errors.append(rotation_angle((first @ true).T @ here))
    return np.array(errors)


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """Return the figures as a table."""
    made = Table("stream", "windows +/?/-", "depth", "lost", "step", "error", "in sigma")
    for name, row in rows.items():
        windows = "/".join(
            str(row.get(f"windows_{verdict}", 0))
            for verdict in ("confirmed", "undecided", "contradicted")
        )
        error, share = (
            row.get(f"rotation_error_largest_{unit}", float("nan")) for unit in ("deg", "in_sigma")
        )
        made.add_row(
            name,
            windows,
            f"{row['valid_depth']:.0%}",
            str(row["lost"]),
            f"{row['largest_step']:.3f}",
            f"{error:.2f}",
            f"{share:.1f}",
        )
    return made


def main() -> None:
    """Run all streams, or those whose name holds a text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the streams with this in their names")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    loaded = load_network(Parameters(compute_dtype="float32", threads=1))
    studio = Studio(args.seed)
    rows = {}
    for name, make in streams(studio).items():
        if args.only in name:
            studio.begin()
            stream = make()
            results = run(stream, studio.intrinsics, loaded.network, loaded.parameters)
            rows[name] = measure(results, stream)
            print(name, rows[name], flush=True)
    Console(width=120).print(table(rows))
    if args.output:
        write_results(args.output, {"streams": rows}, shipped_checkpoint(), digits=4)


if __name__ == "__main__":
    main()
