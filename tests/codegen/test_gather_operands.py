"""Siblings that stream the same weights from operands that lie apart: when these are gathered, and how."""

from dataclasses import replace
from math import inf

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import build_programs
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.runtime.machine_costs import USUAL_COSTS
from wolong_fx.testing.models.tree import TreeLSTM
from wolong_fx.testing.tracing import trace_core

WIDE = 160


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 5) for d in op.dims)


def program_of(function, *inputs, costs=USUAL_COSTS):
    """The program, after its results were compared with eager's in float64."""
    gm = trace_core(function, *inputs)
    program = build_programs(gm, Options(), Ledger(), small_tiles, costs=costs).run
    exact = function(*(x.double() for x in inputs))
    for ours, wanted in zip(run_program(program, list(inputs), seed=0), exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)
    return program


def domains(program):
    return [op.domain for op in program.ops()]


def shared_layer(x, y, a, b, w):
    """A layer shared by two branches that have nothing else in common."""
    return torch.relu(torch.tanh(x @ a) @ w), torch.relu(torch.sigmoid(y @ b) @ w)


def branches(rows):
    return [torch.randn(n, m) / 10 for n, m in ((rows, 5), (rows, 7), (5, WIDE), (7, WIDE), (WIDE, WIDE))]


def joined(*inputs):
    return (torch.cat(shared_layer(*inputs)) @ inputs[-1],)


def test_a_shared_layer_reads_its_weights_once_and_nothing_is_copied():
    assert domains(program_of(joined, *branches(1))) == [(WIDE,), (WIDE,), (2, WIDE), (2, WIDE)]


def test_many_rows_amortise_the_weights_and_are_left_apart():
    assert (2, 40, WIDE) not in domains(program_of(joined, *branches(40)))


def test_operands_that_lie_elsewhere_already_are_copied_if_that_pays():
    """Results of one batch go to readers in an order that no step describes."""

    def shuffled(x, v, w):
        first = [torch.tanh(x[k] @ v) for k in range(8)]
        second = [torch.tanh(first[k] @ w) for k in (0, 5, 1, 7)]
        return (torch.cat(second) @ w,)

    wide = [torch.randn(*shape) / 10 for shape in ((8, 1, 4), (4, WIDE), (WIDE, WIDE))]
    program = program_of(shuffled, *wide)
    assert (4, WIDE) in domains(program)
    assert any(op.name.startswith("gather") for op in program.ops())
    narrow = [torch.randn(*shape) for shape in ((8, 1, 4), (4, 6), (6, 6))]
    assert not any(op.name.startswith("gather") for op in program_of(shuffled, *narrow).ops())


def test_the_levels_of_an_irregular_tree_are_one_operator_each():
    """Of seven pairs of leaves, the third joins late: the pairs of pairs are not equally spaced."""
    a, b, late, c, d, e, f = ((n, n + 1) for n in range(0, 14, 2))
    model = TreeLSTM(32, (((a, b), late), ((c, d), (e, f))), inputs=4)
    (words,) = model.example_inputs()
    names = [name for name, _ in model.named_parameters()]

    def root(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=False)), (values[-1],))

    free = replace(USUAL_COSTS, block=0.0, barrier=0.0, handover_rate=inf)
    program = program_of(root, *(p.detach() for p in model.parameters()), words, costs=free)
    assert {(14, 32), (7, 32), (3, 32)} <= set(domains(program))


def test_a_machine_whose_barriers_cost_more_gathers_less():
    """Two siblings and a shared layer: what gathering saves is weighed by the machine's own figures."""

    def twice(x, v, w):
        first = [torch.tanh(x[k] @ v) for k in range(8)]
        return (torch.cat([torch.tanh(first[k] @ w) for k in (0, 5, 1, 7)]) @ w,)

    wide = [torch.randn(*shape) / 10 for shape in ((8, 1, 4), (4, WIDE), (WIDE, WIDE))]
    slow = replace(USUAL_COSTS, barrier=1e-4)
    assert any(op.name.startswith("gather") for op in program_of(twice, *wide).ops())
    assert not any(op.name.startswith("gather") for op in program_of(twice, *wide, costs=slow).ops())


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_random_graphs_of_shared_layers_equal_float64(data):
    """Each node applies one of two shared layers to the sum of two earlier nodes; children may be shared."""
    count = data.draw(st.integers(2, 7))
    nodes = [
        (data.draw(st.integers(0, n + 2)), data.draw(st.integers(0, n + 2)), data.draw(st.integers(0, 1)))
        for n in range(count)
    ]

    def graph(x, v, w):
        values = list(x.unbind(0))
        for left, right, layer in nodes:
            weight = (v, w)[layer]
            values.append(torch.tanh(values[left] @ weight + values[right] @ w))
        return values[-1], values[len(values) // 2] + values[-2]

    program_of(graph, torch.randn(3, 1, WIDE), *(torch.randn(WIDE, WIDE) / 10 for _ in range(2)))
