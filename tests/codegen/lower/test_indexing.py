"""Gathers and scatters: tensors without dimensions, order of duplicates, dimensions in numpy's order."""

import pytest
import torch

from wolong_fx.errors import KernelCheckFailed

aten = torch.ops.aten
ZERO_D = torch.tensor(1.5)


def index(*positions):
    return torch.tensor(positions)


def test_a_tensor_without_dimensions_is_indexed_as_one_element(check):
    check(lambda x, i: (x.gather(0, i), x.index_select(0, i)), ZERO_D, index(0))
    check(lambda x, i: x.gather(0, i), ZERO_D, index(0, 0, 0))
    check(lambda x, i: (x.gather(0, i), x.index_select(0, i)), torch.randn(4), torch.tensor(2))


def test_all_updates_of_a_tensor_without_dimensions_are_added(check):
    check(lambda x, i, s: x.scatter_add(0, i, s), ZERO_D, index(0, 0, 0), torch.tensor([2.0, 3, 4]))
    check(lambda x, i, s: (x.scatter_add(0, i, s), x.index_add(0, i, s)), ZERO_D, torch.tensor(0), ZERO_D)


@pytest.mark.parametrize("function", [lambda x, i: x.gather(0, i), lambda x, i: x.index_select(0, i)])
def test_a_position_outside_a_tensor_without_dimensions_is_an_index_error(run, function):
    with pytest.raises(KernelCheckFailed):
        run(function, ZERO_D, index(1))


@pytest.mark.parametrize("position", [7, -1])
def test_embedding_refuses_positions_outside_its_rows(run, position):
    with pytest.raises(KernelCheckFailed):
        run(torch.nn.functional.embedding, index(position), torch.randn(7, 3))


def test_indexing_counts_negative_positions_from_the_end(check):
    check(lambda x, i: x[i], torch.randn(4, 3), index(-1, 0, -4))


def test_indexed_dimensions_stay_in_place_only_if_adjacent(check):
    x, i, k = torch.randn(4, 6, 6), index(0, 3, 1), index([5], [2])
    check(lambda x, i, k: (x[:, i, k], x[i, :, k], x[i, k], x[..., k]), x, i, k)


@pytest.mark.parametrize("padding", [-1, 0, 2])
def test_gradients_of_the_padding_row_are_dropped(check, padding):
    grad, rows = torch.randn(2, 5, 3), torch.randint(0, 7, (2, 5))
    check(lambda g, i: aten.embedding_dense_backward(g, i, 7, padding, False), grad, rows)


@pytest.mark.parametrize("accumulate", [False, True])
def test_of_writes_to_one_place_the_last_counts_or_all_add_up(check, accumulate):
    x, i, v = torch.randn(5, 3), index(0, 2, 0, 0), torch.randn(4, 3)
    check(lambda x, i, v: x.index_put((i,), v, accumulate), x, i, v)


def test_values_put_are_broadcast(check):
    x, i = torch.randn(5, 3), index(0, -1)
    check(lambda x, i, v, one: (x.index_put((i,), v), x.index_put((i,), one)), x, i, torch.randn(3), ZERO_D)


def test_no_positions_change_nothing(check):
    none = torch.empty(0, dtype=torch.int64)
    check(
        lambda x, i, v: (x.index_put((i,), v), x[i], x.index_add(0, i, v)),
        torch.randn(5, 3),
        none,
        torch.randn(0, 3),
    )
