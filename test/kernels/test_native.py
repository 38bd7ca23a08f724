"""The C++ kernels: the reference to the bit where they promise it, to rounding elsewhere."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from qvggt_kernels import (
    GROUP_SIZES,
    PackingError,
    attention,
    capability,
    cpu,
    cpu_attention,
    dequantize,
    integer,
    native,
    pack,
    quantized_attention,
    requantize,
    rotary,
)
from torch.nn import functional as F

from qvggt_core.parameters import Parameters
from qvggt_core.stream.load_network import load_network

BFLOAT16 = torch.bfloat16
ULP = 2**-7
"""Distance of two neighbouring bfloat16, relative to the smaller at most."""

needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.status())


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def words_of(rows, columns, group, zeros=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=generator)
    shape = (rows, columns // group)
    scales = (torch.rand(shape, generator=generator) * 0.01 + 0.001).bfloat16()
    points = torch.randint(0, 16, shape, generator=generator).to(torch.uint8) if zeros else None
    return pack(q, group), scales, points


@pytest.fixture
def threads():
    """Set the number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def outputs(*arguments, counts=(1, 2, 3), run, threads):
    """What a kernel returns with several numbers of threads."""
    for count in counts:
        threads(count)
        yield run(*arguments)


# --- whether they are there -----------------------------------------------------------------


def test_they_are_built_wherever_they_can_be():
    can = (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and torch.cpu._is_avx512_bf16_supported()
        and torch.cpu._is_vnni_supported()
        and (shutil.which("g++") or shutil.which("c++")) is not None
        and os.environ.get("QVGGT_NATIVE") != "0"
    )
    assert (native.library() is not None) == can, native.status()


def test_the_environment_leaves_them_out():
    program = "from qvggt_kernels import native; print(native.library(), native.status())"
    environment = {**os.environ, "QVGGT_NATIVE": "0"}
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["None", "left", "out", "by", "QVGGT_NATIVE=0"]


@pytest.mark.parametrize(
    ("support", "word"), [("_is_avx512_bf16_supported", "lacks"), ("_is_vnni_supported", "lacks")]
)
def test_other_processors_do_without(monkeypatch, support, word):
    monkeypatch.delenv("QVGGT_NATIVE", raising=False)
    monkeypatch.setattr(torch.cpu, support, lambda: False)
    library, status = native._load.__wrapped__()
    assert library is None
    assert word in status


def test_a_library_that_cannot_be_used_says_why(monkeypatch, tmp_path):
    file = tmp_path / "_library.so"
    file.write_bytes(b"no library")
    monkeypatch.setattr(native, "EXTENSION_SUFFIXES", [".so"])
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    for support in ("_is_avx512_bf16_supported", "_is_vnni_supported"):
        monkeypatch.setattr(torch.cpu, support, lambda: True)
    monkeypatch.delenv("QVGGT_NATIVE", raising=False)
    assert native._load.__wrapped__()[1].startswith("not usable, install qvggt again: ")
    file.unlink()
    assert native._load.__wrapped__()[1].startswith("not built: no working C++ compiler")


@needs_kernels
def test_a_library_of_other_sources_is_not_called(monkeypatch):
    monkeypatch.setattr(native, "_INTERFACE", native._INTERFACE + 1)
    library, status = native._load.__wrapped__()
    assert library is None
    assert status.startswith("not usable, install qvggt again: it was built for interface")


@pytest.mark.parametrize(
    ("supported", "disabled", "expected"),
    [(True, "1", "not built"), (True, "0", None), (False, "1", None)],
)
def test_what_is_missing_is_said_where_it_could_be_had(
    without_native_kernels, monkeypatch, caplog, supported, disabled, expected
):
    monkeypatch.setattr(native, "status", lambda: "not built")
    monkeypatch.setattr(native, "_supported", lambda: supported)
    monkeypatch.setenv("QVGGT_NATIVE", disabled)
    assert native.shortfall() == expected
    load_network(Parameters(device="cpu"))
    said = "slower than it could be: C++ kernels not built" in caplog.text
    assert said == (expected is not None)


@needs_kernels
def test_a_matrix_unit_is_left_to_those_who_use_it(monkeypatch):
    monkeypatch.setattr(capability, "has_amx", lambda: True)
    taken = []
    monkeypatch.setattr(native, "int4_linear", lambda *arguments: taken.append(arguments))
    words = words_of(16, 64, 64)
    cpu.int4_linear(normal(9, 64, dtype=BFLOAT16), *words[:2], None)
    assert not taken
    cpu.int4_linear(normal(9, 64), *words[:2], None)
    assert len(taken) == 1, "a few rows of float32 wait for weights on any processor"


