"""Argument blocks written by the extension are those that Python writes."""

from __future__ import annotations

import ctypes

import pytest
import torch

from wolong_fx.options import Options
from wolong_fx.runtime import Executor, KernelStep, Slot, load_kernel
from wolong_fx.runtime.direct_call import find_direct_call
from wolong_fx.testing.handwritten import eight_tensors

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def write():
    found = find_direct_call(Options.of())
    assert found.write_addresses, found.because
    return found.write_addresses


def test_addresses_of_tensors_are_written_in_order(write):
    block = (ctypes.c_void_p * 4)()
    whole = torch.zeros(8)
    tensors = [whole[2:], torch.nn.Parameter(whole)]
    write(ctypes.addressof(block), 4, tensors, (77,), (whole[5:],))
    assert list(block) == [tensors[0].data_ptr(), whole.data_ptr(), 77, whole[5:].data_ptr()]


@pytest.mark.parametrize(
    "first, bound, last",
    [
        ([], (), []),
        (["no tensor"], (), [torch.zeros(1)]),
        ([torch.zeros(1)] * 3, (), []),
        ([], (1, 2, 3), [1]),
    ],
    ids=["few", "other", "many", "many addresses"],
)
def test_what_a_block_does_not_hold_is_refused(write, first, bound, last):
    block = (ctypes.c_void_p * 3)()
    with pytest.raises(ValueError):
        write(ctypes.addressof(block), 2, first, bound, last)
    assert block[2] is None


def test_a_kernel_that_is_written_to_in_c_computes_the_same(write):
    kernel = load_kernel(eight_tensors(threads=1), Options.of())
    tensors = [torch.rand(16) for _ in range(6)]
    expected = kernel(*tensors)
    kernel.write_addresses_by(write)
    assert all(map(torch.equal, kernel(*tensors), expected))


def test_the_shortcut_of_an_executor_takes_inputs_in_the_order_it_names():
    kernel = load_kernel(eight_tensors(threads=1), Options.of())
    executor = Executor([KernelStep(kernel, (5, 4, 3, 2, 1, 0), (6, 7))], range(6), (Slot(6), Slot(7)))
    tensors = [torch.rand(16) for _ in range(6)]
    run, order = executor.shortcut
    assert order == (5, 4, 3, 2, 1, 0)
    assert all(map(torch.equal, run([tensors[i] for i in order]), executor([*tensors])))


def test_the_shortcut_of_several_steps_is_the_executor_itself():
    kernel = load_kernel(eight_tensors(threads=1), Options.of())
    executor = Executor([KernelStep(kernel, (0, 1, 2, 3, 4, 5), (6, 7))], range(6), (Slot(7), Slot(6)))
    tensors = [torch.rand(16) for _ in range(6)]
    run, order = executor.shortcut
    assert order == tuple(range(6))
    assert all(map(torch.equal, run([*tensors]), executor([*tensors])))
