"""The CPU's fast paths beside the reference: integers to the bit, attention to rounding."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from qvggt_kernels import (
    Int4Linear,
    IntegerLinear,
    PackedWeight,
    attention,
    cpu_features,
    dequantize,
    fastest_dtype,
    fastest_linears,
    native,
    pack,
    requantize,
)
from qvggt_kernels.cpu import attention as cpu_attention
from qvggt_kernels.cpu import integer as cpu_integer
from qvggt_kernels.cpu import linear as cpu_linear
from qvggt_kernels.reference import linear as reference
from support.concurrency import results_of_threads
from support.weights import integer_weight, normal, packed_weight
from torch.nn import functional as F

from qvggt_core.model import VGGT, ComputeSettings, ModelConfig

pytestmark = pytest.mark.usefixtures("cpu_code")


def tokens(*shape, dtype=torch.float32, seed=3):
    return normal(*shape, dtype=dtype, seed=seed)


@pytest.fixture
def small_slices(monkeypatch):
    """Slices of a few rows, so that small cases have several and a ragged last one."""
    monkeypatch.setattr(cpu_features, "slice_size", lambda: 700)
    monkeypatch.setattr(cpu_integer, "_PRODUCT_ROWS", 10)


# --- requantized weights --------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("rows", "columns", "group"), [(1, 32, 32), (41, 192, 64), (64, 256, 128)])
def test_a_requantized_weight_is_the_exact_one_in_127_steps(rows, columns, group, zeros):
    packed = packed_weight(rows, columns, group, zeros=zeros)
    weight = dequantize(packed, torch.float64)
    q8, row_scale, *_ = requantize(packed)
    q8 = q8.t()
    assert torch.allclose(row_scale.double() * 127, weight.abs().amax(1), rtol=1e-6)
    assert int(q8.abs().max()) == 127
    error = (q8.double() * row_scale.double()[:, None] - weight).abs()
    assert (error <= 0.5001 * row_scale.double()[:, None]).all()


def test_halves_are_rounded_to_even():
    """A row whose largest weight is 127 in units of its scale, and one that lies half between."""
    q = torch.zeros(1, 64, dtype=torch.int8)
    q[0, 0], q[0, 32:36] = -8, torch.tensor([1, 3, -1, -3], dtype=torch.int8)
    scales = torch.tensor([[127 / 8, 0.5]]).bfloat16()
    q8, row_scale, *_ = requantize(PackedWeight(pack(q, 32), scales))
    assert row_scale.tolist() == [1.0]
    assert q8[[0, 32, 33, 34, 35], 0].tolist() == [-127, 0, 2, 0, -2]


def test_a_row_of_zeros_stays_zero():
    weight = packed_weight(3, 64)
    weight.scales[1] = 0
    q8, row_scale, *_ = requantize(weight)
    assert row_scale[1] == 1
    assert (q8[:, 1] == 0).all()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_cpu_requantizes_to_the_same_bits(small_slices, rows, zeros):
    weight = packed_weight(rows, 192, 64, zeros=zeros, seed=rows)
    weight.scales[0] = 0
    expected, found = requantize(weight), cpu_integer.requantize(weight)
    assert torch.equal(found.qweight, expected.qweight)
    assert torch.equal(found.scales, expected.scales)


# --- linears --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [0, 1, 10, 33])
@pytest.mark.parametrize("zeros", [False, True])
def test_int4_in_integers_has_the_bits_of_the_reference(small_slices, dtype, count, zeros):
    bias = tokens(23, dtype=dtype) if zeros else None
    weight = packed_weight(23, 192, 64, zeros=zeros, bias=bias)
    x = tokens(count, 192, dtype=dtype)
    x[:1] = 0
    expected = reference.int4_linear_int8(x, weight)
    assert torch.equal(cpu_integer.int4_linear_int8(x, weight), expected)


@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize("activation_bits", [8, 4])
@pytest.mark.parametrize("library", [True, False])
def test_integer_linears_have_the_bits_of_the_reference(
    small_slices, monkeypatch, weight_bits, activation_bits, library
):
    monkeypatch.setattr(cpu_features, "multiplies_integers", lambda: library)
    tokens_as = {"activation_bits": activation_bits, "clip": torch.tensor(0.8)}
    weight = integer_weight(24, 1100, weight_bits, bias=tokens(24), **tokens_as)
    x = tokens(2, 13, 1100)
    expected = reference.integer_linear(x, weight)
    assert torch.equal(cpu_integer.integer_linear(x, weight), expected)


def test_results_do_not_live_in_a_scratch():
    first = cpu_integer.int4_linear_int8(tokens(5, 64), packed_weight(24, 64))
    kept = first.clone()
    cpu_integer.int4_linear_int8(tokens(5, 64, seed=4), packed_weight(24, 64, seed=1))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("dtype", sorted(cpu_linear.ENCODINGS, key=str))
def test_a_weight_without_rows_may_have_any_strides(dtype):
    empty = torch.empty_strided((0, 1, 8), (32, 32, 0), dtype=torch.int16)
    weight = PackedWeight(empty, torch.ones(0, 1, dtype=dtype))
    assert cpu_linear.dequantize(weight, dtype).shape == (0, 32)


def test_threads_do_not_share_a_scratch():
    weights = [packed_weight(128, 128, seed=seed) for seed in range(4)]
    x = tokens(16, 128)
    expected = [cpu_integer.int4_linear_int8(x, weight) for weight in weights]
    found = results_of_threads(lambda i: cpu_integer.int4_linear_int8(x, weights[i]), count=4)
    for index, result in found:
        assert torch.equal(result, expected[index])


def test_a_layer_of_integer_arithmetic_multiplies_integers_where_no_gradient_is_recorded():
    q = torch.randint(-8, 8, (24, 64), dtype=torch.int8)
    layer = Int4Linear.from_quantized(q, packed_weight(24, 64).scales)
    x = tokens(7, 64)
    exact = layer(x)
    layer.arithmetic = "int8"
    assert torch.equal(layer(x), exact), "gradients are on: they need the differentiable path"
    with torch.no_grad():
        rounded = layer(x)
        has_avx2_kernel = native.load() is not None and native.instruction_set() == "avx2"
        by_group, by_row = reference.int4_linear_int8_by_group, reference.int4_linear_int8
        expected = (by_group if has_avx2_kernel else by_row)(x, layer.packed())
        assert torch.equal(rounded, expected)
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_integer_layers_take_bfloat16_as_it_comes():
    q = torch.randint(-128, 128, (24, 64), dtype=torch.int8)
    layer = IntegerLinear.from_quantized(q, torch.rand(24), weight_bits=8, activation_bits=8)
    x = tokens(7, 64, dtype=torch.bfloat16)
    assert torch.equal(layer(x), layer(x.float()).bfloat16())


def test_the_arithmetic_of_a_network_leaves_floats_to_its_camera_head():
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
    monkeypatch.setattr(cpu_features, "prefers_onednn", lambda: onednn)
    q = tokens(2, length, 3, 16, dtype=dtype).transpose(1, 2)
    k, v = (tokens(2, sequence, 3, 16, dtype=dtype, seed=seed).transpose(1, 2) for seed in (4, 5))
    scores = q.double() @ k.double().transpose(2, 3) / 4.0
    expected = scores.softmax(-1) @ v.double()
    out = cpu_attention.attention(q, k, v, tile_scores=1)
    assert out.dtype == dtype
    assert (out.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("tiles", [True, False])
def test_attention_is_pytorchs_to_rounding_and_one_operator(monkeypatch, tiles):
    monkeypatch.setattr(cpu_attention, "prefers_tiles", lambda: tiles)
    monkeypatch.setattr(cpu_attention, "prefers_native", lambda dtype: False)
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
    monkeypatch.setattr(cpu_features, "prefers_onednn", lambda: onednn)
    x, weight, bias = tokens(2, 5, 64), tokens(24, 64), tokens(24)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert (cpu_linear.linear(x, weight, bias).double() - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize(
    ("vnni", "kernels", "amx", "expected"),
    [
        (False, False, False, "float"),
        (True, False, False, "int8"),
        (False, True, False, "int8"),
        (True, True, True, "float"),
    ],
)
def test_integers_are_for_cpus_that_have_instructions_or_kernels_for_nothing_better(
    monkeypatch, vnni, kernels, amx, expected
):
    monkeypatch.setattr(cpu_features, "has_vnni", lambda: vnni)
    monkeypatch.setattr(cpu_features, "has_amx", lambda: amx)
    monkeypatch.setattr(native, "load", lambda: object() if kernels else None)
    assert fastest_linears("cpu") == expected
    assert fastest_linears("cuda:0") == "float"


def test_this_cpus_instruction_sets_can_be_read():
    assert cpu_features.has_vnni() in (True, False)
    assert cpu_features.is_intel() in (True, False)
    assert (fastest_linears("cpu") == "int8") <= cpu_features.has_avx2()


def test_nothing_that_chooses_reads_a_clock():
    """Ways round differently: choices that a clock makes differ between two processes."""
    package = Path(native.__file__).parents[1]
    files = [package / "cpu_features.py", package / "backends.py", *package.glob("cpu/*.py")]
    for file in files:
        assert not re.search(
            r"\b(perf_counter|process_time|monotonic|time\.time)\b", file.read_text()
        )


def pretend(monkeypatch, machine):
    """Let the rules see another machine's processor."""
    flags = machine["cpu_flags"]
    for name, wanted in (
        ("_is_avx2_supported", "avx2"),
        ("_is_avx512_supported", "avx512f"),
        ("_is_vnni_supported", "avx512_vnni"),
        ("_is_avx512_bf16_supported", "avx512_bf16"),
        ("_is_amx_tile_supported", "amx_bf16"),
    ):
        monkeypatch.setattr(torch.cpu, name, lambda has=wanted in flags: has)
    text = f"vendor_id\t: {machine['cpu_vendor']}\nflags\t\t: {' '.join(flags)}\n"
    monkeypatch.setattr(cpu_features, "_description", lambda: text)


