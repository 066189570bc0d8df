"""What happens to a model between two calls is seen by the second: nothing of it is baked into a kernel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import wolong_fx

pytestmark = pytest.mark.cpu

x = torch.linspace(-1, 1, 6).view(2, 3)


def build(*, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(dropout), nn.BatchNorm1d(4), nn.Linear(4, 2))


def change_in_place(model):
    with torch.no_grad():
        model[0].weight.add_(1)


def scale_data(model):
    model[0].weight.data.mul_(3)


def swap_data(model):
    model[0].weight.data = torch.full((4, 3), 0.5)


def swap_parameter(model):
    model[0].weight = nn.Parameter(torch.full((4, 3), 0.25))


def swap_module(model):
    model[1] = nn.ReLU()


def load(model):
    model.load_state_dict({name: t * 2 for name, t in model.state_dict().items()})


def load_by_assignment(model):
    model.load_state_dict({name: t * 2 for name, t in model.state_dict().items()}, assign=True)


def step_of_an_optimizer(model):
    model(x).square().sum().backward()
    torch.optim.Adam(model.parameters(), lr=0.1).step()


def change_dtype(model):
    model.to(torch.float64).to(torch.float32)


def change_a_buffer(model):
    model[3].running_mean.add_(1)


CHANGES = (
    *(change_in_place, scale_data, swap_data, swap_parameter, swap_module, load, load_by_assignment),
    *(step_of_an_optimizer, change_dtype, change_a_buffer),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_of_the_model_is_seen_by_the_next_call(change):
    model = build().eval()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    before = twin(x)
    change(model)
    change(twin)
    torch.testing.assert_close(twin(x), model(x))
    assert change is change_dtype or not twin(x).allclose(before)


def test_frozen_parameters_get_no_gradient_and_thawed_ones_do():
    model = wolong_fx.optimize(build())
    for frozen in (True, False, True):
        model.zero_grad()
        model[0].requires_grad_(not frozen)
        model(x).sum().backward()
        assert (model[0].weight.grad is None) is frozen
        assert model[4].weight.grad is not None


def test_a_model_frozen_as_a_whole_needs_no_gradient():
    model = wolong_fx.optimize(build())
    assert model(x).requires_grad
    model.requires_grad_(False)
    assert not model(x).requires_grad


def test_train_and_eval_are_seen():
    model = build(dropout=0.5)
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for training in (True, False, True):
        for seed, m in ((7, model), (7, twin)):
            torch.manual_seed(seed)
            m.train(training)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        torch.testing.assert_close(twin(x), expected)
        torch.testing.assert_close(list(twin.buffers()), list(model.buffers()))


def test_training_follows_eager_step_by_step():
    model = build()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for _ in range(3):
        losses = []
        for m in (model, twin):
            optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
            loss = m(x).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)
