"""Splitting operators where their readers read them: which are cut, and that nothing else changes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import build_programs
from wolong_fx.codegen.fuse_ops import is_heavy
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.tracing import trace_core

HIDDEN = 6
X, H = torch.randn(3, 4), torch.randn(3, HIDDEN)
W, U = torch.randn(4, 4 * HIDDEN), torch.randn(HIDDEN, 4 * HIDDEN)


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 5) for d in op.dims)


def stages_of(function, *inputs, disable=()):
    """The domains of the operators of each stage; the results are compared with eager's in float64."""
    gm = trace_core(function, *inputs)
    program = build_programs(gm, Options.of(disable=disable), Ledger(), small_tiles).run
    exact = function(*(x.double() for x in inputs))
    exact = exact if isinstance(exact, tuple) else (exact,)
    for ours, wanted in zip(run_program(program, list(inputs), seed=0), exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)
    return [sorted(op.domain for op in stage.ops) for stage in program.stages()]


def cell(x, h, w, u):
    """A recurrent cell with its gates side by side, as nn.LSTMCell has them."""
    i, f, g, o = (x @ w + h @ u).chunk(4, dim=1)
    return torch.sigmoid(o) * torch.tanh(torch.sigmoid(f) * h + torch.sigmoid(i) * torch.tanh(g))


def test_gates_computed_side_by_side_are_one_operator_with_their_cell():
    assert stages_of(cell, X, H, W, U) == [[(3, HIDDEN)]]
    whole = stages_of(cell, X, H, W, U, disable=("split-ops",))
    assert whole == [[(3, 4 * HIDDEN)], [(3, HIDDEN)]]


def test_what_nobody_reads_is_not_computed():
    def first_and_last(x, w):
        first, _, _, last = (x @ w).chunk(4, dim=1)
        return first * last

    program = build_programs(trace_core(first_and_last, X, W), Options(), Ledger(), small_tiles).run
    (op,) = program.ops()
    assert sum(1 for e in op.expressions() if type(e).__name__ == "Reduce") == 2
    stages_of(first_and_last, X, W)


def test_parts_that_overlap_or_differ_in_width_stay_together():
    def overlapping(x, w):
        z = x @ w
        return z[:, :8] * z[:, 4:12]

    def uneven(x, w):
        a, b = (x @ w).split([8, 16], dim=1)
        return torch.tanh(a), b.sum(1, keepdim=True) * a

    assert (3, 24) in stages_of(overlapping, X, W)[0]
    assert (3, 24) in stages_of(uneven, X, W)[0]


def test_a_reduction_that_serves_every_part_is_not_done_for_each():
    def normalised(x, w):
        z = torch.softmax(x @ w, dim=1)
        a, b = z.chunk(2, dim=1)
        return a * b

    def count(program):
        return sum(type(e).__name__ == "Reduce" for op in program.ops() for e in op.expressions())

    gm = trace_core(normalised, X, W)
    split, whole = (
        build_programs(gm, Options.of(disable=disable), Ledger(), small_tiles).run
        for disable in ((), ("split-ops",))
    )
    assert count(split) <= count(whole)
    stages_of(normalised, X, W)


def test_parts_that_only_products_read_stay_together():
    def attention(x, w):
        q, k, v = (x @ w[:, :18]).chunk(3, dim=1)
        return (q @ k.T) @ v

    assert stages_of(attention, X, W)[0] == [(3, 18)]


def test_a_part_that_is_a_result_too_is_still_right():
    def returned(x, w):
        z = x @ w
        a, b = z.chunk(2, dim=1)
        return a * b, z

    stages_of(returned, X, W)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_chains_of_random_chunks_equal_float64(data):
    rows, parts = data.draw(st.integers(1, 4)), data.draw(st.sampled_from((2, 3, 4)))
    dim = data.draw(st.sampled_from((0, 1)))
    keeps = data.draw(st.lists(st.booleans(), min_size=parts, max_size=parts))
    activation = data.draw(st.sampled_from((torch.tanh, torch.sigmoid, torch.relu)))
    x, w, b = torch.randn(rows * parts, 5), torch.randn(5, 4 * parts), torch.randn(4 * parts)

    def function(x, w, b):
        pieces = activation(torch.addmm(b, x, w) + x.sum(1, keepdim=True)).chunk(parts, dim=dim)
        total = pieces[0]
        for keep, piece in zip(keeps, pieces, strict=True):
            total = total * piece + 1 if keep else total
        return total, pieces[-1]

    stages_of(function, x, w, b)


def test_a_split_product_reads_its_weights_where_they_are():
    program = build_programs(trace_core(cell, X, H, W, U), Options(), Ledger(), small_tiles).run
    (op,) = program.ops()
    assert is_heavy(op)
    assert {b.shape for b in op.reads()} == {t.shape for t in (X, H, W, U)}
