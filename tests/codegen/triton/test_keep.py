"""What a block keeps in registers over the trips of a loop: weights that every trip reads, and the state
that is its own.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.triton import TritonSource, emit_program, keep
from wolong_fx.codegen.triton.image import image_of
from wolong_fx.codegen.triton.keep import Kept, find_kept
from wolong_fx.errors import ProgramFault
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Loop, Program, Stage, Store
from wolong_fx.runtime.gpu import ARCHITECTURES, build_triton
from wolong_fx.testing.grid_simulator import simulate
from wolong_fx.testing.programs import (
    ProgramBuilder,
    add,
    at,
    f32,
    inputs_of,
    load,
    mul,
    operator,
    recurrence,
)

WIDTH, STEPS = 8, 5


def kept_by(program: Program, name: str) -> Kept:
    found = find_kept(program)
    return next((kept for op, kept in found.items() if op.name == name), Kept())


def difference(program: Program, blocks: int, source: TritonSource | None = None) -> float:
    """Largest difference of the kernel's results from the reference machine's."""
    inputs = inputs_of(program)
    found = simulate(program, inputs, blocks=blocks, source=source).outputs
    wanted = run_program(program, inputs, seed=0)
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


def neighbours(reads: str, steps: int = STEPS) -> Program:
    """c' = c + x[t], and y[t] is what `reads` says: its own c, or another operator's."""
    p = ProgramBuilder(f"neighbours_{reads}")
    x, y, c = p.input("x", steps, WIDTH), p.output("y", steps, WIDTH), p.temporary("c", 2, WIDTH)
    j, t = Var("j", WIDTH), Var("t", steps)
    p.stage(operator("start", (j,), Store(at(c, 0, j), f32(1.0)), Store(at(c, 1, j), f32(2.0)), tile=(3,)))
    new = add(load(c, 0, j), load(x, t, j))
    step = operator("step", (j,), Store(at(c, 0, j), new), tile=(3,))
    shown = load(c, 0, (Index.of(j) + 1) % WIDTH if reads == "next" else j)
    show = operator("show", (j,), Store(at(y, t, j), shown), tile=(3,))
    if reads == "own":
        both = (Store(at(c, 0, j), new), Store(at(y, t, j), load(c, 0, j)))
        p.body.append(Loop(t, (Stage((operator("step", (j,), *both, tile=(3,)),)),)))
    else:
        p.body.append(Loop(t, (Stage((step,)), Stage((show,)))))
    return p.build()


# ---- what is kept


def test_weights_that_every_trip_reads_and_the_state_of_one_block_are_kept():
    program = recurrence()
    cell = next(op for op in program.ops() if op.name == "cell")
    kept = kept_by(program, "cell")
    buffers = [load.access.buffer.name for load in cell.loads()]
    assert {buffers[i] for i in kept.invariants} == {"u"}
    assert [cell.stores[number].access.buffer.name for number, _ in kept.states] == ["c"]


def test_a_state_that_no_one_else_sees_is_kept():
    program = neighbours("own")
    assert [number for number, _ in kept_by(program, "step").states] == [0]
    assert difference(program, 3) == 0


@pytest.mark.parametrize("reads", ["next", "same"])
def test_a_state_that_another_operator_of_the_loop_reads_is_not_kept(reads):
    program = neighbours(reads)
    assert not kept_by(program, "step").states and not kept_by(program, "show").invariants
    assert difference(program, 3) == 0


def test_what_a_trip_writes_is_no_invariant():
    assert not kept_by(neighbours("same"), "show")


def test_what_is_written_after_the_loop_began_is_not_read_before_it():
    """The second stage of the body reads, behind a barrier of the body, what was written before the loop."""
    p = ProgramBuilder("late")
    x, y, w = p.input("x", STEPS, WIDTH), p.output("y", STEPS, WIDTH), p.temporary("w", WIDTH)
    z, j, t = p.temporary("z", WIDTH), Var("j", WIDTH), Var("t", STEPS)
    p.stage(operator("weights", (j,), Store(at(w, j), f32(3.0)), tile=(3,)))
    first = operator("first", (j,), Store(at(z, j), mul(load(x, t, j), load(w, j))), tile=(3,))
    back = WIDTH - 1 - Index.of(j)
    second = operator("second", (j,), Store(at(y, t, j), mul(load(z, back), load(w, j))), tile=(3,))
    p.body.append(Loop(t, (Stage((first,)), Stage((second,)))))
    program = p.build()
    assert kept_by(program, "first").invariants and not kept_by(program, "second").invariants
    assert difference(program, 3) == 0


def test_what_does_not_fit_in_the_room_is_read_in_every_trip():
    program = recurrence()
    assert not any(kept.invariants for kept in find_kept(program, room=8).values())


# ---- who owns it


@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_grids_with_and_without_a_block_for_everyone_give_the_same_bits(blocks):
    program = recurrence()  # three virtual blocks
    assert difference(program, blocks) < 1e-6


def test_a_block_that_runs_what_another_one_keeps_is_found():
    program = recurrence()
    source = emit_program(program)
    wrong = source.text.replace("= tile1(pid, ", "= tile1((pid + t0) % 3, ", 1)
    assert wrong != source.text
    assert difference(program, 4, replace(source, text=wrong)) > 1e-2


def test_two_blocks_that_run_one_virtual_block_are_a_race():
    program = recurrence()
    source = emit_program(program)
    wrong = source.text.replace("if pid < 3:", "if pid < 4:").replace(
        "tile1(pid,", "tile1(tl.minimum(pid, 2),"
    )
    with pytest.raises(ProgramFault, match="no barrier between"):
        difference(program, 4, replace(source, text=wrong))


def test_a_state_that_leaves_a_trip_early_is_found():
    program = state_read_after()
    source = emit_program(program)
    wrong = source.text.replace(f"t0 == {STEPS - 1}", f"t0 == {STEPS - 2}")
    assert wrong != source.text and difference(program, 4) < 1e-6
    assert difference(program, 4, replace(source, text=wrong)) > 1e-2


def test_a_state_that_never_leaves_its_registers_is_read_by_no_one_after():
    program = state_read_after()
    source = emit_program(program)
    wrong = source.text.replace(f"t0 == {STEPS - 1}", "t0 < 0")
    assert difference(program, 4, replace(source, text=wrong)) > 1e-2


def state_read_after() -> Program:
    """A sum over trips that other blocks read behind the loop, backwards."""
    p = ProgramBuilder("summed")
    x, y, c = p.input("x", STEPS, WIDTH), p.output("y", WIDTH), p.temporary("c", WIDTH)
    j, t = Var("j", WIDTH), Var("t", STEPS)
    p.stage(operator("start", (j,), Store(at(c, j), f32(0.0)), tile=(3,)))
    step = operator("step", (j,), Store(at(c, j), add(load(c, j), load(x, t, j))), tile=(3,))
    p.body.append(Loop(t, (Stage((step,)),)))
    p.stage(operator("show", (j,), Store(at(y, j), load(c, WIDTH - 1 - Index.of(j))), tile=(2,)))
    return p.build()


def test_the_check_that_a_state_is_private_is_needed(monkeypatch):
    """Kept all the same, a state that others read is seen as it was before the loop."""
    program = neighbours("same")
    monkeypatch.setattr(keep._LoopKeeper, "_is_private", lambda *_: True)
    assert difference(program, 3) > 1e-2


# ---- what the machine's code does


def loads_in_loop(program: Program, kept: bool) -> int:
    """Loads from global memory in the loop, the barrier's left out, in PTX for sm_90."""
    source = emit_program(program)
    if not kept:  # on a grid too small to own anything
        source = replace(source, blocks=1)
    lines = build_triton(image_of(source, ARCHITECTURES["sm_90"])).assembly.splitlines()
    arrival = next(i for i, line in enumerate(lines) if "acq_rel" in line)  # before the loop
    first = next(i for i in range(arrival, len(lines)) if "=>This Loop Header: Depth=1" in lines[i])
    last = next(i for i in range(first, len(lines)) if "acq_rel" in lines[i])
    return sum("ld.global" in line and "acquire" not in line for line in lines[first:last])


def test_weights_that_are_kept_are_not_loaded_in_the_loop():
    """The loop loads x and h alone: one instruction each, whatever the 256 x 2 weights of a block are."""
    program = recurrence(steps=9, width=256, tile=(2,))
    assert loads_in_loop(program, kept=True) == 2
    assert loads_in_loop(program, kept=False) > 2