def chosen():
    """What the rules say, in the words of the benchmark's results."""
    library = "oneDNN" if cpu_features.prefers_onednn() else "PyTorch's"
    without_kernel = "tiles" if cpu_attention.prefers_tiles() else "PyTorch's"
    return {
        "dtype of products": str(fastest_dtype("cpu")).removeprefix("torch."),
        "library for float32": library,
        "product of integers": (
            "in integers" if cpu_features.multiplies_integers() else "through float32"
        ),
        "4-bit linear in float32": ("C++", "dense product"),
        "plain linear in float32": ("C++" if library == "oneDNN" else library, library),
        "plain linear in bfloat16": ("PyTorch's" if cpu_features.has_amx() else "C++", "PyTorch's"),
        "layer norm": ("C++", "PyTorch's"),
        "convolution of 3x3 pixels": ("C++", "PyTorch's"),
        **{
            f"attention in {str(dtype).removeprefix('torch.')}": (
                "C++" if cpu_attention.prefers_native(dtype) else without_kernel,
                without_kernel,
            )
            for dtype in (torch.float32, torch.bfloat16)
        },
    }


RESULTS = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("cpu_choices_*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_rules_choose_what_was_fastest_on_every_machine_that_was_measured(monkeypatch, path):
    results = json.loads(path.read_text(encoding="utf-8"))
    pretend(monkeypatch, results["machine"])
    for choice, rule in chosen().items():
        if choice not in results["choices"]:
            continue  # the rule is younger than the result
        times = {name: ways["best_ms"] for name, ways in results["choices"][choice].items()}
        if fastest_dtype("cpu") == torch.float32 and choice == "attention in bfloat16":
            continue  # no network computes in it there
        rule = rule if isinstance(rule, str) else next(way for way in rule if way in times)
        assert times[rule] <= 1.1 * min(times.values()), (choice, rule, times)


@pytest.mark.parametrize(
    ("version", "expected"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_gpus_without_bfloat16_units_get_float16(monkeypatch, version, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)
    assert fastest_dtype("cuda:0") == expected
