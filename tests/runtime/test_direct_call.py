"""What the extension does for a launch is what Python does: argument blocks, new tensors."""

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
def helpers():
    found = find_direct_call(Options.of())
    assert found.helpers, found.because
    return found.helpers


def test_addresses_of_tensors_are_written_in_order(helpers):
    block = (ctypes.c_void_p * 4)()
    whole = torch.zeros(8)
    tensors = [whole[2:], torch.nn.Parameter(whole)]
    helpers.write_addresses(ctypes.addressof(block), 4, tensors, (77,), (whole[5:],))
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
def test_what_a_block_does_not_hold_is_refused(helpers, first, bound, last):
    block = (ctypes.c_void_p * 3)()
    with pytest.raises(ValueError):
        helpers.write_addresses(ctypes.addressof(block), 2, first, bound, last)
    assert block[2] is None


def test_a_kernel_that_is_helped_computes_the_same(helpers):
    kernel = load_kernel(eight_tensors(threads=1), Options.of())
    tensors = [torch.rand(16) for _ in range(6)]
    expected = kernel(*tensors)
    kernel.launch_with(helpers)
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


def test_new_tensors_are_like_their_templates_and_share_nothing(helpers):
    templates = (
        torch.empty_strided((3, 5), (1, 3), dtype=torch.float64, device="meta"),
        torch.empty((), dtype=torch.bool, device="meta"),
        torch.empty((0, 4), dtype=torch.bfloat16, device="meta"),
    )
    allocate = helpers.make_allocator(templates)
    first, second = allocate(), allocate()
    for tensor, like in zip((*first, *second), templates * 2, strict=True):
        assert (type(tensor), tensor.device.type, tensor.requires_grad) == (torch.Tensor, "cpu", False)
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (like.dtype, like.shape, like.stride())
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    addresses = [t.data_ptr() for t in (*first, *second) if t.numel()]
    assert len(set(addresses)) == len(addresses)


def test_new_tensors_follow_inference_mode_and_no_other(helpers):
    allocate = helpers.make_allocator((torch.empty(2, device="meta"),))
    with torch.inference_mode():
        assert allocate()[0].is_inference()
    with torch.device("meta"):
        assert allocate()[0].device.type == "cpu"
    assert not allocate()[0].is_inference()


def test_memory_that_cannot_be_had_is_an_error(helpers):
    allocate = helpers.make_allocator((torch.empty(1 << 50, device="meta"),))
    with pytest.raises(RuntimeError, match="memory"):
        allocate()


@pytest.mark.parametrize("templates", [[torch.ones(1)], (1,), None])
def test_templates_come_as_a_tuple_of_tensors(helpers, templates):
    with pytest.raises(TypeError):
        helpers.make_allocator(templates)
