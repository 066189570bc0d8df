"""The graph with its loops rolled: calls are copied, a loop is a scan, a join of steps part of its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from operator import attrgetter
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from wolong_fx import _torch_compat
from wolong_fx.passes.reroll.builder import Builder, aten, find_fake_mode, storage_of
from wolong_fx.passes.reroll.emit_scan import emit_scan
from wolong_fx.passes.reroll.find_joins import Places, Run, find_join
from wolong_fx.passes.reroll.graph_arrays import GraphArrays, value_of
from wolong_fx.passes.reroll.join_steps import StepJoiner
from wolong_fx.passes.reroll.loop import Loop
from wolong_fx.passes.reroll.order_items import order_items
from wolong_fx.passes.reroll.plan_scan import ScanPlan, plan_scan
from wolong_fx.passes.reroll.purity import is_draw
from wolong_fx.passes.reroll.step_numbers import emit_number, is_number_tensor

BODY_PREFIX = "_wolong_body"


def emit_graph(
    graph_module: GraphModule, arrays: GraphArrays, loops: Sequence[Loop], *, is_differentiated: bool = False
) -> GraphModule:
    """A module that computes what `graph_module` does with `loops` rolled; parameters are shared."""
    return _Emitter(graph_module, arrays, loops, is_differentiated).emit()


class _Emitter:
    def __init__(
        self, graph_module: GraphModule, arrays: GraphArrays, loops: Sequence[Loop], is_differentiated: bool
    ) -> None:
        self._is_differentiated = is_differentiated
        self._old = graph_module
        self._arrays = arrays
        self._loops = list(loops)
        self._places = Places(loops)
        self._graph = Graph()
        key = "val" if any("val" in node.meta for node in graph_module.graph.nodes) else "example_value"
        self._builder = Builder(self._graph, key, find_fake_mode(graph_module.graph))
        self._joiner = StepJoiner(self._builder, arrays, self._places, self._node_of, self._series)
        self._copies: dict[int, Node] = {}
        self._numbers = {node: number for number, node in enumerate(arrays.nodes)}
        self._scans: dict[int, tuple[ScanPlan, Node]] = {}
        self._bodies: dict[str, GraphModule] = {}
        self._results: dict[tuple[int, int], Node] = {}
        self._leaving = _storages(value_of(arrays.nodes[number]) for number in arrays.returned)
        self._taken: set[int] = set()  # memory of scans' results that leaves the graph

    def emit(self) -> GraphModule:
        for number, node in enumerate(self._arrays.nodes):
            if node.op in ("placeholder", "get_attr"):
                self._copy(number)
        for item in order_items(self._arrays, self._loops):
            self._emit_loop(item) if isinstance(item, Loop) else self._emit_call(item)
        returned = self._old.graph.output_node()
        output = self._graph.node_copy(returned, lambda node: self._node_of(self._numbers[node]))
        output.meta = dict(returned.meta)
        return self._as_module()

    def _as_module(self) -> GraphModule:
        self._graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or is_draw(node))
        names = [str(node.target) for node in self._graph.find_nodes(op="get_attr")]
        theirs = {name: attrgetter(name)(self._old) for name in names if name not in self._bodies}
        graph_module = GraphModule(theirs | self._bodies, self._graph)
        _torch_compat.copy_dynamo_facts(self._old, graph_module)
        graph_module.train(self._old.training)
        return graph_module

    def _copy(self, number: int) -> None:
        self._copies[number] = self._graph.node_copy(self._arrays.nodes[number], self._copy_of_operand)

    def _copy_of_operand(self, node: Node) -> Any:
        """Outside of loops, numbers are what they were."""
        return node.args[0] if is_number_tensor(node) else self._node_of(self._numbers[node])

    def _emit_call(self, number: int) -> None:
        node = self._arrays.nodes[number]
        if is_number_tensor(node):
            self._copies[number] = emit_number(self._builder, node)
            return
        join = find_join(node)
        pieces = self._places.find_pieces(self._arrays.operands[number]) if join else []
        if join is None or not any(isinstance(piece, Run) for piece in pieces):
            self._copy(number)
            return
        self._builder.meta = _provenance(node)
        self._copies[number] = self._own_memory(
            number, self._joiner.join(join, self._arrays.operands[number])
        )

    def _emit_loop(self, loop: Loop) -> None:
        plan = plan_scan(self._arrays, loop)
        self._builder.meta = _provenance(self._arrays.nodes[loop.rows[0][0]])
        scan = emit_scan(
            self._builder,
            self._arrays,
            plan,
            self._node_of,
            lambda operand: self._joiner.steps_in_front(operand.nodes),
            self._add_body,
            is_differentiated=self._is_differentiated,
        )
        self._scans[id(loop)] = plan, scan

    def _add_body(self, body: GraphModule) -> Node:
        free = (f"{BODY_PREFIX}_{i}" for i in count())
        name = next(n for n in free if n not in self._bodies and not hasattr(self._old, n))
        self._bodies[name] = body
        return self._graph.get_attr(name)

    def _node_of(self, number: int) -> Node:
        """The new node for one of the old; what a loop computed is cut out of the scan's results."""
        if number not in self._copies:
            self._copies[number] = self._cut_out(number)
        return self._copies[number]

    def _cut_out(self, number: int) -> Node:
        loop, row, step = self._places[number]
        plan, scan = self._scans[id(loop)]
        slot = plan.slot_of_last(row) if step == loop.trips - 1 else None
        if slot is not None:
            return self._with_strides(number, self._builder.part(scan, slot))
        cut = self._builder.call(aten.select.int, self._series(loop, row), 0, step)
        return self._with_strides(
            number, self._builder.call(aten.clone.default, cut) if self._leaves(number) else cut
        )

    def _with_strides(self, number: int, node: Node) -> Node:
        """A value has the strides it had: it may leave the graph, or be an operand of a MatMul."""
        return self._builder.with_strides(node, value_of(self._arrays.nodes[number]))

    def _series(self, loop: Loop, row: int) -> Node:
        """The scan's result with all steps of a row."""
        if (id(loop), row) not in self._results:
            plan, scan = self._scans[id(loop)]
            index = plan.carried_tensors + plan.results.index(row)
            self._results[id(loop), row] = self._builder.part(scan, index)
        return self._results[id(loop), row]

    def _own_memory(self, number: int, node: Node) -> Node:
        """What leaves the graph shares no memory that it did not share before."""
        storage = storage_of(value_of(node))
        if self._leaves(number) and storage in self._taken:
            return self._builder.call(aten.clone.default, node)
        if self._leaves(number):
            self._taken.add(storage)
        return node

    def _leaves(self, number: int) -> bool:
        """True when the graph returns the value, or a view of it."""
        return bool(_storages([value_of(self._arrays.nodes[number])]) & self._leaving)


def _storages(values: Iterable[Any]) -> set[int]:
    return {storage_of(value) for value in values if isinstance(value, torch.Tensor)}


def _provenance(node: Node) -> dict[str, Any]:
    """The user's line and module, and who made the node."""
    kept = {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}
    return kept | {"made_by": "reroll"}
