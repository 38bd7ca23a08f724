"""The C++ kernels: the bits of the reference where they promise them, rounding elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qvggt_kernels import (
    GROUP_SIZES,
    Backend,
    HeadNorm,
    IntegerWeight,
    PackedWeight,
    PackingError,
    Rotation,
    attention,
    backends,
    cpu_features,
    dequantize,
    int4_linear,
    int4_linear_int8,
    native,
    pack,
    qk_norm_rope_,
)
from qvggt_kernels.cpu import attention as cpu_attention
from qvggt_kernels.native import heads as native_heads
from qvggt_kernels.reference import attention as reference_attention
from qvggt_kernels.reference import linear as reference
from qvggt_kernels.reference import rotary as reference_rotary
from support.instruction_sets import PROCESSOR_HAS, assert_float32_is_kept, outputs
from support.weights import integer_weight, normal, packed_weight
from torch.nn import functional as F

from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import load_network

BFLOAT16 = torch.bfloat16
ULP = 2**-7
"""Distance of two neighbouring bfloat16, relative to the smaller at most."""

BUILT = Path(native.__file__).parent

needs_kernels = pytest.mark.skipif(native.load() is None, reason=native.status())
needs_avx512 = pytest.mark.skipif(
    native.load() is None or native.instruction_set() != "avx512", reason=native.status()
)

# --- whether they are there -----------------------------------------------------------------


def test_they_are_built_wherever_they_can_be():
    can = (
        sys.platform == "linux"
        and (cpu_features.has_avx2() or cpu_features.has_dotprod())
        and (shutil.which("g++") or shutil.which("c++")) is not None
        and os.environ.get("QVGGT_NATIVE") != "0"
    )
    assert (native.load() is not None) == can, native.status()


def test_the_environment_disables_them():
    program = "from qvggt_kernels import native; print(native.load(), native.status())"
    environment = {**os.environ, "QVGGT_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "disabled", "by", "QVGGT_NATIVE=0"]


@pytest.mark.parametrize(
    ("available", "environment", "expected"),
    [
        ("avx512 avx_vnni avx2", "1", "avx512"),
        ("avx512 avx_vnni avx2", "avx_vnni", "avx_vnni"),
        ("avx512 avx_vnni avx2", "avx2", "avx2"),
        ("avx512 avx2", "avx_vnni", None),
        ("avx_vnni avx2", "1", "avx_vnni"),
        ("avx_vnni avx2", "avx512", None),
        ("avx2", "1", "avx2"),
        ("i8mm dotprod", "1", "i8mm"),
        ("i8mm dotprod", "dotprod", "dotprod"),
        ("dotprod", "1", "dotprod"),
        ("dotprod", "i8mm", None),
        ("dotprod", "avx2", None),
        ("", "1", None),
        ("", "avx2", None),
    ],
)
def test_the_processor_decides_which_kernels_run(monkeypatch, available, environment, expected):
    monkeypatch.setenv("QVGGT_NATIVE", environment)
    for name in PROCESSOR_HAS:
        has = name in available.split()
        monkeypatch.setattr(cpu_features, f"has_{name}", lambda has=has: has)
    assert native.instruction_set.__wrapped__() == expected


@pytest.mark.parametrize("name", ["avx_vnni", "avx2"])
def test_without_avx512_bfloat16_and_wide_float_products_are_left_to_pytorch(monkeypatch, name):
    monkeypatch.setattr(native, "instruction_set", lambda: name)
    monkeypatch.setattr(native, "load", lambda: object())
    tokens, weight = normal(3, 64), packed_weight(8, 64)
    heads = normal(1, 2, 5, 64)
    assert native.supports_int4_linear(tokens, weight)
    assert not native.supports_int4_linear(normal(65, 64), weight)
    assert not native.supports_int4_linear(tokens.bfloat16(), weight)
    assert native.supports_integer_linear(tokens.bfloat16(), 64)
    assert native_heads.supports_attention(heads, heads, heads)
    assert not native_heads.supports_attention(*[heads.bfloat16()] * 3)
    assert not native_heads.supports_attention(heads, heads, heads, in_integers=True)


def test_other_processors_do_without(monkeypatch):
    monkeypatch.delenv("QVGGT_NATIVE", raising=False)
    monkeypatch.setattr(native, "instruction_set", lambda: None)
    library, status = native.open_library(BUILT)
    assert library is None
    assert "lacks" in status


def test_a_library_that_cannot_be_used_says_why(monkeypatch, tmp_path):
    file = tmp_path / "_library.so"
    file.write_bytes(b"no library")
    monkeypatch.setattr(native, "EXTENSION_SUFFIXES", [".so"])
    monkeypatch.setattr(native, "instruction_set", lambda: "avx512")
    monkeypatch.delenv("QVGGT_NATIVE", raising=False)
    assert native.open_library(tmp_path)[1].startswith("not usable, install qvggt again: ")
    file.unlink()
    assert native.open_library(tmp_path)[1].startswith("not built: no working C++ compiler")


@needs_kernels
def test_a_library_of_other_sources_is_not_called():
    library, status = native.open_library(BUILT, interface=10**6)
    assert library is None
    assert status.startswith("not usable, install qvggt again: it was built for interface")


@pytest.mark.parametrize(
    ("supported", "disabled", "expected"),
    [(True, "1", "not built"), (True, "0", None), (False, "1", None)],
)
def test_missing_kernels_are_reported_where_the_processor_could_run_them(
    without_native_kernels, monkeypatch, caplog, supported, disabled, expected
):
    monkeypatch.setattr(native, "status", lambda: "not built")
    monkeypatch.setattr(native, "is_supported", lambda: supported)
    monkeypatch.setenv("QVGGT_NATIVE", disabled)
    assert native.shortfall() == expected
    load_network(Parameters(device="cpu"))
    reported = "slower than it could be: C++ kernels not built" in caplog.text
    assert reported == (expected is not None)


@needs_avx512
def test_dense_bfloat16_products_are_left_to_a_matrix_unit(monkeypatch):
    monkeypatch.setattr(cpu_features, "has_amx", lambda: True)
    weight = packed_weight(16, 64, 64)
    tokens = normal(9, 64)
    assert backends.choose("int4_linear", tokens.bfloat16(), weight) == Backend.CPU
    # A few rows of float32 wait for weights on any processor.
    assert backends.choose("int4_linear", tokens, weight) == Backend.NATIVE


# --- 4-bit weights --------------------------------------------------------------------------


@needs_avx512
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_a_token_that_is_one_somewhere_reads_the_weights_of_the_reference(group, zeros, dtype):
    packed = packed_weight(75, 2 * group if group > 32 else 64, group, zeros=zeros)
    weight = dequantize(packed, dtype)
    # float32 takes no more than 64 tokens at a time.
    for ones in torch.eye(weight.shape[1], dtype=dtype).split(50):
        found = native.int4_linear(ones, packed)
        assert torch.equal(found, ones @ weight.t())


@needs_avx512
def test_every_scale_that_bfloat16_has_is_rounded_as_the_reference_rounds():
    bits = torch.arange(2**15, dtype=torch.int32).to(torch.int16)
    scales = bits.view(BFLOAT16).view(-1, 1)
    # Results smaller than any normal number are flushed on the way out, weights are not.
    scales = scales[torch.isfinite(scales[:, 0] * 8) & (scales[:, 0] >= 2.0**-126)]
    q = torch.arange(64, dtype=torch.int8).remainder(16).sub(8).expand(len(scales), -1)
    weight = PackedWeight(pack(q.contiguous(), 64), scales)
    ones = torch.eye(64, dtype=BFLOAT16)[:16]
    expected = dequantize(weight, BFLOAT16).t()[:16]
    assert torch.equal(native.int4_linear(ones, weight), expected)


@needs_avx512
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 64, 193])
@pytest.mark.parametrize("rows", [1, 64, 130])
@pytest.mark.parametrize("biased", [True, False])
def test_bfloat16_linears_round_once(threads, group, count, rows, biased):
    x = normal(count, 384, dtype=BFLOAT16, seed=1)
    bias = normal(rows, dtype=BFLOAT16, seed=2) if biased else None
    packed = packed_weight(rows, 384, group, zeros=biased, bias=bias)
    weight = dequantize(packed, BFLOAT16)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    first, *others = outputs(x, packed, run=native.int4_linear, threads=threads)
    # Half a step of bfloat16, and what float32 sums lose where large terms cancel.
    slack = 1e-5 * (x.double().abs() @ weight.double().abs().t())
    assert ((first.double() - exact).abs() <= ULP / 2 * exact.abs() + slack).all()
    assert all(torch.equal(first, other) for other in others), "threads change no bit"


@needs_kernels
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 64])
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_a_few_float32_tokens_keep_float32(instructions, threads, group, count, rows):
    x, bias = normal(count, 384, seed=1), normal(rows, seed=2)
    packed = packed_weight(rows, 384, group, zeros=True, bias=bias)
    assert_float32_is_kept(x, packed, threads)


@needs_kernels
def test_more_float32_tokens_go_to_a_dense_product():
    weight = packed_weight(16, 64, 64)
    assert native.supports_int4_linear(normal(64, 64), weight)
    assert not native.supports_int4_linear(normal(65, 64), weight)
    assert not native.supports_int4_linear(normal(0, 64), weight)
    assert not native.supports_int4_linear(normal(4, 64).half(), weight)


# --- 8-bit products -------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (7, 64), (200, 130)])
def test_products_in_integers_have_the_bits_of_the_reference(
    instructions, threads, group, zeros, dtype, count, rows
):
    bias = normal(rows, dtype=dtype) if zeros else None
    weight = packed_weight(rows, 384, group, zeros=zeros, bias=bias)
    weight.scales[0] = 0
    x = normal(count, 384, dtype=dtype, seed=1)
    x[0] = 0
    computed = (
        reference.int4_linear_int8_by_group
        if instructions == "avx2"
        else reference.int4_linear_int8
    )
    expected = computed(x, weight)
    for found in outputs(x, weight, run=native.int4_linear_int8, threads=threads):
        assert torch.equal(found, expected)


def test_weights_that_keep_their_four_bits_are_nearer_to_the_exact_product(avx2):
    x, weight = normal(50, 1024, seed=1), packed_weight(96, 1024, 128, zeros=True)
    exact = x.double() @ dequantize(weight, torch.float64).t()
    kept = (native.int4_linear_int8(x, weight).double() - exact).norm()
    requantized = (reference.int4_linear_int8(x, weight).double() - exact).norm()
    assert kept < 0.9 * requantized
    assert kept < 0.01 * exact.norm()


@pytest.mark.parametrize("zero", [0, 15, 16, 255])
@pytest.mark.parametrize("number", [-8, 7])
def test_the_largest_products_of_4_bit_weights_stay_exact(avx2, zero, number):
    q = torch.full((16, 128), number, dtype=torch.int8)
    zeros = torch.full((16, 1), zero, dtype=torch.uint8)
    weight = PackedWeight(pack(q, 128), torch.ones(16, 1, dtype=BFLOAT16), zeros=zeros)
    x = torch.stack([torch.full((128,), 1.0), torch.full((128,), -1.0)])
    value = 128 * 127 * (number + 8 - zero) * (torch.tensor(1.0) / 127)
    expected = torch.stack([value, -value]).unsqueeze(1).expand(2, 16)
    assert torch.equal(native.int4_linear_int8(x, weight), expected)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 64, 1), (9, 4096, 100), (200, 192, 64), (5, 64, 15)]
)
def test_8_bit_weights_too(instructions, threads, dtype, bits, count, columns, rows):
    weight = integer_weight(rows, columns, 8, bias=normal(rows), activation_bits=bits, clip=0.7)
    x = normal(count, columns, dtype=dtype)
    x[0, 0] = 1e4
    expected = reference.integer_linear(x, weight)
    for found in outputs(x, weight, run=native.integer_linear, threads=threads):
        assert torch.equal(found, expected)


@needs_kernels
def test_several_threads_give_the_bits_of_one(instructions, threads):
    # Smaller products are left to one thread whatever their number.
    x, weight = normal(200, 384), packed_weight(512, 384, 64, zeros=True)
    first, *others = outputs(x, weight, run=native.int4_linear_int8, threads=threads)
    assert all(torch.equal(first, other) for other in others)


@needs_kernels
@pytest.mark.parametrize("count", range(1, 8))
def test_tiles_of_any_height_and_rest_have_the_bits_of_the_reference(instructions, count):
    weight = integer_weight(21, 128, 8, bias=normal(21))
    x = normal(count, 128)
    assert torch.equal(native.integer_linear(x, weight), reference.integer_linear(x, weight))


@needs_kernels
def test_halves_are_rounded_to_even_as_in_the_reference(instructions):
    weight = integer_weight(20, 256, 8)
    x = (torch.arange(512).remainder(254) - 127).div(2).view(2, 256)
    x[:, 0] = 127  # a step of one
    assert torch.equal(native.integer_linear(x, weight), reference.integer_linear(x, weight))


@needs_kernels
@pytest.mark.parametrize("scale", [1e-40, 1e-36, 1e36])
def test_the_smallest_and_largest_tokens_have_the_bits_of_the_reference(instructions, scale):
    weight = integer_weight(20, 64, 8)
    x = normal(3, 64) * scale
    assert torch.equal(native.integer_linear(x, weight), reference.integer_linear(x, weight))


@needs_kernels
@pytest.mark.parametrize("place", [0, 5, 63, 127])
def test_a_token_that_is_not_a_number_spoils_its_row_alone(instructions, place):
    weight = packed_weight(20, 128, 64)
    x = normal(3, 128)
    clean = native.int4_linear_int8(x, weight)
    x[1, place] = float("nan")
    found = native.int4_linear_int8(x, weight)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], clean[::2])


@needs_kernels
@pytest.mark.parametrize("number", [-128, -16, -9, -8, 7, 8, 15, 127])
def test_sums_of_the_longest_and_largest_rows_stay_exact(instructions, number):
    weight = torch.full((4096, 3), number, dtype=torch.int8)
    x = torch.full((2, 4096), 1.0)
    y = native.integer_linear(x, IntegerWeight(weight, torch.ones(3)))
    assert torch.equal(
        y, torch.full((2, 3), float(number) * 4096 * 127) * (torch.tensor(1.0) / 127)
    )


# --- attention ------------------------------------------------------------------------------


def softmax_attention(q, k, v):
    return (q.double() @ k.double().transpose(2, 3) / 8).softmax(-1) @ v.double()


@needs_avx512
@pytest.mark.parametrize("queries", [1, 6, 97, 200])
@pytest.mark.parametrize("keys", [1, 63, 64, 65, 512, 513, 1100])
def test_attention_is_the_formula_to_rounding(threads, queries, keys):
    q = normal(2, queries, 3, 64, dtype=BFLOAT16).transpose(1, 2)
    k, v = (normal(2, keys, 3, 64, dtype=BFLOAT16, seed=seed).transpose(1, 2) for seed in (1, 2))
    expected = softmax_attention(q, k, v)
    first, *others = outputs(q, k, v, run=native_heads.attention, threads=threads)
    assert (first.double() - expected).norm() <= 4e-3 * expected.norm()
    assert first.transpose(1, 2).is_contiguous()
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("queries", [1, 6, 97, 200])
@pytest.mark.parametrize("keys", [1, 15, 16, 17, 256, 257, 1100])
def test_attention_without_avx512_keeps_float32(short_vectors, threads, queries, keys):
    q = normal(2, queries, 3, 64).transpose(1, 2)
    k, v = (normal(2, keys, 3, 64, seed=seed).transpose(1, 2) for seed in (1, 2))
    expected = softmax_attention(q, k, v)
    first, *others = outputs(q, k, v, run=native_heads.attention, threads=threads)
    assert (first.double() - expected).norm() <= 2e-6 * expected.norm()
    assert first.transpose(1, 2).is_contiguous()
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e4])
def test_float32_attention_holds_for_any_size_of_scores(short_vectors, factor):
    q, k, v = (normal(1, 1, 700, 64, seed=seed) for seed in range(3))
    # The largest scores come last, so that every block of keys raises the maximum.
    k = k[:, :, (k @ q[0, 0, 0]).argsort().flatten()]
    found, expected = (
        native_heads.attention(q * factor, k, v).double(),
        softmax_attention(q * factor, k, v),
    )
    assert torch.isfinite(found).all()
    # A score of 10^5 is itself rounded by some thousandths.
    assert (found - expected).norm() <= max(2e-6, 1e-6 * factor) * expected.norm()


def test_what_is_not_a_number_stays_in_its_row(short_vectors):
    q, k, v = (normal(1, 1, 20, 64, seed=seed) for seed in range(3))
    clean = native_heads.attention(q, k, v)
    q[0, 0, 7, 3] = float("nan")
    found = native_heads.attention(q, k, v)
    assert found[0, 0, 7].isnan().all()
    assert torch.equal(found[0, 0, :7], clean[0, 0, :7])
    assert torch.equal(found[0, 0, 8:], clean[0, 0, 8:])


@needs_avx512
@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e4])
def test_attention_holds_for_any_size_of_scores(factor):
    q, k, v = (normal(1, 1, 700, 64, dtype=BFLOAT16, seed=seed) for seed in range(3))
    # The largest scores come last, so that every block of keys raises the maximum.
    k = k[:, :, (k.float() @ q[0, 0, 0].float()).argsort().flatten()]
    q = q * factor
    found, expected = native_heads.attention(q, k, v).double(), softmax_attention(q, k, v)
    assert torch.isfinite(found).all()
    assert (found - expected).norm() <= 6e-3 * expected.norm()


@needs_avx512
@pytest.mark.parametrize("queries", [1, 8, 200])
@pytest.mark.parametrize("keys", [1, 64, 65, 1100])
def test_attention_in_integers_is_that_of_plain_pytorch(threads, queries, keys):
    q = normal(2, queries, 3, 64, dtype=BFLOAT16).transpose(1, 2)
    k, v = (normal(2, keys, 3, 64, dtype=BFLOAT16, seed=seed).transpose(1, 2) for seed in (1, 2))
    k = k + 5.0
    q[0, 0, 0] = 0
    first, *others = outputs(q, k, v, run=native_heads.int8_attention, threads=threads)
    plain = reference_attention.int8_attention(q, k, v)
    assert (first.float() - plain.float()).norm() <= 4e-3 * plain.float().norm()
    expected = softmax_attention(q, k, v)
    assert (first.double() - expected).norm() <= 1.5e-2 * expected.norm()
    assert all(torch.equal(first, other) for other in others)


@needs_avx512
def test_equal_keys_average_the_values():
    q, v = normal(1, 1, 5, 64, dtype=BFLOAT16), normal(1, 1, 1000, 64, dtype=BFLOAT16, seed=1)
    found = native_heads.attention(q, torch.zeros_like(v), v).float()
    assert torch.allclose(found, v.float().mean(2, keepdim=True).expand(found.shape), atol=2e-4)


@needs_avx512
def test_attention_reads_any_strides_and_leaves_other_layouts_to_pytorch(monkeypatch):
    monkeypatch.setattr(cpu_attention, "prefers_native", lambda dtype: True)
    qkv = normal(2, 40, 3, 2, 64, dtype=BFLOAT16)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    dense = [part.contiguous() for part in (q, k, v)]
    assert torch.equal(attention(q, k, v), native_heads.attention(*dense))
    transposed = q.transpose(2, 3).contiguous().transpose(2, 3)
    assert not native_heads.supports_attention(transposed, k, v)
    assert not native_heads.supports_attention(q[..., :32], k[..., :32], v[..., :32])
    assert not native_heads.supports_attention(q.half(), k.half(), v.half())
    assert torch.allclose(
        attention(transposed, k, v).float(), attention(q, k, v).float(), atol=2e-2
    )


@pytest.mark.parametrize("tiles", [True, False])
def test_short_sequences_are_not_tiled(without_native_kernels, monkeypatch, tiles):
    monkeypatch.setattr(cpu_attention, "prefers_tiles", lambda: True)
    parts = [normal(1, 1, cpu_attention.MIN_LENGTH - (not tiles), 64, dtype=BFLOAT16)] * 3
    assert (backends.choose("attention", *parts) == Backend.CPU) == tiles


# --- queries and keys -----------------------------------------------------------------------


def norms_and_rotations(dtype, norm, rope, threads):
    """What a kernel makes of queries and keys on one thread and on three, and PyTorch of them."""
    qkv = normal(2, 3, 37, 3, 5, 64, dtype=dtype)
    gains = [1 + normal(64, dtype=dtype, seed=seed) / 10 for seed in range(4)]
    angles = normal(37, 1, 32).repeat_interleave(2, dim=-1)
    angles = angles.unflatten(-1, (2, 16, 2)).transpose(-1, -2).flatten(-3).contiguous()
    cos, sin = (angles.cos(), angles.sin()) if rope else (None, None)
    arguments = HeadNorm(*gains, 1e-5) if norm else HeadNorm(), Rotation(cos, sin)
    expected = qkv.clone()
    reference_rotary.qk_norm_rope_(expected, *arguments)
    for count in (1, 3):
        threads(count)
        found = qkv.clone()
        native_heads.qk_norm_rope_(found, *arguments)
        assert torch.equal(found[:, :, :, 2], qkv[:, :, :, 2]), "values are left alone"
        yield found, expected


@needs_avx512
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("rope", [True, False])
def test_norm_and_rotation_are_pytorchs_to_the_last_bit_or_next(threads, norm, rope):
    for found, expected in norms_and_rotations(BFLOAT16, norm, rope, threads):
        if not norm:
            assert torch.equal(found, expected)
        # A sum of two products of numbers that were rounded to either side.
        assert torch.allclose(found.float(), expected.float(), rtol=ULP, atol=2 * ULP)
        assert (found != expected).float().mean() < 1e-3


@pytest.mark.parametrize(("norm", "rope"), [(True, True), (True, False), (False, True)])
@pytest.mark.usefixtures("short_vectors")
def test_float32_norm_and_rotation_are_pytorchs_to_rounding(threads, norm, rope):
    for found, expected in norms_and_rotations(torch.float32, norm, rope, threads):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 if norm else 0)


# --- what does not fit together -------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(x=a["x"][:, :32]), "do not have the weight's 64 columns"),
        (lambda a: a.update(scales=a["scales"][:5]), r"not \(8, 1\) bfloat16"),
        (
            lambda a: a.update(bias=a["bias"][:5]),
            r"a bias is \(5,\) torch.float32 on cpu, not \(8,\)",
        ),
        (lambda a: a.update(zeros=a["scales"]), "zero points are"),
    ],
)
@pytest.mark.parametrize("kernel", ["int4_linear", "int4_linear_int8"])
def test_sizes_are_checked_before_memory_is_read(change, message, kernel):
    weight = packed_weight(8, 64, 64, bias=normal(8))
    arguments = {"x": normal(3, 64), **weight._asdict()}
    change(arguments)
    with pytest.raises(PackingError, match=message):
        getattr(native, kernel)(arguments.pop("x"), PackedWeight(**arguments))


@needs_kernels
def test_sizes_of_the_other_kernels_are_checked_too():
    with pytest.raises(PackingError, match="do not have the weight's 32 columns"):
        native.integer_linear(normal(3, 64), integer_weight(8, 32, 8))
    q = normal(1, 2, 5, 64, dtype=BFLOAT16)
    with pytest.raises(ValueError, match=r"are not \(B, H, L, D\), \(B, H, T, D\)"):
        native_heads.attention(q, q, q[:, :1])
    with pytest.raises(ValueError, match="differ in more than their lengths"):
        native_heads.attention(q, q[:, :1], q[:, :1])
    qkv = normal(1, 1, 5, 3, 2, 64, dtype=BFLOAT16)
    angles, gain = torch.ones(5, 1, 64), torch.ones(64, dtype=BFLOAT16)
    for cos, sin in ((angles[:4], angles[:4]), (angles, None)):
        with pytest.raises(ValueError, match="angles for 5 tokens"):
            native_heads.qk_norm_rope_(qkv, HeadNorm(), Rotation(cos, sin))
    for wrong in ((gain, gain, gain, gain[:32]), (gain, gain.float(), gain, gain)):
        with pytest.raises(ValueError, match="gains and biases"):
            native_heads.qk_norm_rope_(qkv, HeadNorm(*wrong, 1e-5), Rotation())


@needs_kernels
def test_queries_and_keys_without_values_are_refused():
    """With 2 in the place of 3, every frame but the first would be read from another place."""
    qkv = normal(2, 3, 5, 2, 4, 64, dtype=BFLOAT16)
    with pytest.raises(ValueError, match=r"not \(B, S, N, 3, H, D\)"):
        native_heads.qk_norm_rope_(qkv, HeadNorm(), Rotation())
    with pytest.raises(ValueError, match=r"not \(B, S, N, 3, H, D\)"):
        qk_norm_rope_(qkv)


@pytest.mark.parametrize("multiply", [int4_linear, int4_linear_int8, native.int4_linear_int8])
def test_a_weight_without_outputs_gives_none(multiply):
    if native.load() is None and multiply is native.int4_linear_int8:
        pytest.skip(native.status())
    with torch.no_grad():
        assert multiply(normal(3, 64), packed_weight(0, 64)).shape == (3, 0)


@pytest.mark.parametrize("shape", [(8, 16), (128,), (8, 1, 16, 1)])
def test_words_of_other_dimensions_are_refused(shape):
    weight = packed_weight(8, 64, 64)._replace(qweight=torch.zeros(shape, dtype=torch.int16))
    with torch.no_grad(), pytest.raises(PackingError, match=r"not \(N, K/g, g/4\) int16"):
        int4_linear(normal(3, 64), weight)


@needs_kernels
def test_kernels_refuse_columns_and_dtypes_that_they_do_not_read():
    with pytest.raises(ValueError, match="multiples of 64"):
        native.int4_linear_int8(normal(3, 96), packed_weight(8, 96))
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        native.int4_linear(normal(3, 64).double(), packed_weight(8, 64))


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_a_weight_that_was_never_loaded_is_refused(dtype):
    weight = packed_weight(8, 64)
    absent = weight._replace(qweight=weight.qweight.to("meta"))
    with torch.no_grad(), pytest.raises(PackingError, match="not floating on meta"):
        int4_linear(normal(3, 64, dtype=dtype), absent)


@needs_kernels
def test_numbers_at_odd_addresses_are_read_right():
    weight, x = packed_weight(8, 64), normal(3, 64)
    data = bytearray(b"\0" + weight.qweight.numpy().tobytes())
    odd = torch.frombuffer(data, dtype=torch.int16, offset=1).view(weight.qweight.shape)
    assert odd.data_ptr() % 2
    found = native.int4_linear(x, weight._replace(qweight=odd))
    assert torch.equal(found, native.int4_linear(x, weight))


@needs_kernels
def test_running_out_of_memory_is_reported(monkeypatch):
    class Starved:
        @staticmethod
        def qvggt_float_attention_avx512(*_):
            return 1

        qvggt_float_attention_avx2 = qvggt_float_attention_neon = qvggt_float_attention_avx512

    monkeypatch.setattr(native, "load", Starved)
    with pytest.raises(MemoryError, match="scratch of float_attention: use a smaller window"):
        native_heads.attention(*[normal(1, 1, 2, 64)] * 3)
