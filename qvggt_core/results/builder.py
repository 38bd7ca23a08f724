"""Gathers a reconstruction while it grows: trajectories, maps, samples and times."""

from __future__ import annotations

from collections import Counter

import numpy as np

from qvggt_core.evaluate.track import Track
from qvggt_core.geometry.cloud import Cloud, VoxelMap, empty_cloud
from qvggt_core.parameters import Parameters
from qvggt_core.results.corrected_map import CorrectedMap
from qvggt_core.results.samples import Samples
from qvggt_core.stream.frame import FrameGeometry, Reconstruction
from qvggt_core.stream.frame_cloud import frame_cloud
from qvggt_core.util.thinning import ThinnedStream, spread_indices

_SAMPLES_KEPT = 24
_SAMPLES_WRITTEN = 6


class ResultBuilder:
    """Takes reconstructions; memory is bounded but for one pose per frame.

    Attributes:
        seconds: wall time per step of the reconstruction.
        valid_depth: share of valid pixels, summed over the frames.
        windows: what the images say of each window: stamps of its first and last new frame, the
            verdict, and the residual as a share of the motion.
    """

    def __init__(self, parameters: Parameters) -> None:
        """Start with nothing."""
        self.seconds: Counter[str] = Counter()
        self.valid_depth = 0.0
        self.windows: list[tuple[int, int, str, float]] = []
        self._parameters = parameters
        self._tracks: dict[int, Track] = {}
        self._maps: dict[int, VoxelMap] = {}
        self._corrected: CorrectedMap | None = None
        self._samples: ThinnedStream[tuple[int, FrameGeometry]] = ThinnedStream(_SAMPLES_KEPT)

    def add(self, result: Reconstruction) -> None:
        """Take what one run of the network gave."""
        self.seconds.update(result.seconds)
        if not result.frames:
            if self._corrected is not None:
                self._corrected.add(result, [])
            return
        if result.confirmation is not None:
            stamps = [geometry.view.stamp_ns for geometry in result.frames]
            found = result.confirmation
            self.windows.append((min(stamps), max(stamps), found.verdict.value, found.ratio))
        clouds = []
        for geometry in result.frames:
            self.valid_depth += float(np.isfinite(geometry.depth).mean())
            self._samples.add((result.segment, geometry))
            clouds.append(frame_cloud(geometry, self._parameters.max_depth_edge))
        if result.loops is not None:
            self._corrected = self._corrected or CorrectedMap(self._parameters.map_voxel)
            self._corrected.add(result, clouds)
            return
        track = self._tracks.setdefault(result.segment, Track())
        voxels = self._maps.setdefault(result.segment, VoxelMap(self._parameters.map_voxel))
        for geometry, cloud in zip(result.frames, clouds, strict=True):
            track.add(geometry.view.stamp_ns, geometry.map_from_camera)
            voxels.add_frame(cloud, geometry.map_from_camera)

    @property
    def tracks(self) -> dict[int, Track]:
        """Camera poses per segment, as all loops so far have them."""
        return self._tracks if self._corrected is None else self._corrected.tracks

    @property
    def main_segment(self) -> int:
        """The segment with the most poses."""
        return main_segment(self.tracks)

    def cloud(self, segment: int) -> Cloud:
        """Return the map of a segment."""
        if self._corrected is not None:
            return self._corrected.map(segment).cloud()
        return self._maps[segment].cloud() if segment in self._maps else empty_cloud()

    def voxel(self, segment: int) -> float:
        """Return the side of a voxel of a segment's map, in its unit."""
        if self._corrected is not None:
            return self._corrected.map(segment).voxel
        return self._maps[segment].voxel

    def samples(self) -> Samples:
        """Return frames of the main segment (or any), spread evenly over it."""
        kept = self._samples.kept
        frames = [frame for segment, frame in kept if segment == self.main_segment]
        frames = frames or [frame for _, frame in kept]
        return Samples.of([frames[i] for i in spread_indices(len(frames), _SAMPLES_WRITTEN)])


def main_segment(tracks: dict[int, Track]) -> int:
    """Return the number of the segment with the most poses."""
    return max(tracks, key=lambda segment: len(tracks[segment]))
