"""Names that a model's code looks up are not looked up at every call, and yet each change of one is seen."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import wolong_fx
from wolong_fx.thin_path import ThinPath

pytestmark = pytest.mark.cpu

CALLS = 0
activation = torch.tanh


def helper(x):
    return x * 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return helper(torch.tanh(self.linear(x))) + activation(x)


class Asked:
    """An optimised model, with the numbers of times that all its guards, and only some, were asked."""

    def __init__(self, monkeypatch):
        self.model, self.x = Net().eval(), torch.randn(2, 4)
        self.eager = Net().eval()
        self.eager.load_state_dict(self.model.state_dict())
        self.all = self.rest = 0
        self.optimized = wolong_fx.optimize(self.model)
        monkeypatch.setattr(ThinPath, "_parts", self._counting_parts())

    def _counting_parts(self):
        make = ThinPath._parts

        def parts(path, seen):
            found = make(path, seen)
            guard, rest = found.guard, found.rest
            assert guard and rest

            def ask_all(scope):
                self.all += 1
                return guard(scope)

            def ask_rest(scope):
                self.rest += 1
                return rest(scope)

            return found._replace(guard=ask_all, rest=ask_rest)

        return parts

    def calls(self, count=1):
        """(times that all guards were asked, times that the rest was), after so many right calls."""
        self.all = self.rest = 0
        with torch.no_grad():
            for _ in range(count):
                torch.testing.assert_close(self.optimized(self.x), self.eager(self.x))
        return self.all, self.rest


@pytest.fixture
def asked(monkeypatch):
    found = Asked(monkeypatch)
    found.calls(4)
    return found


def test_names_are_looked_up_once(asked):
    assert asked.calls(5) == (0, 5)


def test_a_namespace_that_changed_is_looked_at_once_more(asked, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "CALLS", CALLS + 1)
    assert asked.calls(5) == (1, 4)
    monkeypatch.setattr(torch, "a_name_of_nothing", 1, raising=False)
    assert asked.calls(5) == (1, 4)


@pytest.mark.parametrize(
    "namespace, name, value",
    [
        (torch, "tanh", torch.sigmoid),
        (sys.modules[__name__], "activation", torch.sin),
        (sys.modules[__name__], "helper", lambda x: x * 3),
    ],
)
def test_a_name_that_leads_elsewhere_is_seen_and_its_return_too(asked, monkeypatch, namespace, name, value):
    with monkeypatch.context() as patch:
        patch.setattr(namespace, name, value)
        asked.calls(4)
    asked.calls(4)


def test_a_body_is_no_name_and_is_asked_for_at_every_call(asked, monkeypatch):
    monkeypatch.setattr(helper, "__code__", (lambda x: x * 5).__code__)
    asked.calls(4)


def test_a_module_of_another_class_is_another_namespace(asked, monkeypatch):
    class Other(type(sys)):
        pass

    monkeypatch.setattr(torch, "__class__", Other)
    assert asked.calls(2) == (2, 0)


def test_a_guard_that_fails_is_not_taken_for_one_that_held(asked, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "activation", torch.cos)
        asked.calls(1)
        asked.calls(1)
    asked.calls(1)
