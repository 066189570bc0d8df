"""Weight updates are always seen: what is kept of weights between calls follows every way to change them."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import wolong_fx

pytestmark = pytest.mark.cpu


class Recurrent(nn.Module):
    """Weights in every role: streamed often, once and transposed, summed, scaled; a buffer and a state."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(12, 20)
        self.again = nn.Linear(20, 20)
        self.out = nn.Linear(20, 7)
        self.shift = nn.Parameter(torch.randn(20))
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.rand(20) + 0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        h = torch.tanh(self.into(x))
        for _ in range(3):
            h = torch.tanh(self.again(h) * self.scale.sqrt() + (self.shift + self.into.bias))
        return self.out(h)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return wolong_fx.optimize(Recurrent().eval())


X = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))


def agrees(model: nn.Module, x: torch.Tensor = X) -> bool:
    """Whether the compiled model computes what its eager twin does now, twice."""
    with torch.no_grad():
        return all(torch.allclose(model(x), model.forward(x), rtol=1e-5, atol=1e-6) for _ in range(2))


def step_of_optimiser(model: Recurrent) -> None:
    model.forward(X).square().sum().backward()
    torch.optim.Adam(model.parameters(), lr=0.1).step()


def load_another_state(model: Recurrent) -> None:
    model.load_state_dict(Recurrent().state_dict())


def assign_another_state(model: Recurrent) -> None:
    model.load_state_dict(Recurrent().state_dict(), assign=True)


def copy_without_grad(model: Recurrent) -> None:
    with torch.no_grad():
        model.again.weight.copy_(torch.randn(20, 20))


def assign_data(model: Recurrent) -> None:
    model.again.weight.data = torch.randn(20, 20)


def put_another_parameter(model: Recurrent) -> None:
    model.again.weight = nn.Parameter(torch.randn(20, 20))


def change_a_buffer(model: Recurrent) -> None:
    model.scale.fill_(0.25)


def move_to_a_vector(model: Recurrent) -> None:
    vector_to_parameters(parameters_to_vector(model.parameters()).detach() * 1.5, model.parameters())


def average_through_data(model: Recurrent) -> None:
    for p in model.parameters():
        p.data.mul_(0.9)


CHANGES = [
    step_of_optimiser,
    load_another_state,
    assign_another_state,
    copy_without_grad,
    assign_data,
    put_another_parameter,
    change_a_buffer,
    average_through_data,
    move_to_a_vector,
]


def test_something_is_kept_of_the_weights(model):
    assert agrees(model)
    assert wolong_fx.stats(model).memory["kept"] > 0
    assert "kept between calls" in str(wolong_fx.stats(model))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_weights_is_seen_by_the_next_call(model, change):
    assert agrees(model)
    with torch.no_grad():
        before = model(X)
    change(model)
    assert agrees(model)
    with torch.no_grad():
        assert not torch.allclose(model(X), before)


def test_a_vector_that_holds_all_weights_may_change_in_place(model):
    vector = parameters_to_vector(model.parameters()).detach()
    for _ in range(3):
        vector[100] += 1
        vector_to_parameters(vector, model.parameters())
        assert agrees(model)


def test_tied_weights_are_seen_as_one():
    tied = wolong_fx.optimize(Recurrent().eval())
    tied.into, tied.again, tied.out = (nn.Linear(12, 12) for _ in range(3))
    tied.shift, tied.scale = nn.Parameter(torch.randn(12)), torch.rand(12)
    tied.again.weight = tied.out.weight = tied.into.weight
    assert agrees(tied)
    with torch.no_grad():
        tied.out.weight.mul_(2)
    assert agrees(tied)


def test_models_that_share_a_compiled_function_do_not_share_what_is_kept():
    @wolong_fx.optimize
    def call(model: Recurrent, x: torch.Tensor) -> torch.Tensor:
        return model.forward(x)

    models = [Recurrent().eval() for _ in range(2)]
    with torch.no_grad():
        for _ in range(2):
            for each in models:
                assert torch.allclose(call(each, X), each.forward(X), rtol=1e-5, atol=1e-6)


def test_another_dtype_is_another_kernel(model):
    assert agrees(model)
    model.double()
    assert agrees(model, X.double())
    model.float()
    assert agrees(model)


def test_a_deep_copy_has_its_own(model):
    assert agrees(model)
    twin = copy.deepcopy(model)
    copy_without_grad(twin)
    assert agrees(twin)
    assert agrees(model)


def test_weights_made_in_inference_mode_are_read_anew_at_every_call():
    with torch.inference_mode():
        model = wolong_fx.optimize(Recurrent().eval())
        for _ in range(3):
            assert torch.allclose(model(X), model.forward(X), rtol=1e-5, atol=1e-6)
            model.again.weight.copy_(torch.randn(20, 20))
    assert not wolong_fx.stats(model).memory["kept"]


def test_with_verify_always_nothing_is_kept():
    model = wolong_fx.optimize(Recurrent().eval(), verify="always")
    for _ in range(2):
        assert agrees(model)
        model.again.weight.data[3, 4] += 1
    assert not wolong_fx.stats(model).memory["kept"]


def test_training_and_inference_take_turns(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(X).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        assert agrees(model)


def test_threads_that_find_a_weight_changed_at_once_all_see_it(model):
    assert agrees(model)
    load_another_state(model)
    seen: list[torch.Tensor] = []

    def call() -> None:
        with torch.no_grad():
            seen.extend(model(X) for _ in range(20))

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expected = model.forward(X)
    assert len(seen) == 80
    assert all(torch.allclose(y, expected, rtol=1e-5, atol=1e-6) for y in seen)
