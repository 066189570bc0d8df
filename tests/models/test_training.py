"""Training as people do it: optimisers, accumulation, several backward calls, gradients of gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wolong_fx
from wolong_fx.testing.versus_eager import train_step

pytestmark = pytest.mark.cpu

OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "Adam foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


def network(width=5):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def pair():
    """A compiled model and the same in eager."""
    model = network()
    return wolong_fx.optimize(copy.deepcopy(model)), model


def same_gradients(twin, model):
    """Within 1e-5 of the largest element; missing where eager has none."""
    for ours, eager in zip(twin.parameters(), model.parameters(), strict=True):
        assert (ours.grad is None) == (eager.grad is None)
        if eager.grad is not None:
            scale = eager.grad.abs().max().item()
            torch.testing.assert_close(ours.grad, eager.grad, rtol=0, atol=1e-5 * scale)


def fit(model, make_optimiser, steps=5):
    """Losses of some steps with clipped gradients, a schedule, and a closure-free loop."""
    torch.manual_seed(2)
    optimiser = make_optimiser(model.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.9)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OPTIMISERS)
def test_five_steps_of_an_optimiser_have_the_losses_of_eager(name):
    twin, model = pair()
    assert fit(twin, OPTIMISERS[name]) == pytest.approx(fit(model, OPTIMISERS[name]), rel=1e-5)
    torch.testing.assert_close(dict(twin.state_dict()), dict(model.state_dict()), rtol=1e-4, atol=1e-5)
    assert wolong_fx.stats(twin).graphs == 2  # compiled once, though the weights changed five times


def test_gradients_accumulate_over_calls():
    twin, model = pair()
    for _ in range(3):
        x = torch.randn(4, 5)
        for m in (twin, model):
            m(x).square().sum().backward()
    same_gradients(twin, model)


def test_two_forward_calls_before_a_backward_keep_their_own_values():
    twin, model = pair()
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    for m in (twin, model):
        first, second = m(a), m(b)
        (first * second.detach() + second.exp()).sum().backward()
    same_gradients(twin, model)


def test_backward_may_run_twice_over_a_retained_graph():
    twin, model = pair()
    x = torch.randn(4, 5)
    for m in (twin, model):
        y = m(x)
        y.sum().backward(retain_graph=True)
        y.square().sum().backward()
        with pytest.raises(RuntimeError, match="second time"):
            y.exp().sum().backward()
    same_gradients(twin, model)


def test_gradients_of_inputs_alone_leave_parameters_without():
    twin, model = pair()
    x = torch.randn(4, 5, requires_grad=True)
    ours, eager = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (twin, model))
    torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in twin.parameters())


def test_frozen_parameters_get_no_gradient_and_may_thaw():
    twin, model = pair()
    x = torch.randn(4, 5)
    for freeze in (True, False):
        for m in (twin, model):
            m[0].requires_grad_(not freeze)
            m.zero_grad()
            m(x).square().sum().backward()
        assert (twin[0].weight.grad is None) == freeze
        same_gradients(twin, model)


def test_an_unused_output_and_an_unused_parameter_get_what_eager_gives():
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(5, 3), nn.Linear(5, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(x).tanh(), self.b(x).tanh()

    torch.manual_seed(1)
    model = TwoHeads()
    twin, x = wolong_fx.optimize(copy.deepcopy(model)), torch.randn(4, 5)
    for m in (model, twin):
        m(x)[0].sum().backward()
    torch.testing.assert_close(twin.a.weight.grad, model.a.weight.grad)
    assert twin.idle.weight.grad is None
    assert twin.b.weight.grad is None or not twin.b.weight.grad.any()


def test_hooks_of_tensors_and_modules_see_their_gradients():
    twin, model = pair()
    x, seen = torch.randn(4, 5), []
    for m in (twin, model):
        m[0].weight.register_hook(lambda g: g * 2)
        m.register_full_backward_hook(lambda _, grad_in, grad_out: seen.append(grad_out[0]))
        m(x.clone().requires_grad_()).sum().backward()
    same_gradients(twin, model)
    torch.testing.assert_close(*seen)


class Penalty(nn.Module):
    """A model that takes a gradient inside (Gulrajani et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return self.net(x).mean() + slope.square().sum()


def slope_norm(model, x):
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope.square().sum()


@pytest.mark.parametrize(
    "make, loss", [(network, slope_norm), (Penalty, lambda m, x: m(x))], ids=["outside", "inside"]
)
def test_gradients_of_gradients_are_eagers_or_a_clear_error(make, loss):
    """AOTAutograd has no double backward; silence or wrong numbers would be worse than its message."""
    model = make()
    twin, x = wolong_fx.optimize(copy.deepcopy(model)), torch.randn(4, 5, requires_grad=True)
    loss(model, x).backward()
    try:
        loss(twin, x).backward()
    except RuntimeError as error:
        assert "double backward" in str(error)
    else:
        same_gradients(twin, model)


def test_functional_transforms_of_a_compiled_model_are_eagers():
    twin, model = pair()
    x, weights = torch.randn(4, 5), dict(model.named_parameters())

    def loss(m, weights):
        return torch.func.functional_call(m, weights, (x,)).square().sum()

    torch.testing.assert_close(
        torch.func.grad(lambda w: loss(twin, w))(weights), torch.func.grad(lambda w: loss(model, w))(weights)
    )
    torch.testing.assert_close(torch.func.vmap(twin)(x), model(x))


def test_checkpointed_activations_are_recomputed_to_the_same_gradients():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.drop = network(), nn.Dropout(0.3)

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(
                lambda z: self.drop(self.net(z)), x, use_reentrant=False
            ).exp()

    model = Checkpointed()
    twin, x = wolong_fx.optimize(copy.deepcopy(model)), torch.randn(4, 5)
    ours, eager = train_step(twin, [x]), train_step(model, [x])
    torch.testing.assert_close(ours.outputs, eager.outputs)
    torch.testing.assert_close(dict(ours.gradients), dict(eager.gradients), rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_compiled_with_the_optimiser_step_outside_learns():
    @wolong_fx.optimize
    def loss_of(weight, x, y):
        return (x @ weight - y).square().mean()

    torch.manual_seed(1)
    weight, x = nn.Parameter(torch.zeros(5, 1)), torch.randn(20, 5)
    y = x @ torch.arange(5.0).unsqueeze(1)
    optimiser = torch.optim.SGD([weight], 0.3)
    for _ in range(60):
        optimiser.zero_grad()
        loss_of(weight, x, y).backward()
        optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.arange(5.0).unsqueeze(1), rtol=1e-3, atol=1e-3)


class States(nn.Module):
    """Returns some of the values that its backward needs, one of them as a view."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(9))

    def forward(self, x):
        states = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            states.append(x)
        return states[2], states[-1], states[3].T


def test_only_what_the_backward_keeps_shares_memory():
    torch.manual_seed(1)
    model, kept = States(), []
    twin, x = wolong_fx.optimize(copy.deepcopy(model)), torch.randn(4, 16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours = twin(x)
    for y in ours:
        assert y.untyped_storage().nbytes() == y.numel() * y.element_size()
    places = {y.untyped_storage().data_ptr() for y in ours}
    shared = [t for t in kept if t.shape == (4, 16) and t.untyped_storage().nbytes() > t.nbytes]
    assert not wolong_fx.stats(twin).fallbacks
    assert len({t.untyped_storage().data_ptr() for t in shared}) == 1
    assert not places & {t.untyped_storage().data_ptr() for t in shared}
    sum(y.square().sum() for y in ours).backward()
    sum(y.square().sum() for y in model(x)).backward()
    same_gradients(twin, model)
