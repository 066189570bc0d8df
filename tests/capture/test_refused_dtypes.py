"""What eager refuses for its dtypes, a compiled model refuses too; what eager promotes still compiles."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import wolong_fx
from wolong_fx.capture.refused_dtypes import find_refused_dtypes
from wolong_fx.testing.oracle import assert_results_close

pytestmark = pytest.mark.cpu

rows = torch.tensor([0, 1])

# name: (function, shapes of its two operands)
REFUSED = {
    "linear": (F.linear, (4, 4), (4, 4)),
    "matmul": (lambda a, b: a @ b, (4, 4), (4,)),
    "bmm": (torch.bmm, (2, 4, 4), (2, 4, 4)),
    "addmm": (lambda a, b: torch.addmm(a, a, b), (4, 4), (4, 4)),
    "addmm_bias": (lambda a, b: torch.addmm(a, b, b), (4, 4), (4, 4)),
    "conv2d": (F.conv2d, (1, 2, 8, 8), (3, 2, 3, 3)),
    "batch_norm": (lambda a, b: F.batch_norm(a, b, b.abs() + 1), (3, 4), (4,)),
    "index_add": (lambda a, b: a.index_add(0, rows, b), (4, 4), (2, 4)),
    "index_put": (lambda a, b: a.index_put((rows,), b), (4, 4), (2, 4)),
    "lerp": (lambda a, b: torch.lerp(a, b, 0.5), (4,), (4,)),
    "attention": (lambda a, b: F.scaled_dot_product_attention(a, b, b), (1, 2, 4, 4), (1, 2, 4, 4)),
    "scatter": (lambda a, b: a.scatter(0, rows[:, None], b), (4, 4), (2, 4)),
}
ALLOWED = {
    "cat": (lambda a, b: torch.cat([a, b]), (4,), (4,)),
    "where": (lambda a, b: torch.where(a > 0, a, b), (4,), (4,)),
    "add": (torch.add, (3, 4), (4,)),
    "embedding": (lambda a, b: F.embedding(rows, a) * b, (4, 4), (4,)),
}


def _outcome(function, *args):
    try:
        return function(*args), None
    except Exception as error:
        return None, error


@pytest.mark.parametrize("name", REFUSED)
@torch.no_grad()
def test_an_error_about_dtypes_is_eagers(name):
    function, *shapes = REFUSED[name]
    a, b = (
        torch.rand(shape, dtype=t) for shape, t in zip(shapes, (torch.float64, torch.float32), strict=True)
    )
    _, expected = _outcome(function, a, b)
    assert expected is not None
    result, error = _outcome(wolong_fx.optimize(lambda a, b: function(a, b) * 2), a, b)
    assert result is None
    assert (type(error), str(error)) == (type(expected), str(expected))


@pytest.mark.parametrize("name", ALLOWED)
@torch.no_grad()
def test_what_eager_promotes_is_compiled(name):
    function, *shapes = ALLOWED[name]
    a, b = (
        torch.rand(shape, dtype=t) for shape, t in zip(shapes, (torch.float64, torch.float32), strict=True)
    )
    ours = wolong_fx.optimize(lambda a, b: function(a, b).sin() * 2)
    torch.testing.assert_close(ours(a, b), function(a, b).sin() * 2)
    assert not wolong_fx.stats(ours).fallbacks


def test_a_module_given_another_dtype_is_well_afterwards():
    model, x = wolong_fx.optimize(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), torch.rand(2, 4)
    with torch.no_grad():
        for _ in range(3):
            with pytest.raises(RuntimeError, match="same dtype"):
                model(x.double())
            torch.testing.assert_close(model(x), model._call_impl(x))


def test_autocast_lets_operands_differ():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    exact, x = deepcopy(model).double(), torch.rand(2, 4).bfloat16()
    ours = wolong_fx.optimize(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result, eager = ours(x), model._call_impl(x)
    assert_results_close(result, eager, exact(x.double()), cancels=True)
    assert not wolong_fx.stats(ours).fallbacks


def test_operators_of_others_are_not_tried():
    calls = []

    def counted(a, b):
        calls.append(a)
        return a

    graph = torch.fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    a.meta["example_value"], b.meta["example_value"] = torch.rand(2), torch.rand(2).double()
    graph.output(graph.call_function(counted, (a, b)))
    assert find_refused_dtypes(torch.fx.GraphModule(nn.Module(), graph)) is None
    assert not calls
