"""Training steps that do without Dynamo and AOTAutograd's wrappers keep every promise of autograd."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import wolong_fx
from tests.test_thin_path import Watched
from wolong_fx.errors import NoBatchedBackward, NoDoubleBackward, UnexpectedGradient

pytestmark = pytest.mark.cpu


class Net(nn.Module):
    """Statistics that a step updates, a result without a gradient, a weight that is only looked at."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x):
        y = self.inner(x)
        return y * self.gain.detach(), (y + 1).exp(), y.detach() * 2 + 1


@pytest.fixture(scope="module")
def compiled():
    net = Watched(Net())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(2):
            net.model(torch.rand(5, 4))[0].sum().backward()
    net.warm(torch.rand(5, 4))
    return net


@pytest.fixture
def pair(compiled):
    """The optimised model and an eager one in the same state, without gradients; and that Dynamo slept."""
    eager, slow = Net(), compiled.slow_calls
    compiled.model.load_state_dict(eager.state_dict())
    compiled.model.zero_grad()
    yield compiled.model, eager
    assert compiled.slow_calls == slow


@pytest.fixture
def x():
    return torch.linspace(-1, 1, 20).view(5, 4).sin()


def check_gradients(ours, eager):
    for (name, mine), theirs in zip(ours.named_parameters(), eager.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_steps_of_training_are_eagers(pair, x):
    optimisers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in pair]
    for _ in range(4):
        for model, optimiser in zip(pair, optimisers, strict=True):
            optimiser.zero_grad()
            model(x)[0].pow(2).mean().backward()
            optimiser.step()
        check_gradients(*pair)
    torch.testing.assert_close(pair[0].state_dict(), pair[1].state_dict(), rtol=1e-4, atol=1e-5)


def test_statistics_are_updated_and_their_counters_move(pair, x):
    norm = pair[0].inner[1]
    before = [buffer._version for buffer in norm.buffers()]
    for model in pair:
        model(x)
    torch.testing.assert_close(dict(norm.named_buffers()), dict(pair[1].inner[1].named_buffers()))
    assert [buffer._version for buffer in norm.buffers()] == [version + 1 for version in before]


def test_gradients_add_up(pair, x):
    for model in pair:
        for part in (x, x * 2):
            model(part)[1].sum().backward()
    check_gradients(*pair)


@pytest.mark.parametrize(
    "lay_out",
    [lambda y: y.sum(), lambda y: (y.t() * torch.arange(15.0).view(3, 5)).sum(), lambda y: y[1:].sum()],
)
def test_gradients_come_in_any_layout(pair, x, lay_out):
    for model in pair:
        lay_out(model(x)[1]).backward()
    check_gradients(*pair)


def test_both_results_or_one_of_them_may_be_used(pair, x):
    for used in (slice(0, 1), slice(1, 2), slice(0, 2)):
        for model in pair:
            torch.stack([y.sum() for y in model(x)[used]]).sum().backward()
        check_gradients(*pair)


def test_a_result_without_a_gradient_has_none(pair, x):
    assert [y.requires_grad for y in pair[0](x)] == [True, True, False]


def test_a_graph_is_used_once_unless_it_is_kept(pair, x):
    for model in pair:
        loss = model(x)[0].sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    check_gradients(*pair)


def test_a_weight_overwritten_before_the_backward_is_seen(pair, x):
    for model in pair:
        loss = model(x)[0].sum()
        with torch.no_grad():
            model.inner[3].weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_gradients_of_gradients_are_refused(pair, x):
    ours, eager = (list(model.inner.parameters()) for model in pair)
    mine = torch.autograd.grad(pair[0](x)[0].sum(), ours, create_graph=True)
    theirs = torch.autograd.grad(pair[1](x)[0].sum(), eager, create_graph=True)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert all(g.requires_grad for g in mine)
    with pytest.raises(NoDoubleBackward, match="deoptimize"):
        mine[0].sum().backward()


def test_batched_gradients_are_refused(pair, x):
    y = pair[0](x)[0]
    with pytest.raises(NoBatchedBackward, match="vmap"):
        torch.autograd.grad(y, pair[0].inner[0].weight, torch.ones(2, 5, 3), is_grads_batched=True)


def test_gradients_that_are_no_plain_tensors_are_refused(pair, x):
    class Odd(torch.Tensor):
        pass

    with pytest.raises(UnexpectedGradient, match="Odd"):
        pair[0](x)[0].backward(torch.ones(5, 3).as_subclass(Odd))


