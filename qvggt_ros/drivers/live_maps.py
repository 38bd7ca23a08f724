"""Saved maps of a reconstruction that runs: written, loaded, frozen or grown."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvggt_core.errors import MapError
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import checkpoint_sha256
from qvggt_core.stream.loaded_map import adjusted_map_so_far, map_so_far
from qvggt_core.stream.localiser import MapLocaliser
from qvggt_core.stream.loop_closure import LoopClosure
from qvggt_core.stream.saved_map import SavedMap, read_map, write_map
from qvggt_ros.publishing import new_map_path
from qvggt_ros.session import ReconstructionSession

_FILE_URL = "file://"
_OWN = "of this flight"


@dataclass
class LiveMaps:
    """What services do with saved maps; all of it in the worker's thread.

    Attributes:
        loops: finds loops, or the camera in a map.
        session: begins anew with each map.
        change_parameters: takes new values of parameters by name, and returns all.
    """

    loops: LoopClosure
    session: ReconstructionSession
    change_parameters: Callable[..., Parameters]

    def to_save(self) -> Callable[[], tuple[Path, int]]:
        """Take the keyframes as they are.

        Returns:
            What adjusts them and saves them into `map_directory`, and gives the map's directory and
            its number of keyframes. It takes seconds, or a minute, in a thread that has the time.
            It raises MapError if there are none, and OutputError if the map cannot be written.

        Raises:
            MapError: no keyframes are kept, or the map is one that is not changed.
        """
        parameters = self.change_parameters()
        if not parameters.loop_closure:
            raise MapError("no keyframes are kept: set loop_closure to true")
        up_source = str(self.session.up_values["up_source"])
        network = checkpoint_sha256(parameters)
        adjusted = adjusted_map_so_far(self.loops, network, up_source, _OWN)

        def save() -> tuple[Path, int]:
            saved = adjusted()
            path = new_map_path(parameters.map_directory, "keyframes")
            write_map(path, saved)
            return path, len(saved.keyframes)

        return save

    def load(self, place: str) -> str:
        """Look for the camera in a map from now on; return what happens, in a sentence.

        Args:
            place: name of a map in `map_directory`, a path, or a URL of a file.

        Raises:
            MapError: it cannot be read, or is of another network; all stays as it was.
        """
        parameters = self.change_parameters()
        path = map_path(place, parameters.map_directory)
        saved = read_map(path)
        saved.check_network(checkpoint_sha256(parameters))
        only = parameters.localization_only
        self._begin_with(saved, load_map=str(path), localization_only=only)
        return f"map {saved.name} of {len(saved.keyframes)} keyframes is loaded; {_what(only)}"

    def set_localization_only(self, only: bool) -> str:
        """Freeze the map, or let it grow; return what happens, in a sentence.

        Without a loaded map, the one of this flight becomes it.

        Raises:
            MapError: there is no map to freeze.
        """
        loaded = self.loops.saved
        if loaded is None and not only:
            self.change_parameters(localization_only=False)
            return "no map is loaded: that of this flight grows where loop_closure is on"
        if loaded is not None and isinstance(self.loops.finder, MapLocaliser) == only:
            self.change_parameters(localization_only=only)
            return f"map {loaded.name} is loaded already; {_what(only)}"
        saved = self._now("") if only else loaded
        assert saved is not None
        self._begin_with(saved, localization_only=only)
        return f"the camera is looked for in map {saved.name}; {_what(only)}"

    def _now(self, network: str) -> SavedMap:
        """Return the map as it has become; `network` is the SHA-256 of the checkpoint."""
        return map_so_far(self.loops, network, str(self.session.up_values["up_source"]), _OWN)

    def _begin_with(self, saved: SavedMap, localization_only: bool, **changes: Any) -> None:
        self.change_parameters(loop_closure=True, localization_only=localization_only, **changes)
        self.loops.begin_with(saved, localization_only)
        self.session.reset(f"the camera is looked for in map {saved.name}")


def map_path(place: str, map_directory: str) -> Path:
    """Return the directory of a map.

    Args:
        place: a name in `map_directory`, a path, or a URL of a file; `~` and variables as in a
            shell.
        map_directory: as the parameter has it.

    Raises:
        MapError: it is empty, or a URL of another kind.
    """
    if place.startswith(_FILE_URL):
        place = place[len(_FILE_URL) :]
    if not place or "://" in place:
        raise MapError(
            f"{place!r} is no place of a map: give a name in {map_directory}, a path, or file://"
        )
    directory = Path(os.path.expandvars(map_directory)).expanduser()
    return (directory / Path(os.path.expandvars(place)).expanduser()).absolute()


def _what(localization_only: bool) -> str:
    if localization_only:
        return "it stays as it is (localization_only)"
    return "new keyframes are added to it (localization_only is false)"
