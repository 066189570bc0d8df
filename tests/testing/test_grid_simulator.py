from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.triton import TritonSource, emit_program
from wolong_fx.errors import KernelCheckFailed, ProgramFault
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import ArenaPlan, Program, Store
from wolong_fx.testing.grid_simulator import SimulatedRun, simulate
from wolong_fx.testing.programs import (
    ProgramBuilder,
    at,
    embedding,
    inputs_of,
    load,
    mlp,
    operator,
    random_program,
    recurrence,
)

BARRIER = "from wolong_fx.codegen.triton.barrier import grid_barrier as grid_barrier\n"
BLOCKS = 4
SEEDS = 4
UNORDERED = ("no barrier between", "nobody wrote", "may still read")


def run(program: Program, source: TritonSource | None = None, **how: int) -> SimulatedRun:
    return simulate(program, inputs_of(program), blocks=how.pop("blocks", BLOCKS), source=source, **how)


def with_barrier(source: TritonSource, wrong: str, right: str, form: str = "grid_barrier") -> TritonSource:
    """The kernel with a barrier of its own, in which one text stands for another."""
    spec = find_spec("wolong_fx.codegen.triton.barrier")
    assert spec is not None and spec.origin is not None
    texts = Path(spec.origin).read_text().split("@triton.jit\ndef ")
    (text,) = (t for t in texts if t.startswith(f"{form}("))
    own = text.replace(right, wrong).replace(form, "grid_barrier", 1)
    assert right in text and BARRIER in source.text
    return replace(source, text=source.text.replace(BARRIER, f"@triton.jit\ndef {own}"))


def assert_caught(
    program: Program, source: TritonSource | None = None, what: tuple[str, ...] = ("",), **how: int
) -> None:
    """Some order of the blocks shows the fault; every one of those we try may."""
    messages = []
    for seed in range(SEEDS):
        with pytest.raises(ProgramFault) as caught:
            run(program, source, seed=seed, **how)
        messages.append(str(caught.value))
    assert all(any(w in m for w in what) for m in messages), messages


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 16])
def test_any_number_of_blocks_computes_what_the_reference_machine_does(blocks):
    for program in (mlp(), recurrence(), random_program(3)):
        expected = run_program(program, inputs_of(program), seed=0)
        found = run(program, blocks=blocks, seed=blocks).outputs
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).abs().max() < 1e-5


def test_a_second_launch_finds_the_barrier_as_the_first_one_did():
    program = recurrence()
    once, thrice = run(program), run(program, launches=3)
    assert all(a.equal(b) for a, b in zip(once.outputs, thrice.outputs, strict=True))


def test_any_order_of_the_blocks_gives_the_same_bits():
    program = random_program(5)
    results = [run(program, seed=seed).outputs[0] for seed in range(5)]
    assert all(r.equal(results[0]) for r in results)


def test_a_missing_grid_barrier_is_a_race():
    program = mlp()
    source = emit_program(program)
    text = source.text.replace("    grid_barrier(word, G)\n", "    tl.debug_barrier()\n", 1)
    assert text != source.text
    assert_caught(program, replace(source, text=text), UNORDERED)


def test_a_missing_barrier_of_the_block_is_a_race_of_its_threads():
    program = mlp()
    source = emit_program(program)
    text = source.text.replace("    grid_barrier(word, G)\n", "", 1)
    assert_caught(program, replace(source, text=text), ("no debug_barrier between",), blocks=1)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ('add, sem="relaxed"', 'add, sem="acq_rel"'),
        ('0, sem="relaxed"', '0, sem="acquire"'),
        ('scope="cta"', 'scope="gpu"'),
        ('"""\n    add = ', '"""\n    tl.debug_barrier()\n    add = '),
        ('scope="gpu")\n\n', 'scope="gpu")\n    tl.debug_barrier()\n'),
    ],
    ids=["arrives relaxed", "polls relaxed", "scope of a block", "no debug_barrier before", "none after"],
)
def test_a_barrier_that_orders_too_little_is_a_race(wrong, right):
    program = mlp()
    assert_caught(
        program, with_barrier(emit_program(program), wrong, right), (*UNORDERED, "no debug_barrier between")
    )


