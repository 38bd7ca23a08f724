"""Messages that are wrong in every way: published geometry is geometry, every image is counted."""

from __future__ import annotations

import random
from functools import partial

from support.figures import Figures, main
from support.hostile_messages import KINDS, Hostile

MESSAGES = 60
USUAL = ("image", "image", "image", "camera info", "odometry", "transform", *KINDS)


def stream(figures: Figures, seed: int) -> None:
    """Send one stream of messages to one session."""
    rng = random.Random(seed)
    hostile = Hostile(rng, live=rng.random() < 0.5)
    for index in range(MESSAGES):
        kind = rng.choice(USUAL)
        figures.run(f"stream {seed}, {kind} {index}", partial(hostile.send, kind, index))
        if rng.random() < 0.01:
            hostile.session.reset()
    left = 0

    def end() -> None:
        nonlocal left
        left = hostile.unaccounted()

    figures.run(f"stream {seed}, its end", end)
    if left:
        figures.lose(f"stream {seed}", f"{left} images that no counter has")
    if hostile.wrong:
        figures.lose(f"stream {seed}", f"published what is no geometry: {hostile.wrong[:3]}")


if __name__ == "__main__":
    main(__doc__, stream)
