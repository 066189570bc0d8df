"""A rolled graph that is off by one somewhere does not pass for the unrolled one."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from wolong_fx.passes.edit import silent
from wolong_fx.passes.reroll.reroll import Reroll
from wolong_fx.testing.graphs import has_same_bits
from wolong_fx.testing.recurrences import (
    Bidirectional,
    CellChain,
    EncoderDecoder,
    OddEnds,
    PeepholeLSTM,
    RungeKutta,
    Stack,
    TwoStepsBack,
)
from wolong_fx.testing.scan_mutants import PLANTS, scan_mutants
from wolong_fx.testing.tracing import dynamo_graph

X = torch.randn
RECURRENCES = {
    "gru cell, batch first": (lambda: CellChain(nn.GRUCell(3, 4), dim=1), (2, 5, 3)),
    "peephole lstm": (lambda: PeepholeLSTM(3, 4), (5, 2, 3)),
    "stack by time": (lambda: Stack(3, 4, 2, is_by_time=True), (5, 2, 3)),
    "bidirectional": (lambda: Bidirectional(3, 4, is_interleaved=False), (5, 2, 3)),
    "encoder and decoder": (lambda: EncoderDecoder(3, 4, 6), (5, 2, 3)),
    "no input by step": (lambda: RungeKutta(3, 4, 5), (2, 3)),
    "two steps back": (lambda: TwoStepsBack(3), (5, 2, 3)),
    "odd first and last step": (lambda: OddEnds(3), (9, 2, 3)),
    "some steps cut out": (lambda: some_steps, (6, 2, 3)),
}


def some_steps(x_TBI):
    h, states = x_TBI[0], []
    for x in x_TBI:
        h = torch.tanh(torch.sigmoid(h * 2 + x) - x * h)
        states.append(h)
    return states[1], states[3] + states[-1], h


@cache
def rolled(name):
    """The graph before and after, and its inputs."""
    make, shape = RECURRENCES[name]
    before, inputs = dynamo_graph(make(), X(shape))
    after, is_rolled = Reroll().apply(before, silent)
    assert is_rolled
    return before, after, inputs


def has_same_results(before, after, inputs):
    """Bit by bit: only rounding tells an attention in which order the states stand that it sums."""
    with torch.no_grad():
        return all(map(has_same_bits, before(*inputs), after(*inputs)))


@pytest.mark.parametrize("name", RECURRENCES)
def test_no_mutant_of_a_rolled_graph_survives_the_comparison_with_the_unrolled(name):
    before, after, inputs = rolled(name)
    assert has_same_results(before, after, inputs)
    mutants = list(scan_mutants(after))
    survivors = [fault for fault, mutant in mutants if has_same_results(before, mutant, inputs)]
    assert not survivors, f"{len(survivors)} of {len(mutants)} mutants survive: {survivors}"


def test_every_fault_can_be_planted_somewhere():
    """Without this the property above could hold because nothing is planted."""
    planted = [fault for name in RECURRENCES for fault, _ in scan_mutants(rolled(name)[1])]
    assert {fault.split(": ")[1].split(",")[0] for fault in planted} == set(PLANTS)
    assert len(planted) > 100
