"""The services of the ROS 2 node: each hands over, and answers when the worker has done it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from nav_msgs.srv import LoadMap
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from qvggt_core.errors import MapError
from qvggt_ros.drivers.live_maps import map_path
from qvggt_ros.drivers.live_session import LiveReconstruction

_CLEANED_UP = "the node was cleaned up meanwhile"


class NodeServices:
    """Answers `reset`, `save_map`, `save_keyframes`, `load_map` and `set_localization_only`."""

    def __init__(self, node: Any, running: Callable[[], LiveReconstruction]) -> None:
        """Offer the services.

        Args:
            node: an `rclpy` node.
            running: returns what the node runs; raises a `QvggtError` where it runs nothing.
        """
        self._node = node
        self._running = running
        # While one waits for the network, everything else goes on.
        group = ReentrantCallbackGroup()
        node.create_service(Trigger, "reset", self._on_reset, callback_group=group)
        node.create_service(Trigger, "save_map", self._on_save_map, callback_group=group)
        node.create_service(
            Trigger, "save_keyframes", self._on_save_keyframes, callback_group=group
        )
        node.create_service(LoadMap, "load_map", self._on_load_map, callback_group=group)
        node.create_service(
            SetBool, "set_localization_only", self._on_localization_only, callback_group=group
        )

    async def _on_reset(self, request: Any, response: Any) -> Any:
        return await self._answer(response, lambda live: live.reset(), "the map is forgotten")

    async def _on_save_map(self, request: Any, response: Any) -> Any:
        return await self._answer(response, lambda live: live.save_map(), "{0[1]} points in {0[0]}")

    async def _on_save_keyframes(self, request: Any, response: Any) -> Any:
        message = "{0[1]} keyframes in {0[0]}, for the parameter or the service load_map"
        return await self._answer(response, lambda live: live.save_keyframes(), message)

    async def _on_localization_only(self, request: Any, response: Any) -> Any:
        only = bool(request.data)
        return await self._answer(response, lambda live: live.set_localization_only(only), "{0}")

    async def _on_load_map(self, request: Any, response: Any) -> Any:
        """Load a saved map; of a failure the answer has a code, and the log the reason."""
        response.result = LoadMap.Response.RESULT_UNDEFINED_FAILURE
        logger, place = self._node.get_logger(), None
        try:
            live = self._running()
            place = map_path(request.map_url, live.parameters.map_directory)
            logger.info(await self._done(live.load_map(str(place))))
            response.result = LoadMap.Response.RESULT_SUCCESS
        except CancelledError:
            logger.error(_CLEANED_UP)
        except MapError as error:
            is_there = place is not None and place.is_dir()
            response.result = (
                LoadMap.Response.RESULT_INVALID_MAP_DATA
                if is_there
                else LoadMap.Response.RESULT_MAP_DOES_NOT_EXIST
            )
            logger.error(str(error))
        except Exception as error:
            logger.error(str(error))
        return response

    async def _answer(
        self, response: Any, do: Callable[[LiveReconstruction], Any], message: str
    ) -> Any:
        try:
            response.message = message.format(await self._done(do(self._running())))
            response.success = True
        except CancelledError:
            response.message = _CLEANED_UP
        except Exception as error:
            response.message = str(error)
        return response

    async def _done(self, work: concurrent.futures.Future) -> Any:
        """Wait for what another thread does, and return it; the executor goes on meanwhile."""
        executor = self._node.executor
        waiting = Future(executor=executor)

        def end(_: concurrent.futures.Future) -> None:
            waiting.set_result(None)
            executor.wake()

        work.add_done_callback(end)
        await waiting
        return work.result()
