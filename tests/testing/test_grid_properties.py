"""Random programs on random grids: what holds of every one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from wolong_fx.codegen.triton import BARRIERS, choose_tile, emit_program
from wolong_fx.errors import ProgramFault
from wolong_fx.ir.program import Program
from wolong_fx.testing.grid_simulator import simulate
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import inputs_of, random_program

MEETS = "grid_barrier(word, G)"

programs = st.builds(random_program, st.integers(0, 10**6), stages=st.integers(1, 3))
grids = st.fixed_dictionaries(
    {
        "blocks": st.integers(1, 16),
        "seed": st.integers(0, 10**6),
        "switching": st.sampled_from((0.0, 0.05, 0.2)),
    }
)


def checked(examples: int):
    """Settings of a property: the same examples at every run, as many as these."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def expected(program: Program) -> list[torch.Tensor]:
    """What one block alone computes, stage after stage."""
    return simulate(program, inputs_of(program)).outputs


def agree(program: Program, grid: dict, barrier: str, is_retiled: bool) -> None:
    if is_retiled:
        program = map_ops(program, lambda op: replace(op, tile=choose_tile(op)))
    source = emit_program(program, barrier=barrier)
    found = simulate(program, inputs_of(program), source=source, launches=2, **grid).outputs
    assert all(a.equal(b) for a, b in zip(found, expected(program), strict=True))


anything = given(programs, grids, st.sampled_from(BARRIERS), st.booleans())


@checked(4)
@anything
def test_a_legal_program_has_no_fault_and_the_same_bits_on_every_grid(program, grid, barrier, is_retiled):
    agree(program, grid, barrier, is_retiled)


@pytest.mark.slow
@checked(60)
@anything
def test_many_legal_programs_have_no_fault_and_the_same_bits_on_every_grid(
    program, grid, barrier, is_retiled
):
    agree(program, grid, barrier, is_retiled)


def faults_without(program: Program, which: int, grid: dict) -> bool:
    """Whether a program without one of its barriers is caught; where it is not, it must be right."""
    source = emit_program(program)
    parts = source.text.split(MEETS)
    assume(len(parts) > 1)
    at = 1 + which % (len(parts) - 1)
    text = MEETS.join(parts[:at]) + "tl.debug_barrier()" + MEETS.join(parts[at:])
    try:
        found = simulate(program, inputs_of(program), source=replace(source, text=text), **grid).outputs
    except ProgramFault:
        return True
    assert all(a.equal(b) for a, b in zip(found, expected(program), strict=True))
    return False


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_program_without_one_of_its_barriers_is_caught_or_right(examples):
    caught = []

    @checked(examples)
    @given(programs, st.integers(0, 100), grids)
    def check(program, which, grid):
        assume(grid["blocks"] > 1)
        caught.append(faults_without(program, which, grid))

    check()
    assert sum(caught) >= len(caught) // 3  # the others read what their own block wrote
