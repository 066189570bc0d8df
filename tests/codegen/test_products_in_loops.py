"""Where products stay in the steps of a loop, and that they are computed rightly there."""

from __future__ import annotations

import copy

import pytest
import torch

import wolong_fx
from wolong_fx.codegen import products_in_loops
from wolong_fx.codegen.products_in_loops import is_faster_in_steps, is_worth_steps
from wolong_fx.passes.loops.find_staying import Cost
from wolong_fx.runtime.machine_costs import usual_costs
from wolong_fx.testing import models
from wolong_fx.testing.oracle import error_against_float64

MIB = 1 << 20
COSTS = usual_costs("avx512", 2, {"l2_bytes": MIB, "l3_bytes": 32 * MIB})


def stays(rows: int, hidden: int, stacked_bytes: int = 64 * MIB) -> bool:
    """Of an LSTM: four gates, of the input and of the state."""
    weights = 2 * hidden * 4 * hidden
    return is_faster_in_steps(Cost(rows * weights, 4 * weights, stacked_bytes), COSTS, threads=2)


@pytest.mark.parametrize("hidden", [128, 256, 512])
def test_few_rows_do_not_hide_the_reading_of_weights_and_many_do(hidden):
    assert not stays(4, hidden)
    assert stays(16, hidden)


def test_weights_that_the_second_caches_hold_are_hidden_by_fewer_rows():
    assert stays(8, 128) and not stays(8, 256)


def test_weights_that_no_cache_holds_need_more_rows():
    assert not stays(32, 4096) and stays(128, 4096)


def test_what_the_caches_hold_until_it_is_read_is_computed_before_the_loop():
    assert stays(64, 256, 16 * MIB) and not stays(64, 256, 4 * MIB)


def test_one_row_is_not_worth_it_here():
    weights = 2 * 256 * 4 * 256
    assert not is_worth_steps(Cost(weights, 4 * weights, 1 << 40))


@pytest.mark.parametrize(("rows", "small_cache"), [(61, True), (61, False), (3, True)])
def test_a_recurrence_computes_the_same_wherever_its_input_is_projected(rows, small_cache, monkeypatch):
    costs = usual_costs("avx512", 2, {"l3_bytes": MIB if small_cache else 32 * MIB})
    monkeypatch.setattr(products_in_loops, "_machine", lambda: (costs, 2))
    steps, hidden = 12, 32
    model = models.GateLSTM(hidden, steps)
    x, optimized = model.example_input(rows), wolong_fx.optimize(copy.deepcopy(model))
    with torch.no_grad():
        assert error_against_float64(optimized, model, (x,)) < 1e-6
    is_stacked = wolong_fx.stats(optimized).memory["arena"] >= 4 * steps * rows * 4 * hidden
    assert is_stacked is not (rows > 3 and small_cache)
