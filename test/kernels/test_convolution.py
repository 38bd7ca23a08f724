"""3x3 convolutions: what the definition gives, by every way that computes them."""

from __future__ import annotations

import pytest
import torch
from qvggt_kernels import Backend, backends, convolution3x3, native
from support.instruction_sets import outputs
from support.weights import normal
from torch.nn import functional as F

SIZES = [
    # frames, inputs and outputs in what a kernel takes at least, height, width: whole tiles, one
    # pixel, odd ends, several tasks
    (1, 1, 1, 4, 4),
    (2, 2, 2, 1, 1),
    (1, 3, 1, 5, 11),
    (3, 1, 3, 17, 10),
]


def maps(*shape, seed=0):
    """Channels-last maps."""
    return normal(*shape, seed=seed).to(memory_format=torch.channels_last)


def arguments(frames, inputs, channels, height, width):
    weight = normal(channels, inputs, 3, 3, seed=1) / (9 * inputs) ** 0.5
    x, total = maps(frames, inputs, height, width), maps(frames, channels, height, width, seed=2)
    return x, weight, normal(channels, seed=3), total


def definition(x, weight, bias, rectified, total):
    """The sum over the nine shifts of a padded map, in float64."""
    x = x.double().clamp(min=0) if rectified else x.double()
    padded = F.pad(x, (1, 1, 1, 1))
    height, width = x.shape[2:]
    y = sum(
        torch.einsum(
            "fchw,oc->fohw",
            padded[:, :, i : i + height, j : j + width],
            weight[:, :, i, j].double(),
        )
        for i in range(3)
        for j in range(3)
    )
    y = y if bias is None else y + bias.double()[:, None, None]
    return y if total is None else y + total.double()


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("short_vectors")
def test_winograd_is_the_definition_to_rounding(size, rectified, threads):
    (frames, inputs, channels, *rows_columns), lanes = size, native.float_lanes()
    x, weight, bias, total = arguments(frames, inputs * lanes, channels * 2 * lanes, *rows_columns)
    for parts in ((bias, total), (None, total), (bias, None)):
        expected = definition(x, weight, parts[0], rectified, parts[1])

        def run(bias, total):
            return convolution3x3(
                x, weight, bias, rectified=rectified, total=total, backend=Backend.NATIVE
            )

        first, *others = outputs(*parts, run=run, threads=threads)
        torch.testing.assert_close(first.double(), expected, rtol=0, atol=5e-5)
        assert all(torch.equal(first, other) for other in others)


def test_plain_pytorch_is_the_definition_too():
    x, weight, bias, total = arguments(2, 3, 5, 6, 7)
    y = convolution3x3(x, weight, bias, rectified=True, total=total)
    torch.testing.assert_close(
        y.double(), definition(x, weight, bias, True, total), rtol=0, atol=1e-5
    )


@pytest.mark.usefixtures("avx2")
def test_a_frame_is_what_it_is_alone_and_layouts_do_not_matter():
    x, weight, bias, total = arguments(3, 16, 16, 9, 13)

    def run(x, total):
        return convolution3x3(x, weight, bias, total=total, backend=Backend.NATIVE)

    together = run(x, total)
    alone = torch.cat([run(x[i : i + 1], total[i : i + 1]) for i in range(3)])
    assert torch.equal(together, alone)
    assert torch.equal(together, run(x.contiguous(), total.contiguous()))
    every_second = torch.stack([x, -x], dim=2).flatten(1, 2)[:, ::2]
    assert torch.equal(together, run(every_second, total))


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.usefixtures("avx2")
def test_what_is_not_a_number_reaches_its_neighbours_and_no_other_tile(rectified):
    x, weight, bias, _ = arguments(1, 8, 16, 16, 16)
    x[0, 3, 6, 6] = torch.nan
    y = convolution3x3(x, weight, bias, rectified=rectified, backend=Backend.NATIVE)
    assert y[0, :, 5:8, 5:8].isnan().all()
    y[0, :, 4:8, 4:8] = 0
    assert y.isfinite().all()


@pytest.mark.usefixtures("avx2")
def test_what_the_kernel_does_not_take_goes_to_pytorch():
    def chosen(frames, inputs, channels, height, width, dtype=torch.float32):
        x, weight, *_ = arguments(frames, inputs, channels, height, width)
        return backends.choose("convolution3x3", x.to(dtype), weight.to(dtype))

    assert chosen(2, 8, 16, 32, 32) == Backend.NATIVE
    assert chosen(1, 8, 16, 32, 32) == Backend.REFERENCE  # too few pixels for it to pay
    assert chosen(2, 12, 16, 32, 32) == Backend.REFERENCE
    assert chosen(2, 8, 24, 32, 32) == Backend.REFERENCE
    assert chosen(2, 8, 16, 32, 32, torch.bfloat16) == Backend.REFERENCE


def test_gradients_flow():
    x, weight, bias, total = arguments(2, 8, 16, 32, 32)
    weight.requires_grad_()
    convolution3x3(x, weight, bias, rectified=True, total=total).sum().backward()
    expected = F.unfold(F.relu(x), 3, padding=1).sum(dim=(0, 2)).view(8, 3, 3)
    torch.testing.assert_close(weight.grad, expected.expand(16, -1, -1, -1), rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("avx2")
def test_an_empty_window_gives_an_empty_map():
    x, weight, bias, _ = arguments(1, 8, 16, 4, 4)
    assert convolution3x3(x[:0], weight, bias, backend=Backend.NATIVE).shape == (0, 16, 4, 4)


@pytest.mark.parametrize("part", ["weight", "bias", "total", "dtype"])
@pytest.mark.usefixtures("avx2")
def test_sizes_are_checked_before_memory_is_read(part):
    x, weight, bias, total = arguments(1, 8, 16, 4, 4)
    wrong = {
        "weight": (x, weight[:, :, :2], bias, total),
        "bias": (x, weight, bias[:8], total),
        "total": (x, weight, bias, total[..., :3]),
        "dtype": (x.double(), weight, bias, total),
    }
    x, weight, bias, total = wrong[part]
    with pytest.raises(ValueError, match="fit together"):
        convolution3x3(x, weight, bias, total=total, backend=Backend.NATIVE)


@pytest.mark.parametrize(
    ("channels", "taken"), [((16, 32), True), ((8, 32), False), ((16, 16), False)]
)
def test_wider_vectors_take_more_channels_at_once(use_instructions, channels, taken):
    use_instructions("avx512")
    x, weight, *_ = arguments(2, *channels, 32, 32)
    expected = Backend.NATIVE if taken else Backend.REFERENCE
    assert backends.choose("convolution3x3", x, weight) == expected
