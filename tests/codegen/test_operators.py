"""Every operator with awkward inputs, on every target, in every dtype, against eager and float64.

All samples of a family and a dtype are one graph and one kernel, so that the compiler runs a few dozen times.
"""

from __future__ import annotations

import operator
import random
from collections import Counter
from functools import cache, cached_property

import pytest
import torch
from torch.fx import Node

from wolong_fx._torch_compat import tree_leaves
from wolong_fx.codegen import build_programs, compile_partition, triton, why_unsupported
from wolong_fx.codegen.lower.registry import LOWERINGS
from wolong_fx.codegen.reference import arithmetic
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.fenced import fenced
from wolong_fx.testing.graphs import GraphBuilder
from wolong_fx.testing.grid_simulator import simulate
from wolong_fx.testing.oracle import assert_results_close, widened
from wolong_fx.testing.samples import ALL, families
from wolong_fx.testing.tracing import trace_core

aten = torch.ops.aten
FAMILIES = families()

# What eager runs between kernels: sample -> the operator without a lowering. All else must be lowered.
FALLBACKS: dict[tuple[str, str], str] = {
    # In the pipeline, canonicalise has made a view of it before.
    ("normalisation", "group_norm: plain"): "aten.as_strided.default",
    ("normalisation", "group_norm: gradient"): "aten.as_strided.default",
}

# Families whose kernels take the interpreter long.
SLOW = ("convolution", "pooling")

# Dtypes of every test run; the others are for `make test-all`.
QUICK = (torch.float32, torch.bfloat16, torch.int64)


class Case:
    """One sample with what eager makes of it."""

    def __init__(self, of, sample):
        self.operator, self.sample = of, sample
        self.eager = tree_leaves(sample.function(*sample.inputs))

    @property
    def name(self):
        return f"{self.operator.name}: {self.sample.kind}"

    @cached_property
    def exact(self):
        """In float64, once for all targets."""
        return tree_leaves(self.sample.function(*map(widened, self.sample.inputs)))

    def errors(self, ours, dtype):
        """What is wrong with our results."""
        # Where eager computes in float64 it is no better than we are: both round at every step.
        factor = 64 if dtype is torch.float64 else 4
        for a, b, c in zip(ours, self.eager, self.exact, strict=True):
            try:
                assert_results_close(a, b, c, factor, cancels=self.operator.cancels, what=self.name)
            except AssertionError as wrong:
                yield str(wrong)


@cache
def cases_of(family, dtype):
    """The samples that eager can run in this dtype."""
    found = []
    for of in FAMILIES[family]:
        for sample in of.samples(dtype) if dtype in of.dtypes else ():
            found.append(Case(of, sample))
    return found


@cache
def graph_of(family, dtype):
    """One graph of all samples, and which results are lowered; those that need a fallback are cut off."""
    cases = cases_of(family, dtype)
    inputs = [x for case in cases for x in case.sample.inputs]

    def run_all(*tensors):
        rest = iter(tensors)
        return [tree_leaves(c.sample.function(*(next(rest) for _ in c.sample.inputs))) for c in cases]

    gm = trace_core(run_all, *inputs)
    if any(is_in_place(node) for node in gm.graph.nodes):  # as AOTAutograd would have taken out
        gm = trace_core(torch.func.functionalize(gm, remove="mutations"), *inputs)
    reasons = fallbacks_of(gm)
    output = gm.graph.output_node()
    results = iter(output.args[0])
    by_case = [[next(results) for _ in case.eager] for case in cases]
    lost = {
        c.name: next(reasons[r] for r in rs if r in reasons)
        for c, rs in zip(cases, by_case, strict=True)
        if any(r in reasons for r in rs)
    }
    kept = [(c, rs) for c, rs in zip(cases, by_case, strict=True) if c.name not in lost]
    output.args = (tuple(r for _, rs in kept for r in rs),)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm, inputs, [c for c, _ in kept], lost


