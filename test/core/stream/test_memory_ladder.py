"""Memory that runs out under a network: narrower slices, smaller windows, and back up again."""

from __future__ import annotations

import pytest
import torch
from support import known_room as room
from support.small_network import TINY, open_state
from support.streams import assert_true_up_to_the_unit, events, geometries, run, stamps, start

from qvggt_core.model import VGGT
from qvggt_core.model.dense_head import DenseHead
from qvggt_core.model.settings import ComputeSettings
from qvggt_core.stream import memory_ladder
from qvggt_core.stream.network import TorchNetwork

NO_MEMORY = (
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
)


class Room:
    """How many views there is memory for, and what was asked for."""

    def __init__(self, network, views, error=NO_MEMORY[0]):
        self.views, self.error, self.asked = views, error, []
        self._predict = network.predict
        network.predict = self.predict

    def predict(self, tokens, *rest, **known):
        self.asked.append(len(tokens))
        if len(tokens) > self.views:
            raise self.error
        return self._predict(tokens, *rest, **known)


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_window_shrinks_until_it_fits_and_no_frame_is_lost(error) -> None:
    poses = room.straight(40)
    reconstructor, network = start(poses, window_size=12, window_stride=2)
    has_room = Room(network, 5, error)
    frames = room.frames(poses)
    results = run(reconstructor, frames)
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert reconstructor.losses.gated == 0
    assert_true_up_to_the_unit(geometries(results), poses, network.units[0])
    (event,) = [text for text in events(results) if "memory ran out" in text]
    assert "the window has 3 views instead of 6" in event
    assert max(has_room.asked[-10:]) <= 5


def test_when_there_is_room_again_the_window_grows_to_what_was_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(memory_ladder, "_STEADY_RUNS", 2)
    poses = room.straight(140)
    reconstructor, network = start(poses, window_size=8, window_stride=2)
    has_room = Room(network, 4)
    frames = room.frames(poses)
    results = [r for frame in frames[:30] for r in reconstructor.add(frame)]
    assert has_room.asked[-1] <= 4
    has_room.views = 100
    results += run(reconstructor, frames[30:])
    assert max(has_room.asked[-3:]) == 8
    assert stamps(results) == [frame.stamp_ns for frame in frames]
    assert_true_up_to_the_unit(geometries(results), poses, network.units[0])


def test_frames_for_which_no_window_is_small_enough_are_counted_and_the_rest_goes_on() -> None:
    poses = room.straight(40)
    reconstructor, network = start(poses, window_size=8, window_stride=2)
    has_room = Room(network, 8)
    frames, done, failed = room.frames(poses), [], 0
    for index, frame in enumerate(frames):
        has_room.views = 1 if 10 <= index < 20 else 8
        try:
            done += reconstructor.add(frame)
        except MemoryError:
            failed += 1
    done += reconstructor.flush()
    assert failed > 0
    assert len(stamps(done)) + reconstructor.losses.gated == len(frames)
    assert stamps(done)[-10:] == [frame.stamp_ns for frame in frames[-10:]]


def test_other_failures_shrink_nothing() -> None:
    poses = room.straight(12)
    reconstructor, network = start(poses, window_size=8, window_stride=2)
    has_room = Room(network, 5, RuntimeError("a shape is wrong"))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        run(reconstructor, room.frames(poses))
    assert has_room.asked.count(6) == 1


def slices(network: TorchNetwork) -> ComputeSettings:
    return next(each.settings for each in network._model.modules() if isinstance(each, DenseHead))


def test_slices_get_narrower_before_the_window_and_wider_again(monkeypatch) -> None:
    monkeypatch.setattr(memory_ladder, "_STEADY_RUNS", 1)
    model = VGGT(TINY)
    model.load_state_dict(open_state())
    network = TorchNetwork(model)
    image = torch.randint(0, 255, (56, 56, 3), dtype=torch.uint8).numpy()
    tokens = [network.encode(image)] * 3
    whole = network.predict(tokens, 56, 56)
    compute, least, rows = network._predict_step, 512, []

    def starved(*arguments):
        rows.append(slices(network).mlp_rows)
        if rows[-1] > least:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return compute(*arguments)

    network._predict_step = starved
    found = network.predict(tokens, 56, 56)
    assert rows == [2048, 1024, 512]
    assert torch.allclose(torch.from_numpy(found.depth), torch.from_numpy(whole.depth), rtol=1e-4)
    least = 4096
    for _ in range(40):
        network.predict(tokens, 56, 56)
    assert slices(network) == ComputeSettings()
    least = 0
    with pytest.raises(RuntimeError, match="allocate"):
        network.predict(tokens, 56, 56)
    assert slices(network).mlp_rows == 256
