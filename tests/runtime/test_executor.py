from __future__ import annotations

import operator
import pickle
import traceback
import weakref

import pytest
import torch

from wolong_fx.options import Options
from wolong_fx.runtime import CallStep, Executor, KernelStep, Slot, load_kernel
from wolong_fx.testing.handwritten import add_then_reverse


@pytest.fixture(scope="module")
def add():
    return load_kernel(add_then_reverse(4, threads=1), Options.of())


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.cpu
def test_kernels_and_operators_pass_values_through_slots(add):
    executor = Executor(
        steps=[
            KernelStep(add, ins=(0, 1), outs=(2,)),
            CallStep(torch.mul, (Slot(2), 10.0), (3,)),
            KernelStep(add, ins=(3, 0), outs=(4,)),
        ],
        inputs=(0, 1),
        outputs=(Slot(4), Slot(2)),
    )
    a, b = vector(1, 2, 3, 4), vector(10, 20, 30, 40)
    last, first = executor([a, b])
    assert torch.equal(first, (a + b).flip(0))
    assert torch.equal(last, ((a + b).flip(0) * 10 + a).flip(0))
    assert (executor.launches, executor.fallbacks) == (2, 1)


@pytest.mark.cpu
def test_a_boxed_call_empties_its_list_of_inputs(add):
    inputs = [vector(1, 2, 3, 4), vector(1, 1, 1, 1)]
    (out,) = Executor([KernelStep(add, (0, 1), (2,))], (0, 1), (Slot(2),))(inputs)
    assert inputs == []
    assert out.tolist() == [5, 4, 3, 2]


def test_slots_are_found_at_any_depth_of_a_template():
    step = CallStep(
        lambda *args, **kwargs: (args, kwargs),
        (
            [Slot(0), (Slot(1), [Slot(0)])],
            (),
            {"k": Slot(1)},
            None,
            True,
            "text",
            float("inf"),
            torch.float16,
        ),
        (2,),
        {"from": Slot(0), "dim": [Slot(1)]},
    )
    ((args, kwargs),) = Executor([step], (0, 1), (Slot(2),))(["x", "y"])
    assert args == (["x", ("y", ["x"])], (), {"k": "y"}, None, True, "text", float("inf"), torch.float16)
    assert kwargs == {"from": "x", "dim": ["y"]}


def test_lists_of_fx_hold_slots_too():
    from torch.fx.immutable_collections import immutable_list

    step = CallStep(torch.cat, (immutable_list([Slot(0), Slot(0)]),), (1,))
    assert Executor([step], (0,), (Slot(1),))([vector(1, 2)])[0].tolist() == [1, 2, 1, 2]


def test_several_slots_take_the_items_of_a_result():
    steps = [
        CallStep(torch.max, (Slot(0), 0), (1, 2)),
        CallStep(torch.aminmax, (Slot(0),), (3,)),
        CallStep(operator.getitem, (Slot(3), 0), (4,)),
    ]
    values, indices, least = Executor(steps, (0,), (Slot(1), Slot(2), Slot(4)))([vector(3, 9, 1)])
    assert (values.item(), indices.item(), least.item()) == (9, 1, 1)


def test_a_step_without_slots_runs_for_its_effect():
    seen: list[object] = []
    executor = Executor([CallStep(seen.append, (Slot(0),))], (0,), (None, 3, Slot(0)))
    assert executor([7]) == [None, 3, 7]
    assert seen == [7]


def test_a_graph_without_steps_or_inputs_returns_its_constants():
    assert Executor([], (), (1, None))([]) == [1, None]
    assert Executor([], (0,), (Slot(0),))(["same"]) == ["same"]


class Value:
    """Something whose end can be watched."""


def test_a_value_is_freed_after_its_last_use():
    alive: list[list[bool]] = []
    watched: list[weakref.ref[Value]] = []

    def make(*_: object) -> Value:
        value = Value()
        watched.append(weakref.ref(value))
        alive.append([ref() is not None for ref in watched])
        return value

    steps = [
        CallStep(make, (Slot(0),), (1,)),
        CallStep(make, (Slot(1),), (2,)),
        CallStep(make, (), (3,)),  # never read
        CallStep(make, (), (4,)),
    ]
    first = Value()
    watched.append(weakref.ref(first))
    inputs = [first]
    del first
    out = Executor(steps, (0,), (Slot(2),))(inputs)
    # After each step: the input, then the results of the steps.
    assert alive == [
        [True, True],
        [False, True, True],
        [False, False, True, True],
        [False, False, True, False, True],
    ]
    assert [ref() is not None for ref in watched] == [False, False, True, False, False]
    del out


def test_an_operators_error_comes_through_and_shows_its_step():
    executor = Executor([CallStep(torch.mm, (Slot(0), Slot(0)), (1,))], (0,), (Slot(1),))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as failed:
        executor([torch.zeros(2, 3)])
    assert "s1 = mm_0(s0, s0)" in "".join(traceback.format_tb(failed.value.__traceback__))


@pytest.mark.cpu
def test_an_executor_can_be_pickled(add):
    executor = Executor([KernelStep(add, (0, 1), (2,))], (0, 1), (Slot(2),))
    twin = pickle.loads(pickle.dumps(executor))
    a = vector(1, 2, 3, 4)
    assert torch.equal(twin([a, a])[0], executor([a, a])[0])
    assert twin.source == executor.source
