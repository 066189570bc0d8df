"""The static barrier check: planted faults are caught, correct programs pass, idle barriers go."""

import random
from collections import Counter
from dataclasses import replace
from functools import partial
from time import process_time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.codegen.plan_memory import plan_memory
from wolong_fx.codegen.reference import run_program
from wolong_fx.errors import InvalidProgram, RaceFound
from wolong_fx.ir.footprint import interval
from wolong_fx.ir.happens_before import check_races, find_races, remove_redundant_barriers
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import ArenaPlan, Loop, Stage, Store
from wolong_fx.ir.verify import verify
from wolong_fx.testing import programs
from wolong_fx.testing.mutations import MUTATIONS, misbehaves
from wolong_fx.testing.programs import (
    ARENA_HEADER,
    TYPICAL,
    ProgramBuilder,
    add,
    at,
    dot,
    f32,
    inputs_of,
    load,
    operator,
    random_program,
)


def barriers(program):
    """B for a stage with a barrier, - for one without, loops in brackets."""

    def spell(item):
        if isinstance(item, Stage):
            return "B" if item.barrier else "-"
        return f"[{''.join(map(spell, item.body))}]"

    return "".join(map(spell, program.body))


def thinned(program):
    return barriers(remove_redundant_barriers(program))


def is_caught(program):
    try:
        verify(program, "test")
    except InvalidProgram:
        return True
    return bool(find_races(program))


def packed(program):
    """The program with temporaries that share bytes when their lives allow it."""
    return plan_memory(replace(program, arena=None))


# ---- planted faults


SOURCES = [*TYPICAL.values(), *(partial(random_program, seed) for seed in range(6))]


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_planted_fault_that_shows_is_caught(name):
    counts = Counter()
    for number, make in enumerate(SOURCES):
        rng = random.Random(number)
        for program in (make(), packed(make()), remove_redundant_barriers(packed(make()))):
            mutant = MUTATIONS[name](program, rng)
            if mutant is not None and misbehaves(mutant, inputs_of(mutant)):
                counts["shown"] += 1
                assert is_caught(mutant), f"{name} of source {number}"
    assert counts["shown"] >= 2


@given(st.integers(0, 2**32), st.sampled_from(sorted(MUTATIONS)), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_fault_that_shows_is_caught(seed, name, is_packed):
    program = random_program(seed)
    mutant = MUTATIONS[name](packed(program) if is_packed else program, random.Random(seed))
    if mutant is not None and not is_caught(mutant):
        assert not misbehaves(mutant, inputs_of(mutant))


@pytest.mark.slow
@given(st.integers(0, 2**32), st.sampled_from(sorted(MUTATIONS)), st.booleans())
@settings(max_examples=2000, deadline=None)
def test_any_fault_that_shows_is_caught_in_many_programs(seed, name, is_packed):
    program = random_program(seed)
    mutant = MUTATIONS[name](packed(program) if is_packed else program, random.Random(seed))
    if mutant is not None and not is_caught(mutant):
        assert not misbehaves(mutant, inputs_of(mutant))


# ---- correct programs


@pytest.mark.parametrize("name", TYPICAL)
def test_typical_programs_have_no_race(name):
    check_races(TYPICAL[name]())
    check_races(packed(TYPICAL[name]()))


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=30, deadline=None)
def test_thinned_programs_have_no_race_and_give_the_same_bits_in_any_order(seed, is_packed):
    program = packed(random_program(seed)) if is_packed else random_program(seed)
    assert not find_races(program)
    fewer = remove_redundant_barriers(program)
    assert not find_races(fewer)
    inputs = inputs_of(program)
    (expected,) = run_program(program, inputs, seed=0)
    for order in range(3):
        assert torch.equal(run_program(fewer, inputs, seed=order)[0], expected)


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_thinned_program_needs_every_barrier_it_has(seed):
    """Removal is greedy but leaves nothing that the same check would still let go."""
    fewer = remove_redundant_barriers(random_program(seed))
    for stage in fewer.stages():
        if stage.barrier:
            assert find_races(replace(fewer, body=tuple(_without(item, stage) for item in fewer.body)))


def _without(item, stage):
    if isinstance(item, Loop):
        return replace(item, body=tuple(_without(inner, stage) for inner in item.body))
    return replace(item, barrier=False) if item is stage else item


