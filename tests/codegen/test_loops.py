"""Rolled loops: a scan becomes one loop of one program, which computes what eager's scan does."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import build_programs, compile_partition, why_unsupported
from wolong_fx.codegen.cpp import pack_operands
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.targets import ReferenceTarget
from wolong_fx.errors import InvalidProgram, ProgramFault, RaceFound
from wolong_fx.ir.expr import Load, Reduce, walk
from wolong_fx.ir.happens_before import check_races
from wolong_fx.ir.program import Loop, Stage
from wolong_fx.ir.text import print_program
from wolong_fx.ir.types import BufferKind, DType
from wolong_fx.ir.verify import verify
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.loops.scan import SCAN, is_scan
from wolong_fx.testing.golden import assert_golden
from wolong_fx.testing.loops import FAMILIES, LoopCase, random_loop
from wolong_fx.testing.mutations import MUTATIONS, misbehaves
from wolong_fx.testing.oracle import assert_results_close, widened
from wolong_fx.testing.tracing import trace_core

F32, F64 = torch.float32, torch.float64
GOLDEN = Path(__file__).parent / "golden"


def graph_of(case):
    return trace_core(case.function, *case.inputs)


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 2) for d in op.dims)


def program_of(case, pack=None, **options):
    pack = pack or ReferenceTarget().pack_operands
    return build_programs(graph_of(case), Options.of(**options), Ledger(), small_tiles, pack).run


def loop_of(program):
    (loop,) = [item for item in program.body if isinstance(item, Loop)]
    return loop


def carried(program):
    """Shapes of the temporaries that a loop touches and that outlive a trip."""
    return sorted(
        b.shape for b in program.buffers if b.kind is BufferKind.TEMPORARY and b.name.startswith("scan")
    )


def check(case, results):
    """The results are as near to float64 as eager's own scan."""
    eager, exact = case.function(*case.inputs), case.function(*map(widened, case.inputs))
    for n, (ours, e, x) in enumerate(zip(results, eager, exact, strict=True)):
        factor = 64 if e.dtype is F64 else 16  # where eager computes in float64 both round at every step
        assert_results_close(ours, e, x, factor, cancels=True, what=f"result {n}")