def is_in_place(node):
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def fallbacks_of(gm):
    """Nodes that are not lowered, or need one that is not, with the operator to blame."""
    reasons: dict[Node, str] = {}
    for node in gm.graph.nodes:
        if node.op == "call_function":
            below = next((reasons[a] for a in node.all_input_nodes if a in reasons), None)
            reason = below or (str(node.target) if why_unsupported(node) else None)
            if reason:
                reasons[node] = reason
    return reasons


def check(family, dtype, target):
    gm, inputs, cases, _ = graph_of(family, dtype)
    results = iter(run_on(target, gm, inputs))
    wrong = []
    for case in cases:
        wrong += case.errors([next(results) for _ in case.eager], dtype)
    assert not wrong, f"{len(wrong)} results differ:\n" + "\n".join(wrong)


def run_on(target, gm, inputs):
    if target != "triton":
        kernel = compile_partition(gm, Options.of(target=target, threads=1), Ledger())
        return kernel.launch([fenced(x) for x in inputs] if target == "cpu" else inputs)
    program = build_programs(gm, Options.of(), Ledger(), triton.choose_tile).run
    return simulate(program, inputs, switching=0).outputs


PAIRS = [
    (family, dtype)
    for family, operators in FAMILIES.items()
    for dtype in ALL
    if any(dtype in of.dtypes for of in operators)
]


def named(pairs):
    return [f"{family.replace(' ', '-')}-{str(dtype).removeprefix('torch.')}" for family, dtype in pairs]


pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0")

every_pair = pytest.mark.parametrize(
    "family, dtype",
    [pytest.param(f, d, marks=() if d in QUICK else pytest.mark.slow) for f, d in PAIRS],
    ids=named(PAIRS),
)


@every_pair
def test_the_reference_machine_agrees_with_eager(family, dtype):
    check(family, dtype, "reference")


@pytest.mark.cpu
@every_pair
def test_a_compiled_kernel_agrees_with_eager(family, dtype):
    check(family, dtype, "cpu")


@pytest.mark.parametrize(
    "family, dtype",
    [
        pytest.param(f, d, marks=() if d is torch.float32 and f not in SLOW else pytest.mark.slow)
        for f, d in PAIRS
    ],
    ids=named(PAIRS),
)
def test_an_interpreted_triton_kernel_agrees_with_eager(family, dtype):
    check(family, dtype, "triton")


def test_a_wrong_operation_is_noticed_in_every_layout(monkeypatch):
    monkeypatch.setitem(arithmetic.UNARY, "tanh", torch.erf)
    with pytest.raises(AssertionError) as caught:
        check("unary", torch.float32, "reference")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    wrong = {line.split(": ")[1] for line in lines if line.startswith("tanh: ")}
    assert wrong == {"plain", "ragged", "scalar", "strided", "transposed", "expanded", "special"}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_listed_falls_back(family):
    found = {}
    for _, dtype in (pair for pair in PAIRS if pair[0] == family and pair[1] in QUICK):
        found |= graph_of(family, dtype)[3]
    assert found == {name: target for (of, name), target in FALLBACKS.items() if of == family}


# ---- overloads that decompositions never leave behind, called by themselves

