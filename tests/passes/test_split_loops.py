"""What leaves a loop, what stays, and that the results are those of the loop up to the order of sums."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.loops.find_staying import Cost
from wolong_fx.passes.loops.scan import SCAN, scans_in
from wolong_fx.passes.manager import PassManager, graph_to_text
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.passes.split_loops import SplitLoops
from wolong_fx.passes.values import same_strides
from wolong_fx.pipeline import copy_graph
from wolong_fx.testing.golden import assert_golden
from wolong_fx.testing.graphs import aten, trace_graph
from wolong_fx.testing.random_loops import random_loop

STEPS, ROWS, WIDTH, HIDDEN = 5, 3, 4, 6
MATMULS = (aten.mm.default, aten.addmm.default, aten.bmm.default)


PASSES = (SplitLoops(), RemoveDeadCode())


def always_worth_steps(cost):
    return True


STAYING = (Canonicalise(), SplitLoops(always_worth_steps), RemoveDeadCode())


def assert_split(graph_module, inputs, passes=PASSES):
    """The graph after the passes; its results have the values and strides they had."""
    ledger = Ledger()
    after = PassManager(passes, Options(), ledger)(copy_graph(graph_module)).graph_module
    for old, new in zip(graph_module(*inputs), after(*inputs), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-10)
        assert same_strides(new, old)
    return after, ledger


def split(model, *inputs):
    return assert_split(trace_graph(model, *inputs), inputs, (Canonicalise(), *PASSES))[0]


def matmuls(graph_module):
    """Shapes of the results of its MatMuls, those of the bodies of its loops, in order."""
    nodes = [node for node in graph_module.graph.nodes if node.target in MATMULS]
    inside = [node for scan in scans_in(graph_module) for node in scan.body.graph.nodes]
    return [tuple(n.meta["val"].shape) for n in nodes], [
        tuple(n.meta["val"].shape) for n in inside if n.target in MATMULS
    ]


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) / 2 for shape in shapes]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_a_split_loop_computes_the_same(seed, trips):
    assert_split(*random_loop(random.Random(seed), trips=trips))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_a_loop_whose_products_stay_computes_the_same(seed, trips):
    assert_split(*random_loop(random.Random(seed), trips=trips), STAYING)


def test_the_random_loops_reach_every_reason():
    """Without this the properties above could hold because nothing happens."""
    reasons = " ".join(
        decision.because
        for seed in range(60)
        for passes in (PASSES, STAYING)
        for decision in assert_split(*random_loop(random.Random(seed)), passes)[1].decisions
    )
    expected = ("no carry decides it", "no carry needs it", "computed once", "a sum over", "hands on")
    for reason in (*expected, "its rows hide"):
        assert reason in reasons


def recurrent(x, h, w, u):
    """The input projection is in the body; new states are the carry and the result."""
    return SCAN(lambda h, x, w, u: [torch.tanh(x @ w + h @ u)] * 2, (h,), (x,), (w, u))


def test_the_projection_of_all_steps_is_one_matmul_before_the_loop():
    inputs = tensors((STEPS, ROWS, WIDTH), (ROWS, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, HIDDEN))
    assert matmuls(split(recurrent, *inputs)) == ([(STEPS * ROWS, HIDDEN)], [(ROWS, HIDDEN)])


def test_rows_that_memory_holds_the_other_way_round_are_not_copied():
    x, *rest = tensors((ROWS, STEPS, WIDTH), (ROWS, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, HIDDEN))
    after = split(recurrent, x.transpose(0, 1), *rest)
    assert matmuls(after) == ([(STEPS * ROWS, HIDDEN)], [(ROWS, HIDDEN)])
    assert not [node for node in after.graph.nodes if node.target is aten.clone.default]


def test_a_bias_leaves_with_the_projection_it_is_added_to():
    def model(x, h, w, b):
        return SCAN(lambda h, x, w, b: [torch.tanh(torch.addmm(b, x, w) * 2 + h)] * 2, (h,), (x,), (w, b))

    after = split(model, *tensors((STEPS, ROWS, WIDTH), (ROWS, HIDDEN), (WIDTH, HIDDEN), (HIDDEN,)))
    (scan,) = scans_in(after)
    assert [n.target for n in scan.body.graph.nodes if n.op == "call_function"] == [
        aten.add.Tensor,
        aten.tanh.default,
    ]


def test_what_is_the_same_in_every_step_is_computed_once():
    def model(x, h, w, v):
        return SCAN(lambda h, x, w, v: [torch.tanh(x + h @ (w @ v))] * 2, (h,), (x,), (w, v))

    inputs = tensors((STEPS, ROWS, WIDTH), (ROWS, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    assert matmuls(split(model, *inputs)) == ([(WIDTH, WIDTH)], [(ROWS, WIDTH)])


def test_an_output_projection_is_one_matmul_after_the_loop():
    def step(h, x, v):
        h = torch.tanh(x + h)
        return h, torch.relu(h @ v)

    inputs = tensors((STEPS, ROWS, WIDTH), (ROWS, WIDTH), (WIDTH, HIDDEN))
    after = split(lambda x, h, v: SCAN(step, (h,), (x,), (v,)), *inputs)
    assert matmuls(after) == ([(STEPS * ROWS, HIDDEN)], [])


def side_by_side(x, h, c, w, b):
    """A cell with one matrix for its input, its state and what the state was before."""

    def step(h, c, x, w, b):
        new = torch.tanh(torch.addmm(b, torch.cat([x, h, c], 1), w))
        return [new, h.clone(), new]

    return SCAN(step, (h, c), (x,), (w, b))


def test_of_a_slice_and_carries_side_by_side_the_slices_product_leaves_the_loop():
    x, h, c, w, b = tensors(
        (STEPS, ROWS, WIDTH), (ROWS, HIDDEN), (ROWS, HIDDEN), (WIDTH + 2 * HIDDEN, HIDDEN), (HIDDEN,)
    )
    after = split(side_by_side, x, h, c, w, b)
    assert matmuls(after) == ([(STEPS * ROWS, HIDDEN)], [(ROWS, HIDDEN)] * 2)
    (scan,) = scans_in(after)
    assert not any(node.target is aten.cat.default for node in scan.body.graph.nodes)


def test_slices_side_by_side_stay_one_operand():
    def model(x, y, h, w):
        step = lambda h, x, y, w: [torch.tanh(torch.cat([x, y, h], 1) @ w)] * 2  # noqa: E731
        return SCAN(step, (h,), (x, y), (w,))

    xy, h, w = (STEPS, ROWS, WIDTH), (ROWS, HIDDEN), (2 * WIDTH + HIDDEN, HIDDEN)
    assert matmuls(split(model, *tensors(xy, xy, h, w))) == ([(STEPS * ROWS, HIDDEN)], [(ROWS, HIDDEN)])


def test_rows_below_each_other_and_half_precision_stay_one_matmul():
    def below(x, h, w):
        return SCAN(lambda h, x, w: [torch.cat([x, h], 0) @ w, h.sum()], (h,), (x,), (w,))

    def halves(x, h, c, w, b):
        results = side_by_side(*(operand.bfloat16() for operand in (x, h, c, w, b)))
        return [result.double() for result in results]

    below_inputs = tensors((STEPS, 0, WIDTH), (ROWS, WIDTH), (WIDTH, WIDTH))
    assert matmuls(split(below, *below_inputs))[1] == [(ROWS, WIDTH)]
    shapes = (STEPS, ROWS, WIDTH), (ROWS, HIDDEN), (ROWS, HIDDEN), (WIDTH + 2 * HIDDEN, HIDDEN), (HIDDEN,)
    assert matmuls(split(halves, *tensors(*shapes)))[1] == [(ROWS, HIDDEN)]


def weight_gradient(h, z, w, u):
    """What the backward of a recurrence does: z is recurrent, the gradients of weight and bias add up."""

    def step(z, dw, db, h, dz, u):
        z = torch.tanh(z @ u + dz)
        return z, dw + h.t() @ z, db + z.sum(0)

    return SCAN(step, (z, w * 0, w[0] * 0), (h, h + 1), (u,))


def test_a_summed_matmul_is_one_matmul_over_the_steps():
    inputs = tensors((STEPS, ROWS, HIDDEN), (ROWS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN))
    after = split(weight_gradient, *inputs)
    assert matmuls(after) == ([(HIDDEN, HIDDEN)], [(ROWS, HIDDEN)])
    (product,) = [node for node in after.graph.nodes if node.target is aten.mm.default]
    assert product.args[0].meta["val"].shape == (HIDDEN, STEPS * ROWS)
    assert len(next(scans_in(after)).inits) == 1, "the sums are carried no more"
    assert not [node for node in after.graph.nodes if node.target is aten.clone.default]


def test_a_sum_of_transposed_products_is_one_matmul_and_zeros_are_not_added():
    """What autograd makes of a weight of (columns, rows), and of one that the body does not use."""

    def step(z, dw, dv, h, u):
        z = torch.tanh(z @ u)
        zeros = torch.full((WIDTH, HIDDEN), 0.0, dtype=torch.float64)
        return z, dw + (z.t() @ h).t().contiguous(), dv + zeros

    def model(z, h, u):
        return SCAN(step, (z, torch.zeros_like(u), h.new_zeros(WIDTH, HIDDEN)), (h,), (u,))

    inputs = tensors((ROWS, HIDDEN), (STEPS, ROWS, HIDDEN), (HIDDEN, HIDDEN))
    after = split(model, *inputs)
    assert matmuls(after) == ([(HIDDEN, HIDDEN)], [(ROWS, HIDDEN)])
    assert len(next(scans_in(after)).inits) == 1, "neither sum is carried"


@pytest.mark.parametrize("reader", ["the next step", "the stacked result"])
def test_a_sum_that_is_read_on_the_way_stays(reader):
    def step(z, dw, h):
        new = dw + h.t() @ z
        is_next = reader == "the next step"
        return torch.tanh(z @ dw if is_next else z + 1), new, (new if not is_next else z).clone()

    inputs = tensors((STEPS, ROWS, HIDDEN), (ROWS, HIDDEN), (HIDDEN, HIDDEN))
    after = split(lambda h, z, dw: SCAN(step, (z, dw), (h,), ()), *inputs)
    assert len(next(scans_in(after)).inits) == 2


def test_a_value_of_all_steps_larger_than_most_bytes_stays_in_the_loop():
    inputs = tensors((STEPS, ROWS, WIDTH), (ROWS, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, HIDDEN))
    graph_module = trace_graph(recurrent, *inputs)
    after, _ = assert_split(graph_module, inputs, (SplitLoops(most_bytes=100),))
    assert matmuls(after) == ([], [(ROWS, HIDDEN), (ROWS, HIDDEN)])


def stay(model, *inputs):
    return assert_split(trace_graph(model, *inputs), inputs, STAYING)[0]


def gated(x, h, w, u):
    """Gates that are parts of one product, two of them also multiplied by a part of the state's."""

    def step(h, x, w, u):
        (a, b, c), (d, e, f) = (x @ w).chunk(3, 1), (h @ u).chunk(3, 1)
        new = torch.tanh(a + d) * h + torch.sigmoid(b + torch.tanh(c + e) * f)
        return new, new.clone()

    return SCAN(step, (h,), (x,), (w, u))