# --- 4-bit weights --------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_a_token_that_is_one_somewhere_reads_the_weights_of_the_reference(group, zeros, dtype):
    words, scales, points = words_of(75, 2 * group if group > 32 else 64, group, zeros)
    weight = dequantize(words, scales, dtype, points)
    # float32 takes no more than 64 tokens at a time.
    for ones in torch.eye(weight.shape[1], dtype=dtype).split(50):
        found = native.int4_linear(ones, words, scales, None, points)
        assert torch.equal(found, ones @ weight.t())


@needs_kernels
def test_every_scale_that_bfloat16_has_is_rounded_as_the_reference_rounds():
    bits = torch.arange(2**15, dtype=torch.int32).to(torch.int16)
    scales = bits.view(BFLOAT16).view(-1, 1)
    # Results smaller than any normal number are flushed on the way out, weights are not.
    scales = scales[torch.isfinite(scales[:, 0] * 8) & (scales[:, 0] >= 2.0**-126)]
    q = torch.arange(64, dtype=torch.int8).remainder(16).sub(8).expand(len(scales), -1)
    words = pack(q.contiguous(), 64)
    ones = torch.eye(64, dtype=BFLOAT16)[:16]
    expected = dequantize(words, scales, BFLOAT16).t()[:16]
    assert torch.equal(native.int4_linear(ones, words, scales, None, None), expected)


@needs_kernels
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 64, 193])
@pytest.mark.parametrize("rows", [1, 64, 130])
@pytest.mark.parametrize("biased", [True, False])
def test_bfloat16_linears_round_once(threads, group, count, rows, biased):
    words, scales, points = words_of(rows, 384, group, zeros=biased)
    x = normal(count, 384, dtype=BFLOAT16, seed=1)
    bias = normal(rows, dtype=BFLOAT16, seed=2) if biased else None
    weight = dequantize(words, scales, BFLOAT16, points)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    first, *others = outputs(
        x, words, scales, bias, points, run=native.int4_linear, threads=threads
    )
    # Half a step of bfloat16, and what float32 sums lose where large terms cancel.
    slack = 1e-5 * (x.double().abs() @ weight.double().abs().t())
    assert ((first.double() - exact).abs() <= ULP / 2 * exact.abs() + slack).all()
    assert all(torch.equal(first, other) for other in others), "threads change no bit"


@needs_kernels
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 64])
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_a_few_float32_tokens_keep_float32(threads, group, count, rows):
    words, scales, points = words_of(rows, 384, group, zeros=True)
    x, bias = normal(count, 384, seed=1), normal(rows, seed=2)
    weight = dequantize(words, scales, torch.float64, points)
    exact = F.linear(x.double(), weight, bias.double())
    first, *others = outputs(
        x, words, scales, bias, points, run=native.int4_linear, threads=threads
    )
    terms = F.linear(x.double().abs(), weight.abs(), bias.double().abs())
    assert ((first.double() - exact).abs() <= 1e-6 * terms).all()
    assert all(torch.equal(first, other) for other in others)


@needs_kernels
def test_more_float32_tokens_go_to_a_dense_product():
    words, _, _ = words_of(16, 64, 64)
    assert native.takes_int4_linear(normal(64, 64), words)
    assert not native.takes_int4_linear(normal(65, 64), words)
    assert not native.takes_int4_linear(normal(0, 64), words)
    assert not native.takes_int4_linear(normal(4, 64).half(), words)


# --- 8-bit products -------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (7, 64), (200, 130)])
def test_products_in_integers_are_the_yardstick_to_the_bit(
    threads, group, zeros, dtype, count, rows
):
    words, scales, points = words_of(rows, 384, group, zeros)
    scales[0] = 0
    x, bias = normal(count, 384, dtype=dtype, seed=1), normal(rows, dtype=dtype) if zeros else None
    x[0] = 0
    q8, row_scale = requantize(words, scales, points)
    expected = integer.integer_linear(x, q8.t(), row_scale, bias, 8)
    run = native.int4_linear_int8
    for found in outputs(x, words, scales, bias, points, run=run, threads=threads):
        assert torch.equal(found, expected)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 64, 1), (9, 4096, 100), (200, 192, 64)])
def test_8_bit_weights_too(threads, dtype, bits, count, columns, rows):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (columns, rows), dtype=torch.int8, generator=generator)
    x, scales, bias = normal(count, columns, dtype=dtype), torch.rand(rows), normal(rows)
    x[0, 0] = 1e4
    expected = integer.integer_linear(x, weight, scales, bias, bits, 0.7)
    arguments = (x, weight, scales, bias, integer.levels(bits), 0.7)
    for found in outputs(*arguments, run=native.integer_linear, threads=threads):
        assert torch.equal(found, expected)


