"""The verifier and the editor name the guilty pass: each planted fault is caught by the rule made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from wolong_fx.errors import BrokenRule
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.base import EditPass, NodePass, Numerics
from wolong_fx.passes.edit import Call, Rewrite
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.verify import RULES, WELL_FORMED, Promise, find_breach
from wolong_fx.testing.graphs import trace_graph

aten = torch.ops.aten


def some_graph():
    def compute(x, y):
        noise = torch.rand(3)
        total = x + y * noise
        return total, total.view(3, 1), x.neg()

    return trace_graph(compute, torch.zeros(3), torch.zeros(3))


def find(graph_module, target):
    return next(n for n in graph_module.graph.nodes if n.target is target)


def drop_a_random_draw(gm):
    draw = find(gm, aten.rand.default)
    draw.replace_all_uses_with(next(iter(gm.graph.nodes)))
    gm.graph.erase_node(draw)


def drop_a_placeholder(gm):
    used = [n for n in gm.graph.nodes if n.op == "placeholder"][1]
    used.replace_all_uses_with(next(iter(gm.graph.nodes)))
    gm.graph.erase_node(used)


def use_before_definition(gm):
    find(gm, aten.mul.Tensor).prepend(find(gm, aten.add.Tensor))


def forget_a_value(gm):
    del find(gm, aten.mul.Tensor).meta["val"]


def drop_an_output(gm):
    output = gm.graph.output_node()
    output.args = (output.args[0][:-1],)


def change_a_dtype(gm):
    node = find(gm, aten.neg.default)
    node.meta["val"] = node.meta["val"].to(torch.float64)


def change_strides(gm):
    node = find(gm, aten.view.default)
    node.meta["val"] = torch.empty_strided((3, 1), (2, 1))


def return_an_input(gm):
    output = gm.graph.output_node()
    output.args = ((*output.args[0][:-1], next(iter(gm.graph.nodes))),)


FAULTS = {
    use_before_definition: WELL_FORMED,
    forget_a_value: "every value has metadata",
    drop_a_placeholder: "placeholders stay, in their order",
    drop_an_output: "outputs keep their number",
    change_a_dtype: "outputs keep their dtype, shape and strides",
    change_strides: "outputs keep their dtype, shape and strides",
    return_an_input: "outputs share memory with inputs and each other exactly as before",
    drop_a_random_draw: "random draws and writes keep their number and order",
}


def test_a_sound_graph_breaks_no_rule():
    graph_module = some_graph()
    assert find_breach(Promise.of(graph_module), graph_module) is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_planted_fault_is_caught_by_the_rule_made_for_it(fault):
    graph_module = some_graph()
    promise = Promise.of(graph_module)
    fault(graph_module)
    rule, culprit = find_breach(promise, graph_module)
    assert rule == FAULTS[fault] and culprit


def test_every_rule_has_a_planted_fault():
    assert {rule.says for rule in RULES} | {WELL_FORMED} == set(FAULTS.values())


def run(*passes):
    return PassManager(passes, Options(), Ledger())(some_graph())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_the_manager_names_the_guilty_pass(fault):
    @dataclass(frozen=True)
    class Guilty(EditPass):
        name: ClassVar[str] = "guilty"
        numerics: ClassVar[Numerics] = Numerics.EXACT

        def edit(self, editor):
            fault(editor.graph_module)

    with pytest.raises(BrokenRule, match="pass 'guilty' broke a rule") as caught:
        run(Guilty())
    assert caught.value.facts["rule"] == FAULTS[fault]


@dataclass(frozen=True)
class Replace(NodePass):
    """A rewrite that is wrong, or would be noticed."""

    by: object = None
    name: ClassVar[str] = "replace"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, node):
        return Rewrite(node, self.by(node), "a test") if node.target is aten.neg.default else None


def cast(node):
    return Call(aten._to_copy.default, node.args, {"dtype": torch.int64})


def stretch(node):
    return Call(aten.expand.default, (node.args[0], [2, 3]))


def impossible(node):
    return Call(aten.view.default, (node.args[0], [7]))


@pytest.mark.parametrize(
    ("by", "rule"),
    [
        (cast, "a replacement has the dtype and shape of what it replaces"),
        (stretch, "a replacement has the dtype and shape of what it replaces"),
        (impossible, "a replacement can be computed"),
    ],
)
def test_a_replacement_of_another_value_names_the_pass(by, rule):
    with pytest.raises(BrokenRule, match="pass 'replace'") as caught:
        run(Replace(by))
    assert caught.value.facts["rule"] == rule


def test_a_replacement_that_a_caller_could_notice_is_left_undone():
    """x.neg() leaves the graph: putting x itself there would give the caller his own input back."""
    assert not run(Replace(lambda node: node.args[0])).modified
