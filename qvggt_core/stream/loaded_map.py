"""What finds loops, or the camera in the saved map that the parameters name; and its map."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qvggt_core.errors import MapError
from qvggt_core.stream.load_network import LoadedNetwork, checkpoint_sha256
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.loop_finder import LoopFinder
from qvggt_core.stream.map_adjustment import FAILURES
from qvggt_core.stream.saved_map import SavedMap, read_map

logger = logging.getLogger(__name__)


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
    loops = LoopClosure(in_background, saved, parameters.localization_only)
    return replace(loaded, parameters=parameters), loops


def map_so_far(loops: LoopClosure, network: str, up_source: str, name: str = "map") -> SavedMap:
    """Return the map of this flight, or what it has made of the loaded one.

    Args:
        loops: has its keyframes; waits for what is still being looked for.
        network: SHA-256 of the checkpoint.
        up_source: what the flight's vertical stands on; a loaded map keeps its own.
        name: of a map that was not loaded.

    Raises:
        MapError: there are no keyframes, or the map is one that is not changed.
    """
    loops.finish()
    return _map_of(_growing(loops), loops.saved, network, up_source, name)


def adjusted_map_so_far(
    loops: LoopClosure, network: str, up_source: str, name: str = "map"
) -> Callable[[], SavedMap]:
    """Take the map as `map_so_far` does; what is returned adjusts all of it, in any thread.

    Raises:
        MapError: see `map_so_far`.
    """
    loops.finish()
    finder, loaded = _growing(loops).copy(), loops.saved

    def adjusted() -> SavedMap:
        try:
            finder.adjust()
        except FAILURES as error:
            logger.warning("the map is saved as loops have it, not adjusted: %r", error)
        return _map_of(finder, loaded, network, up_source, name)

    return adjusted


def _growing(loops: LoopClosure) -> LoopFinder:
    finder = loops.finder
    if not isinstance(finder, LoopFinder):
        raise MapError(
            f"the map {finder.saved.name} is not changed, so there is none to save: with "
            "localization_only false it grows"
        )
    return finder


def _map_of(
    finder: LoopFinder, loaded: SavedMap | None, network: str, up_source: str, name: str
) -> SavedMap:
    if loaded is not None:
        up_source, name = loaded.up_source, loaded.name
    return SavedMap.of(finder, network, up_source, name)
