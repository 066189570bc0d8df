"""What the passes must leave alone, and what they must not miss: one case a line."""

from __future__ import annotations

import random

import pytest
import torch

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.decompose import Decompose
from wolong_fx.passes.fold_constants import FoldConstants
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.remove_common_subexpressions import RemoveCommonSubexpressions
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.passes.simplify import Simplify
from wolong_fx.testing.graphs import GraphBuilder, has_same_bits, trace_graph

aten = torch.ops.aten
ALL = (Canonicalise(), FoldConstants(), Simplify(), RemoveCommonSubexpressions(), RemoveDeadCode())


def targets_after(function, *inputs, passes=ALL):
    graph_module = PassManager(passes, Options(), Ledger())(trace_graph(function, *inputs)).graph_module
    return [str(n.target).removeprefix("aten.") for n in graph_module.graph.nodes if n.op == "call_function"]


x, ints, square = torch.randn(3, 4), torch.arange(12).view(3, 4), torch.randn(4, 4)


# ---- simplify: exactly, or not at all


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda v: v + 0, x),  # -0.0 + 0 is 0.0
        (lambda v: v - (-0.0), x),
        (lambda v: v * 0, x),  # NaN and infinity
        (lambda v: v / 2 * 2, x),
        (lambda v: v * 1.0, ints),  # another dtype
        (lambda v: v.bool() + 0, x),  # bool becomes int
        (
            lambda v: aten._to_copy.default(
                aten._to_copy.default(v, dtype=torch.float16), dtype=torch.float32
            ),
            x,
        ),
        (lambda v: v.double().to(torch.bfloat16).double(), x),
        (lambda v: torch.cat([v[:, 2:], v[:, :2]], 1), x),
        (lambda v: torch.cat([v[:, :2], v[:, 3:]], 1), x),
        (lambda v: torch.stack([v[1], v[0], v[2]]), x),
        (lambda v: torch.stack([v[0], v[1], v[2]], 1), x),
        (lambda v: v.relu().abs().neg().abs(), x),
    ],
)
def test_what_is_not_exactly_nothing_stays(function, value):
    """Followed by sin, so that what the graph returns is memory of its own in any case."""
    kept = targets_after(
        lambda v: function(v).sin(), value, passes=(Canonicalise(), Simplify(), RemoveDeadCode())
    )
    assert len(kept) > 1


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda v: v * 1, x),
        (lambda v: 1 * v, x),
        (lambda v: v + -0.0, x),
        (lambda v: v - 0, x),
        (lambda v: v + 0, ints),
        (lambda v: v**1, x),
        (lambda v: v.neg().neg(), x),
        (lambda v: v.double().float(), x),
        (lambda v: v.t().t(), x),
        (lambda v: v.permute(1, 0).permute(-1, 0), x),
        (lambda v: v.view(-1).view(3, 4), x),
        (lambda v: v.unsqueeze(-1).squeeze(-1), x),
        (lambda v: v[0:, :9], x),
        (lambda v: v.expand(3, -1), x),
        (lambda v: torch.cat([v[:, :2], v[:, 2:]], 1), x),
        (lambda v: torch.cat(v.split(1, -1), -1), x),
        (lambda v: torch.stack([v[0], v[1], v[2]]), x),
        (lambda v: torch.stack(v.unbind(1), 1), x),
        (lambda v: torch.where(v > 0, v, v), x),
        (lambda v: v.clone(), x),
        (lambda v: v.detach(), x),
        (lambda v: aten.alias.default(v), x),
    ],
)
def test_what_is_exactly_nothing_goes(function, value):
    assert targets_after(lambda v: function(v).sin(), value) in (
        ["sin.default"],
        ["_to_copy.default", "sin.default"],
    )


# ---- memory


def test_a_copy_that_leaves_the_graph_stays_a_copy():
    assert targets_after(lambda v: v.clone(), x) == ["clone.default"]
    assert targets_after(lambda v: v * 1, x) == ["mul.Tensor"]


