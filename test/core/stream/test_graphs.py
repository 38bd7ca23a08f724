"""Steps that are replayed per shape: when one is captured, which are kept, and what if it fails."""

import pytest
import torch
from support.torch_network import images, network

from qvggt_core.stream import TorchNetwork
from qvggt_core.stream.graphs import GraphCache, graphed


class Recorder:
    """Captures by noting what for, and replays by computing."""

    def __init__(self) -> None:
        self.captured: list[tuple[int, ...]] = []
        self.replayed = 0

    def __call__(self, step, x, constants):
        self.captured.append((len(x), *constants))

        def replay(other):
            self.replayed += 1
            return step(other, *constants)

        return replay


def double_plus(x: torch.Tensor, more: int = 0) -> tuple[torch.Tensor, ...]:
    return (2 * x + more,)


def test_a_shape_is_captured_when_it_comes_again_and_replayed_from_then_on() -> None:
    capture = Recorder()
    step = GraphCache(double_plus, capture)
    for times in range(4):
        (out,) = step(torch.full((3,), float(times)), 1)
        assert out.tolist() == [2.0 * times + 1] * 3
        assert capture.captured == ([(3, 1)] if times else [])
        assert capture.replayed == times


def test_shapes_dtypes_and_constants_have_graphs_of_their_own() -> None:
    capture = Recorder()
    step = GraphCache(double_plus, capture)
    for x in (torch.zeros(2), torch.zeros(3), torch.zeros(3, dtype=torch.float64)):
        for constant in (0, 1):
            step(x, constant)
            step(x, constant)
    assert len(capture.captured) == 6


def test_only_the_graphs_used_last_are_kept() -> None:
    capture = Recorder()
    step = GraphCache(double_plus, capture, kept=2)

    def use(size: int) -> None:
        step(torch.zeros(size))

    for size in (1, 1, 2, 2, 1, 3, 3):
        use(size)
    assert [size for (size,) in capture.captured] == [1, 2, 3]
    use(1)  # was used after 2, so that 2 had to go
    assert [size for (size,) in capture.captured] == [1, 2, 3]
    use(2)
    assert [size for (size,) in capture.captured] == [1, 2, 3, 2]


def test_where_capturing_fails_the_step_runs_as_it_is(caplog) -> None:
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    step = GraphCache(double_plus, refuse)
    for times in range(3):
        (out,) = step(torch.full((2,), float(times)))
        assert out.tolist() == [2.0 * times] * 2
    assert step.failure == "operation not permitted when stream is capturing"
    assert caplog.text.count("without CUDA graphs") == 1


def test_an_error_of_the_step_itself_is_no_failure_of_graphs() -> None:
    def wrong(_):
        raise RuntimeError("shapes do not fit")

    step = GraphCache(wrong, Recorder())
    with pytest.raises(RuntimeError, match="do not fit"):
        step(torch.zeros(1))
    assert not step.failure


def test_a_cpu_does_without_graphs() -> None:
    assert graphed(double_plus, torch.device("cpu")) is double_plus


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_equal_runs_on_a_cuda_device(dtype) -> None:
    _, model = network(dtype)
    model.to("cuda")
    plain = TorchNetwork(model, "cuda")
    replaying = TorchNetwork(model, "cuda", cuda_graphs=True)
    for count in (2, 3, 2, 3, 2, 3, 2):
        tokens = [[each.encode(p) for p in images(count)] for each in (plain, replaying)]
        wanted = plain.predict(tokens[0], 42, 56, 2)
        found = replaying.predict(tokens[1], 42, 56, 2)
        for name in ("camera_from_world", "depth", "confidence"):
            a, b = (torch.from_numpy(getattr(each, name)) for each in (wanted, found))
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3), name
    assert replaying._predict_step.failure == replaying._encode_step.failure == ""
    assert len(replaying._predict_step._graphs) == 2