@needs_kernels
def test_sums_of_the_longest_and_largest_rows_stay_exact():
    weight = torch.full((4096, 3), -128, dtype=torch.int8)
    x = torch.full((2, 4096), 1.0)
    y = native.integer_linear(x, weight, torch.ones(3), None, 127, 1.0)
    assert torch.equal(y, torch.full((2, 3), -128.0 * 4096 * 127) * (torch.tensor(1.0) / 127))


# --- attention ------------------------------------------------------------------------------


def softmax_attention(q, k, v):
    return (q.double() @ k.double().transpose(2, 3) / 8).softmax(-1) @ v.double()


@needs_kernels
@pytest.mark.parametrize("queries", [1, 6, 97, 200])
@pytest.mark.parametrize("keys", [1, 63, 64, 65, 512, 513, 1100])
def test_attention_is_the_formula_to_rounding(threads, queries, keys):
    q = normal(2, queries, 3, 64, dtype=BFLOAT16).transpose(1, 2)
    k, v = (normal(2, keys, 3, 64, dtype=BFLOAT16, seed=seed).transpose(1, 2) for seed in (1, 2))
    expected = softmax_attention(q, k, v)
    first, *others = outputs(q, k, v, run=native.attention, threads=threads)
    assert (first.double() - expected).norm() <= 4e-3 * expected.norm()
    assert first.transpose(1, 2).is_contiguous()
    assert all(torch.equal(first, other) for other in others)


@needs_kernels
@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e4])
def test_attention_holds_for_any_size_of_scores(factor):
    q, k, v = (normal(1, 1, 700, 64, dtype=BFLOAT16, seed=seed) for seed in range(3))
    # The largest scores come last, so that every block of keys raises the maximum.
    k = k[:, :, (k.float() @ q[0, 0, 0].float()).argsort().flatten()]
    q = q * factor
    found, expected = native.attention(q, k, v).double(), softmax_attention(q, k, v)
    assert torch.isfinite(found).all()
    assert (found - expected).norm() <= 6e-3 * expected.norm()


@needs_kernels
@pytest.mark.parametrize("queries", [1, 8, 200])
@pytest.mark.parametrize("keys", [1, 64, 65, 1100])
def test_attention_in_integers_is_that_of_plain_pytorch(threads, queries, keys):
    q = normal(2, queries, 3, 64, dtype=BFLOAT16).transpose(1, 2)
    k, v = (normal(2, keys, 3, 64, dtype=BFLOAT16, seed=seed).transpose(1, 2) for seed in (1, 2))
    k = k + 5.0
    q[0, 0, 0] = 0
    first, *others = outputs(q, k, v, True, run=native.attention, threads=threads)
    plain = quantized_attention._eager(q, k, v)
    assert (first.float() - plain.float()).norm() <= 4e-3 * plain.float().norm()
    expected = softmax_attention(q, k, v)
    assert (first.double() - expected).norm() <= 1.5e-2 * expected.norm()
    assert all(torch.equal(first, other) for other in others)


@needs_kernels
def test_equal_keys_average_the_values():
    q, v = normal(1, 1, 5, 64, dtype=BFLOAT16), normal(1, 1, 1000, 64, dtype=BFLOAT16, seed=1)
    found = native.attention(q, torch.zeros_like(v), v).float()
    assert torch.allclose(found, v.float().mean(2, keepdim=True).expand(found.shape), atol=2e-4)


@needs_kernels
def test_attention_reads_any_strides_and_leaves_others_to_others(monkeypatch):
    monkeypatch.setattr(capability, "prefers_native_attention", lambda: True)
    qkv = normal(2, 40, 3, 2, 64, dtype=BFLOAT16)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    dense = [part.contiguous() for part in (q, k, v)]
    assert torch.equal(attention(q, k, v), native.attention(*dense))
    turned = q.transpose(2, 3).contiguous().transpose(2, 3)
    assert not native.takes_attention(turned, k, v)
    assert not native.takes_attention(q[..., :32], k[..., :32], v[..., :32])
    assert not native.takes_attention(q.float(), k.float(), v.float())
    assert torch.allclose(attention(turned, k, v).float(), attention(q, k, v).float(), atol=2e-2)


@needs_kernels
def test_the_fastest_attention_is_found_once():
    capability.prefers_native_attention.cache_clear()
    assert capability.prefers_native_attention() in (True, False)
    capability.prefers_native_attention()
    assert capability.prefers_native_attention.cache_info().misses == 1


