"""A program whose loop is off by one somewhere is refused, or computes something else than eager."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from wolong_fx.codegen import build_programs
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.targets import ReferenceTarget
from wolong_fx.errors import InvalidProgram, ProgramFault, RaceFound
from wolong_fx.ir.happens_before import check_races
from wolong_fx.ir.verify import verify
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.loop_mutants import PLANTS, loop_mutants
from wolong_fx.testing.loops import FAMILIES
from wolong_fx.testing.tracing import trace_core

TRIPS = 5
EQUIVALENT = {  # mutants that compute the same, and why
    "history": (
        "an invariant stands at every step of this result",
        {"stack_backwards, place 2", "stack_a_trip_later, place 2"},
    ),
    "counters": (
        "a later step has more than either start, and brings its own position",
        {"start_elsewhere, place 1", "start_elsewhere, place 2"},
    ),
    "encoder_decoder": (
        "attention does not tell in which order the states stand",
        {"stack_backwards, place 0", "stack_a_trip_later, place 0"},
    ),
    "backward": (
        "the first trip of a turned loop takes the given start for these zeros",
        {"start_elsewhere, place 0", "start_elsewhere, place 1"},
    ),
}


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 2) for d in op.dims)


@cache
def made_of(family):
    """The program of a family of loops, its inputs and what eager computes."""
    case = FAMILIES[family](TRIPS, torch.float32)
    graph = trace_core(case.function, *case.inputs)
    program = build_programs(graph, Options(), Ledger(), small_tiles, ReferenceTarget().pack_operands).run
    return program, list(case.inputs), case.function(*case.inputs)


def passes_for(program, inputs, eager):
    """What every test of a loop asks: nothing is refused, and the results are eager's within rounding."""
    try:
        verify(program, after="a mutation")
        check_races(program)
        results = run_program(program, inputs, seed=0)
    except (InvalidProgram, RaceFound, ProgramFault):
        return False
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(results, eager, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_mutant_of_a_loop_survives(family):
    program, inputs, eager = made_of(family)
    assert passes_for(program, inputs, eager)
    mutants = list(loop_mutants(program))
    _, equivalent = EQUIVALENT.get(family, ("", set()))
    alive = {fault for fault, mutant in mutants if passes_for(mutant, inputs, eager)}
    survivors = alive - {f"loop t0: {fault}" for fault in equivalent}
    assert not survivors, f"{len(survivors)} of {len(mutants)} mutants survive: {sorted(survivors)}"
    assert len(alive) == len(equivalent), "a mutant that is said to be equivalent is not"


def test_every_fault_can_be_planted_somewhere():
    """Without this the property above could hold because nothing is planted."""
    planted = [fault for family in FAMILIES for fault, _ in loop_mutants(made_of(family)[0])]
    assert {fault.split(": ")[1].split(",")[0] for fault in planted} == set(PLANTS)
    assert len(planted) > 100
