"""The cycle collector rests while a model is traced and compiled, and is afterwards as it was."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import wolong_fx
from wolong_fx import pipeline
from wolong_fx.capture.collector import collector_paused, count_as_old


@pytest.fixture(autouse=True)
def collector_on():
    gc.enable()
    yield
    gc.enable()


def test_a_pause_ends_where_the_outermost_does_and_after_an_error():
    with pytest.raises(ValueError, match="in the middle"), collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError("in the middle")
    assert gc.isenabled()


def test_a_collector_that_the_program_turned_off_stays_off():
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_old_objects_leave_the_young_generations_and_can_still_be_collected():
    class Knot:
        pass

    knot, dropped = Knot(), Knot()
    dropped.__dict__["itself"] = dropped
    seen = weakref.ref(dropped)
    with collector_paused():
        del dropped
        count_as_old()
        assert all(knot is not young for level in (0, 1) for young in gc.get_objects(level))
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


def test_what_the_program_froze_stays_frozen():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        count_as_old()
        assert gc.get_freeze_count() == frozen > 0
    finally:
        gc.unfreeze()


@pytest.mark.cpu
@pytest.mark.parametrize("door", ["optimize", "torch.compile"])
def test_graphs_are_compiled_with_the_collector_paused(monkeypatch, door):
    compile_graph, was_on = pipeline.compile_graph, []

    def compile_and_look(*args, **kwargs):
        was_on.append(gc.isenabled())
        return compile_graph(*args, **kwargs)

    monkeypatch.setattr(pipeline, "compile_graph", compile_and_look)

    def function(x):
        return (x * 2).tanh() + 1

    optimized = (
        wolong_fx.optimize(function)
        if door == "optimize"
        else torch.compile(function, backend="wolong", dynamic=False)
    )
    optimized(torch.ones(3))
    assert was_on == [False]
    assert gc.isenabled()
