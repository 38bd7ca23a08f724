"""Scenes from what users have: the result of a replay, a saved map, or both of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qvggt_core.errors import RecordingError
from qvggt_core.export.scene import PosedImage, Scene
from qvggt_core.geometry.cloud import Cloud, VoxelMap, empty_cloud
from qvggt_core.parameters import Parameters
from qvggt_core.results.layout import METRICS_FILE
from qvggt_core.results.result import Result
from qvggt_core.stream.frame import FrameGeometry, View
from qvggt_core.stream.frame_cloud import frame_cloud
from qvggt_core.stream.saved_map import MANIFEST_FILE, SavedMap, read_map

# Pixels of all keyframes that become points, before there is one per voxel.
_MAX_RAW_POINTS = 20_000_000
# Poses of one run differ by the last corrections by loops; this is a share of the map's extent.
_SAME_RUN = 0.05


def read_scene(sources: Sequence[Path], segment: int | None = None) -> Scene:
    """Read a scene.

    Args:
        sources: a result of `qvggt replay`, whose points are taken, a map that it saved, whose
            images are taken, or both of one run.
        segment: of the result; the one with the most poses if not given, or the map's.

    Raises:
        RecordingError: a source is neither, two are the same kind, or they are not of one run.
        MapError: a saved map cannot be read.
        EvaluationError: a result cannot be read.
    """
    maps = [path for path in sources if (path / MANIFEST_FILE).is_file()]
    results = [path for path in sources if path not in maps]
    for path in results:
        if not (path / METRICS_FILE).is_file():
            raise RecordingError(
                f"{path} is neither a result of `qvggt replay` nor a map that --save-map saved"
            )
    if len(maps) > 1 or len(results) > 1:
        raise RecordingError(
            f"{len(sources)} sources are of {len(maps)} maps and {len(results)} results: give one "
            "of each at most, of the same run"
        )
    saved = read_map(maps[0]) if maps else None
    result = Result.read(results[0]) if results else None
    if result is None:
        assert saved is not None
        return scene_of_map(saved)
    if saved is None:
        return scene_of_result(result, segment)
    number = _segment_of(saved, result)
    if segment not in (None, number):
        raise RecordingError(f"the map {maps[0]} is of segment {number}, not {segment}")
    return _scene_of_both(saved, result, number)


def _scene_of_both(saved: SavedMap, result: Result, segment: int) -> Scene:
    """Return a map's keyframes where the result has them, so that they fit its points."""
    track = result.tracks[segment]
    poses = dict(zip(track.stamps_ns, track.poses, strict=True))
    images = tuple(
        replace(image, map_from_camera=poses[image.stamp_ns])
        for image in scene_of_map(saved, with_points=False).images
    )
    return replace(scene_of_result(result, segment), images=images, notes=())


def scene_of_result(result: Result, segment: int | None = None) -> Scene:
    """Return the points of a segment, and those sample frames that are in it.

    Raises:
        RecordingError: there is no such segment.
    """
    number = result.segment if segment is None else segment
    if number not in result.tracks:
        raise RecordingError(
            f"there is no segment {number}; segments: {', '.join(map(str, result.tracks))}"
        )
    track, samples = result.tracks[number], result.load_samples()
    poses = dict(zip(track.stamps_ns, track.poses, strict=True))
    images = []
    for index, stamp in enumerate([] if samples is None else samples.stamps_ns.tolist()):
        if samples is not None and stamp in poses:
            images.append(
                PosedImage(
                    stamp,
                    poses[stamp],
                    samples.intrinsics[index],
                    samples.images[index],
                    samples.depths[index],
                )
            )
    facts = result.metrics.result
    note = (
        f"a result keeps {len(images)} images of {len(track)} poses: a saved map (replay with "
        "--save-map) has all keyframes"
    )
    return Scene(
        result.load_cloud(number), tuple(images), facts.unit == "m", facts.up_source, (note,)
    )


def scene_of_map(saved: SavedMap, with_points: bool = True) -> Scene:
    """Return the keyframes of a saved map, and their depth as points, one per voxel.

    A saved map keeps no confidence, so that of every point is 1.
    """
    stamps = np.array([keyframe.stamp_ns for keyframe in saved.keyframes])
    _, order = np.unique(stamps, return_index=True)
    chosen = [(saved.keyframes[index], saved.poses[index]) for index in order]
    images = tuple(
        PosedImage(
            keyframe.stamp_ns,
            pose,
            keyframe.intrinsics,
            keyframe.image,
            keyframe.depth,
            keyframe.unit,
        )
        for keyframe, pose in chosen
    )
    cloud = _points(images) if with_points else empty_cloud()
    notes = ("a saved map keeps no confidence: it is 1 for every point",)
    return Scene(cloud, images, saved.is_metric, saved.up_source, notes)


def _points(images: Sequence[PosedImage]) -> Cloud:
    defaults = Parameters()
    pixels = sum(image.packed_depth.size for image in images)
    stride = max(1, int(np.ceil(np.sqrt(pixels / _MAX_RAW_POINTS))))
    voxels = VoxelMap(defaults.map_voxel)
    for image in images:
        depth = image.depth
        geometry = FrameGeometry(
            image.map_from_camera,
            depth,
            np.ones_like(depth),
            view=View(image.stamp_ns, image.image),
            intrinsics=image.intrinsics,
        )
        cloud = frame_cloud(geometry, defaults.max_depth_edge, stride)
        voxels.add_frame(cloud, image.map_from_camera)
    return voxels.cloud()


def _segment_of(saved: SavedMap, result: Result) -> int:
    """Return the segment whose poses are those of the map's keyframes."""
    stamps = np.array([keyframe.stamp_ns for keyframe in saved.keyframes])
    best, nearest = None, np.inf
    for number, track in result.tracks.items():
        common, of_map, of_track = np.intersect1d(stamps, track.stamps_ns, return_indices=True)
        if len(common) < len(np.unique(stamps)):
            continue
        off = saved.poses[of_map, :3, 3] - track.positions[of_track]
        extent = max(float(np.ptp(track.positions, axis=0).max()), 1e-3)
        distance = float(np.abs(off).max()) / extent
        best, nearest = (number, distance) if distance < nearest else (best, nearest)
    if best is None or nearest > _SAME_RUN:
        raise RecordingError(
            f"the map {saved.name} is not of the run of this result: its keyframes have "
            f"{'other times' if best is None else 'other poses'}; export one of them alone"
        )
    return best
