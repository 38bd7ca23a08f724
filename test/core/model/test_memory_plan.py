"""What a window takes in memory: the estimate against what was alive, and keeping to a budget."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from qvggt_kernels import is_one_pass
from support import small_network
from support.small_network import ENCODED
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qvggt_core.errors import ParameterError
from qvggt_core.model import VGGT, ComputeSettings, EncoderConfig, ModelConfig
from qvggt_core.model.memory_plan import WeightMemory, estimate_memory, plan_memory, weight_memory
from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import load_network

MEASURED = Path(__file__).parents[3] / "benchmarks/results/memory.json"
MIB = 1 << 20

SMALL = replace(
    ENCODED,
    img_size=140,
    embed_dim=128,
    num_heads=4,
    encoder=EncoderConfig(128, 1, 4),
    camera_trunk_depth=1,
    camera_num_heads=4,
    dpt_features=64,
    dpt_out_channels=(32, 64, 128, 128),
)


STACK = replace(
    small_network.STACK,
    embed_dim=128,
    num_heads=2,
    position_grid=10,
    dpt_features=64,
    dpt_out_channels=(32, 64, 128, 128),
    ray_head=False,
)


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operators made and that are still alive."""

    def __init__(self, model: VGGT) -> None:
        super().__init__()
        self.now = self.peak = 0
        weights = (*model.parameters(), *model.buffers())
        self._known = {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


def peak_of_a_window(model, frames, height, width, dense_frames=None) -> int:
    """Return the bytes that a window of random tokens has alive at its worst moment."""
    dtype = model.aggregator.camera_token.dtype
    patches = (height // 14) * (width // 14) + model.config.encoded_extra_tokens
    with torch.no_grad():
        tokens = torch.rand(1, frames, patches, model.config.embed_dim).to(dtype)
        model.forward_tokens(tokens, height, width)  # fills the tables
        with Alive(model) as alive:
            predicted = model.forward_tokens(tokens, height, width, newest=dense_frames)
            del predicted
    # The stream keeps what the window was stacked of.
    return alive.peak + 2 * tokens.numel() * tokens.element_size()


@pytest.mark.parametrize("config", [SMALL, STACK], ids=["VGGT", "stack"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("frames", "size", "dense", "settings"),
    [
        (24, 56, 1, ComputeSettings()),  # the worst moment is in a block
        (3, 140, None, ComputeSettings()),  # from here on it is in a dense head
        (6, 140, 2, ComputeSettings()),
        (12, 140, None, ComputeSettings(mlp_rows=256, dense_pixels=140 * 140)),
        (2, 280, None, ComputeSettings(dense_pixels=1)),
    ],
)
def test_the_estimate_is_what_was_alive(config, dtype, frames, size, dense, settings) -> None:
    torch.manual_seed(0)
    model = VGGT(config).initialise().to_compute(dtype).configure(settings)
    estimate = estimate_memory(
        config, weight_memory(model), frames, size, size, dtype, settings, dense
    )
    measured = peak_of_a_window(model, frames, size, size, dense)
    assert estimate.kept + estimate.working == pytest.approx(measured, rel=0.15)


def test_the_estimate_is_what_a_process_took_at_vggt_1bs_size() -> None:
    # Resident sets hold libraries' own memory too, some 80 MB: the tolerance is wider.
    measured = json.loads(MEASURED.read_text())
    weights = WeightMemory(stored=701_936_284, unpacked=75_497_472)
    for run in measured["runs"]:
        if run["keep_all"]:
            continue
        estimate = estimate_memory(
            replace(ModelConfig.vggt_1b(), point_head=False),
            weights,
            run["frames"],
            measured["height"],
            measured["width"],
            torch.bfloat16,
        )
        took = (run["peak_mib"] - run["interpreter_mib"]) * MIB
        assert estimate.total == pytest.approx(took, rel=0.15)


WEIGHTS = WeightMemory(stored=50_000_000, unpacked=0)


def plan(budget_mb: int, window_size: int = 8, min_window_size: int = 5):
    return plan_memory(
        budget_mb, SMALL, WEIGHTS, window_size, min_window_size, 280, 280, torch.float32
    )


def test_a_budget_that_suffices_changes_nothing() -> None:
    assert plan(1000).window_size == 8
    assert plan(1000).settings == ComputeSettings()


def test_a_tight_budget_takes_slices_first_and_then_views() -> None:
    full, sizes = plan(1000), []
    for budget in range(full.estimate.total // 10**6, 50, -1):
        try:
            found = plan(budget)
        except ParameterError:
            break
        assert found.estimate.total <= budget * 10**6
        if found.window_size < 8:
            # Not a view is given up while narrower slices would do.
            with_one_more = estimate_memory(
                SMALL, WEIGHTS, found.window_size + 1, 280, 280, torch.float32,
                ComputeSettings(mlp_rows=256, dense_pixels=280 * 280),
            )  # fmt: skip
            assert with_one_more.total > budget * 10**6
        sizes.append(found.window_size)
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {8, 7, 6, 5}
    assert plan(full.estimate.total // 10**6).settings != ComputeSettings()


def test_an_impossible_budget_says_what_is_needed() -> None:
    with pytest.raises(ParameterError) as refusal:
        plan(60)
    message = str(refusal.value)
    assert "weights take 50 MB" in message
    assert "5 views of 280x280" in message
    needed = int(message.split("at least ")[1].split(" MB")[0])
    assert plan(needed).window_size == 5
    with pytest.raises(ParameterError):
        plan(needed - 1)


def test_a_network_is_loaded_within_its_budget_and_says_so() -> None:
    unbounded = load_network(Parameters(compute_dtype="float32"))
    assert "memory" not in unbounded.facts
    with pytest.raises(ParameterError, match="give at least") as refusal:
        load_network(Parameters(compute_dtype="float32", memory_budget_mb=1))
    needed = int(str(refusal.value).split("at least ")[1].split(" MB")[0])
    bounded = load_network(Parameters(compute_dtype="float32", memory_budget_mb=needed))
    # The default stride of 4 needs one view more; a whole megabyte may hold another.
    size = bounded.parameters.window_size
    assert 5 <= size < 8
    assert f"of {needed} MB with windows of {size} (asked for: 8)" in bounded.facts["memory"]
    # What a run says of itself makes the same run again.
    assert load_network(bounded.parameters).parameters == bounded.parameters


def test_a_gpu_has_no_kernel_that_spares_maps_at_full_size() -> None:
    sizes = (3, 280, 280, torch.float32)
    here = estimate_memory(SMALL, WEIGHTS, *sizes)
    there = estimate_memory(SMALL, replace(WEIGHTS, device="cuda"), *sizes)
    spares = is_one_pass(SMALL.dpt_features // 2, torch.float32)
    assert (here.working < 0.7 * there.working) == spares
