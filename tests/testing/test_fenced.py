"""What lies behind a fenced tensor is out of reach, and the tensor is the one it was made of."""

import os

import pytest
import torch

from wolong_fx.testing.fenced import fenced

TENSORS = {
    "rows": torch.randn(5, 7),
    "strided": torch.randn(6, 4)[::2, 1:],
    "columns": torch.randn(3, 9).t(),
    "pages": torch.arange(5000),
    "bits": torch.rand(13) < 0.5,
    "empty": torch.empty(0, 3),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_fenced_tensor_has_the_same_numbers_and_strides(name):
    tensor = TENSORS[name]
    copy = fenced(tensor)
    assert torch.equal(copy, tensor)
    assert copy.stride() == tensor.stride() and copy.storage_offset() == tensor.storage_offset()


def test_a_step_past_the_end_ends_the_process():
    x = fenced(torch.randn(5))
    child = os.fork()
    if child == 0:
        torch.as_strided(x, (1,), (1,), 4).sum()  # the last one
        ctypes_read(x.data_ptr() + 20)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def ctypes_read(address):
    import ctypes

    ctypes.string_at(address, 1)
