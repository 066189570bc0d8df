"""Every rule of the verifier is broken once by a program that keeps all others; valid programs pass."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.errors import InvalidProgram
from wolong_fx.ir.expr import Access, Binary, Cast, Const, Gather, IndexValue, Reduce, Unary, Where
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import ArenaPlan, Dim, Loop, OpInst, Stage, Store
from wolong_fx.ir.types import Buffer, BufferKind, DType
from wolong_fx.ir.verify import RULES, verify
from wolong_fx.testing.programs import (
    ARENA_HEADER,
    TYPICAL,
    ProgramBuilder,
    add,
    at,
    f32,
    load,
    operator,
    random_program,
)

A, B, K = Var("i", 6), Var("j", 4), Var("k", 4)


class Parts(ProgramBuilder):
    """Inputs x (6, 4) and n (6) of integers, output y and temporary t (6, 4), and what a test adds."""

    def __init__(self):
        super().__init__("p")
        self.x, self.n = self.input("x", 6, 4), self.input("n", 6, dtype=DType.I64)
        self.y, self.t = self.output("y", 6, 4), self.temporary("t", 6, 4)

    def write(self, value=None, index=None, dims=(A, B), target=None, **options):
        index = (A, B) if index is None else index
        value = load(self.x, A, B) if value is None else value
        store = Store(at(target or self.y, *index), value, options.pop("accumulate", None))
        return operator("op", dims, store, **options)

    def run(self, *ops):
        self.stage(*ops)
        return self.build()


def duplicate_name(p):
    p.input("x", 3)
    return p.run(p.write())


def short_strides(p):
    p.buffers.append(Buffer("z", DType.F32, (2, 3), BufferKind.INPUT, (1,)))
    return p.run(p.write())


def overlapping_output(p):
    p.buffers.append(Buffer("z", DType.F32, (2, 3), BufferKind.OUTPUT, (1, 1)))
    z = p.buffers[-1]
    a, b = Var("a", 2), Var("b", 3)
    return p.run(p.write(), operator("z", (a, b), Store(at(z, a, b), f32(0.0))))


def constant_of_wrong_size(p):
    p.buffers.append(Buffer.contiguous("c", DType.F32, (2,), BufferKind.CONSTANT, b"1234"))
    return p.run(p.write())


def undeclared_buffer(p):
    stranger = Buffer.contiguous("stranger", DType.F32, (6, 4), BufferKind.INPUT)
    return p.run(p.write(load(stranger, A, B)))


def too_few_coordinates(p):
    return p.run(p.write(load(p.x, A)))


def tile_of_wrong_rank(p):
    return p.run(p.write(tile=(2,)))


def zero_tile(p):
    return p.run(p.write(tile=(0, 4)))


def cut_sequential_dimension(p):
    return p.run(p.write(tile=(2, 4), sequential=(A,)))


def unknown_variable(p):
    return p.run(p.write(load(p.x, A, Var("stranger", 4))))


def reduce_variable_outside(p):
    total = Reduce("sum", (K,), load(p.x, A, K))
    return p.run(p.write(add(total, load(p.x, A, K))))


def reduce_over_a_dimension(p):
    return p.run(p.write(Reduce("sum", (B,), load(p.x, A, B))))


def reductions_that_share_a_variable(p):
    return p.run(p.write(add(*(Reduce("sum", (K,), load(p.x, A, K)) for _ in range(2)))))


def one_name_two_extents(p):
    return p.run(p.write(Reduce("sum", (Var("i", 3),), load(p.x, A, Var("i", 3)))))


def loop_variable_outside_its_loop(p):
    t = Var("t", 4)
    p.body.append(Loop(t, (Stage((p.write(load(p.x, A, t)),)),)))
    return p.run(p.write(load(p.x, A, t)))


def mixed_operands(p):
    return p.run(p.write(Binary("add", load(p.x, A, B), Const(1.0, DType.F64))))


def logarithm_of_integers(p):
    return p.run(p.write(Cast(Unary("log", load(p.n, A)), DType.F32)))


def unknown_operation(p):
    return p.run(p.write(Unary("frobnicate", load(p.x, A, B))))


def condition_that_is_no_bool(p):
    x = load(p.x, A, B)
    return p.run(p.write(Where(x, x, x)))


def any_of_floats(p):
    return p.run(p.write(Reduce("any", (K,), load(p.x, A, K))))


def fractional_integer(p):
    return p.run(p.write(Cast(Const(0.5, DType.I32), DType.F32)))


def bitwise_floats(p):
    x = load(p.x, A, B)
    return p.run(p.write(Binary("xor", x, x)))


def stored_in_another_type(p):
    return p.run(p.write(Cast(load(p.x, A, B), DType.F64)))


def gather_by_float(p):
    return p.run(p.write(load(p.x, Gather(load(p.x, A, B), "no"), B)))


def unknown_accumulation(p):
    p.stage(p.write())
    return p.run(p.write(accumulate="xor"))


def load_outside(p):
    return p.run(p.write(load(p.x, Index.of(A) + 1, B)))


def store_outside(p):
    return p.run(p.write(index=(Index.of(A) - 1, B)))


def store_to_input(p):
    return p.run(p.write(), p.write(f32(0.0), target=p.x))


def another_element_of_its_own(p):
    p.stage(p.write(target=p.t))
    return p.run(
        operator(
            "op",
            (A, B),
            Store(at(p.t, A, B), load(p.t, Index.of(A) * -1 + 5, B)),
            Store(at(p.y, A, B), f32(0.0)),
        )
    )


def all_rows_to_one(p):
    return p.run(p.write(), p.write(index=(0, B), target=p.t))


def sums_of_parallel_points(p):
    p.stage(p.write(f32(0.0)))
    return p.run(p.write(index=(A, 0), accumulate="add"))


def more_points_than_elements(p):
    return p.run(p.write(), p.write(index=((Index.of(A) + B) // 2, 0), target=p.t))


def siblings_in_each_others_way(p):
    p.stage(p.write(target=p.t))
    return p.run(p.write(load(p.t, A, B)), p.write(target=p.t))


def overlapping_slices(p):
    half = Var("h", 3)
    return p.run(
        p.write(f32(0.0), (A, half), dims=(A, half)),
        p.write(f32(1.0), (A, Index.of(half) + 1), dims=(A, half)),
    )


def read_before_written(p):
    return p.run(p.write(load(p.t, A, B)))


def read_by_the_stage_that_writes(p):
    return p.run(p.write(add(load(p.x, A, B), load(p.y, A, B))))


def accumulated_before_written(p):
    return p.run(p.write(accumulate="add"))


def unwritten_output(p):
    p.output("z", 3)
    return p.run(p.write())


def half_written_output(p):
    h = Var("h", 3)
    return p.run(p.write(index=(h, B), value=f32(0.0), dims=(h, B)))


def with_arena(offset, size=1 << 14):
    def make(p):
        program = p.run(p.write(target=p.t), p.write())
        return replace(program, arena=ArenaPlan({} if offset is None else {p.t: offset}, size))

    return make


def living_together(p):
    u = p.temporary("u", 6, 4)
    p.stage(p.write(target=p.t))
    p.stage(p.write(target=u))
    program = p.run(p.write(add(load(p.t, A, B), load(u, A, B))))
    return replace(program, arena=ArenaPlan({p.t: ARENA_HEADER, u: ARENA_HEADER + 64}, 1 << 14))


def heir_that_reads_elsewhere(p):
    u = p.temporary("u", 6, 4)
    p.stage(p.write(target=p.t))
    p.stage(p.write(load(p.t, Index.of(A) * -1 + 5, B), target=u))
    program = p.run(p.write(load(u, A, B)))
    return replace(program, arena=ArenaPlan(dict.fromkeys((p.t, u), ARENA_HEADER), 1 << 14))


BROKEN = {
    "buffer names are unique": [duplicate_name],
    "buffers are sound": [short_strides, overlapping_output, constant_of_wrong_size],
    "buffers are declared": [undeclared_buffer],
    "ranks agree": [too_few_coordinates],
    "tiles fit": [tile_of_wrong_rank, zero_tile, cut_sequential_dimension],
    "variables are in scope": [
        unknown_variable,
        reduce_variable_outside,
        reduce_over_a_dimension,
        reductions_that_share_a_variable,
        one_name_two_extents,
        loop_variable_outside_its_loop,
    ],
    "types agree": [
        mixed_operands,
        logarithm_of_integers,
        unknown_operation,
        condition_that_is_no_bool,
        any_of_floats,
        fractional_integer,
        bitwise_floats,
        stored_in_another_type,
        gather_by_float,
        unknown_accumulation,
    ],
    "accesses are in bounds": [load_outside, store_outside],
    "only own memory is written": [store_to_input],
    "own loads are of the stored element": [another_element_of_its_own],
    "stores are injective": [all_rows_to_one, sums_of_parallel_points, more_points_than_elements],
    "operators of a stage are independent": [siblings_in_each_others_way, overlapping_slices],
    "reads follow writes": [read_before_written, read_by_the_stage_that_writes, accumulated_before_written],
    "outputs are written": [unwritten_output, half_written_output],
    "the arena holds all temporaries": [
        with_arena(None),
        with_arena(ARENA_HEADER + 32),
        with_arena(0),
        with_arena(ARENA_HEADER, ARENA_HEADER + 64),
    ],
    "living buffers are apart": [living_together, heir_that_reads_elsewhere],
}

CASES = [(rule, make) for rule, makers in BROKEN.items() for make in makers]


@pytest.mark.parametrize("rule, make", CASES, ids=[f"{make.__name__}" for _, make in CASES])
def test_a_broken_rule_is_named(rule, make):
    with pytest.raises(InvalidProgram) as caught:
        verify(make(Parts()), "test")
    assert caught.value.facts["rule"] == rule
    assert caught.value.facts["step"] == "test"


def test_every_rule_is_broken_by_a_test():
    assert [name for name, _ in RULES] == list(BROKEN)


def test_the_culprit_is_printed_beside_its_operator():
    with pytest.raises(
        InvalidProgram, match=r"load of 'x' in 'op': coordinate 0 is i \+ 1, from 1 to 6, of 6"
    ):
        verify(load_outside(Parts()), "test")
    with pytest.raises(InvalidProgram, match=r"%0 = load x\[i \+ 1, j\]"):
        verify(load_outside(Parts()), "test")


@pytest.mark.parametrize("name", TYPICAL)
def test_typical_programs_are_valid(name):
    verify(TYPICAL[name](), "test")


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_random_programs_are_valid(seed):
    verify(random_program(seed), "test")


def valid(make):
    verify(make(Parts()), "test")


def test_bounds_that_intervals_cannot_show_are_tried_out():
    valid(lambda p: p.run(p.write(load(p.x, Index.of(A) - Index.of(A) % 2 + Index.of(A) % 2, B))))


def test_what_never_runs_may_name_any_element():
    nothing, none = Var("none", 0), Var("m", 0)

    def make(p):
        empty = p.input("empty", 0)
        total = Reduce("sum", (none,), load(empty, none))
        p.stage(operator("never", (nothing,), Store(at(p.y, 7, 7), f32(0.0))))
        return p.run(p.write(add(load(p.x, A, B), total)))

    valid(make)


def test_a_filled_load_may_leave_its_buffer():
    valid(lambda p: p.run(p.write(load(p.x, Index.of(A) - 3, B, fill=0.0))))


def test_an_operator_may_replace_the_element_it_reads():
    def make(p):
        p.stage(p.write(target=p.t))
        p.stage(p.write(Unary("exp", load(p.t, A, B)), target=p.t))
        return p.run(p.write(load(p.t, A, B)))

    valid(make)


def test_a_scan_may_read_what_it_stored_before():
    verify(TYPICAL["shifted_sum"](), "test")


def test_even_and_odd_columns_are_independent():
    def make(p):
        half = Var("h", 2)
        return p.run(
            p.write(f32(0.0), (A, Index.of(half) * 2), dims=(A, half)),
            p.write(f32(1.0), (A, Index.of(half) * 2 + 1), dims=(A, half)),
        )

    valid(make)


def test_two_halves_of_a_double_buffer_are_independent_in_every_trip():
    def make(p, shift=1):
        h, t = p.temporary("h", 2, 6), Var("t", 5)
        p.stage(operator("start", (A,), Store(at(h, 0, A), f32(0.0))), p.write())
        reader = operator("read", (A,), Store(at(p.y, A, 0), load(h, Index.of(t) % 2, A)))
        writer = operator("write", (A,), Store(at(h, (Index.of(t) + shift) % 2, A), f32(1.0)))
        p.body.append(Loop(t, (Stage((reader, writer)),)))
        return p.build()

    valid(make)
    with pytest.raises(InvalidProgram, match="independent"):
        verify(make(Parts(), shift=2), "test")


def test_an_expanded_output_stores_each_element_once():
    def make(p):
        p.buffers.append(Buffer("z", DType.F32, (3, 6), BufferKind.OUTPUT, (0, 1)))
        z = p.buffers[-1]
        return p.run(p.write(), operator("z", (A,), Store(at(z, 0, A), f32(0.0))))

    valid(make)


def test_an_operand_may_be_replaced_in_place_by_its_result():
    verify(TYPICAL["in_place"](), "test")


def test_dimensions_need_no_tiles_before_scheduling():
    valid(lambda p: p.run(p.write()))


def test_index_values_are_checked_for_scope():
    with pytest.raises(InvalidProgram, match="stranger"):
        verify(
            (lambda p: p.run(p.write(Cast(IndexValue(Index.of(Var("stranger", 3))), DType.F32))))(Parts()),
            "t",
        )


def test_an_operator_with_two_dimensions_of_one_name_is_refused():
    p = Parts()
    op = OpInst("op", (Dim(A), Dim(A)), (Store(Access(p.y, (Index.of(A), Index())), f32(0.0)),))
    with pytest.raises(InvalidProgram, match="variable 'i' of two"):
        verify(p.run(op), "test")
