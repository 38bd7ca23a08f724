"""A kernel's first call is held against plain PyTorch; what fails is replaced, not raised."""

import logging

import pytest
import torch
from qvggt_kernels.trial import Trial


def plain(x, branch):
    x.add_(branch)
    return x.mul(2)


def good(x, branch):
    x.add_(branch)
    return x.mul(2) * (1 + 1e-3)


def wrong(x, branch):
    x.add_(branch)
    return x.mul(-2)


def writes_wrong(x, branch):
    x.sub_(branch)
    return (x + 2 * branch).mul(2)


def wrong_shape(x, branch):
    x.add_(branch)
    return x.mul(2)[:1]


def broken(x, branch):
    raise ValueError("no such instruction\nand much more")


def tensors():
    return torch.ones(4, 3), torch.full((4, 3), 3.0)


def test_a_kernel_that_agrees_is_used_from_its_second_call():
    trial = Trial("sum", good, plain)
    x, branch = tensors()
    assert torch.equal(trial(x, branch), torch.full((4, 3), 8.0))
    assert torch.equal(x, torch.full((4, 3), 4.0))
    assert not trial.failures
    x, branch = tensors()
    assert torch.equal(trial(x, branch), torch.full((4, 3), 8.0) * (1 + 1e-3))


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (wrong, "deviate by 16 where they are 8"),
        (writes_wrong, "deviate by 6 where they are 4"),
        (wrong_shape, "it gave (1, 3)"),
        (broken, "ValueError: no such instruction"),
    ],
)
def test_a_kernel_that_does_not_agree_is_named_once_and_replaced(kernel, said, caplog):
    trial = Trial("sum", kernel, plain)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            x, branch = tensors()
            assert torch.equal(trial(x, branch), torch.full((4, 3), 8.0))
            assert torch.equal(x, torch.full((4, 3), 4.0))
            assert torch.equal(branch, torch.full((4, 3), 3.0))
    (record,) = caplog.records
    assert said in record.getMessage()
    assert "much more" not in record.getMessage()


def test_other_shapes_are_tried_anew():
    def good_for_four_rows(x, branch):
        return good(x, branch) if len(x) == 4 else wrong(x, branch)

    trial = Trial("sum", good_for_four_rows, plain)
    trial(*tensors())
    assert not trial.failures
    assert torch.equal(trial(torch.ones(5), torch.ones(5)), torch.full((5,), 4.0))
    assert "deviate" in trial.failures[torch.device("cpu")]
    assert torch.equal(trial(*tensors()), torch.full((4, 3), 8.0))


def test_memory_that_runs_out_is_no_reason_to_give_a_kernel_up():
    def hungry(x, branch):
        raise torch.OutOfMemoryError("too much")

    trial = Trial("sum", hungry, plain)
    x, branch = tensors()
    with pytest.raises(torch.OutOfMemoryError):
        trial(x, branch)
    assert not trial.failures
    assert torch.equal(x, torch.ones(4, 3))
