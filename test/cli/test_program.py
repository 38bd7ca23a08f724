"""The network as a program: few operators, no waiting for the device, one traceable graph."""

from dataclasses import replace

import pytest
import torch
from qvggt_kernels import GROUP_SIZES, Int4Linear
from support.small_network import ENCODED
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qvggt_core.model import VGGT, ComputeSettings, EncoderConfig, ModelConfig, Prediction

MAX_OPERATORS = 1500
"""The original launches 4,294 operators that are no views, and waits for the device 96 times."""

NARROW = replace(
    ENCODED,
    depth=24,
    num_heads=4,
    encoder=EncoderConfig(64, 24, 4),
    camera_num_heads=4,
    taps=(4, 11, 17, 23),
)
"""VGGT-1B's depths: 24 encoder, 24 frame and 24 global blocks, 4 x 4 camera blocks, two heads."""

READS_OF_THE_DEVICE = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique"}
"""Operators whose result the host needs before it can go on."""


class Operators(TorchDispatchMode):
    """Counts the operators that a program launches."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: dict[str, int] = {}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if not function.is_view and function.overloadpacket.__name__ not in VIEWS:
            name = function.overloadpacket.__name__
            self.launched[name] = self.launched.get(name, 0) + 1
        return function(*arguments, **(named or {}))


VIEWS = {"_unsafe_view", "detach", "empty", "_reshape_alias"}
"""Operators that compute nothing and are not marked as views."""


def make(config: ModelConfig = NARROW, dtype: torch.dtype = torch.float32) -> VGGT:
    torch.manual_seed(0)
    model = VGGT(config).initialise().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma") or "token" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.to_compute(dtype)


def with_int4_linears(model: VGGT) -> VGGT:
    """Replace the linears of all blocks by packed ones of random weights."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.in_features % min(GROUP_SIZES) == 0:
                out, columns = child.weight.shape
                q = torch.randint(-8, 8, (out, columns), dtype=torch.int8)
                scales = torch.full((out, columns // 32), 0.01, dtype=torch.bfloat16)
                setattr(module, name, Int4Linear.from_quantized(q, scales, child.bias))
    return model


def images(frames: int = 2, height: int = 42, width: int = 56) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, frames, 3, height, width, generator=generator)


@pytest.mark.parametrize("int4", [False, True], ids=["full precision", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_pass_launches_few_operators_and_never_waits(dtype, int4) -> None:
    model = make(dtype=dtype)
    if int4:
        with_int4_linears(model)
    pictures = images()
    # Without inference mode, composite operators come apart into those that are launched.
    with torch.no_grad():
        model(pictures)  # fills the tables of this grid
        with Operators() as operators:
            model(pictures)
    counted = sum(operators.launched.values())
    assert not READS_OF_THE_DEVICE & operators.launched.keys()
    assert counted <= MAX_OPERATORS, dict(
        sorted(operators.launched.items(), key=lambda item: -item[1])
    )
    if int4:
        # Four linears in each of 72 blocks, and in four camera blocks four times.
        assert operators.launched["int4_linear"] >= 72 * 4 + 4 * 4 * 4
    # The counter sees what it must see.
    assert operators.launched["layer_norm_add_"] == 72 + 16
    assert operators.launched["qk_norm_rope_"] == 48


def test_the_first_pass_on_a_grid_waits_no_more_than_the_next() -> None:
    model = make()
    with torch.inference_mode(), Operators() as operators:
        model(images())
    assert not READS_OF_THE_DEVICE & operators.launched.keys()


def test_the_counter_sees_a_wait() -> None:
    with Operators() as operators:
        int(torch.arange(3).max())
    assert READS_OF_THE_DEVICE & operators.launched.keys()


def test_the_whole_forward_pass_is_one_graph() -> None:
    model = with_int4_linears(make())
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    with torch.no_grad():
        assert_equal(compiled(images()), model(images()), exact=True)


def test_the_graph_is_right_when_writes_in_place_become_functional() -> None:
    sizes = {"encoder": EncoderConfig(64, 1, 4), "depth": 4, "taps": (0, 1, 2, 3)}
    model = make(replace(NARROW, **sizes, camera_trunk_depth=1, camera_iterations=2))
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        assert_equal(compiled(images()), model(images()), exact=False)


def assert_equal(one: Prediction, other: Prediction, *, exact: bool) -> None:
    for name in ("depth", "depth_confidence", "points", "points_confidence"):
        a, b = getattr(one, name), getattr(other, name)
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-4, atol=1e-5), name
    for a, b in zip(one.pose_encodings, other.pose_encodings, strict=True):
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_tables_kept_per_grid_are_those_of_the_weights_as_they_are_now() -> None:
    model = make(replace(NARROW, encoder=EncoderConfig(64, 1, 4)))
    encoder = model.aggregator.patch_embed
    pictures = images(1)
    with torch.no_grad():
        before = model.encode(pictures)
        assert torch.equal(model.encode(pictures), before)
        encoder.pos_embed.mul_(2)
        changed = model.encode(pictures)
        assert not torch.allclose(changed, before)
        fresh = VGGT(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh.encode(pictures), changed)
        assert len(encoder._tables) == 1
    # Gradients reach the embedding although a table was kept.
    encoder.pos_embed.requires_grad_(True)
    model.encode(pictures).sum().backward()
    assert encoder.pos_embed.grad is not None


def test_8_bit_attention_is_everywhere_but_in_the_camera_head() -> None:
    model, pictures = make(), images()
    with torch.no_grad():
        exact = model(pictures)
        model.configure(ComputeSettings(attention="int8"))
        with Operators() as operators:
            rounded = model(pictures)
        model.configure(ComputeSettings())
        assert_equal(model(pictures), exact, exact=True)
    assert operators.launched["int8_attention"] == 72
    # Something was rounded, by little.
    assert not torch.equal(rounded.depth, exact.depth)
    assert torch.allclose(rounded.depth, exact.depth, rtol=0.05)
    # Gradients go through attention as it is.
    model.configure(ComputeSettings(attention="int8"))
    model.aggregator.camera_token.requires_grad_(True)
    model(pictures).depth.mean().backward()
    assert model.aggregator.camera_token.grad is not None
