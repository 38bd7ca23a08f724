"""A forward pass that waits for its device can be captured, and one that looks at images cannot."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.small_network import TINY

from qvggt_core.errors import BenchmarkError
from qvggt_core.measure.candidates import (
    CONTENDERS,
    GRAPH,
    INT4_FP8,
    build,
    only_on_a_gpu,
)
from qvggt_core.measure.graphed_forward import Crossings, GraphedForward
from qvggt_core.quantize.random_checkpoint import write_random_checkpoint
from qvggt_core.stream.graphs import GraphCache, graphed

IMAGES = torch.linspace(0, 1, 24).view(1, 2, 3, 2, 2)


class Stream:
    """A device whose graphs have the numbers of the run before them, and give none back."""

    def __init__(self) -> None:
        self.captures = False

    def capture(self, step, x, constants):
        def replay(images):
            self.captures = True
            try:
                return step(images, *constants)
            finally:
                self.captures = False

        replay(x.to("meta"))  # whose numbers cannot be read
        return replay


def graphed_on(stream: Stream, forward) -> GraphedForward:
    cache_of = partial(GraphCache, capture=stream.capture)
    return GraphedForward(forward, cache_of, lambda: stream.captures)


def tables(images, heads):
    """As the original's rotary tables: their length is read back, and depends on the shape."""
    length = int(torch.arange(images.shape[1], device=images.device).max()) + 1
    return dict.fromkeys(heads, images * length)


def test_numbers_that_a_run_read_are_given_again_without_reading():
    crossings = Crossings()
    with crossings.recording():
        assert [int(torch.tensor(3)), torch.tensor(0.5).item()] == [3, 0.5]
    with crossings.replaying():
        # Of other tensors of the same shape: what is returned is what was recorded.
        assert [int(torch.tensor(7)), torch.tensor(9.0).item()] == [3, 0.5]
        with pytest.raises(RuntimeError, match="__bool__"):
            bool(torch.tensor(True))


def test_a_copy_to_another_device_is_given_again_and_one_of_type_is_made():
    crossings = Crossings()
    with crossings.recording():
        first = torch.zeros(2).to("meta")
        assert torch.ones(1).to(torch.float64).dtype == torch.float64
    with crossings.replaying():
        assert torch.zeros(2).to("meta") is first
        assert torch.full((1,), 4.0).to(torch.float64).numpy() == [4.0]


def test_a_new_recording_takes_the_place_of_the_former_one():
    crossings = Crossings()
    for value in (1, 2):
        with crossings.recording():
            assert int(torch.tensor(value)) == value
    with crossings.replaying():
        assert int(torch.tensor(5)) == 2


def test_a_forward_pass_that_reads_its_own_sizes_is_captured():
    stream = Stream()
    forward = graphed_on(stream, tables)
    found = forward(IMAGES, ["depth", "pose"])
    assert list(found) == ["depth", "pose"]
    assert torch.equal(found["depth"], 2 * IMAGES)
    assert torch.equal(forward(IMAGES + 1, ["depth"])["depth"], 2 * IMAGES + 2)


def test_a_forward_pass_that_decides_by_its_images_is_refused():
    def decides(images, heads):
        return {"depth": images * float(images.mean())}

    with pytest.raises(BenchmarkError, match="deviates"):
        graphed_on(Stream(), decides)(IMAGES**3, ["depth"])


def test_what_cannot_be_captured_is_an_error_and_not_a_run_without_a_graph():
    def fails(step, x, constants):
        raise RuntimeError("operation not permitted when stream is capturing")

    forward = GraphedForward(tables, partial(GraphCache, capture=fails), lambda: False)
    with pytest.raises(BenchmarkError, match="not permitted when stream is capturing"):
        forward(IMAGES, ["depth"])
    on_a_cpu = GraphedForward(tables, partial(graphed, device=torch.device("cpu")), lambda: False)
    with pytest.raises(BenchmarkError, match="no CUDA device"):
        on_a_cpu(IMAGES, ["depth"])


def test_without_a_gpu_graphs_are_named_and_not_measured(tmp_path):
    path = tmp_path / "tiny.safetensors"
    write_random_checkpoint(path, TINY)
    names = [name for name in CONTENDERS if name.endswith(GRAPH)]
    assert len(names) == 5
    assert all("CUDA" in only_on_a_gpu(name) for name in names)
    assert only_on_a_gpu(INT4_FP8)
    with pytest.raises(BenchmarkError, match="need a CUDA device"):
        build([names[1]], path, ("camera", "depth"), torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_equal_runs_on_a_cuda_device(tmp_path):
    path = tmp_path / "tiny.safetensors"
    write_random_checkpoint(path, TINY)
    heads, device = ("camera", "depth"), torch.device("cuda")
    images = torch.rand(1, 2, 3, 28, 42, device=device)
    names = [n for n in CONTENDERS if not n.startswith("original") and n + GRAPH in CONTENDERS]
    for name in names:
        eager, replayed = build([name, name + GRAPH], path, heads, device)[::-1]
        with torch.inference_mode():
            wanted, found = (each.forward(images, heads) for each in (eager, replayed))
        for head, values in wanted.items():
            assert torch.allclose(values, found[head], rtol=0.02, atol=0.02), (name, head)
