"""Whether frames continue the stream before them."""

from __future__ import annotations

from qvggt_core.stream.frame import Frame


def interruption(last: tuple[Frame, ...], frames: tuple[Frame, ...], max_gap_s: float) -> str:
    """Return why frames do not continue the last ones, or nothing.

    Args:
        last: of the rig's cameras, empty at the beginning.
        frames: of the same cameras, in the same order.
        max_gap_s: seconds that may pass between them.
    """
    if not last:
        return ""
    seconds = (frames[0].stamp_ns - last[0].stamp_ns) / 1e9
    if seconds < 0:
        return f"time went back by {-seconds:.3f} s"
    if seconds > max_gap_s:
        return f"no frame came for {seconds:.3f} s"
    old, new = (", ".join(repr(frame.frame_id) for frame in each) for each in (last, frames))
    if old != new:
        return f"the camera changed from {old} to {new}"
    for before, frame in zip(last, frames, strict=True):
        if frame.image.shape != before.image.shape:
            old_size, new_size = (
                f"{image.shape[1]}x{image.shape[0]}" for image in (before.image, frame.image)
            )
            return f"the image size changed from {old_size} to {new_size}"
    return ""
