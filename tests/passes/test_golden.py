"""One small graph before and after every pass, as text; `pytest --accept` rewrites the files."""

from __future__ import annotations

import operator
import re
from pathlib import Path

import pytest
import torch

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.absorb_updates import AbsorbUpdates
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.cut_partitions import CutPartitions
from wolong_fx.passes.decompose import Decompose
from wolong_fx.passes.fold_constants import FoldConstants
from wolong_fx.passes.free_fills import FreeFills
from wolong_fx.passes.loops.scan import SCAN
from wolong_fx.passes.manager import PassManager, graph_to_text
from wolong_fx.passes.merge_matmuls import MergeMatmuls
from wolong_fx.passes.remove_common_subexpressions import RemoveCommonSubexpressions
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.passes.reroll.reroll import Reroll
from wolong_fx.passes.share_saved_values import ShareSavedValues
from wolong_fx.passes.simplify import Simplify
from wolong_fx.passes.split_loops import SplitLoops
from wolong_fx.passes.unroll_loops import UnrollLoops
from wolong_fx.pipeline import all_passes
from wolong_fx.testing.golden import assert_golden
from wolong_fx.testing.graphs import GraphBuilder, trace_graph

aten = torch.ops.aten
GOLDEN = Path(__file__).parent / "golden"


def canonicalise(b, x, y):
    turned = b.call(aten.t.default, b.call(aten.transpose.int, x, 0, -1))
    parts = b.call(aten.split.Tensor, turned, 2, -1)
    left, right = b.call(operator.getitem, parts, 0), b.call(operator.getitem, parts, 1)
    sum_ = b.call(aten.add.Tensor, left, right, alpha=-1)
    tall = b.call(aten.unsqueeze.default, b.call(aten.detach.default, sum_), -1)
    total = b.call(aten.sum.default, b.call(aten.mul.Scalar, tall, 2))
    rest = b.call(aten.slice.Tensor, y, -1, -2, 2**63 - 1)
    noise = b.call(
        aten.rand_like.default, b.call(aten.add.Tensor, rest, b.call(aten.ones_like.default, rest))
    )
    return total, noise


def decompose(b, x, y):
    both = b.call(aten.native_dropout.default, x, 0.25, True)
    soft = b.call(aten._softmax.default, b.call(operator.getitem, both, 0), 1, False)
    return soft, b.call(aten.mm.default, x, y)


def fold_constants(b, x, y):
    ramp = b.call(aten.arange.default, 4)
    bias = b.call(aten.mul.Tensor, b.call(aten.add.Tensor, ramp, 1), 2)
    twos = b.call(aten.add.Tensor, b.call(aten.full.default, [3, 4], 1.0), 1)
    return b.call(aten.add.Tensor, b.call(aten.mul.Tensor, x, twos), bias)


def simplify(b, x, y):
    same = b.call(aten.sub.Tensor, b.call(aten.mul.Tensor, x, 1), 0)
    kept = b.call(aten.add.Tensor, same, 0)
    halves = [b.call(aten.slice.Tensor, kept, 1, 0, 2), b.call(aten.slice.Tensor, kept, 1, 2, 4)]
    whole = b.call(aten.cat.default, halves, 1)
    wide = b.call(aten._to_copy.default, whole, dtype=torch.float64)
    back = b.call(aten._to_copy.default, wide, dtype=torch.float32)
    twice = b.call(aten.permute.default, b.call(aten.permute.default, back, [1, 0]), [1, 0])
    return b.call(aten.pow.Tensor_Scalar, b.call(aten.neg.default, twice), 2)


def remove_common_subexpressions(b, x, y):
    product = b.call(aten.mm.default, x, y)
    again = b.call(aten.mm.default, x, y)
    draws = [b.call(aten.rand.default, [3, 3], device=torch.device("cpu")) for _ in range(2)]
    sums = b.call(aten.add.Tensor, product, draws[0]), b.call(aten.add.Tensor, again, draws[1])
    return b.call(aten.add.Tensor, *sums)


def remove_dead_code(b, x, y):
    b.call(aten.neg.default, b.call(aten.mm.default, x, y))
    b.call(aten.rand.default, [2], device=torch.device("cpu"))
    return b.call(aten.relu.default, x)


def cut_partitions(b, x, y):
    """cumsum and the draw are left to torch; the view serves both; the permuted result leaves the kernel."""
    hidden = b.call(aten.mul.Tensor, b.call(aten.sigmoid.default, x), 2)
    flat = b.call(aten.view.default, hidden, [12])
    running = b.call(aten.cumsum.default, flat, 0)
    noise = b.call(aten.rand.default, [12], device=torch.device("cpu"))
    mixed = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, running, noise), flat)
    grid = b.call(aten.view.default, b.call(aten.tanh.default, mixed), [3, 4])
    return b.call(aten.permute.default, grid, [1, 0]), b.call(aten.permute.default, y, [1, 0])


def why_unsupported(node):
    left = (aten.cumsum.default, aten._softmax.default)
    return "no lowering in this test" if node.target in left else None