# ---- what is a race and what is not


I8 = Var("i", 8)


def two_stages(first, second, barrier=False, temporaries=(("t", 8),), offsets=None):
    """Two operators over i < 8 in tiles of 3; `first` and `second` make stores from the buffers by name."""
    p = ProgramBuilder("p")
    b = {"x": p.input("x", 8), "y": p.output("y", 8)} | {n: p.temporary(n, k) for n, k in temporaries}
    p.stage(operator("first", (I8,), *first(b), tile=(3,)), barrier=barrier)
    p.stage(operator("second", (I8,), *second(b), tile=(3,)))
    program = p.build()
    if offsets is None:
        return program
    plan = {b[name]: ARENA_HEADER + start for name, start in offsets.items()}
    return replace(program, arena=ArenaPlan(plan, ARENA_HEADER + 4096))


def write_t(b):
    return [Store(at(b["t"], I8), load(b["x"], I8))]


def read_t(b):
    return [Store(at(b["y"], I8), load(b["t"], I8))]


def test_a_race_names_both_sides_and_the_buffer():
    with pytest.raises(RaceFound, match="store of 't' in 'first' and load of 't' in 'second' both touch 't'"):
        check_races(two_stages(write_t, read_t))


def test_a_barrier_between_writer_and_reader_stays():
    program = two_stages(write_t, read_t, barrier=True)
    assert not find_races(program)
    assert thinned(program) == "B-"


def chain_of(*tiles):
    """Each stage reads backwards what the one before it wrote."""
    p = ProgramBuilder("chain")
    i, source = Var("i", 8), p.input("x", 8)
    for n, tile in enumerate(tiles):
        target = p.temporary(f"t{n}", 8) if n + 1 < len(tiles) else p.output("y", 8)
        backwards = load(source, -1 * Index.of(i) + 7)
        p.stage(operator(f"op{n}", (i,), Store(at(target, i), backwards), tile=(tile,)))
        source = target
    return p.build()


def test_blocks_that_are_alone_in_their_stages_need_no_barrier_between_them():
    assert thinned(chain_of(8, 8, 8)) == "---"
    assert thinned(chain_of(4, 8, 8, 4)) == "B-B-"


def test_a_block_beside_another_is_not_alone():
    p = ProgramBuilder("p")
    x, y, z, t = p.input("x", 8), p.output("y", 8), p.output("z", 8), p.temporary("t", 8)
    first = operator("first", (I8,), Store(at(t, I8), load(x, I8)), tile=(8,))
    beside = operator("beside", (I8,), Store(at(z, I8), f32(0.0)), tile=(8,))
    p.stage(first, beside)
    p.stage(operator("second", (I8,), Store(at(y, I8), load(t, -1 * Index.of(I8) + 7)), tile=(8,)))
    assert thinned(p.build()) == "B-"


def test_an_owner_that_is_known_may_part_what_is_alone():
    assert thinned(chain_of(8, 8)) == "--"
    part = lambda op, block: int(op.name == "op1")  # noqa: E731
    assert barriers(remove_redundant_barriers(chain_of(8, 8), part)) == "B-"


@pytest.mark.parametrize("seed", range(4))
def test_blocks_that_are_alone_give_the_same_bits_without_barriers(seed):
    program = chain_of(2, 8, 8, 8, 4)
    inputs = inputs_of(program)
    expected = run_program(program, inputs, threads=1)
    assert torch.equal(*run_program(remove_redundant_barriers(program), inputs, seed=seed), *expected)


def test_readers_need_no_barrier_between_them():
    read_x = lambda b: [Store(at(b["y"], I8), load(b["x"], I8))]  # noqa: E731
    assert thinned(two_stages(write_t, read_x, barrier=True)) == "--"


def test_a_write_after_a_read_needs_its_barrier():
    p = ProgramBuilder("p")
    x, y, t = p.input("x", 8), p.output("y", 8), p.temporary("t", 8)
    p.stage(operator("w", (I8,), Store(at(t, I8), load(x, I8)), tile=(3,)))
    p.stage(operator("r", (I8,), Store(at(y, I8), load(t, I8)), tile=(3,)))
    p.stage(operator("again", (I8,), Store(at(t, I8), f32(0.0)), tile=(3,)))
    assert thinned(p.build()) == "BB-"