# One row an overload: its arguments from (x, y, i), each of shape (3, 4); i holds integers in [0, 3).
OVERLOADS = {
    aten._log_softmax.default: lambda x, y, i: (x, 1, False),
    aten._softmax.default: lambda x, y, i: (x, 0, False),
    aten._unsafe_index.Tensor: lambda x, y, i: (x, [i]),
    aten._unsafe_index_put.default: lambda x, y, i: (x, [i], ("select", y, 0), True),
    aten._unsafe_view.default: lambda x, y, i: (x, [2, 6]),
    aten._adaptive_avg_pool3d.default: lambda x, y, i: (("view", x, [1, 1, 1, 3, 4]), [1, 2, 2]),
    aten.avg_pool1d.default: lambda x, y, i: (("view", x, [1, 3, 4]), [2]),
    aten.avg_pool3d_backward.default: lambda x, y, i: (
        *[("view", x, [1, 1, 1, 3, 4])] * 2,
        *([1], [1], [0], False, True, None),
    ),
    aten.max_pool3d_with_indices_backward.default: lambda x, y, i: (
        ("new", x, [1] * 5),
        ("view", x, [1, 1, 1, 3, 4]),
        *([1, 3, 4], [1, 3, 4], [0], [1], False),
        ("new", i, [1] * 5),
    ),
    aten.upsample_nearest1d.default: lambda x, y, i: (("view", x, [1, 3, 4]), [8]),
    aten.upsample_nearest3d.default: lambda x, y, i: (("view", x, [1, 1, 1, 3, 4]), [2, 6, 8]),
    aten.all.default: lambda x, y, i: (x,),
    aten.all.dim: lambda x, y, i: (x, 1),
    aten.all.dims: lambda x, y, i: (x, [0, 1]),
    aten.any.default: lambda x, y, i: (x,),
    aten.any.dims: lambda x, y, i: (x, [0]),
    aten.arange.default: lambda x, y, i: (5,),
    aten.arange.start: lambda x, y, i: (2, 9),
    aten.baddbmm.default: lambda x, y, i: (*[("view", x, [1, 3, 4])] * 2, ("new", x, [1, 4, 4])),
    aten.bitwise_and.Scalar: lambda x, y, i: (i, 1),
    aten.bitwise_left_shift.Tensor: lambda x, y, i: (i, i),
    aten.bitwise_or.Scalar: lambda x, y, i: (i, 5),
    aten.bitwise_right_shift.Tensor: lambda x, y, i: (i, i),
    aten.bitwise_xor.Scalar: lambda x, y, i: (i, 3),
    aten.__lshift__.Scalar: lambda x, y, i: (i, 2),
    aten.__lshift__.Tensor: lambda x, y, i: (i, i),
    aten.__rshift__.Scalar: lambda x, y, i: (i, 1),
    aten.__rshift__.Tensor: lambda x, y, i: (i, i),
    aten.clamp.Tensor: lambda x, y, i: (x, y),
    aten.clamp_max.Tensor: lambda x, y, i: (x, y),
    aten.clamp_max.default: lambda x, y, i: (x, 0.25),
    aten.clamp_min.Tensor: lambda x, y, i: (x, y),
    aten.clamp_min.default: lambda x, y, i: (x, 0.25),
    aten.contiguous.default: lambda x, y, i: (x,),
    aten.detach.default: lambda x, y, i: (x,),
    aten.div.Scalar_mode: lambda x, y, i: (x, 0.3),
    aten.dot.default: lambda x, y, i: (("view", x, [12]), ("view", y, [12])),
    aten.eye.default: lambda x, y, i: (3,),
    aten.eye.m: lambda x, y, i: (3, 5),
    aten.index_add.default: lambda x, y, i: (x, 0, ("select", i, 1), y),
    aten.max.default: lambda x, y, i: (x,),
    aten.min.default: lambda x, y, i: (x,),
    aten.mv.default: lambda x, y, i: (x, ("select", y, 0)),
    aten.new_full.default: lambda x, y, i: (x, [2, 2], 3),
    aten.new_ones.default: lambda x, y, i: (x, [2, 2]),
    aten.new_zeros.default: lambda x, y, i: (x, [2, 2]),
    aten.ones.default: lambda x, y, i: ([2, 3],),
    aten.ones_like.default: lambda x, y, i: (x,),
    aten.pow.Scalar: lambda x, y, i: (2.5, x),
    # Of few factors: every one may cost half a unit in the last place, and eager may be exact by luck.
    aten.prod.default: lambda x, y, i: (("select", x, 0),),
    aten.reshape.default: lambda x, y, i: (x, [6, -1]),
    aten.rsub.Scalar: lambda x, y, i: (x, 2, 3),
    aten.rsub.Tensor: lambda x, y, i: (x, y),
    aten.select_scatter.default: lambda x, y, i: (x, ("select", y, 0), 0, -1),
    aten.sgn.default: lambda x, y, i: (x,),
    aten.squeeze.default: lambda x, y, i: (("view", x, [3, 1, 4]),),
    aten.squeeze.dim: lambda x, y, i: (("view", x, [3, 1, 4]), 1),
    aten.stack.default: lambda x, y, i: ([x, y], 1),
    aten.sub.Scalar: lambda x, y, i: (x, 2, 3),
    aten.sum.default: lambda x, y, i: (x,),
    aten.t.default: lambda x, y, i: (x,),
    aten.transpose.int: lambda x, y, i: (x, 0, -1),
    aten.var_mean.correction: lambda x, y, i: (x, [1]),
    aten.zeros.default: lambda x, y, i: ([2, 3],),
    aten.zeros_like.default: lambda x, y, i: (x,),
    aten.split.Tensor: lambda x, y, i: (x, 2, 1),
    aten.unbind.int: lambda x, y, i: (x, 1),
    torch.ops.prims.iota.default: lambda x, y, i: (6,),
}

