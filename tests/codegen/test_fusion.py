"""Rules of the back end's operator rewrites: what joins what, what never changes."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import STEPS, build_programs
from wolong_fx.codegen.dataflow import dependences, levels
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ir.expr import Reduce
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.models import GateLSTM
from wolong_fx.testing.tracing import trace_core


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 5) for d in op.dims)


def program_of(function, *inputs, disable=()):
    gm = trace_core(function, *inputs)
    return build_programs(gm, Options.of(disable=disable), Ledger(), small_tiles).run


def domains(program):
    return sorted(op.domain for op in program.ops())


def check(function, *inputs, disable=()):
    """The program's results equal eager's; returns the program."""
    program = program_of(function, *inputs, disable=disable)
    for seed in range(2):
        got = run_program(program, list(inputs), seed=seed)
        expected = torch.utils._pytree.tree_leaves(function(*inputs))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
    return program


def test_a_pointwise_chain_is_one_operator_without_temporaries():
    program = check(lambda x: torch.tanh(x * 2 + 1).exp(), torch.randn(4, 6))
    assert len(list(program.ops())) == 1
    assert len(program.buffers) == 2


def test_a_variance_and_the_mean_beside_it_share_the_mean():
    program = check(lambda x: (x.var(1), x.mean(1)), torch.randn(4, 6))
    assert sum(isinstance(e, Reduce) for op in program.ops() for e in op.expressions()) == 2


def test_sums_of_one_row_that_share_an_operand_are_one_operator():
    program = check(lambda x, y: ((x * y).sum(), (x + y).sum()), torch.randn(6), torch.randn(6))
    assert len(list(program.ops())) == 1


def test_a_value_used_twice_is_computed_once():
    def diamond(x):
        y = torch.tanh(x)
        return y * y.exp() + y

    (op,) = check(diamond, torch.randn(5, 3)).ops()
    assert sum(getattr(e, "op", None) == "tanh" for e in op.expressions()) == 1


def test_an_epilogue_joins_its_matmul():
    x, w, b = torch.randn(4, 8), torch.randn(8, 6), torch.randn(6)
    program = check(lambda x, w, b: torch.relu(x @ w + b), x, w, b)
    assert len(list(program.ops())) == 1


def test_matmuls_that_share_their_left_operand_become_one_operator():
    program = check(lambda x, u, v: (x @ u, x @ v), torch.randn(4, 8), torch.randn(8, 6), torch.randn(8, 6))
    (op,) = program.ops()
    assert sum(isinstance(e, Reduce) for e in op.expressions()) == 2


def test_a_concat_is_written_by_its_producers():
    program = check(lambda x, y: torch.cat([x.relu(), y.exp()], 1), torch.randn(4, 3), torch.randn(4, 5))
    assert domains(program) == [(4, 3), (4, 5)]
    assert {b.kind.value for b in program.buffers} == {"input", "output"}


def test_a_split_costs_nothing():
    def halves(x):
        a, b = torch.split(x, 4, 1)
        return a * b

    assert domains(check(halves, torch.randn(3, 8))) == [(3, 4)]


def test_the_input_projections_of_a_recurrence_leave_it_and_are_one_operator():
    model = GateLSTM(8, 6)
    parameters = {k: v.detach() for k, v in model.named_parameters()}

    def run(x, *values):
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (x,))

    program = check(run, torch.randn(6, 3, 8), *parameters.values())
    projections = [op for op in next(program.stages()).ops if op.points == 5 * 3 * 8]
    assert [sum(isinstance(e, Reduce) for e in op.expressions()) for op in projections] == [4]
    assert len(list(program.stages())) <= 6 + 2


def test_a_reader_with_later_operands_does_not_delay_a_heavy_producer():
    def late(x, w, u):
        early = x @ w
        h = x
        for _ in range(4):
            h = torch.tanh(h @ u)
        return early + h

    program = check(late, torch.randn(3, 8), torch.randn(8, 8), torch.randn(8, 8))
    first = next(program.stages())
    assert len([op for op in first.ops if any(isinstance(e, Reduce) for e in op.expressions())]) >= 1
    assert len(list(program.stages())) == 4


@pytest.mark.parametrize("step", [name for name, _ in STEPS])
def test_every_step_can_be_disabled_without_changing_results(step):
    def model(x, w):
        z = torch.softmax(x @ w, -1)
        return torch.cat([z, z.exp()], 1), z.sum()

    check(model, torch.randn(4, 6), torch.randn(6, 5), disable=(step,))


def test_disabling_fusion_leaves_more_operators():
    def chain(x):
        y = x.exp()
        return y * y, y + 1

    assert len(list(check(chain, torch.randn(4)).ops())) < len(
        list(check(chain, torch.randn(4), disable=("fuse-ops",)).ops())
    )


def test_an_operator_nobody_reads_is_dropped():
    def best_only(x):
        return x.max(1).values

    program = check(best_only, torch.randn(3, 4))
    assert all(getattr(e, "op", None) != "argmax" for op in program.ops() for e in op.expressions())


def test_contiguous_dimensions_become_one():
    assert domains(check(lambda x: x * 2, torch.randn(2, 3, 4))) == [(24,)]
    assert domains(check(lambda x: x * 2, torch.randn(2, 4, 3).transpose(1, 2))) == [(24,)]
    two_layouts = check(torch.add, torch.randn(2, 3, 4), torch.randn(2, 4, 3).transpose(1, 2))
    assert domains(two_layouts) == [(2, 3, 4)]


def test_levels_respect_dependences():
    program = program_of(lambda x, w: torch.softmax(x @ w, -1) @ w.t(), torch.randn(4, 6), torch.randn(6, 5))
    ops = [op for stage in program.stages() for op in stage.ops]
    before = dependences(ops)
    level = levels(before)
    assert all(level[p] < level[i] for i, ps in enumerate(before) for p in ps)


HALVE, TURN = (lambda x: x * 0.5), (lambda x: x.transpose(0, 1).clone())
POINTWISE = [torch.tanh, torch.sigmoid, torch.neg, torch.abs, HALVE, TURN]
JOINS = [torch.add, torch.mul, torch.maximum, lambda a, b: a @ b * 0.1]
JOINS += [
    lambda a, b: torch.cat([a.tanh(), b, a], 1)[:, 1 : 1 + a.shape[1]],
    lambda a, b: torch.stack([a, b], -1)[..., 1] + a,
    lambda a, b: torch.stack([row @ b * 0.1 for row in a.unsqueeze(1)]).squeeze(1),
    lambda a, b: a.scatter_add(0, torch.zeros(1, a.shape[1], dtype=torch.int64), b[:1]),
    lambda a, b: torch.slice_scatter(a, b[:1], 0, 0, 1),
]
WHOLE = [lambda x: x - x.mean(1, keepdim=True), lambda x: torch.softmax(x, 0), lambda x: x.flip(0)]
WHOLE += [
    lambda x: torch.constant_pad_nd(x, [1, 1])[:, : x.shape[1]],
    lambda x: x.index_select(0, torch.arange(x.shape[0]).flip(0)),
]


def random_function(data):
    """A function of two square matrices that draws on every kind of operator."""
    plan = [
        tuple(data.draw(st.integers(0, most)) for most in (2, 50, 50, 50))
        for _ in range(data.draw(st.integers(1, 12)))
    ]
    outputs = data.draw(st.integers(1, 3))

    def function(x, y):
        values = [x, y]
        for kind, i, j, which in plan:
            a, b = values[i % len(values)], values[j % len(values)]
            table = (POINTWISE, JOINS, WHOLE)[kind]
            operation = table[which % len(table)]
            values.append(operation(a, b) if kind == 1 else operation(a))
        return tuple(values[-outputs:]) if len(values) > outputs + 2 else values[-1] + 0

    return function


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_graphs_give_the_same_results_with_any_steps_disabled(data):
    size = data.draw(st.sampled_from([1, 3, 6]))
    function, inputs = random_function(data), (torch.randn(size, size), torch.randn(size, size))
    names = [name for name, _ in STEPS]
    disable = data.draw(st.one_of(st.just([]), st.lists(st.sampled_from(names), unique=True)))
    optimised = check(function, *inputs, disable=tuple(disable))
    plain = program_of(function, *inputs, disable=tuple(names))
    for a, b in zip(run_program(optimised, list(inputs)), run_program(plain, list(inputs)), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_lanes_run_along_memory_whatever_the_last_reader_wants():
    def transposed(x, w):
        h = torch.tanh(x @ w)
        return h * 2, h.sigmoid(), h.t()

    program = check(transposed, torch.randn(4, 8), torch.randn(8, 16))
    (op,) = program.ops()
    lane = op.dims[-1].var
    steps = [store.access.offset().coefficient(lane) for store in op.stores]
    assert op.domain == (4, 16)
    assert steps == [1, 1, 1]  # h.t() keeps h's memory