def test_only_overlapping_bytes_race():
    write_u = lambda b: [Store(at(b["u"], I8), load(b["x"], I8))]  # noqa: E731
    pair = (("t", 8), ("u", 8))
    assert find_races(two_stages(write_t, write_u, temporaries=pair, offsets={"t": 0, "u": 28}))
    assert not find_races(two_stages(write_t, write_u, temporaries=pair, offsets={"t": 0, "u": 32}))


def test_columns_of_one_buffer_written_by_siblings_do_not_race():
    assert not find_races(programs.concat())
    p = ProgramBuilder("p")
    y, j = p.output("y", 8, 6), Var("j", 3)
    p.stage(
        operator("even", (I8, j), Store(at(y, I8, Index.of(j) * 2), f32(0.0)), tile=(3, 2)),
        operator("odd", (I8, j), Store(at(y, I8, Index.of(j) * 2 + 1), f32(1.0)), tile=(2, 3)),
    )
    assert not find_races(p.build())


def test_columns_that_overlap_by_one_race():
    p = ProgramBuilder("p")
    y, j = p.output("y", 8, 6), Var("j", 3)
    p.stage(
        operator("left", (I8, j), Store(at(y, I8, j), f32(0.0)), tile=(3, 2)),
        operator("right", (I8, j), Store(at(y, I8, Index.of(j) + 2), f32(1.0)), tile=(3, 2)),
    )
    (race,) = find_races(p.build())
    assert (race.first, race.second) == ("store of 'y' in 'left'", "store of 'y' in 'right'")


def scalar_sum(tile):
    p = ProgramBuilder("p")
    y = p.output("y", 1)
    p.stage(operator("all", (I8,), Store(at(y, 0), f32(1.0)), tile=tile))
    return p.build()


def test_blocks_that_store_to_one_element_race_unless_they_are_one():
    assert find_races(scalar_sum((3,)))
    assert not find_races(scalar_sum((8,)))


def test_a_block_may_replace_what_only_it_reads():
    p = ProgramBuilder("p")
    x, t = p.input("x", 8), p.output("t", 8)
    p.stage(operator("w", (I8,), Store(at(t, I8), load(x, I8)), tile=(3,)))
    p.stage(operator("in_place", (I8,), Store(at(t, I8), add(load(t, I8), f32(1.0))), tile=(3,)))
    assert not find_races(p.build())


def test_a_block_that_replaces_what_another_reads_races():
    p = ProgramBuilder("p")
    x, t = p.input("x", 8), p.output("t", 8)
    p.stage(operator("w", (I8,), Store(at(t, I8), load(x, I8)), tile=(3,)))
    back = load(t, Index.of(I8) * -1 + 7)
    p.stage(operator("reverse", (I8,), Store(at(t, I8), back), tile=(3,)))
    assert find_races(p.build())


def test_flat_and_reshaped_stores_are_told_apart_digit_by_digit():
    p = ProgramBuilder("p")
    y, j = p.output("y", 48), Var("j", 6)
    p.stage(operator("flat", (I8, j), Store(at(y, Index.of(I8) * 6 + j), f32(0.0)), tile=(3, 4)))
    assert not find_races(p.build())
    p = ProgramBuilder("p")
    y = p.output("y", 48)
    p.stage(operator("clash", (I8, j), Store(at(y, Index.of(I8) * 4 + j), f32(0.0)), tile=(3, 4)))
    assert find_races(p.build())


def test_odd_maps_are_proved_by_enumerating_their_elements():
    p = ProgramBuilder("p")
    y, v = p.output("y", 12), Var("v", 12)
    swapped = (Index.of(v) % 3) * 4 + Index.of(v) // 3
    p.stage(operator("transpose", (v,), Store(at(y, swapped), f32(0.0)), tile=(5,)))
    assert not find_races(p.build())
    folded = (Index.of(v) % 3) * 3 + Index.of(v) // 3
    p = ProgramBuilder("p")
    y = p.output("y", 12)
    p.stage(operator("fold", (v,), Store(at(y, folded), f32(0.0)), tile=(5,)))
    assert find_races(p.build())


# ---- loops