KEYWORDS = {
    aten.div.Scalar_mode: {"rounding_mode": "floor"},
    torch.ops.prims.iota.default: {
        "start": 2,
        "step": 3,
        "dtype": torch.int64,
        "device": torch.device("cpu"),
        "requires_grad": False,
    },
}

# Memory without values: what a kernel returns for it means nothing, so nothing compares it.
UNDEFINED = (
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)


def overload_graph():
    """A graph that calls every overload of the table, with fake values, and eager's results."""
    # Positive: where terms of a dot cancel, eager may be exact by luck.
    x, y, i = 0.5 + torch.rand(3, 4), 0.5 + torch.rand(3, 4), torch.randint(0, 3, (3, 4))
    builder = GraphBuilder(random.Random(0))
    nodes = [builder.add_input(t) for t in (x, y, i)]

    def build(argument):
        match argument:
            case ("view", node, shape):
                return builder.call(aten.view.default, node, shape)
            case ("select", node, dim):
                return builder.call(aten.select.int, node, dim, 0)
            case ("new", node, shape):
                return builder.call(aten.new_full.default, node, shape, 0.5)
            case list():
                return [build(a) for a in argument]
        return argument

    results = []
    for target, arguments in OVERLOADS.items():
        node = builder.call(target, *map(build, arguments(*nodes)), **KEYWORDS.get(target, {}))
        many = isinstance(node.meta["val"], list | tuple)
        parts = range(len(node.meta["val"])) if many else ()
        results += [builder.call(operator.getitem, node, n) for n in parts] or [node]
    return builder, results, [x, y, i]


@pytest.mark.parametrize("target", ["reference", pytest.param("cpu", marks=pytest.mark.cpu), "triton"])
def test_overloads_agree_with_eager(target):
    builder, results, inputs = overload_graph()
    builder.graph.output(tuple(results))
    gm = torch.fx.GraphModule({}, builder.graph)
    gm.graph.output_node().meta["val"] = tuple(r.meta["val"] for r in results)
    found = run_on(target, gm, inputs)
    for node, ours, eager in zip(results, found, gm(*inputs), strict=True):
        assert_results_close(ours, eager, widened(eager), cancels=True, what=str(node))


def test_every_lowering_is_reached_by_a_sample():
    reached = Counter(OVERLOADS)
    for family, dtype in PAIRS:
        if dtype in QUICK:
            graph = graph_of(family, dtype)[0].graph
            reached.update(node.target for node in graph.nodes if node.op == "call_function")
    loops = (torch.ops.higher_order.scan,)  # theirs are the families of testing/loops.py
    assert [str(t) for t in LOWERINGS if not reached[t] and t not in (*UNDEFINED, *loops)] == []
