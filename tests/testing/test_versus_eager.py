"""The comparison with eager can fail: each kind of difference is caught."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wolong_fx
from wolong_fx.testing import versus_eager
from wolong_fx.testing.versus_eager import check_inference, check_training

pytestmark = pytest.mark.cpu


class Wrong(nn.Module):
    """Computes something else, or has another gradient, once it is optimised."""

    def __init__(self, fault) -> None:
        super().__init__()
        self.linear, self.fault = nn.Linear(3, 2), fault
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        y = self.linear(x)
        if "_wolong_fx" not in vars(self):
            return y
        return self.fault(self, y)


def other_value(_, y):
    return y * (1 + 1e-5)


def other_gradient(_, y):
    return y.detach() + 1.001 * (y - y.detach())


def no_gradient(_, y):
    return y.detach()


def other_type(_, y):
    return y.double()


def nan_somewhere(_, y):
    return torch.where(y == y.max(), torch.nan, y)


def other_buffer(model, y):
    model.seen += 1
    return y


def one_more_output(_, y):
    return y, y


FAULTS = [other_value, other_gradient, no_gradient, other_type, nan_somewhere, other_buffer, one_more_output]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_compiled_model_that_differs_is_caught(fault, monkeypatch):
    torch.manual_seed(1)
    # The fault is found by the marker that optimize leaves; what compiles is beside the point here.
    monkeypatch.setattr(versus_eager.wolong_fx, "optimize", mark)
    with pytest.raises(AssertionError):
        check_training(Wrong(fault), [torch.randn(4, 3)])


def mark(model):
    vars(model)["_wolong_fx"] = None
    return model


def test_an_equal_model_passes():
    torch.manual_seed(1)
    model = Wrong(lambda _, y: y)
    assert wolong_fx.stats(check_training(model, [torch.randn(4, 3)])).graphs == 2
    assert wolong_fx.stats(check_inference(model, [torch.randn(4, 3)])).graphs == 1
