"""A session tolerates whatever is sent: only geometry comes out, and every image is counted."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from support.hostile_messages import KINDS, Hostile
from support.recordings import (
    M,
    RoomNetwork,
    header,
    image_message,
    stamp_of,
)
from support.streams import geometries

from qvggt_core.parameters import Parameters
from qvggt_core.stream import Reconstructor
from qvggt_core.stream.frame import Frame
from qvggt_ros.publishing import Driver
from qvggt_ros.session import ReconstructionSession

KNOWN = Parameters(
    confirm=False, refine=False, keyframe_min_motion=0.0, window_size=4, window_stride=2
)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_hostile_messages(seed, live):
    """Longer: `python -m torture.messages`."""
    rng = random.Random(f"{seed} {live}")
    hostile = Hostile(rng, live=live)
    for index in range(40):
        hostile.send(rng.choice(("image", "image", *KINDS)), index)
    assert hostile.unaccounted() == 0
    assert hostile.wrong == []


def session_of(live=True):
    reconstructor = Reconstructor(RoomNetwork(), KNOWN)
    return ReconstructionSession(
        reconstructor, KNOWN, Driver(M, lambda topic, message, stamp: None), live=live
    )


def accounted(session):
    counters = session.counters
    done = counters.published + counters.losses.gated + counters.losses.withheld
    return done + sum(counters.rejected.values())


@pytest.mark.parametrize("live", [True, False])
def test_images_of_one_stamp_are_counted(live):
    session = session_of(live)
    for _ in range(24):
        session.on_image(image_message(0, header=header(0, stamp_ns=0)))
    session.finish()
    assert session.counters.rejected == {"an image has the stamp of its predecessor": 23}
    assert session.counters.published == 1


def test_images_that_wait_when_everything_is_reset_are_counted():
    session = session_of()
    for turn in range(5):
        for index in range(3):
            session.on_image(image_message(index, header=header(6 * index)))
        assert session.counters.segments == turn + 1
    session.reset()
    assert session.counters.received == 15
    assert accounted(session) == 15
    assert session.counters.losses.gated == 5


def test_images_without_their_first_camera_are_counted():
    parameters = KNOWN.with_values(cameras=("front", "left"))
    session = ReconstructionSession(
        Reconstructor(RoomNetwork(), parameters),
        parameters,
        Driver(M, lambda topic, message, stamp: None),
    )
    session.on_images({"front": image_message(0, encoding="none"), "left": image_message(0)})
    session.on_images({"left": image_message(1)})
    assert sum(session.counters.rejected.values()) == session.counters.received == 3


class SpoiledNetwork(RoomNetwork):
    """Knows the room, but its second window has a fault."""

    def __init__(self, name, value):
        super().__init__()
        self.name, self.value, self.windows = name, value, 0

    def predict(self, tokens, height, width, newest=None):
        found = super().predict(tokens, height, width, newest)
        self.windows += 1
        if self.windows != 2:
            return found
        values = getattr(found, self.name).copy()
        place = {"camera_from_world": 5, "intrinsics": 4, "confidence": -1}[self.name]
        values.reshape(-1)[place] = self.value
        return replace(found, **{self.name: values})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("camera_from_world", value) for value in (np.nan, np.inf, 1e300, 3.0)),
        *(("intrinsics", value) for value in (np.nan, np.inf, -1.0)),
    ],
)
def test_a_window_with_impossible_cameras_is_left_out_and_the_next_one_placed(name, value):
    """A rotation of 1e300 kept LAPACK busy for ever."""
    reconstructor = Reconstructor(SpoiledNetwork(name, value), KNOWN)
    frames = [
        Frame(stamp_of(index), image_message(index).data.reshape(42, 56, 3), None, "camera")
        for index in range(12)
    ]
    found = geometries([r for frame in frames for r in reconstructor.add(frame)])
    assert reconstructor.losses.not_finite == 1
    assert len(found) >= 10
    for geometry in found:
        assert np.isfinite(geometry.map_from_camera).all()
        assert np.isfinite(geometry.intrinsics).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -3.0])
def test_a_confidence_that_is_none_is_the_least_of_the_others(value):
    reconstructor = Reconstructor(SpoiledNetwork("confidence", value), KNOWN)
    for index in range(8):
        image = image_message(index).data.reshape(42, 56, 3)
        for geometry in geometries(reconstructor.add(Frame(stamp_of(index), image))):
            assert np.isfinite(geometry.confidence).all()
            assert (geometry.confidence >= 1.0).all()


class FailingNetwork(RoomNetwork):
    """Fails for some windows, as a device does that runs out of memory."""

    def __init__(self, failing):
        super().__init__()
        self.failing, self.windows = failing, 0

    def predict(self, tokens, height, width, newest=None):
        self.windows += 1
        if self.windows in self.failing:
            raise RuntimeError("out of memory")
        return super().predict(tokens, height, width, newest)


@pytest.mark.parametrize("failing", [{2}, {3}, {2, 3}, {2, 3, 4}, {3, 4, 6, 7}])
def test_images_of_windows_for_which_the_network_raises_are_counted(failing):
    """Also where it raises for the last window of one camera, or the first of the next."""
    parameters = KNOWN.with_values(window_stride=1)
    session = ReconstructionSession(
        Reconstructor(FailingNetwork(failing), parameters),
        parameters,
        Driver(M, lambda topic, message, stamp: None),
    )
    for index in range(9):
        camera = "front" if index % 4 < 2 else "back"
        message = image_message(index, header=header(index, camera))
        with suppress(RuntimeError):
            session.on_image(message)
    with suppress(RuntimeError):
        session.finish()
    session.reset()
    assert session.counters.received == accounted(session) == 9
