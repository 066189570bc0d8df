"""Views and joins: index maps at their borders."""

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize(
    "function, shape",
    [
        (lambda x: x.expand(0), (1,)),
        (lambda x: x.expand(0, 3), (1, 3)),
        (lambda x: x.repeat(2, 2), (0, 3)),
        (lambda x: x.repeat(0, 2), (2, 3)),
        (lambda x: x.view(3, 0, 2), (0, 6)),
        (lambda x: x[:0].exp().sum(0), (3, 2)),
        (lambda x: F.pad(x, (1, 2)), (2, 0)),
        (lambda x: F.pad(x, (-3, 0)), (2, 3)),
        (lambda x: x.diagonal(9) * 2, (3, 4)),
        (lambda x: torch.cat([x, x]), (0,)),
    ],
)
def test_a_view_of_nothing_or_to_nothing_is_empty(check, function, shape):
    check(function, torch.randn(shape))


def test_a_result_expanded_from_one_element_is_stored_once(check):
    check(lambda x: (x * 2).expand(4, 3).transpose(0, 1), torch.randn(1, 3))


def test_slices_are_clamped_to_the_tensor_as_pythons_are(check):
    x = torch.randn(7, 5)
    check(lambda x: (x[-100:2] * 2, x[5:100] * 2, x[1::3].exp(), x[:, -3:-1] + 1), x)


def test_negative_padding_cuts(check):
    check(lambda x: F.pad(x, (-1, 2, 1, -1), value=3.5), torch.randn(4, 5))


def test_an_empty_one_dimensional_tensor_joins_anything(check):
    check(lambda x, y: torch.cat([x, y], -1), torch.randn(0), torch.randn(2, 3))


def test_a_part_is_written_where_the_step_says(check):
    def write(x, rows, row):
        return torch.slice_scatter(x, rows, 0, 1, 100, 3), torch.select_scatter(x, row, 0, -1)

    check(write, torch.randn(8, 2), torch.randn(3, 2), torch.randn(2))
