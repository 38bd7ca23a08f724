"""What two cameras beside each other know of metres, standing still and in flight.

    python benchmarks/stereo.py -o benchmarks/results/stereo.json

Images of 320x240 (80 degrees) with a sensor's noise of 1 %, the second camera 0.12 m to the right
of the first; worlds that the network that ships has never seen. `still` is 40 images from one
place; `flight` is 20 images there, then 40 along an orbit of 0.06 m steps. `turned` has the second
camera turned by a degree from what its transform has.

    state, sigma     at the end; sigma of the logarithm of the scale
    scale            length of the path by its truth (flight), or of true depth by depth (still)
    drift_m          largest distance from the first position, less the true one
    depth_absrel     of the last image of the first camera, where there is depth
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from result_table import ResultTable
from scipy.spatial.transform import Rotation

from qvggt_core.evaluate.trajectory import absolute_errors
from qvggt_core.geometry.camera import Camera
from qvggt_core.geometry.poses import inverse, transform
from qvggt_core.parameters import Parameters
from qvggt_core.stream import Frame, Reconstructor
from qvggt_core.stream.load_network import load_network
from qvggt_core.synthetic.flight import fly
from qvggt_core.synthetic.lens import LensChoice
from qvggt_core.synthetic.named_worlds import make_world
from qvggt_core.synthetic.render import Scene
from qvggt_core.synthetic.sensor import expose

_PERIOD_NS, _BASELINE, _STEP, _NOISE = 100_000_000, 0.12, 0.06, 0.01
_STILL, _BEFORE, _FLIGHT = 40, 20, 40


def measured(loaded: Any, scene: Scene, poses: NDArray[np.float64], turn: float) -> dict[str, Any]:
    """Return the figures of one stream; the second camera is turned by so many degrees."""
    lens = LensChoice().lens()
    camera = Camera(lens.width, lens.height, lens.intrinsics)
    claimed = transform(np.eye(3), np.array([_BASELINE, 0.0, 0.0]))
    turned = Rotation.from_euler("y", turn, degrees=True).as_matrix()
    beside = transform(turned, claimed[:3, 3])
    reconstructor = Reconstructor(loaded.network, loaded.parameters)
    reconstructor.sensors.set_extrinsics("right", inverse(claimed))
    rng, results, shown = np.random.default_rng(0), [], {}
    for index, pose in enumerate(poses):
        frames = []
        for name, at in (("left", pose), ("right", pose @ beside)):
            if at.tobytes() not in shown:
                shown[at.tobytes()] = lens.picture(scene, at, 2)[0]
            image = expose(shown[at.tobytes()], 1.0, _NOISE, rng)
            frames.append(Frame(index * _PERIOD_NS, image, camera, name, name))
        results += reconstructor.add(*frames)
    results += reconstructor.flush()
    scale = results[-1].scale
    left = [g for result in results for g in result.frames if g.view.source == "left"]
    figures = {
        "state": scale.state.value if scale.state else None,
        "sigma": scale.sigma,
        "note": scale.note,
        "frames": len(left),
    }
    if scale.metres_per_unit is None:
        return figures
    found = np.stack([geometry.map_from_camera for geometry in left])
    true = poses[[geometry.view.stamp_ns // _PERIOD_NS for geometry in left]]
    last = left[-1]
    height, width = last.depth.shape
    depth = scene.render(true[-1], last.intrinsics, height, width, samples=0).depth
    ratio = (last.depth / depth)[np.isfinite(last.depth)]
    way = [np.linalg.norm(each[:, :3, 3] - each[0, :3, 3], axis=1) for each in (found, true)]
    moves = bool(way[1].max() > 0.0)
    factor = absolute_errors(found, true, "sim3").scale if moves else 1.0 / np.nanmedian(ratio)
    return {
        **figures,
        "scale": float(factor),
        "drift_m": float(np.abs(way[0] - way[1]).max()),
        "depth_absrel": float(np.nanmean(np.abs(ratio - 1.0))),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5])
    args = parser.parse_args()
    loaded = load_network(Parameters(compute_dtype="float32", cameras=["left", "right"]))
    table = ResultTable(args.output, keeps_others=False)
    for seed in args.seeds:
        world = make_world("room", seed)
        path = fly(world, "orbit", _FLIGHT, seed, step=_STEP)
        still, flight = np.repeat(path[:1], _STILL, 0), np.repeat(path[:1], _BEFORE, 0)
        flight = np.concatenate([flight, path])
        scene = Scene(world)
        table.add(f"still, room {seed}", measured(loaded, scene, still, 0.0))
        table.add(f"flight, room {seed}", measured(loaded, scene, flight, 0.0))
        table.add(f"turned, still, room {seed}", measured(loaded, scene, still, 1.0))
        table.add(f"turned, flight, room {seed}", measured(loaded, scene, flight, 1.0))


if __name__ == "__main__":
    main()
