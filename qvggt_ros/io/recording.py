"""Recordings of any kind, opened for reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qvggt_core.errors import RecordingError
from qvggt_ros.io.bag import Recording, open_bag
from qvggt_ros.io.image_sequence import is_image_sequence, open_image_sequence

__all__ = ["Recording", "open_recording"]


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Open a rosbag2 directory, a bare .mcap or .db3 file, a video, or a folder of images.

    See `open_bag` for what becomes of damaged recordings.

    Raises:
        RecordingError: there is nothing, nothing that can be read, or no message.
    """
    if _is_images(path):
        yield open_image_sequence(path)
        return
    with open_bag(path) as recording:
        yield recording


def _is_images(path: Path) -> bool:
    try:
        if not path.exists():
            raise RecordingError(f"there is no recording at {path}")
        return is_image_sequence(path)
    except (OSError, ValueError) as error:
        raise RecordingError(f"there is no recording at {str(path)[:200]!r}: {error}") from error
