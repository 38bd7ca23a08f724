"""Recordings that are damaged, made from a seed, and what must hold of their reconstruction."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qvggt_core.errors import QvggtError, RecordingError
from qvggt_core.parameters import Parameters
from qvggt_ros.io.recording import open_recording
from qvggt_ros.io.tf_tree import TransformTree
from support.hostile_texts import mutated
from support.mcap_files import write_mcap
from support.recordings import M, RoomNetwork, header, room_entries, stamp_of, write_recording
from support.replays import replay

FRAMES = 6
QUICK = Parameters(
    confirm=False, refine=False, keyframe_min_motion=0.0, window_size=4, window_stride=2
)


def _entries() -> list:
    """A flight with everything that a replay reads: images, calibration, truth, odometry, TF."""
    entries = room_entries(FRAMES)
    zero, upright = M.Vector3(x=0.0, y=0.0, z=0.0), M.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0)
    for index in range(FRAMES):
        pose = entries[3 * index][3].pose
        odometry = M.Odometry(
            header=header(index, "odom"),
            child_frame_id="base_link",
            pose=M.PoseWithCovariance(pose=pose, covariance=entries[2][3].p.repeat(3)),
            twist=M.TwistWithCovariance(
                twist=M.Twist(linear=zero, angular=zero), covariance=entries[2][3].p.repeat(3)
            ),
        )
        mount = M.TransformStamped(
            header=header(index, "base_link"),
            child_frame_id="camera_optical_frame",
            transform=M.Transform(translation=zero, rotation=upright),
        )
        entries += [
            ("/odom", "Odometry", stamp_of(index), odometry),
            ("/tf", "TFMessage", stamp_of(index), M.TFMessage(transforms=[mount])),
        ]
    return sorted(entries, key=lambda entry: entry[2])


def make_bases(folder: Path) -> dict[str, Path]:
    """Write whole recordings of each kind."""
    entries = _entries()
    found = {
        storage: write_recording(folder / storage, entries, storage)
        for storage in ("mcap", "sqlite3")
    }
    for name, per_chunk in (("without chunks", 0), ("in chunks", 4)):
        found[name] = folder / name
        found[name].mkdir()
        write_mcap(found[name] / "in.mcap", entries, per_chunk=per_chunk)
    return found


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _zeros(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    end = len(data) if rng.random() < 0.7 else min(len(data), start + rng.randrange(9000))
    data[start:end] = bytes(end - start)


def _flips(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _hole(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 9000)]


def _double(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randrange(1, 9000)]


def _sizes(data: bytearray, rng: random.Random) -> None:
    """Put a number where a length may stand."""
    width = rng.choice((2, 4, 8))
    start = rng.randrange(max(1, len(data) - width))
    value = rng.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1))
    data[start : start + width] = (value % 256**width).to_bytes(width, "little")


DAMAGES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "cut": _cut,
    "zeros": _zeros,
    "flips": _flips,
    "hole": _hole,
    "double": _double,
    "sizes": _sizes,
}


def damaged(base: Path, target: Path, damage: str, rng: random.Random) -> Path:
    """Copy a recording and damage its file, or its metadata too."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(base, target)
    metadata = target / "metadata.yaml"
    if metadata.exists():
        kind = rng.randrange(4)
        if kind == 0:
            metadata.unlink()
        elif kind == 1:
            metadata.write_bytes(mutated(metadata.read_text("utf-8"), rng))
    (file,) = [path for path in target.iterdir() if path.suffix in (".mcap", ".db3")]
    data = bytearray(file.read_bytes())
    DAMAGES[damage](data, rng)
    file.write_bytes(data)
    return target


def reconstruct(recording: Path, output: Path, rng: random.Random) -> list[str]:
    """Replay a recording; return what is wrong about what came of it.

    Raises:
        QvggtError: it cannot be read; then the output holds nothing.
    """
    before = _digest(recording)
    around = {path.name for path in output.parent.iterdir()}
    shutil.rmtree(output, ignore_errors=True)
    wrong: list[str] = []
    try:
        summary = replay(
            recording,
            output,
            RoomNetwork(),
            QUICK,
            report=False,
            odometry=rng.random() < 0.3,
        )
    except QvggtError:
        if output.exists():
            wrong.append("an output without a result")
        raise
    else:
        facts = summary.metrics["result"]
        if facts["published"] == 0:
            wrong.append("a result without a pose")
        if facts["received"] < FRAMES and not (summary.warnings or facts["rejected"]):
            wrong.append(f"{FRAMES - facts['received']} images are gone without a word")
    finally:
        if _digest(recording) != before:
            wrong.append("the recording was changed")
        extra = {path.name for path in output.parent.iterdir()} - around - {output.name}
        if extra - {f"{output.name}.partial"}:
            wrong.append(f"files beside the output: {extra}")
    return wrong


def read_through(recording: Path) -> None:
    """Read every message of a recording.

    Raises:
        QvggtError: it cannot be read.
        AssertionError: what is given out is no recording's.
    """
    with open_recording(recording) as found:
        TransformTree.read(found)
        newest = -1
        for topic, msgtype, received_ns, data in found.messages(list(found.types)):
            assert topic in found.types
            assert received_ns >= newest
            newest = received_ns
            with suppress(RecordingError):
                found.deserialize(data, msgtype)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