@pytest.mark.parametrize("tiles", [True, False])
def test_short_sequences_are_not_tiled(without_native_kernels, monkeypatch, tiles):
    monkeypatch.setattr(capability, "tiles_attention", lambda: True)
    monkeypatch.setattr(capability, "prefers_native_attention", lambda: False)
    taken = []
    monkeypatch.setattr(cpu_attention, "tiled", lambda *parts: taken.append(parts) or parts[0])
    length = cpu_attention._MIN_LENGTH - (0 if tiles else 1)
    attention(*[normal(1, 1, length, 64, dtype=BFLOAT16)] * 3)
    assert len(taken) == tiles


# --- queries and keys -----------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("rope", [True, False])
def test_norm_and_rotation_are_pytorchs_to_the_last_bit_or_next(threads, norm, rope):
    qkv = normal(2, 3, 37, 3, 5, 64, dtype=BFLOAT16)
    gains = [1 + normal(64, dtype=BFLOAT16, seed=seed) / 10 for seed in range(4)]
    angles = normal(37, 1, 32).repeat_interleave(2, dim=-1)
    angles = angles.unflatten(-1, (2, 16, 2)).transpose(-1, -2).flatten(-3).contiguous()
    cos, sin = (angles.cos(), angles.sin()) if rope else (None, None)
    arguments = (*(gains if norm else [None] * 4), 1e-5, cos, sin)
    expected = qkv.clone()
    rotary._eager(expected, *arguments)
    for count in (1, 3):
        threads(count)
        found = qkv.clone()
        native.qk_norm_rope_(found, *arguments)
        assert torch.equal(found[:, :, :, 2], qkv[:, :, :, 2]), "values are left alone"
        if not norm:
            assert torch.equal(found, expected)
        # A sum of two products of numbers that were rounded to either side.
        assert torch.allclose(found.float(), expected.float(), rtol=ULP, atol=2 * ULP)
        assert (found != expected).float().mean() < 1e-3


# --- what does not fit together -------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(x=a["x"][:, :32]), "do not have the weight's 64 columns"),
        (lambda a: a.update(scales=a["scales"][:5]), r"not \(8, 1\) bfloat16"),
        (lambda a: a.update(bias=a["bias"][:5]), r"a bias is \(5,\), not \(8,\)"),
        (lambda a: a.update(zeros=a["scales"]), "zero points are"),
    ],
)
@pytest.mark.parametrize("kernel", ["int4_linear", "int4_linear_int8"])
def test_sizes_are_checked_before_memory_is_read(change, message, kernel):
    words, scales, _ = words_of(8, 64, 64)
    arguments = {
        "x": normal(3, 64),
        "qweight": words,
        "scales": scales,
        "bias": normal(8),
        "zeros": None,
    }
    change(arguments)
    with pytest.raises(PackingError, match=message):
        getattr(native, kernel)(**arguments)


@needs_kernels
def test_sizes_of_the_other_kernels_are_checked_too():
    with pytest.raises(PackingError, match="do not fit together"):
        native.integer_linear(
            normal(3, 64), torch.zeros(32, 8, dtype=torch.int8), torch.ones(8), None, 127, 1.0
        )
    q = normal(1, 2, 5, 64, dtype=BFLOAT16)
    with pytest.raises(ValueError, match="differ in more than the length of queries"):
        native.attention(q, q, q[:, :1])
    qkv = normal(1, 1, 5, 3, 2, 64, dtype=BFLOAT16)
    with pytest.raises(ValueError, match="angles for 5 tokens"):
        native.qk_norm_rope_(qkv, *[None] * 4, 0.0, torch.ones(4, 1, 64), torch.ones(4, 1, 64))
    with pytest.raises(ValueError, match="angles for 5 tokens"):
        native.qk_norm_rope_(qkv, *[None] * 4, 0.0, torch.ones(5, 1, 64), None)
    gain = torch.ones(64, dtype=BFLOAT16)
    with pytest.raises(ValueError, match="gains and biases"):
        native.qk_norm_rope_(qkv, gain, gain, gain, gain[:32], 1e-5, None, None)
    with pytest.raises(ValueError, match="gains and biases"):
        native.qk_norm_rope_(qkv, gain, gain.float(), gain, gain, 1e-5, None, None)


@needs_kernels
def test_memory_that_is_wanting_is_said(monkeypatch):
    class Starved:
        @staticmethod
        def qvggt_attention(*_):
            return 1

    monkeypatch.setattr(native, "library", Starved)
    with pytest.raises(MemoryError, match="scratch of attention: use a smaller window"):
        native.attention(*[normal(1, 1, 2, 64, dtype=BFLOAT16)] * 3)