def test_two_results_that_are_equal_stay_two_tensors():
    assert targets_after(lambda v: (v.sin(), v.sin()), x).count("sin.default") == 2
    assert targets_after(lambda v: (v.sin().cos(), v.sin().tan()), x).count("sin.default") == 1


def test_a_copy_that_changes_the_layout_stays():
    assert "clone.default" in targets_after(
        lambda v: v.t().clone(memory_format=torch.contiguous_format).sin(), x
    )


def test_nothing_moves_across_a_write_in_place():
    """A copy taken before the write is needed; so is what is computed from the written memory afterwards."""

    def update(v, w):
        before, product = aten.clone.default(v), aten.mul.Tensor(v, 1)
        aten.copy_.default(v, w)
        return aten.add.Tensor(before, product), aten.mul.Tensor(v, 1), aten.sin.default(v)

    builder = GraphBuilder(random.Random(0))
    v, w = builder.add_input(x), builder.add_input(x)
    before, early = builder.call(aten.clone.default, v), builder.call(aten.sin.default, v)
    builder.call(aten.copy_.default, v, w)
    late = builder.call(aten.sin.default, v)
    builder.graph.output((builder.call(aten.add.Tensor, before, early), builder.call(aten.neg.default, late)))
    graph_module = torch.fx.GraphModule(torch.nn.Module(), builder.graph)
    after = PassManager(ALL, Options(), Ledger())(graph_module).graph_module
    old, new = torch.randn(3, 4), torch.randn(3, 4)
    total, negative = after(old.clone(), new)
    assert torch.equal(total, old + old.sin()) and torch.equal(negative, -new.sin())


# ---- numbers and their types


def test_one_and_one_point_zero_are_not_the_same_operand():
    """torch's own CSEPass merges these, and returns an int tensor for a float one."""
    assert len(targets_after(lambda v: ((v + 1).sin(), (v + 1.0).cos()), ints)) == 4


def test_zero_and_minus_zero_are_not_the_same_operand():
    assert len(targets_after(lambda v: ((v * 0.0).sin(), (v * -0.0).cos()), x)) == 4


# ---- constants


