"""One small graph before and after each pass, as text; `pytest --accept` rewrites the files."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.cut_partitions import CutPartitions
from wolong_fx.passes.decompose import Decompose
from wolong_fx.passes.fold_constants import FoldConstants
from wolong_fx.passes.manager import PassManager, graph_to_text
from wolong_fx.passes.remove_common_subexpressions import RemoveCommonSubexpressions
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.passes.simplify import Simplify
from wolong_fx.testing.graphs import GraphBuilder

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


CASES = {
    canonicalise: Canonicalise(),
    decompose: Decompose(why_unsupported),
    fold_constants: FoldConstants(),
    simplify: Simplify(),
    remove_common_subexpressions: RemoveCommonSubexpressions(),
    remove_dead_code: RemoveDeadCode(),
    cut_partitions: CutPartitions(why_unsupported),
}


def before_and_after(make, a_pass):
    builder = GraphBuilder(rng=None)
    x, y = builder.add_input(torch.zeros(3, 4)), builder.add_input(torch.zeros(4, 3))
    made = make(builder, x, y)
    builder.graph.output(made if isinstance(made, tuple) else (made,))
    graph_module = torch.fx.GraphModule(torch.nn.Module(), builder.graph)
    before = graph_to_text(graph_module)
    ledger = Ledger()
    after = graph_to_text(PassManager([a_pass], Options(), ledger)(graph_module).graph_module)
    decisions = "\n".join(map(str, ledger.decisions))
    return f"before:\n{before}\nafter:\n{after}\nledger:\n{decisions}\n"


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_a_pass_does_what_its_golden_file_shows(make, request):
    text = before_and_after(make, CASES[make])
    file = GOLDEN / f"{make.__name__}.txt"
    if request.config.getoption("--accept"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "look at the change; if it is meant, run pytest --accept"
