"""What finds loops, or the camera in the saved map that the parameters name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qvggt_core.stream.load_network import LoadedNetwork, checkpoint_sha256
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.saved_map import read_map


def loops_of(
    loaded: LoadedNetwork, *, in_background: bool = False
) -> tuple[LoadedNetwork, LoopClosure]:
    """Return a network with the parameters that a map needs, and what finds loops or the camera.

    Args:
        loaded: the network and its parameters.
        in_background: see `LoopClosure`.

    Raises:
        MapError: the map cannot be read, or is of another network.
    """
    name = loaded.parameters.load_map
    if not name:
        return loaded, LoopClosure(in_background)
    saved = read_map(Path(name).expanduser())
    saved.check_network(checkpoint_sha256(loaded.parameters))
    parameters = loaded.parameters.with_values(loop_closure=True)
    return replace(loaded, parameters=parameters), LoopClosure(in_background, saved)
