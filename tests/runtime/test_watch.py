"""A watch sees every change of a tensor that torch itself could see, in C and in Python alike."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from wolong_fx import _torch_compat
from wolong_fx.options import Options
from wolong_fx.runtime import Watch, is_watchable, watch

OPTIONS = Options.of()


@pytest.fixture(params=["c", "python"])
def in_both(request, monkeypatch):
    """The check in C, and what stands in for it where C cannot look into tensors."""
    if request.param == "python":
        monkeypatch.setattr(watch, "_find_library", lambda options: None)
    return request.param


def parameters() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), ())]


def write_without_grad(p: list[torch.Tensor]) -> None:
    with torch.no_grad():
        p[1].copy_(torch.randn(5))


def step_of_optimiser(p: list[torch.Tensor]) -> None:
    torch.stack([t.sum() for t in p]).sum().backward()
    torch.optim.SGD(p, lr=0.1).step()


def give_other_memory(p: list[torch.Tensor]) -> None:
    p[0].data = torch.randn(3, 4)


def write_to_a_view(p: list[torch.Tensor]) -> None:
    p[0].detach()[1].zero_()


def write_in_inference_mode(p: list[torch.Tensor]) -> None:
    with torch.inference_mode():
        p[2].add_(1)


def put_another_object(p: list[torch.Tensor]) -> None:
    p[2] = nn.Parameter(p[2].detach())


def swap_implementations(p: list[torch.Tensor]) -> None:
    torch.utils.swap_tensors(p[1], nn.Parameter(torch.randn(5)))


def move_to_a_vector(p: list[torch.Tensor]) -> None:
    vector_to_parameters(parameters_to_vector(p).detach(), p)


CHANGES = [
    write_without_grad,
    step_of_optimiser,
    give_other_memory,
    write_to_a_view,
    write_in_inference_mode,
    put_another_object,
    swap_implementations,
    move_to_a_vector,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(in_both, change):
    tensors = parameters()
    watched = Watch(tensors, OPTIONS)
    assert not watched.has_moved(tensors)
    change(tensors)
    assert watched.has_moved(tensors)
    assert watched.has_moved(tensors)


def test_what_only_reads_is_no_change(in_both):
    tensors = parameters()
    watched = Watch(tensors, OPTIONS)
    torch.stack([(t * 2).sum() for t in tensors]).sum().backward()
    assert not watched.has_moved(list(tensors))


def test_another_number_of_tensors_is_a_change(in_both):
    tensors = parameters()
    assert Watch(tensors, OPTIONS).has_moved(tensors[:-1])


def test_other_memory_at_the_same_address_is_seen(in_both):
    """The old memory is held: what comes to lie at its address could have the same version."""
    p = nn.Parameter(torch.zeros(1 << 16))
    tensors: list[torch.Tensor] = [p]
    watched = Watch(tensors, OPTIONS)
    for value in range(1, 4):
        p.data = torch.full((1 << 16,), float(value))
        assert watched.has_moved(tensors)


def test_a_tensor_that_died_is_not_mistaken_for_one_in_its_place(in_both):
    tensors: list[torch.Tensor] = [nn.Parameter(torch.zeros(4))]
    watched = Watch(tensors, OPTIONS)
    for _ in range(3):
        tensors[0] = nn.Parameter(torch.zeros(4))
        assert watched.has_moved(tensors)


def test_inference_tensors_have_no_counter_and_always_count_as_changed(in_both):
    with torch.inference_mode():
        tensor = torch.zeros(3)
    assert not is_watchable(tensor)
    watched = Watch([tensor], OPTIONS)
    assert watched.is_blind
    assert watched.has_moved([tensor])


def test_a_part_of_a_larger_vector_always_counts_as_changed(in_both):
    """Assigned to `.data`, it has a counter of its own, which writes to the vector do not move."""
    vector = torch.zeros(8)
    p = nn.Parameter(torch.ones(4))
    p.data = vector[4:]
    watched = Watch([p], OPTIONS)
    vector += 1
    assert watched.has_moved([p])


@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(4, 4).t(), lambda: torch.zeros(0), lambda: torch.zeros(())]
)
def test_memory_of_its_own_in_any_layout_can_be_watched(make):
    tensor = make()
    assert is_watchable(tensor)
    assert not Watch([tensor], OPTIONS).has_moved([tensor])


def test_subclasses_parts_and_other_devices_are_left_alone():
    class Odd(torch.Tensor):
        pass

    assert not is_watchable(torch.zeros(4).as_subclass(Odd))
    assert not is_watchable(torch.zeros(4)[1:])
    assert not is_watchable(torch.zeros(4, device="meta"))


def test_writes_past_the_counter_are_noticed_where_words_are_sampled():
    """No promise: but what scales or averages a weight changes all of it."""
    p = nn.Parameter(torch.rand(100) + 1)
    tensors: list[torch.Tensor] = [p]
    watched = Watch(tensors, OPTIONS)
    p.data.mul_(0.99)
    assert watched.has_moved(tensors)


def test_a_watch_holds_its_tensors_no_longer_than_itself():
    tensors = parameters()
    seen = weakref.ref(tensors[0])
    watched = Watch(tensors, OPTIONS)
    del tensors
    assert seen() is not None
    del watched
    gc.collect()
    assert seen() is None


def test_access_from_c_agrees_with_python():
    """The check in C is offered only where it was tried on tensors: on the versions that we support."""
    access = _torch_compat.find_tensor_access()
    assert access is not None
    assert access.offset in (16, 24)
