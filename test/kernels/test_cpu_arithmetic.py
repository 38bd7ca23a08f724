"""The CPU's fast paths beside their yardsticks: integers to the bit, attention to rounding."""

from __future__ import annotations

import threading

import pytest
import torch
from qvggt_kernels import (
    Int4Linear,
    IntegerLinear,
    attention,
    capability,
    cpu,
    cpu_attention,
    cpu_integer,
    dequantize,
    fastest_linears,
    integer,
    pack,
    pack_integer,
    requantize,
)
from torch.nn import functional as F

from qvggt_core.model import VGGT, ComputeSettings, ModelConfig

pytestmark = pytest.mark.usefixtures("cpu_code")


def words_of(rows, columns, group_size=32, zeros=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=generator)
    shape = (rows, columns // group_size)
    scales = (torch.rand(shape, generator=generator) * 0.01 + 0.001).bfloat16()
    points = torch.randint(0, 16, shape, generator=generator).to(torch.uint8) if zeros else None
    return pack(q, group_size), scales, points


def tokens(*shape, dtype=torch.float32, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def small_slices(monkeypatch):
    """Slices of a few rows, so that small cases have several and a ragged last one."""
    monkeypatch.setattr(capability, "slice_size", lambda: 700)
    monkeypatch.setattr(cpu_integer, "_PRODUCT_ROWS", 10)


# --- requantized weights --------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("rows", "columns", "group"), [(1, 32, 32), (41, 192, 64), (64, 256, 128)])
def test_a_requantized_weight_is_the_exact_one_in_127_steps(rows, columns, group, zeros):
    words, scales, points = words_of(rows, columns, group, zeros)
    weight = dequantize(words, scales, torch.float64, points)
    q8, row_scale = requantize(words, scales, points)
    assert torch.allclose(row_scale.double() * 127, weight.abs().amax(1), rtol=1e-6)
    assert int(q8.abs().max()) == 127
    error = (q8.double() * row_scale.double()[:, None] - weight).abs()
    assert (error <= 0.5001 * row_scale.double()[:, None]).all()


def test_halves_are_rounded_to_even():
    """A row whose largest weight is 127 in units of its scale, and one that lies half between."""
    q = torch.zeros(1, 64, dtype=torch.int8)
    q[0, 0], q[0, 32:36] = -8, torch.tensor([1, 3, -1, -3], dtype=torch.int8)
    scales = torch.tensor([[127 / 8, 0.5]]).bfloat16()
    q8, row_scale = requantize(pack(q, 32), scales)
    assert row_scale.tolist() == [1.0]
    assert q8[0, [0, 32, 33, 34, 35]].tolist() == [-127, 0, 2, 0, -2]


def test_a_row_of_zeros_stays_zero():
    words, scales, _ = words_of(3, 64)
    scales[1] = 0
    q8, row_scale = requantize(words, scales)
    assert row_scale[1] == 1
    assert (q8[1] == 0).all()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_cpu_requantizes_to_the_same_bits(small_slices, rows, zeros):
    words, scales, points = words_of(rows, 192, 64, zeros, seed=rows)
    scales[0] = 0
    q8, row_scale = requantize(words, scales, points)
    fast_q8, fast_scale = cpu_integer.requantize(words, scales, points)
    assert torch.equal(fast_q8, q8)
    assert torch.equal(fast_scale, row_scale)


# --- linears --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [0, 1, 10, 33])
@pytest.mark.parametrize("zeros", [False, True])
def test_int4_in_integers_is_the_yardstick_to_the_bit(small_slices, dtype, count, zeros):
    words, scales, points = words_of(23, 192, 64, zeros)
    x, bias = tokens(count, 192, dtype=dtype), tokens(23, dtype=dtype) if zeros else None
    x[:1] = 0
    q8, row_scale = requantize(words, scales, points)
    expected = integer.integer_linear(x, q8.t(), row_scale, bias, 8)
    assert torch.equal(cpu_integer.int4_linear_int8(x, words, scales, bias, points), expected)


@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize("activation_bits", [8, 4])
@pytest.mark.parametrize("library", [True, False])
def test_integer_linears_are_the_yardstick_to_the_bit(
    small_slices, monkeypatch, weight_bits, activation_bits, library
):
    monkeypatch.setattr(capability, "multiplies_integers", lambda: library)
    limit = 2 ** (weight_bits - 1)
    q = torch.randint(-limit, limit, (24, 1100), dtype=torch.int8)
    packed, scales, clip = pack_integer(q, weight_bits), torch.rand(24), torch.tensor(0.8)
    x, bias = tokens(2, 13, 1100), tokens(24)
    arguments = (x, packed, scales, bias, activation_bits, clip)
    assert torch.equal(cpu_integer.integer_linear(*arguments), integer.integer_linear(*arguments))


def test_results_do_not_live_in_a_scratch():
    words, scales, _ = words_of(24, 64)
    x = tokens(5, 64)
    first = cpu_integer.int4_linear_int8(x, words, scales, None)
    kept = first.clone()
    cpu_integer.int4_linear_int8(tokens(5, 64, seed=4), *words_of(24, 64, seed=1)[:2], None)
    assert torch.equal(first, kept)


def test_threads_do_not_share_a_scratch():
    weights = [words_of(128, 128, seed=seed)[:2] for seed in range(4)]
    x = tokens(16, 128)
    expected = [cpu_integer.int4_linear_int8(x, *weight, None) for weight in weights]
    wrong = []
    start = threading.Barrier(len(weights))

    def work(index):
        start.wait()
        for _ in range(50):
            y = cpu_integer.int4_linear_int8(x, *weights[index], None)
            if not torch.equal(y, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(weights))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_layer_multiplies_integers_when_it_is_told_to_and_no_gradient_is_recorded():
    _, scales, _ = words_of(24, 64)
    q = torch.randint(-8, 8, (24, 64), dtype=torch.int8)
    layer = Int4Linear.from_quantized(q, scales)
    x = tokens(7, 64)
    exact = layer(x)
    layer.arithmetic = "int8"
    assert torch.equal(layer(x), exact), "gradients are on: they need the differentiable path"
    with torch.no_grad():
        rounded = layer(x)
        assert torch.equal(
            rounded, cpu_integer.int4_linear_int8(x, layer.qweight, layer.scales, None)
        )
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_integer_layers_take_bfloat16_as_it_comes():
    q = torch.randint(-128, 128, (24, 64), dtype=torch.int8)
    layer = IntegerLinear.from_quantized(q, torch.rand(24), weight_bits=8, activation_bits=8)
    x = tokens(7, 64, dtype=torch.bfloat16)
    assert torch.equal(layer(x), layer(x.float()).bfloat16())


def test_a_network_is_told_and_its_camera_head_keeps_floats():
    with torch.device("meta"):
        network = VGGT(ModelConfig.vggt_1b())
    for part in (network.aggregator.frame_blocks[0].mlp, network.camera_head.trunk[0].mlp):
        part.fc1 = Int4Linear(
            part.fc1.in_features, part.fc1.out_features, group_size=128, device="meta"
        )
    network.configure(ComputeSettings(linears="int8"))
    assert network.aggregator.frame_blocks[0].mlp.fc1.arithmetic == "int8"
    assert network.camera_head.trunk[0].mlp.fc1.arithmetic == "float"
    network.configure(ComputeSettings())
    assert network.aggregator.frame_blocks[0].mlp.fc1.arithmetic == "float"


# --- attention ------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(("length", "sequence"), [(1, 7), (130, 130), (200, 333)])
@pytest.mark.parametrize("onednn", [True, False])
def test_tiled_attention_is_the_formula(monkeypatch, dtype, tolerance, length, sequence, onednn):
    monkeypatch.setattr(capability, "prefers_onednn", lambda: onednn)
    monkeypatch.setattr(cpu_attention, "_TILE_SCORES", 1)
    q = tokens(2, length, 3, 16, dtype=dtype).transpose(1, 2)
    k, v = (tokens(2, sequence, 3, 16, dtype=dtype, seed=seed).transpose(1, 2) for seed in (4, 5))
    scores = q.double() @ k.double().transpose(2, 3) / 4.0
    expected = scores.softmax(-1) @ v.double()
    out = cpu_attention.tiled(q, k, v)
    assert out.dtype == dtype
    assert (out.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("tiles", [True, False])
def test_attention_is_the_librarys_to_rounding_and_one_operator(monkeypatch, tiles):
    monkeypatch.setattr(capability, "tiles_attention", lambda: tiles)
    q, k, v = (tokens(1, 150, 2, 16, seed=seed).transpose(1, 2) for seed in range(3))
    assert torch.allclose(attention(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)
    torch.library.opcheck(torch.ops.qvggt.attention.default, (q, k, v))
    with torch.no_grad():
        compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(q, k, v), attention(q, k, v))


def test_gradients_pass_through_attention():
    q, k, v = (tokens(1, 2, 150, 16, seed=seed).requires_grad_() for seed in range(3))
    attention(q, k, v).sum().backward()
    twins = [part.detach().double().requires_grad_() for part in (q, k, v)]
    ((twins[0] @ twins[1].transpose(2, 3) / 4.0).softmax(-1) @ twins[2]).sum().backward()
    for part, twin in zip((q, k, v), twins, strict=True):
        assert torch.allclose(part.grad.double(), twin.grad, atol=1e-5)


# --- the choice -----------------------------------------------------------------------------


@pytest.mark.parametrize("onednn", [True, False])
def test_both_libraries_multiply_float32(monkeypatch, onednn):
    monkeypatch.setattr(capability, "prefers_onednn", lambda: onednn)
    x, weight, bias = tokens(2, 5, 64), tokens(24, 64), tokens(24)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert (cpu.linear(x, weight, bias).double() - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize(
    ("vnni", "amx", "expected"),
    [(False, False, "float"), (True, False, "int8"), (True, True, "float")],
)
def test_integers_are_for_cpus_that_have_instructions_for_nothing_better(
    monkeypatch, vnni, amx, expected
):
    monkeypatch.setattr(capability, "_has_vnni", lambda: vnni)
    monkeypatch.setattr(capability, "has_amx", lambda: amx)
    assert fastest_linears("cpu") == expected
    assert fastest_linears("cuda:0") == "float"


def test_this_cpus_instruction_sets_can_be_asked_for():
    assert fastest_linears("cpu") in ("float", "int8")


def test_probes_run_in_any_context_and_once():
    for probe in (capability.prefers_onednn, capability.tiles_attention):
        probe.cache_clear()
        with torch.device("meta"), torch.enable_grad():
            first = probe()
        assert probe() == first
        assert probe.cache_info().misses == 1