RECURRENT = ((STEPS, ROWS, WIDTH), (ROWS, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, HIDDEN))


def test_a_product_of_the_input_stays_beside_that_of_the_state_where_that_is_worth_it():
    assert matmuls(stay(recurrent, *tensors(*RECURRENT))) == ([], [(ROWS, HIDDEN)] * 2)


def test_whether_it_stays_is_asked_for_all_products_of_a_step_together():
    asked = []
    inputs = tensors(*RECURRENT)
    passes = (Canonicalise(), SplitLoops(lambda cost: asked.append(cost) is not None))
    after, _ = assert_split(trace_graph(recurrent, *inputs), inputs, passes)
    inner = WIDTH + HIDDEN
    assert asked == [Cost(ROWS * inner * HIDDEN, inner * HIDDEN * 8, STEPS * ROWS * HIDDEN * 8)]
    assert matmuls(after)[0] == [(STEPS * ROWS, HIDDEN)]


def test_parts_of_products_that_meet_keep_the_product_in_the_loop():
    inputs = tensors((STEPS, ROWS, WIDTH), (ROWS, HIDDEN), (WIDTH, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN))
    assert matmuls(stay(gated, *inputs)) == ([], [(ROWS, 3 * HIDDEN)] * 2)


def test_a_product_stays_that_the_states_product_adds_itself():
    def model(x, h, w, u):
        def step(h, x, w, u):
            new = torch.tanh(torch.addmm(x @ w, h, u))
            return new, new.clone()

        return SCAN(step, (h,), (x,), (w, u))

    assert matmuls(stay(model, *tensors(*RECURRENT))) == ([], [(ROWS, HIDDEN)] * 2)