class WithState(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("_tensor_constant7", torch.ones(4))
        self.plain = torch.ones(4)


@pytest.mark.parametrize("name", ["weight", "scale", "_tensor_constant7", "plain"])
def test_nothing_trainable_mutable_or_held_by_the_model_is_folded(name):
    """Also when it is used with constants alone, and whatever its name."""
    builder = GraphBuilder(random.Random(0))
    builder.add_input(x)
    state = builder.graph.get_attr(name)
    state.meta["val"] = builder.fake_mode.from_tensor(torch.ones(4))
    builder.graph.output((builder.call(aten.add.Tensor, builder.call(aten.mul.Tensor, state, 2), 1),))
    root = WithState()
    after = PassManager(ALL, Options(), Ledger())(torch.fx.GraphModule(root, builder.graph)).graph_module
    with torch.no_grad():
        getattr(root, name).fill_(5.0)
    assert torch.equal(after(x)[0], torch.full((4,), 11.0))


def test_an_input_is_never_folded():
    assert targets_after(lambda v: v * 2, torch.tensor(3.0)) == ["mul.Tensor"]


def test_a_literal_of_the_source_is_folded():
    assert targets_after(lambda v: v + torch.tensor([1.0, 2.0, 3.0, 4.0]) * 2, x) == ["add.Tensor"]


def test_a_random_draw_is_never_folded():
    assert "rand.default" in targets_after(lambda v: v + torch.rand(4) * 2, x)


def test_a_big_constant_is_not_folded():
    function = lambda v: v + torch.arange(100_000.0) * 3  # noqa: E731
    assert "mul.Tensor" in targets_after(function, torch.zeros(1))
    assert "mul.Tensor" not in targets_after(function, torch.zeros(1), passes=(FoldConstants(10**6), *ALL))


def test_a_folded_constant_that_leaves_the_graph_is_fresh_at_every_call():
    graph_module = PassManager(ALL, Options(), Ledger())(
        trace_graph(lambda v: torch.arange(4) * 2, x)
    ).graph_module
    graph_module(x).fill_(9)
    assert graph_module(x).tolist() == [0, 2, 4, 6]


# ---- random draws


def dropout_twice(v):
    return aten.native_dropout.default(v, 0.3, True)[0] + aten.native_dropout.default(v.sin(), 0.3, True)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dropout_apart_draws_what_eager_draws(dtype):
    value = torch.randn(64, 9).to(dtype)
    passes = (Decompose(lambda node: None), *ALL)
    graph_module = PassManager(passes, Options(), Ledger())(trace_graph(dropout_twice, value)).graph_module
    torch.manual_seed(3)
    expected = dropout_twice(value)
    torch.manual_seed(3)
    assert has_same_bits(graph_module(value), expected)
    assert not any("native_dropout" in str(n.target) for n in graph_module.graph.nodes)


def test_an_unused_random_draw_stays_for_those_after_it():
    def function(v):
        torch.rand(5)
        return v + torch.rand(4)

    builder = GraphBuilder(random.Random(0))
    v = builder.add_input(x)
    builder.call(aten.rand.default, [5], device=torch.device("cpu"))
    draw = builder.call(aten.rand.default, [4], device=torch.device("cpu"))
    builder.graph.output((builder.call(aten.add.Tensor, v, draw),))
    after = PassManager(ALL, Options(), Ledger())(torch.fx.GraphModule(torch.nn.Module(), builder.graph))
    torch.manual_seed(5)
    expected = function(x)
    torch.manual_seed(5)
    assert torch.equal(after.graph_module(x)[0], expected)


# ---- decompose


def no_lowering(*targets):
    return lambda node: "no lowering in this test" if node.target in targets else None


def test_an_operator_comes_apart_only_if_all_its_parts_are_supported():
    softmax = lambda v: aten._softmax.default(v, -1, False)  # noqa: E731
    apart = targets_after(softmax, x, passes=(Decompose(no_lowering(aten._softmax.default)),))
    assert "_softmax.default" not in apart and len(apart) == 5
    whole = targets_after(
        softmax, x, passes=(Decompose(no_lowering(aten._softmax.default, aten.exp.default)),)
    )
    assert whole == ["_softmax.default"]


def test_an_operator_of_several_results_comes_apart():
    norm = lambda v: aten.native_layer_norm.default(v, [4], None, None, 1e-5)  # noqa: E731
    table = (Decompose(no_lowering(aten.native_layer_norm.default)), *ALL)
    graph_module = PassManager(table, Options(), Ledger())(trace_graph(norm, x)).graph_module
    assert "aten.native_layer_norm.default" not in {str(n.target) for n in graph_module.graph.nodes}
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(graph_module(x), norm(x), strict=True))


def test_a_decomposition_that_squares_the_work_is_not_taken():
    total = lambda v: aten.cumsum.default(v, 0)  # noqa: E731
    assert targets_after(total, x, passes=(Decompose(no_lowering(aten.cumsum.default)),)) == [
        "cumsum.default"
    ]


def test_a_decomposition_is_not_confused_by_operands_that_are_the_same():
    """Both calls have operands of the same dtypes and shapes; which operand is which differs."""
    lerp = lambda a, b: (aten.lerp.Tensor(a, b, b), aten.lerp.Tensor(a, a, b))  # noqa: E731
    table = (Decompose(no_lowering(aten.lerp.Tensor)), *ALL)
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    graph_module = PassManager(table, Options(), Ledger())(trace_graph(lerp, a, b)).graph_module
    assert "aten.lerp.Tensor" not in {str(n.target) for n in graph_module.graph.nodes}
    assert all(torch.allclose(p, q) for p, q in zip(graph_module(a, b), lerp(a, b), strict=True))
