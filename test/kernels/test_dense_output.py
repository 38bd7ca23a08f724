"""The last steps of a dense head in one pass: what they give one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qvggt_kernels import Backend, backends, dense_output, native
from support.instruction_sets import outputs
from support.weights import normal

SIZES = [
    # frames, channels, rows, columns, to rows, to columns, hidden, outputs; channels for vectors of
    # 256 bits
    (2, 16, 5, 7, 17, 10, 16, 2),  # odd ends
    (1, 32, 1, 1, 4, 4, 32, 1),  # one pixel becomes a tile
    (1, 16, 6, 9, 6, 9, 16, 3),  # no resizing
    (3, 48, 4, 5, 9, 130, 16, 4),  # more tiles in a row than a task takes at once
    (1, 16, 9, 8, 1, 3, 16, 2),  # smaller than it was
]


def arguments(frames, channels, rows, columns, height, width, hidden, count, branches=1):
    x = normal(frames, channels, rows, columns).to(memory_format=torch.channels_last)
    places = normal(channels // 2, 1, width, seed=1), normal(channels // 2, height, 1, seed=2)
    first = normal(hidden, channels, 3, 3, seed=3) / (9 * channels) ** 0.5, normal(hidden, seed=4)
    last = normal(count, hidden, 1, 1, seed=5) / hidden**0.5, normal(count, seed=6)
    other = (-first[0], first[1]), (last[0][:1], last[1][:1])
    return x, (height, width), places, [(first, last), other][:branches]


def resized(image, height, width):
    """Corners on corners, between the two nearest pixels along each axis, in float64."""
    for axis, size in ((2, height), (3, width)):
        before = image.shape[axis]
        at = np.linspace(0, before - 1, size) if size > 1 else np.zeros(1)
        first = np.minimum(at.astype(int), before - 1)
        second = np.minimum(first + 1, before - 1)
        share = (at - first).reshape([-1 if each == axis else 1 for each in range(4)])
        image = (1 - share) * image.take(first, axis) + share * image.take(second, axis)
    return image


def definition(x, size, places, branches):
    """Each step on its own in float64."""
    y = resized(x.double().numpy(), *size)
    if places is not None:
        shape = (y.shape[1] // 2, *size)
        tables = [np.broadcast_to(part.double().numpy(), shape) for part in places]
        y = y + np.concatenate(tables)
    padded = np.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)))
    maps = []
    for (weight, bias), (last, last_bias) in branches:
        hidden = sum(
            np.einsum(
                "fchw,oc->fohw",
                padded[:, :, i : i + size[0], j : j + size[1]],
                weight[:, :, i, j].double().numpy(),
            )
            for i in range(3)
            for j in range(3)
        )
        hidden = np.maximum(hidden + bias.double().numpy()[:, None, None], 0)
        sums = np.einsum("fchw,oc->fohw", hidden, last[:, :, 0, 0].double().numpy())
        maps.append(sums + last_bias.double().numpy()[:, None, None])
    return torch.from_numpy(np.concatenate(maps, axis=1))


@pytest.mark.parametrize("has_places", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("short_vectors")
def test_one_pass_is_the_definition_to_rounding(size, has_places, threads):
    frames, channels, *between, hidden, count = size
    wide = native.float_lanes() // 8
    x, resolution, places, branches = arguments(
        frames, channels * wide, *between, hidden * wide, count, branches=2
    )
    places = places if has_places else None
    expected = definition(x, resolution, places, branches)

    def run():
        return dense_output(x, resolution, places, branches, backend=Backend.NATIVE)

    first, *others = outputs(run=run, threads=threads)
    assert first.dtype == torch.float32
    torch.testing.assert_close(first.double(), expected, rtol=0, atol=5e-5)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("has_places", [True, False])
@pytest.mark.parametrize("size", [*SIZES, (2, 6, 4, 5, 9, 8, 5, 2)])
def test_plain_pytorch_is_the_definition_too(size, has_places):
    x, resolution, places, branches = arguments(*size, branches=2)
    places = places if has_places else None
    y = dense_output(x, resolution, places, branches, backend=Backend.REFERENCE)
    expected = definition(x, resolution, places, branches)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("avx2")
def test_a_frame_is_what_it_is_alone_and_layouts_do_not_matter():
    x, *others = arguments(*SIZES[3])
    together = dense_output(x, *others, backend=Backend.NATIVE)
    alone = [dense_output(x[i : i + 1], *others, backend=Backend.NATIVE) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, dense_output(x.contiguous(), *others, backend=Backend.NATIVE))


@pytest.mark.usefixtures("avx2")
def test_what_is_not_a_number_does_not_get_lost():
    x, size, places, branches = arguments(1, 16, 20, 20, 20, 20, 16, 2)
    x[0, 3, 6, 6] = torch.nan
    y = dense_output(x, size, places, branches, backend=Backend.NATIVE)
    assert y[0, :, 5:8, 5:8].isnan().all()
    assert y[0, :, 12:].isfinite().all()


@pytest.mark.usefixtures("avx2")
def test_what_the_kernel_does_not_take_goes_to_pytorch():
    def chosen(channels, hidden, dtype=torch.float32):
        x, _, _, ((first, last),) = arguments(1, channels, 3, 3, 6, 6, hidden, 2)
        parts = (part.to(dtype) for part in (x, *first, *last))
        return backends.choose("dense_output", *parts)

    assert chosen(16, 32) == Backend.NATIVE
    assert chosen(24, 32) == Backend.REFERENCE
    assert chosen(16, 24) == Backend.REFERENCE
    assert chosen(16, 32, torch.bfloat16) == Backend.NATIVE
    assert chosen(16, 32, torch.float16) == Backend.REFERENCE


@pytest.mark.parametrize("last_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("short_vectors")
def test_maps_of_16_bits_are_computed_in_float32(last_dtype):
    """Nothing but what comes in is rounded: closer than with a rounding after each step."""
    x, size, places, branches = arguments(2, 32, 5, 7, 17, 10, 32, 2)
    x, *places = (part.bfloat16() for part in (x, *places))
    branches = [
        (tuple(p.bfloat16() for p in first), tuple(p.bfloat16().to(last_dtype) for p in last))
        for first, last in branches
    ]
    y = dense_output(x, size, tuple(places), branches, backend=Backend.NATIVE)
    assert y.dtype == torch.float32
    expected = definition(x, size, places, branches)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=5e-5)


def test_gradients_flow():
    x, size, places, branches = arguments(*SIZES[0])
    weight = branches[0][1][0].requires_grad_()
    y = dense_output(x, size, places, branches)
    y.sum().backward()
    # Sums are linear in the last weights.
    bias = branches[0][1][1]
    total = (weight.grad[:, :, 0, 0] * weight[:, :, 0, 0]).sum()
    torch.testing.assert_close(total + y[:, 0].numel() * bias.sum(), y.sum(), rtol=1e-3, atol=1e-2)


@pytest.mark.usefixtures("avx2")
def test_no_frames_give_no_maps():
    x, size, places, branches = arguments(*SIZES[0])
    y = dense_output(x[:0], size, places, branches, backend=Backend.NATIVE)
    assert y.shape == (0, 2, 17, 10)


@pytest.mark.parametrize("part", ["first", "last", "places", "dtype"])
@pytest.mark.usefixtures("avx2")
def test_sizes_are_checked_before_memory_is_read(part):
    x, size, (along_u, along_v), [((weight, bias), last)] = arguments(*SIZES[0])
    first = (weight[:, :, :2], bias) if part == "first" else (weight, bias)
    last = (last[0][:, :8], last[1]) if part == "last" else last
    places = (along_u[..., :3], along_v) if part == "places" else (along_u, along_v)
    x = x.double() if part == "dtype" else x
    with pytest.raises(ValueError, match="fit together"):
        dense_output(x, size, places, [(first, last)], backend=Backend.NATIVE)
