"""A kernel's first call is compared with plain PyTorch; what fails is replaced, not raised."""

import logging

import pytest
import torch
from qvggt_kernels.selfcheck import SelfCheck


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
    check = SelfCheck("sum", good, plain)
    x, branch = tensors()
    assert torch.equal(check(x, branch), torch.full((4, 3), 8.0))
    assert torch.equal(x, torch.full((4, 3), 4.0))
    assert not check.failures
    x, branch = tensors()
    assert torch.equal(check(x, branch), torch.full((4, 3), 8.0) * (1 + 1e-3))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (wrong, "deviate by 16 where they are 8"),
        (writes_wrong, "deviate by 6 where they are 4"),
        (wrong_shape, "it gave (1, 3)"),
        (broken, "ValueError: no such instruction"),
    ],
)
def test_a_kernel_that_disagrees_is_reported_once_and_replaced(kernel, message, caplog):
    check = SelfCheck("sum", kernel, plain)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            x, branch = tensors()
            assert torch.equal(check(x, branch), torch.full((4, 3), 8.0))
            assert torch.equal(x, torch.full((4, 3), 4.0))
            assert torch.equal(branch, torch.full((4, 3), 3.0))
    (record,) = caplog.records
    assert message in record.getMessage()
    assert "much more" not in record.getMessage()


def test_other_shapes_are_checked_again():
    def good_for_four_rows(x, branch):
        return good(x, branch) if len(x) == 4 else wrong(x, branch)

    check = SelfCheck("sum", good_for_four_rows, plain)
    check(*tensors())
    assert not check.failures
    assert torch.equal(check(torch.ones(5), torch.ones(5)), torch.full((5,), 4.0))
    assert "deviate" in check.failures[torch.device("cpu")]
    assert torch.equal(check(*tensors()), torch.full((4, 3), 8.0))


def test_running_out_of_memory_does_not_disable_a_kernel():
    def hungry(x, branch):
        raise torch.OutOfMemoryError("too much")

    check = SelfCheck("sum", hungry, plain)
    x, branch = tensors()
    with pytest.raises(torch.OutOfMemoryError):
        check(x, branch)
    assert not check.failures
    assert torch.equal(x, torch.ones(4, 3))
