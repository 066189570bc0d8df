"""Pointwise lowerings: in which type numbers meet tensors, and where eager refuses."""

import operator

import pytest
import torch

from wolong_fx.codegen import why_unsupported
from wolong_fx.testing.graphs import trace_graph

aten = torch.ops.aten
HALVES = (torch.bfloat16, torch.float16)


def values(dtype):
    return torch.linspace(-3, 3, 61, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.le, operator.gt])
def test_a_comparison_rounds_its_number_to_the_tensors_half_precision(check, compare, dtype):
    check(lambda x: compare(x, 0.1), torch.cat([values(dtype), torch.tensor([0.1]).to(dtype)]))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("function", [torch.sub, torch.rsub, torch.remainder, torch.fmod, torch.pow])
def test_arithmetic_rounds_its_number_to_the_tensors_half_precision(run, function, dtype):
    x = values(dtype)
    (ours,) = run(lambda x: function(x, 0.3), x)
    assert torch.equal(ours.nan_to_num(), function(x, 0.3).nan_to_num())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("number", [0.3, torch.tensor(0.3), torch.tensor(257)], ids=repr)
@pytest.mark.parametrize("function", [torch.mul, torch.div])
def test_products_and_quotients_keep_the_precision_of_a_number(run, function, number, dtype):
    x = values(dtype)
    if isinstance(number, torch.Tensor):
        (ours,) = run(function, x, number)
    else:
        (ours,) = run(lambda x: function(x, number), x)
    assert torch.equal(ours, function(x, number))


def test_an_integer_tensor_is_rounded_to_the_half_precision_it_meets(check):
    check(lambda x, y: (x + y, x * y), values(torch.bfloat16)[:3], torch.tensor([1, 257, 1001]))


def test_alpha_scales_the_second_operand(check):
    x, y = torch.randn(4), torch.randn(4)
    check(lambda x, y: (torch.add(x, y, alpha=2), torch.sub(x, y, alpha=3), torch.rsub(x, y, alpha=2)), x, y)


def test_shifts_by_more_than_the_width_follow_eager(check):
    check(lambda x, y: (x << y, x >> y, x << 1), torch.tensor([1, -8, 5, -7]), torch.tensor([3, 1, 64, -1]))


NAN = float("nan")


@pytest.mark.parametrize(
    "bounds",
    [
        *((0.5, None), (None, 2), (0.5, 2.5), (3, 1), (NAN, 2)),
        pytest.param((NAN, None), marks=pytest.mark.clamp_by_nan),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_clamp_promotes_to_its_bounds_and_the_upper_one_wins(check, bounds, dtype):
    check(lambda x: torch.clamp(x, *bounds), torch.arange(-3, 4).to(dtype))


def test_integers_to_negative_powers_stay_with_torch_which_refuses_them():
    with torch.no_grad():
        gm = trace_graph(lambda x: torch.pow(x, 2), torch.arange(3))
    (node,) = [n for n in gm.graph.nodes if n.op == "call_function"]
    assert why_unsupported(node) is None
    node.args = (node.args[0], -1)
    assert "torch refuses" in str(why_unsupported(node))


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 0.5, -0.5, 2.0, 1.5])
def test_powers_of_integers_and_floats_follow_eager(check, exponent):
    floats = torch.tensor([0.0, -0.0, 2.5, -2.0, float("nan"), float("inf"), -float("inf")])
    check(lambda x, i: (x**exponent, i**exponent), floats, torch.arange(5))