def built(make):
    """What `make` builds of two inputs."""

    def graph():
        builder = GraphBuilder(rng=None)
        x, y = builder.add_input(torch.zeros(3, 4)), builder.add_input(torch.zeros(4, 3))
        made = make(builder, x, y)
        builder.graph.output(made if isinstance(made, tuple) else (made,))
        return torch.fx.GraphModule(torch.nn.Module(), builder.graph)

    return graph


def traced(function, *shapes):
    """What `function` calls on inputs of these shapes."""
    return lambda: trace_graph(function, *map(torch.zeros, shapes))


def updated():
    """A cut graph that ends by writing what its kernel computed over an input."""
    builder = GraphBuilder(rng=None)
    x, cache = builder.add_input(torch.zeros(3, 4)), builder.add_input(torch.zeros(3, 4))
    total = builder.call(aten.add.Tensor, builder.call(aten.mul.Tensor, x, 2), cache)
    result = builder.call(aten.neg.default, total)
    builder.call(aten.copy_.default, cache, total)
    builder.graph.output((result,))
    cut = CutPartitions(why_unsupported, min_ops=1)
    return cut(torch.fx.GraphModule(torch.nn.Module(), builder.graph)).graph_module


def weight_gradient(*operands):
    total = operands[0].t() @ operands[1]
    for h, dz in zip(operands[2::2], operands[3::2], strict=True):
        total = total + h.t() @ dz
    return (total,)


def recurrence(x, w):
    h, states = x[0] * 0, []
    for t in range(5):
        h = torch.tanh(x[t] + torch.sigmoid(h @ w) * h)
        states.append(h)
    return torch.stack(states), h


def loop(x, h, w):
    return SCAN(lambda h, x, w: [torch.tanh(x @ w + h)] * 2, (h,), (x,), (w,))


def summing_loop(h, z, w, u):
    """What the backward of a recurrence does: z is recurrent, the gradients of weight and bias add up."""

    def step(z, dw, db, h, dz, u):
        z = torch.tanh(z @ u + dz)
        return z, dw + h.t() @ z, db + z.sum(0)

    return SCAN(step, (z, w * 0, w[0] * 0), (h, h + 1), (u,))


def saving_loops(x, h, u, g):
    """A recurrence and its backward as torch makes them: the weight is saved once a step, transposed."""

    def ahead(h, x, u):
        new = torch.tanh(x + h @ u)
        return new, new.clone(), u.t().clone()

    def back(d, g, u):
        d = (d + g) @ u
        return d, d.clone()

    _, states, saved = SCAN(ahead, (h,), (x,), (u,))
    start, walked = torch.zeros_like(h), (g.flip(0), saved.flip(0))
    return states, SCAN(back, (start,), walked, ())[1]


LOOP = ((3, 2, 4), (2, 4), (4, 4))
CASES = {  # a pass, and how to make a graph that shows what it does
    Canonicalise(): built(canonicalise),
    Decompose(why_unsupported): built(decompose),
    FoldConstants(): built(fold_constants),
    Simplify(): built(simplify),
    RemoveCommonSubexpressions(): built(remove_common_subexpressions),
    RemoveDeadCode(): built(remove_dead_code),
    CutPartitions(why_unsupported): built(cut_partitions),
    AbsorbUpdates(): updated,
    MergeMatmuls(): traced(weight_gradient, *[(2, 32)] * 6),
    Reroll(): traced(recurrence, (5, 2, 3), (3, 3)),
    UnrollLoops(): traced(loop, *LOOP),
    SplitLoops(): traced(summing_loop, (3, 2, 4), (2, 4), (4, 4), (4, 4)),
    FreeFills(): traced(lambda w: (torch.zeros_like(w), w.new_full((2,), 3)), (3, 4)),
    ShareSavedValues(): traced(saving_loops, *LOOP, (3, 2, 4)),
}


def test_every_pass_is_shown():
    names = {a_pass.name for a_pass in all_passes(Options())}
    assert {a_pass.name for a_pass in CASES} == names
    assert {file.stem for file in GOLDEN.glob("*.txt")} == {file_name(name) for name in names}


def file_name(pass_name):
    return pass_name.replace("-", "_")


def before_and_after(graph_module, a_pass):
    before = graph_to_text(graph_module)
    ledger = Ledger()
    after = graph_to_text(PassManager([a_pass], Options(), ledger)(graph_module).graph_module)
    assert after != before
    decisions = "\n".join(map(str, ledger.decisions))
    return f"before:\n{before}\nafter:\n{after}\nledger:\n{decisions}\n"


@pytest.mark.parametrize("a_pass", CASES, ids=lambda a_pass: a_pass.name)
def test_a_pass_does_what_its_golden_file_shows(a_pass, request):
    text = without_places(before_and_after(CASES[a_pass](), a_pass))
    assert_golden(text, GOLDEN / f"{file_name(a_pass.name)}.txt", request.config.getoption("--accept"))


def without_places(text):
    """Lines of this file move."""
    return re.sub(r" at \S+?:\d+", "", text)