def test_a_double_buffer_needs_one_barrier_a_trip():
    assert thinned(programs.recurrence()) == "B[B]"


def looped(steps, *stages):
    """A loop over t < steps; a stage is a function from (buffers, t) to an operator; h is (2, 8), c (8)."""
    p, t = ProgramBuilder("p"), Var("t", steps)
    b = {"y": p.output("y", steps, 8), "h": p.temporary("h", 2, 8), "c": p.temporary("c", 8)}
    start = [Store(at(b["h"], 0, I8), f32(1.0)), Store(at(b["c"], I8), f32(1.0))]
    p.stage(operator("start", (I8,), *start, tile=(3,)))
    p.body.append(Loop(t, tuple(Stage((make(b, t),)) for make in stages)))
    return p.build()


def swap_halves(b, t):
    k = Var("k", 8)
    value = dot(k, load(b["h"], Index.of(t) % 2, k), load(b["h"], Index.of(t) % 2, I8))
    stores = [Store(at(b["h"], (Index.of(t) + 1) % 2, I8), value), Store(at(b["y"], t, I8), value)]
    return operator("swap", (I8,), *stores, tile=(3,))


def count(b, t):
    """Touches only what the same block touches in every trip."""
    value = add(load(b["c"], I8), f32(1.0))
    return operator("count", (I8,), Store(at(b["c"], I8), value), Store(at(b["y"], t, I8), value), tile=(3,))


def test_a_state_private_to_its_block_needs_a_barrier_only_before_the_loop():
    assert thinned(looped(5, count)) == "B[-]"


def test_only_the_barrier_that_a_trip_needs_stays():
    assert thinned(looped(5, swap_halves, count)).startswith("B[")
    fewer = remove_redundant_barriers(looped(5, swap_halves, lambda b, t: operator("idle", (), *[])))
    assert sum(s.barrier for s in fewer.stages()) == 2


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_loop_without_its_barrier_races_from_the_second_trip_on(steps):
    program = looped(steps, swap_halves)
    start, loop = program.body
    racy = replace(program, body=(start, replace(loop, body=(replace(loop.body[0], barrier=False),))))
    assert bool(find_races(racy)) == (steps > 1)
    assert not find_races(program)


def test_the_last_trip_is_ordered_before_what_follows():
    p, t = ProgramBuilder("p"), Var("t", 3)
    y, s = p.output("y", 8), p.temporary("s", 3, 8)
    body = Stage((operator("fill", (I8,), Store(at(s, t, I8), f32(1.0)), tile=(3,)),), barrier=False)
    p.body.append(Loop(t, (body,)))
    p.stage(operator("read", (I8,), Store(at(y, I8), load(s, 2, I8)), tile=(2,)))
    assert find_races(p.build())
    p.body[0] = Loop(t, (replace(body, barrier=True),))
    assert not find_races(p.build())
    assert thinned(p.build()) == "[B]-"


def test_trips_that_write_apart_need_no_barrier_between_them():
    p, t = ProgramBuilder("p"), Var("t", 3)
    y = p.output("y", 3, 8)
    fill = operator("fill", (I8,), Store(at(y, t, I8), f32(1.0)), tile=(3,))
    p.body.append(Loop(t, (Stage((fill,)),)))
    assert thinned(p.build()) == "[-]"


def test_nested_loops_are_walked_trip_by_trip():
    """Row (t + u) % 3 is written while row (t + u + 1) % 3 is read: apart in a trip, a race across trips."""

    def make(barrier):
        p, t, u, k = ProgramBuilder("p"), Var("t", 2), Var("u", 4), Var("k", 8)
        s, y = p.temporary("s", 3, 8), p.output("y", 8)
        r = Var("r", 3)
        p.stage(operator("start", (r, I8), Store(at(s, r, I8), f32(1.0)), tile=(1, 3)))
        row = Index.of(t) + Index.of(u)
        value = dot(k, load(s, (row + 1) % 3, k), f32(0.5))
        step = operator("step", (I8,), Store(at(s, row % 3, I8), value), tile=(3,))
        p.body.append(Loop(t, (Loop(u, (Stage((step,), barrier),)),)))
        p.stage(operator("end", (I8,), Store(at(y, I8), load(s, 0, I8)), tile=(3,)))
        return p.build()

    assert not find_races(make(True))
    assert find_races(make(False))
    assert misbehaves(make(False), [])


