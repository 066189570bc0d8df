"""Outputs of a kernel: fresh tensors of the right layout, many at once only where nobody can tell."""

from __future__ import annotations

import pytest
import torch

from wolong_fx.runtime import TensorSpec
from wolong_fx.runtime.outputs import ALIGNMENT, WORTHWHILE, Outputs


def spec(*shape, dtype=torch.float32, strides=None):
    return TensorSpec(dtype, shape, strides or torch.empty(shape).stride())


ROW = [spec(2, 16)] * WORTHWHILE


def storages(tensors):
    return {t.untyped_storage().data_ptr() for t in tensors}


def test_outputs_that_stay_together_are_parts_of_one_allocation():
    tensors = Outputs(ROW, range(len(ROW))).allocate()
    assert len(storages(tensors)) == 1
    assert [TensorSpec.of(t) for t in tensors] == ROW
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert [t.unique().tolist() for t in tensors] == [[n] for n in range(len(ROW))]


def test_parts_are_aligned_and_no_views_to_autograd():
    for tensor in Outputs(ROW, range(len(ROW))).allocate():
        assert tensor.data_ptr() % ALIGNMENT == 0
        assert not tensor._is_view()
        assert tensor._version == 0


def test_a_part_outlives_the_others():
    first, *rest = Outputs(ROW, range(len(ROW))).allocate()
    first.fill_(3)
    del rest
    assert first.unique().tolist() == [3]


def test_each_call_makes_new_memory():
    outputs = Outputs(ROW, range(len(ROW)))
    first, second = outputs.allocate(), outputs.allocate()
    assert not storages(first) & storages(second)


def test_only_the_outputs_named_stay_together_and_all_keep_their_places():
    specs = [spec(3), *ROW, spec(2, 16), spec(), spec(4, 2, strides=(1, 4))]
    tensors = Outputs(specs, range(1, 1 + len(ROW))).allocate()
    assert [TensorSpec.of(t) for t in tensors] == specs
    assert len(storages(tensors)) == len(specs) - len(ROW) + 1
    own = tensors[-3]
    assert own.untyped_storage().nbytes() == own.nbytes


APART = {
    "few": ROW[1:],
    "sizes that are no multiple of the alignment": [spec(3)] * 8,
    "scalars": [spec()] * 8,
    "transposed": [spec(16, 4, strides=(1, 16))] * 8,
    "several shapes": [spec(16), spec(16, 1), spec(16, dtype=torch.int64), spec(1, 16)],
}


@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_a_part_has_memory_of_its_own(name):
    specs = APART[name]
    tensors = Outputs(specs, range(len(specs))).allocate()
    assert len(storages(tensors)) == len(specs)
    assert [TensorSpec.of(t) for t in tensors] == specs


def test_empty_outputs_are_made():
    assert [t.shape for t in Outputs([spec(0, 16)] * 8, range(8)).allocate()] == [(0, 16)] * 8
