"""When bytes of a temporary matter: a trip's own values, in each trip anew; all else, as long as a loop."""

from dataclasses import replace

import pytest

from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.live_ranges import LiveRange, live_ranges
from wolong_fx.ir.program import Loop, Stage, Store
from wolong_fx.testing.programs import ProgramBuilder, at, load, operator

SIZE, TRIPS = 6, 3


def program_of(make):
    """A loop of three stages between two others; `make(p, t)` gives the operators of each of the three."""
    p, t = ProgramBuilder("trips"), Var("t", TRIPS)
    p.stage(copy(p, "before", p.input("x", SIZE), p.temporary("carried", SIZE)))
    p.body.append(Loop(t, tuple(Stage(tuple(ops)) for ops in make(p, t))))
    carried = next(b for b in p.buffers if b.name == "carried")
    p.stage(copy(p, "after", carried, p.output("y", SIZE)))
    return p.build()


def copy(p, name, source, target, size=SIZE, start=0):
    i = Var("i", size)
    return operator(name, (i,), Store(at(target, Index.of(i) + start), load(source, Index.of(i) + start)))


def span(program, name):
    return next(r for b, r in live_ranges(program).items() if b.name == name)


def through(p, t):
    """carried -> first -> second -> carried."""
    carried = p.buffers[1]
    first, second = p.temporary("first", SIZE), p.temporary("second", SIZE)
    return [
        [copy(p, "a", carried, first)],
        [copy(p, "b", first, second)],
        [copy(p, "c", second, carried)],
    ]


def test_a_value_of_a_trip_lives_between_its_own_stages():
    program = program_of(through)
    assert span(program, "first") == LiveRange(1, 2)
    assert span(program, "second") == LiveRange(2, 3)


def test_what_a_trip_hands_to_the_next_lives_as_long_as_the_loop():
    assert span(program_of(through), "carried") == LiveRange(0, 4, is_stretched=True)


def half_written(p, t):
    carried, value = p.buffers[1], p.temporary("value", SIZE)
    return [
        [copy(p, "a", carried, value, SIZE // 2)],
        [copy(p, "b", value, carried)],
        [copy(p, "c", carried, value, SIZE // 2, SIZE // 2)],
    ]


def read_first(p, t):
    carried, value = p.buffers[1], p.temporary("value", SIZE)
    return [[copy(p, "a", value, carried)], [copy(p, "b", carried, value)], []]


def in_turn(p, t):
    """A double buffer that nobody fills before the loop."""
    carried, value, i = p.buffers[1], p.temporary("value", 2, SIZE), Var("i", SIZE)
    write = operator("a", (i,), Store(at(value, Index.of(t) % 2, i), load(carried, i)))
    read = operator("b", (i,), Store(at(carried, i), load(value, (Index.of(t) + 1) % 2, i)))
    return [[write], [read], []]


def added_to(p, t):
    carried, value, i = p.buffers[1], p.temporary("value", SIZE), Var("i", SIZE)
    return [
        [operator("a", (i,), Store(at(value, i), load(carried, i), "add"))],
        [copy(p, "b", value, carried)],
        [],
    ]


@pytest.mark.parametrize("make", [half_written, read_first, in_turn, added_to], ids=lambda f: f.__name__)
def test_what_a_trip_might_find_from_another_one_lives_as_long_as_the_loop(make):
    assert span(program_of(make), "value") == LiveRange(1, 3, is_stretched=True)


def test_two_operators_may_fill_a_value_of_a_trip_together():
    def halves(p, t):
        carried, value, half = p.buffers[1], p.temporary("value", SIZE), SIZE // 2
        both = [copy(p, "a", carried, value, half), copy(p, "b", carried, value, half, half)]
        return [both, [copy(p, "c", value, carried)], []]

    assert span(program_of(halves), "value") == LiveRange(1, 2)


def test_what_is_touched_outside_of_the_loop_is_no_value_of_a_trip():
    program = program_of(through)
    first = next(b for b in program.buffers if b.name == "first")
    late = Stage((copy(None, "late", first, program.buffers[-1]),))
    longer = replace(program, body=(*program.body, late))
    assert span(longer, "first") == LiveRange(1, 5, is_stretched=True)