# ---- owners


def test_blocks_of_one_thread_are_ordered_when_their_owner_is_known():
    program = two_stages(write_t, read_t, barrier=True)
    by_block = lambda op, block: block  # noqa: E731
    assert barriers(remove_redundant_barriers(program, by_block)) == "--"
    assert find_races(two_stages(write_t, read_t), lambda op, block: (block + (op.name == "first")) % 3)
    thin = remove_redundant_barriers(program, by_block)
    inputs = inputs_of(program)
    expected = run_program(program, inputs)[0]
    for seed in range(5):
        assert torch.equal(run_program(thin, inputs, seed=seed, threads=3, owner=by_block)[0], expected)


# ---- speed and footing


def chain(length):
    """A chain whose temporaries take turns in seven places, each reading the one before and the input."""
    p, j = ProgramBuilder("chain"), Var("j", 256)
    x, y = p.input("x", 1, 256), p.output("y", length, 256)
    before, offsets = x, {}
    for n in range(length):
        t = p.temporary(f"t{n}", 1, 256)
        value = add(load(before, 0, j), load(x, 0, j))
        p.stage(operator(f"op{n}", (j,), Store(at(t, 0, j), value), Store(at(y, n, j), value), tile=(16,)))
        before, offsets[t] = t, ARENA_HEADER + n % 7 * 1024
    return replace(p.build(), arena=ArenaPlan(offsets, ARENA_HEADER + 7 * 1024))


def concat_of(parts):
    p, j = ProgramBuilder("wide"), Var("j", 16)
    x, t, y = p.input("x", 8, 16), p.temporary("t", 8, 16 * parts), p.output("y", 8, 16 * parts)
    columns = [Index.of(j) + 16 * n for n in range(parts)]
    p.stage(
        *(
            operator(f"w{n}", (I8, j), Store(at(t, I8, c), load(x, I8, j)), tile=(2, 16))
            for n, c in enumerate(columns)
        )
    )
    p.stage(
        *(
            operator(f"r{n}", (I8, j), Store(at(y, I8, c), load(t, I8, c)), tile=(2, 16))
            for n, c in enumerate(columns)
        )
    )
    return p.build()


def seconds(call, *args):
    start = process_time()
    call(*args)
    return process_time() - start


@pytest.mark.parametrize("make", [chain, concat_of])
@pytest.mark.parametrize("step", [verify, find_races, remove_redundant_barriers])
def test_time_grows_about_linearly_with_the_program(make, step):
    """Four times the operators may take eight times as long, not sixteen; best of three against noise."""
    args = ("test",) if step is verify else ()
    small, large = (min(seconds(step, make(n), *args) for _ in range(3)) for n in (100, 400))
    assert large < 8 * small + 0.02


@given(
    st.lists(st.integers(-5, 5), min_size=3, max_size=3),
    st.integers(-7, 7),
    st.integers(1, 6),
    st.sampled_from(["//", "%"]),
    st.data(),
)
def test_intervals_hold_every_value(factors, constant, by, how, data):
    variables = [Var(name, n) for name, n in zip("abc", (2, 5, 7), strict=True)]
    inner = sum((Index.of(v) * f for v, f in zip(variables, factors, strict=True)), Index(constant))
    index = (inner // by if how == "//" else inner % by) * data.draw(st.sampled_from([-2, 1, 3])) + variables[
        1
    ]
    ranges = {}
    for var in variables[:2]:
        low = data.draw(st.integers(0, var.extent - 1))
        ranges[var] = (low, data.draw(st.integers(low, var.extent - 1)))
    grid = np.meshgrid(
        *(
            np.arange(ranges[v][0], ranges[v][1] + 1) if v in ranges else np.arange(v.extent)
            for v in variables
        )
    )
    values = np.asarray(index.evaluate(dict(zip(variables, grid, strict=True))))
    low, high = interval(index, ranges)
    assert low <= values.min() and values.max() <= high
    arrays = interval(index, {v: (np.array([a]), np.array([b])) for v, (a, b) in ranges.items()})
    assert (int(np.min(arrays[0])), int(np.max(arrays[1]))) == (low, high)