def test_a_product_that_is_also_multiplied_leaves():
    def model(x, h, w, u):
        def step(h, x, w, u):
            both = x @ w
            new = torch.tanh(torch.addmm(both, h, u) + h @ torch.tanh(both.mT @ both))
            return new, new.clone()

        return SCAN(step, (h,), (x,), (w, u))

    assert (STEPS * ROWS, HIDDEN) in matmuls(stay(model, *tensors(*RECURRENT)))[0]


def test_a_product_stays_in_a_loop_that_walks_backwards():
    inputs = tensors(*RECURRENT)
    after = stay(lambda x, *rest: recurrent(x.flip(0), *rest), *inputs)
    assert matmuls(after) == ([], [(ROWS, HIDDEN)] * 2)


def test_a_product_stays_in_the_inner_of_two_loops():
    def model(xs, h, w, u):
        def outer(h, x, w, u):
            last, _ = recurrent(x, h, w, u)
            return last.clone(), last.clone()

        return SCAN(outer, (h,), (xs,), (w, u))

    (_, *shapes) = RECURRENT
    after = stay(model, *tensors((2, *RECURRENT[0]), *shapes))
    (outer,) = scans_in(after)
    assert matmuls(after) == ([], []) and matmuls(outer.body)[0] == []


@pytest.mark.parametrize(
    ("why", "new"),
    [
        ("no product of the state is added", lambda x, h, w, u: torch.tanh(x @ w + h)),
        ("rows are summed before they meet", lambda x, h, w, u: torch.softmax(x @ w, 1) + h @ u),
        ("its operand is computed in the step", lambda x, h, w, u: torch.tanh(x) @ w + h @ u),
        ("another product reads it", lambda x, h, w, u: (x @ w) @ u + h @ u),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_product_leaves_where(why, new):
    def model(x, h, w, u):
        return SCAN(lambda h, x, w, u: [new(x, h, w, u)] * 2, (h,), (x,), (w, u))

    assert (STEPS * ROWS, HIDDEN) in matmuls(stay(model, *tensors(*RECURRENT)))[0], why


def test_a_product_that_is_a_result_leaves():
    def model(x, h, w, u):
        def step(h, x, w, u):
            product = x @ w
            return torch.tanh(product + h @ u), product

        return SCAN(step, (h,), (x,), (w, u))

    assert matmuls(stay(model, *tensors(*RECURRENT))) == ([(STEPS * ROWS, HIDDEN)], [(ROWS, HIDDEN)])


def test_halves_leave_for_where_a_library_may_multiply_them():
    inputs = [x.bfloat16() for x in tensors(*RECURRENT)]
    ledger, graph_module = Ledger(), trace_graph(recurrent, *inputs)
    after = PassManager(STAYING, Options(), ledger)(graph_module).graph_module
    assert matmuls(after) == ([(STEPS * ROWS, HIDDEN)], [(ROWS, HIDDEN)])


def test_two_loops_of_one_body_are_split_apart():
    graph_module, inputs = random_loop(random.Random(3))
    scan = next(scans_in(graph_module))
    twin = graph_module.graph.node_copy(scan.node, lambda node: node)
    scan.node.append(twin)
    output = graph_module.graph.output_node()
    with graph_module.graph.inserting_before(output):
        again = graph_module.graph.call_function(aten.clone.default, (scan.results(0)[0],))
        again.meta = dict(scan.results(0)[0].meta)
    output.args = ((*output.args[0], again),)  # type: ignore[misc]
    graph_module.recompile()
    assert_split(graph_module, inputs)


def test_a_loop_whose_product_stays_is_what_its_golden_file_shows(request):
    inputs = tensors(*RECURRENT)
    graph_module = PassManager([Canonicalise()], Options(), Ledger())(
        trace_graph(recurrent, *inputs)
    ).graph_module
    texts = [f"before:\n{graph_to_text(graph_module)}"]
    for rows, passes in (("few", PASSES), ("many", STAYING)):
        after, ledger = assert_split(graph_module, inputs, passes)
        decisions = "\n".join(map(str, ledger.decisions))
        texts.append(f"after, {rows} rows:\n{graph_to_text(after)}\nledger:\n{decisions}")
    golden = request.path.parent / "golden" / "loops" / "staying_product.txt"
    assert_golden("\n".join(texts) + "\n", golden, request.config.getoption("--accept"))
