"""How well images show their focal length: stretches of recordings whose camera is calibrated.

python benchmarks/focal_length.py RECORDING... -o benchmarks/results/focal_length.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from confirmation import read

from qvggt_core.measure.provenance import write_results
from qvggt_core.stream.focal_length import estimate_focal_length
from qvggt_core.stream.frame import Frame

_STRETCH = 100


def measured(frames: list[Frame]) -> dict[str, Any]:
    """Return what a stretch shows, beside what its calibration says."""
    camera = frames[0].camera
    assert camera is not None
    before = time.process_time()
    found = estimate_focal_length(frame.image for frame in frames)
    seconds = time.process_time() - before
    true = float(camera.intrinsics[0, 0])
    if isinstance(found, str):
        return {"true_px": true, "refused": found, "processor_s": seconds}
    off = float(found.pixels / true - 1.0)
    return {"true_px": true, "off": off, "sigma": found.sigma, "processor_s": seconds}


def main() -> None:
    """Measure all stretches of all recordings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows = []
    for path in args.recordings:
        frames, _ = read(path, None)
        for start in range(0, max(len(frames) - _STRETCH // 2, 1), _STRETCH):
            row = measured(frames[start : start + _STRETCH])
            rows.append({"recording": path.name, "first_image": start, **row})
            print(rows[-1], flush=True)
            if args.output is not None:
                write_results(args.output, {"images": _STRETCH, "rows": rows})


if __name__ == "__main__":
    main()