@pytest.mark.parametrize("blocks", [1, 2, 5, 16])
def test_the_barrier_of_one_thread_orders_as_the_other_does(blocks):
    for program in (mlp(), recurrence(), random_program(3)):
        source = emit_program(program, barrier="grid_barrier_by_one_thread")
        assert "by_one_thread" in source.text
        ours = run(program, source, blocks=blocks, seed=blocks, launches=2).outputs
        theirs = run(program, blocks=blocks, seed=blocks).outputs
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("atom.add.relaxed", "atom.add.acq_rel"),
        ("atom.add.acquire", "atom.add.acq_rel"),
        ("ld.relaxed", "ld.acquire"),
        ("atom.add.acq_rel.cta", "atom.add.acq_rel.gpu"),
        ("ld.acquire.cta", "ld.acquire.gpu"),
        ('"""\n    add = ', '"""\n    tl.debug_barrier()\n    add = '),
        ("pack=1,\n    )\n", "pack=1,\n    )\n    tl.debug_barrier()\n"),
        ("setp.lt.s32", "setp.ge.s32"),
    ],
    ids=[
        *("arrives relaxed", "arrives without releasing", "polls relaxed"),
        *("arrives in the scope of a block", "polls in the scope of a block"),
        *("no debug_barrier before", "none after", "leaves at once"),
    ],
)
def test_a_barrier_of_one_thread_that_orders_too_little_is_a_race(wrong, right):
    program = mlp()
    source = with_barrier(emit_program(program), wrong, right, "grid_barrier_by_one_thread")
    assert_caught(program, source, (*UNORDERED, "no debug_barrier between"))


def test_inline_ptx_that_the_simulator_does_not_know_is_an_error():
    program = mlp()
    source = with_barrier(
        emit_program(program),
        "ld.acquire.gpu.global.b32",
        "ld.acquire.gpu.global.u32",
        "grid_barrier_by_one_thread",
    )
    assert_caught(program, source, ("NotImplementedError: PTX ld",))


@pytest.mark.parametrize("wrong", ["0x80000000 - G", "0x80000000 - (G - 2)"])
def test_a_barrier_that_counts_wrongly_is_a_deadlock_or_a_race(wrong):
    program = recurrence()
    assert_caught(program, with_barrier(emit_program(program), wrong, "0x80000000 - (G - 1)"))


def test_more_blocks_than_fit_on_the_device_are_a_deadlock():
    assert_caught(mlp(), None, ("deadlock",), blocks=6, resident=4)


def test_blocks_that_skip_virtual_blocks_leave_memory_unwritten():
    program = mlp(rows=23)
    source = emit_program(program)
    assert_caught(
        program, replace(source, text=source.text.replace(", G):", ", G + 1):", 1)), ("nobody wrote",)
    )


def test_a_mask_one_too_wide_leaves_the_memory():
    program = mlp()
    source = emit_program(program)
    wide = source.text.replace("(x0 < 7)", "(x0 < 8)")
    assert wide != source.text
    assert_caught(program, replace(source, text=wide))


def test_a_live_buffer_that_is_written_over_is_a_race():
    program = two_results()
    assert program.arena is not None
    first = next(iter(program.arena.offsets))
    offsets = dict.fromkeys(program.arena.offsets, program.arena.offsets[first])
    assert_caught(replace(program, arena=ArenaPlan(offsets, program.arena.size)), None, UNORDERED)


def two_results() -> Program:
    """One stage computes two values from each other's places; the next one reads both."""
    p = ProgramBuilder("two")
    x = p.input("x", 9, 9)
    a, b, y = p.temporary("a", 9, 9), p.temporary("b", 9, 9), p.output("y", 9, 9)
    i, j = Var("i", 9), Var("j", 9)
    p.stage(*(operator(f"to_{t}", (i, j), Store(at(t, i, j), load(x, i, j)), tile=(2, 3)) for t in (a, b)))
    p.stage(operator("sum", (i, j), Store(at(y, i, j), load(a, j, i)), tile=(3, 2)))
    return p.build()


def test_a_state_with_one_buffer_where_a_loop_needs_two_is_a_race():
    program = recurrence()
    source = emit_program(program)
    text = source.text.replace("((t0 + 1) % 2)", "(t0 % 2)")
    assert text != source.text
    assert_caught(program, replace(source, text=text))


def test_a_position_outside_fails_the_check_that_the_program_names():
    program = embedding()
    inputs = inputs_of(program)
    tokens = next(i for i, x in enumerate(inputs) if not x.is_floating_point())
    inputs[tokens] = inputs[tokens] + 1000
    with pytest.raises(KernelCheckFailed):
        simulate(program, inputs, blocks=3)