def all_families(steps, dtype):
    """One function with every kind of loop in it: one kernel to build."""
    cases = [family(steps, dtype) for family in FAMILIES.values()]
    inputs = tuple(x for case in cases for x in case.inputs)

    def function(*values):
        values, results = list(values), []
        for case in cases:
            mine, values = values[: len(case.inputs)], values[len(case.inputs) :]
            results += case.function(*mine)
        return tuple(results)

    return LoopCase(function, inputs)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loop_computes_what_eager_does_in_any_order_of_blocks(family, steps):
    case = FAMILIES[family](steps, F32)
    program = program_of(case)
    first = run_program(program, list(case.inputs), seed=0)
    check(case, first)
    again = run_program(program, list(case.inputs), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_many_loops_in_one_kernel_compute_what_eager_does(dtype):
    case = all_families(3, dtype)
    kernel = compile_partition(graph_of(case), Options.of(), Ledger())
    results = kernel.launch(list(case.inputs))
    check(case, results)
    assert all(torch.equal(a, b) for a, b in zip(results, kernel.launch(list(case.inputs)), strict=True))


@pytest.mark.parametrize("family", ["lstm", "gru", "nested", "shift_register", "backward"])
def test_every_step_of_code_generation_may_be_left_out_around_loops(family):
    case = FAMILIES[family](3, F32)
    for step in ("drop-dead-ops", "assign-outputs", "split-ops", "fuse-ops", "batch-ops", "collapse-dims"):
        check(case, run_program(program_of(case, disable=(step,)), list(case.inputs), seed=2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_a_random_recurrence_computes_what_eager_does(seed):
    case = random_loop(random.Random(seed))
    check(case, run_program(program_of(case), list(case.inputs), seed=seed))


def test_a_cell_is_one_operator_a_trip_and_one_barrier():
    loop = loop_of(program_of(FAMILIES["lstm"](7, F32)))
    (stage,) = loop.body
    assert isinstance(stage, Stage) and stage.barrier
    assert len(stage.ops) == 1


def test_a_backward_begins_its_trips_with_the_product_that_ended_them():
    case = FAMILIES["backward"](5, F32)
    (stage,) = loop_of(program_of(case)).body
    assert isinstance(stage, Stage) and len(stage.ops) == 1
    as_written = program_of(case, disable=("rotate-loops",))
    assert len(loop_of(as_written).body) == 2
    ours, theirs = (run_program(p, list(case.inputs), seed=1) for p in (program_of(case), as_written))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_final_gradient_that_nobody_reads_costs_no_product_after_the_loop():
    case = FAMILIES["backward"](5, F32)

    def dots_after(function):
        program = program_of(LoopCase(function, case.inputs))
        after = program.body[program.body.index(loop_of(program)) + 1 :]
        stages = (item for item in after if isinstance(item, Stage))
        return sum(isinstance(e, Reduce) for s in stages for op in s.ops for e in op.expressions())

    assert dots_after(lambda *inputs: case.function(*inputs)[1:]) == dots_after(case.function) - 1


def test_a_state_that_a_product_reads_does_not_turn_its_loop():
    for family in ("lstm", "gru", "reversed_walk", "history"):
        case = FAMILIES[family](4, F32)
        as_written = print_program(program_of(case, disable=("rotate-loops",)))
        assert print_program(program_of(case)) == as_written, family


def test_a_state_that_no_trip_reads_does_not_turn_its_loop():
    def unread(h, x, u):
        step = lambda h, g, x, u: (((g + x).sin() @ u).tanh(), (g + x).cos())  # noqa: E731
        return SCAN(step, (h, h * 2), (x,), (u,))

    case = LoopCase(unread, (torch.randn(2, 5), torch.randn(4, 2, 5), torch.randn(5, 5)))
    check(case, run_program(program_of(case), list(case.inputs), seed=1))


def test_what_only_its_own_point_reads_has_one_place_and_the_rest_two():
    assert carried(program_of(FAMILIES["lstm"](7, F32))) == [(2, 3, 7), (3, 7)]
    assert carried(program_of(FAMILIES["cumulative"](3, F32))) == [(), (5, 4)]


def test_one_block_alone_waits_for_nobody():
    case = FAMILIES["lstm"](7, F32)
    program = build_programs(graph_of(case), Options.of(), Ledger(), lambda op: op.domain).run
    assert [stage.barrier for stage in loop_of(program).body] == [False]
    check(case, run_program(program, list(case.inputs), seed=1))


def test_a_loop_without_products_of_its_state_needs_no_barrier():
    def running_mean(x):
        def step(s, x):
            s = s * 0.9 + x
            return s, s.tanh()

        return SCAN(step, (x[0] * 0,), (x,), ())

    loop = loop_of(program_of(LoopCase(running_mean, (torch.randn(5, 4, 9),))))
    assert [stage.barrier for stage in loop.body] == [False]


def test_stacked_results_are_written_where_the_caller_reads_them():
    for family in ("lstm", "lstm_whole", "reversed_walk"):
        program = program_of(FAMILIES[family](7, F32))
        output = next(b for b in program.buffers if b.kind is BufferKind.OUTPUT)
        written = {b for stage in loop_of(program).body for op in stage.ops for b in op.writes()}
        assert output in written, family


def test_what_a_loop_walks_over_is_not_copied():
    program = program_of(FAMILIES["lstm_whole"](7, F32))
    read = {b.name for stage in loop_of(program).body for op in stage.ops for b in op.reads()}
    assert next(b.name for b in program.buffers if b.shape == (3, 7, 5)) in read


def test_a_result_that_nobody_reads_is_not_computed():
    def last_state(x, u):
        def step(h, n, x, u):
            h = (x + h @ u).tanh()
            return h, n + h.exp(), h.sin(), (h @ u).softmax(1)

        h, _, _, ys = SCAN(step, (x[0] * 0, x[0] * 1), (x,), (u,))
        return h, ys.sum() * 0 + h.sum()

    def only_state(x, u):
        def step(h, x, u):
            h = (x + h @ u).tanh()
            return h, h.sin()

        return (SCAN(step, (x[0] * 0,), (x,), (u,))[0],)

    inputs = (torch.randn(4, 2, 5), torch.randn(5, 5))
    (stage,) = loop_of(program_of(LoopCase(only_state, inputs))).body
    assert not any(e.op == "sin" for op in stage.ops for e in op.expressions() if hasattr(e, "op"))
    dead = [op for s in loop_of(program_of(LoopCase(last_state, inputs))).body for op in s.ops]
    assert not any(getattr(e, "op", "") == "sin" for op in dead for e in op.expressions())


def test_weights_that_trips_stream_are_packed_once_before_the_loop():
    case = FAMILIES["lstm"](9, F32)
    program = program_of(case, pack=lambda ops, *kept: pack_operands(ops, "avx2", *kept))
    packed = [b for b in program.buffers if b.name.startswith("packed")]
    assert packed
    written = {b for stage in loop_of(program).body for op in stage.ops for b in op.writes()}
    assert not written & set(packed)
    check(case, run_program(program, list(case.inputs), seed=3))


def test_a_sum_over_steps_and_rows_walks_backwards_without_divisions():
    def weight_gradient(x, y):
        return (x.flip(0).reshape(-1, 4).t() @ y.reshape(-1, 5),)

    case = LoopCase(weight_gradient, (torch.randn(6, 3, 4), torch.randn(6, 3, 5)))
    program = program_of(case)
    (reduce,) = [e for op in program.ops() for e in op.expressions() if isinstance(e, Reduce)]
    assert [v.extent for v in reduce.over] == [6, 3]
    assert not any(
        i.uses_nested(v)
        for load in walk([reduce])
        if isinstance(load, Load)
        for i in load.access.affine
        for v in reduce.over
    )
    check(case, run_program(program, list(case.inputs), seed=0))


def test_what_is_walked_only_to_count_the_trips_is_not_made():
    def generate(h, u):
        step = lambda h, n, u: ((h @ u).tanh(), h.sin())  # noqa: E731
        return SCAN(step, (h,), (torch.arange(6),), (u,))

    case = LoopCase(generate, (torch.randn(2, 5), torch.randn(5, 5)))
    program = program_of(case)
    assert not [b for b in program.buffers if b.dtype is DType.I64]
    check(case, run_program(program, list(case.inputs), seed=1))


def test_a_loop_of_very_many_trips_is_proved_too():
    (loop,) = [i for i in program_of(FAMILIES["lstm"](100_000, F32)).body if isinstance(i, Loop)]
    assert loop.var.extent == 100_000


def test_programs_of_few_and_many_steps_differ_only_in_the_number_of_trips():
    texts = [print_program(program_of(FAMILIES["gru"](steps, F32))) for steps in (20, 1000)]
    assert texts[0].replace("20", "1000").count("\n") == texts[1].count("\n")
    assert sum(1 for _ in program_of(FAMILIES["nested"](50, F32)).ops()) < 12


def test_a_loop_with_an_operator_that_cannot_be_lowered_names_it():
    def with_sort(x):
        return SCAN(lambda h, x: (h + x.sort()[0], x * 1), (x[0] * 0,), (x,), ())

    gm = trace_core(with_sort, torch.randn(3, 4))
    (node,) = filter(is_scan, gm.graph.nodes)
    assert "sort" in (why_unsupported(node) or "")
    gm = graph_of(FAMILIES["nested"](2, F32))
    assert [why_unsupported(node) for node in gm.graph.nodes if is_scan(node)] == [None]


def test_a_small_lstm_has_this_program(request):
    text = print_program(program_of(FAMILIES["lstm"](5, F32)))
    assert_golden(text, GOLDEN / "lstm_loop.txt", request.config.getoption("--accept"))


@pytest.mark.parametrize("family", ["lstm", "gru", "encoder_decoder", "nested", "backward"])
def test_what_makes_a_loop_depend_on_the_order_of_blocks_is_refused(family):
    case, rng, faults = FAMILIES[family](3, F32), random.Random(7), 0
    program = program_of(case)
    for name in ("drop_barrier", "overlap_buffers", "reverse_loads", "merge_stages"):
        for _ in range(6):
            mutant = MUTATIONS[name](program, rng)
            if mutant is not None and misbehaves(mutant, list(case.inputs)):
                faults += 1
                with pytest.raises((RaceFound, InvalidProgram)):
                    verify(mutant, after=name)
                    check_races(mutant)
    assert faults >= 4


@pytest.mark.parametrize("family", ["lstm", "gru", "encoder_decoder", "nested", "backward"])
def test_a_trip_that_reads_the_wrong_state_is_noticed(family):
    """An old state for a new one: refused, a fault, or another result."""
    case, rng = FAMILIES[family](3, F32), random.Random(7)
    program = program_of(case)
    mutant = MUTATIONS["turn_double_buffer"](program, rng)
    assert mutant is not None
    with pytest.raises((RaceFound, InvalidProgram, ProgramFault, AssertionError)):
        verify(mutant, after="turn_double_buffer")
        check_races(mutant)
        check(case, run_program(mutant, list(case.inputs), seed=0))
