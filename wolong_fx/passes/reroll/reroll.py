"""reroll: the repeated body of an unrolled recurrence becomes one scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from wolong_fx import _torch_compat
from wolong_fx.passes.base import Numerics, Pass
from wolong_fx.passes.edit import Note
from wolong_fx.passes.reroll.emit_graph import emit_graph
from wolong_fx.passes.reroll.find_joins import Places
from wolong_fx.passes.reroll.find_loops import Search, find_loops
from wolong_fx.passes.reroll.graph_arrays import (
    GraphArrays,
    has_unnamed_parts,
    name_all_parts,
    number_graph,
)
from wolong_fx.passes.reroll.join_writes import has_writes, join_writes
from wolong_fx.passes.reroll.judge_loop import why_not_worth
from wolong_fx.passes.reroll.loop import Loop
from wolong_fx.passes.reroll.purity import find_effect
from wolong_fx.passes.reroll.split_new_axes import has_new_axes, split_new_axes
from wolong_fx.passes.reroll.step_numbers import has_step_numbers, name_step_numbers

SMALLEST = 12  # a graph of fewer nodes has nothing to gain


@dataclass(frozen=True)
class Reroll(Pass):
    """Rolls loops of a graph of Dynamo's or of a functional ATen graph; the graph given is not changed.

    is_differentiated: autograd will trace the result; its rules for what a step returns are stricter
    """

    is_differentiated: bool = False
    name: ClassVar[str] = "reroll"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, graph_module: GraphModule, note: Note) -> PassResult:
        if len(graph_module.graph.nodes) < SMALLEST:
            return PassResult(graph_module, False)
        given, graph_module = graph_module, _in_searched_form(graph_module)
        arrays = number_graph(graph_module)
        if because := find_effect(arrays.firsts):
            note("graph", "kept", f"not searched for loops: {because}")
            return PassResult(given, False)
        loops = _choose(arrays, find_loops(arrays), note)
        if not loops:
            return PassResult(given, False)
        rolled = emit_graph(graph_module, arrays, loops, is_differentiated=self.is_differentiated)
        return PassResult(rolled, True)


def _in_searched_form(graph_module: GraphModule) -> GraphModule:
    """The graph in the form that is searched: all results named, steps written into a tensor joined,
    numbers that change with the step made operands.

    A copy if that changes anything: copying costs a quarter of the search.
    """
    given = graph_module.graph
    asked = (has_unnamed_parts, has_writes, has_new_axes, has_step_numbers)
    if not any(is_needed(given) for is_needed in asked):
        return graph_module
    graph = Graph()
    returned = graph.graph_copy(graph_module.graph, {})
    graph.output(returned).meta = dict(graph_module.graph.output_node().meta)
    name_all_parts(graph)
    join_writes(graph)
    split_new_axes(graph)
    name_step_numbers(graph)
    copied = _torch_compat.lazy_graph_module(graph_module, graph)
    _torch_compat.copy_dynamo_facts(graph_module, copied)
    return copied


def _choose(arrays: GraphArrays, search: Search, note: Note) -> list[Loop]:
    """The loops worth it; the ledger hears of every one, and of those that are left as they are."""
    places = Places(search.loops)
    chosen = []
    for loop in search.loops:
        first = arrays.nodes[loop.rows[0][0]]
        if because := why_not_worth(arrays, loop, places):
            note(first, "kept", because)
            continue
        chosen.append(loop)
        note(first, "replaced", f"{loop.trips} steps of {len(loop.rows)} operators are one loop")
    for batch in search.siblings:
        first = arrays.nodes[batch.rows[0][0]]
        note(
            first, "kept", f"{batch.trips} repetitions carry no value: they are siblings, not steps of a loop"
        )
    if search.is_cut_short:
        note("graph", "kept", "the search for loops was cut short: it took too many steps")
    return chosen