def test_hooks_of_parameters_run(pair, x):
    seen = {}
    for model in pair:
        calls = seen[model] = []
        weight = model.inner[0].weight
        handles = [
            weight.register_hook(lambda g, calls=calls: calls.append("gradient") or g * 2),
            weight.register_post_accumulate_grad_hook(lambda p, calls=calls: calls.append("accumulated")),
        ]
        model(x)[0].sum().backward()
        for handle in handles:
            handle.remove()
    assert seen[pair[0]] == seen[pair[1]] == ["gradient", "accumulated"]
    check_gradients(*pair)


def test_hooks_of_saved_tensors_run(pair, x):
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        loss = pair[0](x)[0].sum()
    assert packed
    loss.backward()


def test_what_a_step_keeps_goes_with_its_backward(pair, x):
    y = pair[0](x)[0]
    kept = [weakref.ref(t) for t in y.grad_fn.saved_tensors if t is not x]
    kept = [ref for ref in kept if ref() is not None and not isinstance(ref(), nn.Parameter)]
    y.sum().backward()
    gc.collect()
    assert all(ref() is None for ref in kept)


def test_the_gradient_of_a_weight_is_the_memory_that_the_kernel_wrote(pair, x):
    pair[0](x)[0].sum().backward()
    grad = pair[0].inner[0].weight.grad
    assert grad.is_contiguous() and not grad._is_view() and grad.grad_fn is None


# ---- what is not like the steps before


def learned(net, x, calls=3):
    """As many steps; returns how many went through Dynamo."""
    before = net.slow_calls
    for _ in range(calls):
        net.model(x)[0].sum().backward()
    return net.slow_calls - before


def test_a_frozen_weight_gets_no_gradient(compiled, x):
    compiled.model.zero_grad()
    compiled.model.inner[0].weight.requires_grad_(False)
    assert learned(compiled, x) > 0
    assert compiled.model.inner[0].weight.grad is None and compiled.model.inner[3].bias.grad is not None
    compiled.model.inner[0].weight.requires_grad_()
    assert learned(compiled, x) == 0
    assert compiled.model.inner[0].weight.grad is not None


def test_an_input_that_wants_a_gradient_gets_one(compiled, x):
    eager = Net()
    compiled.model.load_state_dict(eager.state_dict())
    given, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    assert learned(compiled, given, calls=4) in (2, 3)
    given.grad = None
    compiled.model.load_state_dict(eager.state_dict())
    assert learned(compiled, given, calls=1) == 0
    eager(other)[0].sum().backward()
    torch.testing.assert_close(given.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_without_gradients_nothing_is_kept_for_a_backward(compiled, x):
    with torch.no_grad():
        assert not any(y.requires_grad for y in compiled.model(x))
    assert learned(compiled, x) == 0


def test_autocast_goes_through_dynamo(compiled, x):
    with torch.autocast("cpu", torch.bfloat16):
        assert learned(compiled, x, calls=2) == 2
    assert learned(compiled, x) == 0


def test_dropout_is_new_at_every_step_and_its_backward_agrees():
    net = Watched(nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Dropout(0.5))).warm(torch.rand(8, 4))
    given = torch.rand(8, 4)
    results = [net.model(given) for _ in range(3)]
    assert net.slow_calls == 0
    assert not torch.equal(results[0], results[1])
    results[2].sum().backward()
    kept = results[2] != 0
    expected = (2 * (1 - (results[2] / 2).pow(2)) * kept).sum(0)
    torch.testing.assert_close(net.model[0].bias.grad, expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_a_kernel_trains_as_it_is():
    ours = Watched(nn.Linear(4, 4, bias=False))
    for _ in range(3):
        ours.model(torch.ones(2, 4)).sum().backward()
    ours.warm(torch.ones(2, 4))
    y = ours.model(torch.ones(2, 4))
    assert type(y.grad_fn) is type(ours.eager(torch.ones(2, 4)).grad_fn) and ours.slow_calls == 0


def test_results_that_are_views_of_one_another_are_left_to_aotautograd():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 6)

        def forward(self, x):
            y = self.inner(x).tanh() * 2
            return y, y[0], y.view(-1)

    model, given = Watched(Views()).warm(torch.rand(2, 4)), torch.rand(2, 4)
    eager = copy.deepcopy(model.model)
    wolong_fx.deoptimize(eager)
    for net in (model.model, eager):
        y, first, flat = net(given)
        assert first.data_ptr() == y.data_ptr() == flat.data_ptr()
        (y.sum() + first.sum() * 2 + flat.pow(2).sum()).backward()
    check_gradients(model.model, eager)
    assert model.slow_calls == 0
