"""Reductions: what no dimensions, one element and ties mean."""

import pytest
import torch


@pytest.mark.parametrize("function", [torch.sum, torch.mean, torch.amax, torch.var])
def test_an_empty_list_of_dimensions_means_all(check, function):
    check(lambda x: function(x, dim=[]), torch.randn(3, 4))


@pytest.mark.parametrize("function", [torch.any, torch.all])
def test_an_empty_list_of_dimensions_means_none_to_any_and_all(check, function):
    check(lambda x: function(x, dim=[]), torch.tensor([[0.0, 1], [2, float("nan")]]))


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("correction", [0, 1, 2, 5, 0.5])
@pytest.mark.parametrize("shape", [(3, 3), (3, 1)])
def test_variance_with_too_few_elements_is_infinite_or_nan_as_in_eager(check, correction, shape):
    check(lambda x: (x.var(1, correction=correction), x.var(correction=correction)), torch.randn(shape))


@pytest.mark.parametrize("function", [torch.argmax, torch.argmin])
def test_of_equal_extremes_the_first_counts_and_nan_is_extreme(check, function):
    x = torch.tensor([[2.0, 2, 1, 1], [1, float("nan"), 3, float("nan")]])
    check(lambda x: (function(x), function(x, dim=1), function(x, dim=0, keepdim=True)), x)


def test_sums_of_nothing_are_zero_and_means_nan(check):
    check(lambda x: (x.sum(1), x.mean(1), x.prod(1), x.sum(), x.any(1), x.all(1)), torch.randn(3, 0))


def test_reductions_of_a_tensor_without_dimensions_keep_its_value(check):
    check(lambda x: (x.sum(), x.amax(), x.mean(-1), torch.softmax(x, 0), x.argmax()), torch.tensor(2.5))


def test_integers_add_up_in_int64_unless_told_otherwise(check):
    x = torch.arange(6, dtype=torch.int32).view(2, 3)
    check(lambda x: (x.sum(), x.sum(0), x.prod(), x.sum(dtype=torch.int32), (x > 2).sum(1)), x)
