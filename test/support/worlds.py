"""A world of what a test puts into it."""

from __future__ import annotations

from qvggt_core.synthetic import world as shapes


def made_world(**parts: object) -> shapes.World:
    """Return a world that holds some parts under a grey sky, lit from above the origin."""
    return shapes.World(
        name="made",
        seed=0,
        light=shapes.Light((0.0, 0.0, 5.0), 10.0),
        flight_low=(-1.0, -1.0, 0.0),
        flight_high=(1.0, 1.0, 2.0),
        **{"sky": (0.5, 0.5, 0.5), **parts},  # type: ignore[arg-type]
    )
