"""Calls of optimised functions do without Dynamo, and see what changes around them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import wolong_fx

pytestmark = pytest.mark.cpu

FACTOR = 2.0
scale = torch.ones(4)
net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())


def helper(y):
    return y * FACTOR


def make(weight, inner):
    """A function that reads arguments, defaults, globals and a closure: tensors, modules and numbers."""

    def blend(x, power=2, *, flag=True):
        y = helper(net(x)) * scale + inner(x) * weight
        return {"y": y**power if flag else -y, "sum": (y.sum(), 3)}

    return blend


def make_other(weight, inner):
    """The same places, other operators."""

    def blend(x, power=2, *, flag=True):
        y = inner(x) - weight
        return {"y": y**power if flag else y, "sum": (net(y).sum(), 4)}

    return blend


def make_scaled(weight):
    return lambda v: (v * weight).sin() + 1


class Counted:
    """An optimised function whose calls through Dynamo are counted."""

    def __init__(self, function):
        self.function, self.eager = wolong_fx.optimize(function), function
        self.slow_calls = 0

    def warm(self, *args):
        for _ in range(3):
            self.function(*args)
        thin = self.function.compilation._thin
        compiled = thin._compiled

        def counted(*args, **kwargs):
            self.slow_calls += 1
            return compiled(*args, **kwargs)

        thin._compiled = counted
        return self

    def check(self, *args, calls=4, **kwargs):
        """Several calls; returns how many went through Dynamo."""
        before = self.slow_calls
        for _ in range(calls):
            torch.testing.assert_close(self.function(*args, **kwargs), self.eager(*args, **kwargs))
        return self.slow_calls - before


x = torch.linspace(-1, 1, 8).view(2, 4)


def compiled_blend():
    torch.manual_seed(0)
    with torch.no_grad():
        return Counted(make(torch.full((4,), 3.0), nn.Linear(4, 4))).warm(x)


@pytest.fixture(scope="module")
def compiled():
    return compiled_blend()


@pytest.fixture
def blend(compiled):
    """Without gradients, and as it was compiled first."""
    with torch.no_grad():
        compiled.check(x)
        yield compiled


def test_a_call_like_those_before_does_without_dynamo(blend):
    assert blend.check(x) == blend.check(torch.rand(2, 4)) == blend.check(x.sin()) == 0


def test_values_of_what_it_reads_change_freely(blend):
    before = blend.function(x)["y"]
    net.load_state_dict({name: value * 2 for name, value in net.state_dict().items()})
    blend.eager.__closure__[1].cell_contents.add_(1)
    assert blend.check(x) == 0
    assert not torch.equal(blend.function(x)["y"], before)


@torch.no_grad()
def test_other_arguments_are_seen():
    blend = compiled_blend()  # of its own: Dynamo compiles eight times at most
    for args, kwargs in (((x[:1],), {}), ((x, 3), {}), ((x, 2.0), {}), ((x,), {"flag": False})):
        assert blend.check(*args, **kwargs) > 0
        assert blend.check(x) == 0


@pytest.mark.parametrize(
    "name, value",
    [
        ("FACTOR", 5.0),
        ("helper", lambda y: y - 1),
        ("scale", torch.full((4,), 0.5)),
        ("net", nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())),
    ],
)
def test_globals_are_seen(blend, monkeypatch, name, value):
    before = blend.function(x)["y"]
    monkeypatch.setitem(globals(), name, value)
    assert blend.check(x) > 0
    assert not torch.equal(blend.function(x)["y"], before)


def test_other_globals_do_not_matter(blend, monkeypatch):
    monkeypatch.setitem(globals(), "unrelated", 1)
    assert blend.check(x) == 0


def test_changes_in_a_closure_are_seen(blend):
    cells = blend.eager.__closure__
    was = [cell.cell_contents for cell in cells]
    assert blend.eager.__code__.co_freevars == ("inner", "weight")
    for cell, value in zip(cells, (nn.Linear(4, 4), torch.zeros(4)), strict=True):
        cell.cell_contents = value
        assert blend.check(x) > 0
    for cell, value in zip(cells, was, strict=True):
        cell.cell_contents = value


@pytest.mark.guarded_defaults
def test_a_new_default_is_seen(blend, monkeypatch):
    monkeypatch.setattr(blend.eager, "__defaults__", (3,))
    assert blend.check(x) > 0


def test_a_new_body_is_seen(blend, monkeypatch):
    monkeypatch.setattr(blend.eager, "__code__", make_other(None, None).__code__)
    assert blend.check(x) > 0


def test_hooks_of_a_module_that_it_calls_are_seen(blend):
    handle = net[0].register_forward_hook(lambda module, args, output: output.mul(2))
    assert blend.check(x) > 0
    handle.remove()
    blend.check(x)


def test_a_step_of_training_does_without_dynamo(compiled):
    given = x.clone().requires_grad_()
    for _ in range(3):
        compiled.function(given)["sum"][0].backward()
    before = compiled.slow_calls
    mine, theirs = given.clone().detach().requires_grad_(), given.clone().detach().requires_grad_()
    compiled.function(mine)["sum"][0].backward()
    compiled.eager(theirs)["sum"][0].backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert compiled.slow_calls == before


def test_a_method_that_is_optimised_reads_its_own_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with torch.no_grad():
        forward = Counted(model.forward).warm(x)
        assert forward.check(x) == 0
        model[0].weight = nn.Parameter(torch.rand(4, 4))
        assert forward.check(x) > 0


def test_functions_of_one_text_are_compiled_apart():
    functions = [wolong_fx.optimize(lambda v, k=k: v.sin() * k + 1) for k in range(12)]
    with torch.no_grad():
        for k, function in enumerate(functions):
            torch.testing.assert_close(function(x), x.sin() * k + 1)
            assert wolong_fx.stats(function).graphs == 1


def test_a_function_that_goes_takes_its_closure_along():
    weight = torch.ones(4)
    with torch.no_grad():
        twice = Counted(make_scaled(weight)).warm(x)
        assert twice.check(x) == 0
    ref = weakref.ref(weight)
    del twice, weight
    torch._dynamo.reset()
    gc.collect()
    assert ref() is None


def test_verify_always_asks_dynamo_at_every_call():
    function: Any = wolong_fx.optimize(lambda v: v.sin() + 1, verify="always")
    assert function.compilation._thin is None
    torch.testing.assert_close(function(x), x.sin() + 1)
