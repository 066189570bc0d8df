"""One loop as one `torch.ops.higher_order.scan` node and the graph of its body.

The operator wants carried tensors to keep their layout from step to step, and no result of a step to share
memory with another or with what the step was given: where they would, a clone is added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from wolong_fx.passes.reroll.builder import Builder, aten, storage_of
from wolong_fx.passes.reroll.graph_arrays import GraphArrays, value_of
from wolong_fx.passes.reroll.loop import Carried, Invariant, Operand, PerStep, SameStep
from wolong_fx.passes.reroll.plan_scan import ScanPlan
from wolong_fx.passes.values import is_dense

scan = torch.ops.higher_order.scan


def emit_scan(
    builder: Builder,
    arrays: GraphArrays,
    plan: ScanPlan,
    node_of: Callable[[int], Node],
    joined: Callable[[PerStep], Node],
    add_body: Callable[[GraphModule], Node],
    *,
    is_differentiated: bool,
) -> Node:
    """Append the scan; its results are the carried tensors, then those of plan.results.

    node_of: the new graph's node for a node outside of the loop
    joined: the tensor that has the nodes of an operand as its rows
    add_body: registers a graph and gives the get_attr of it
    is_differentiated: see Reroll
    """
    slots = [slot for delay in plan.delays for slot in delay.slots()]
    inits = [_emit_init(builder, arrays, plan, slot, node_of(node)) for slot, node in enumerate(slots)]
    invariants = [node_of(node) for node in plan.invariants]
    inputs = [joined(operand) for operand in plan.inputs]
    inputs = inputs or [_emit_counter(builder, plan.loop.trips, [*inits, *invariants])]
    body = _Body(builder, arrays, plan, [*inits, *inputs, *invariants], is_differentiated).build()
    node = builder.graph.call_function(
        scan, (add_body(body), _unshared(builder, inits, invariants), inputs, invariants)
    )
    return builder.with_value(node, _results(builder, plan, body))


def _emit_init(builder: Builder, arrays: GraphArrays, plan: ScanPlan, slot: int, init: Node) -> Node:
    if not _changes_layout(arrays, plan, slot):
        return init
    return builder.call(aten.clone.default, init, memory_format=torch.contiguous_format)


def _changes_layout(arrays: GraphArrays, plan: ScanPlan, slot: int) -> bool:
    """True when an initial value has other strides than its row: both are then made contiguous."""
    delay = plan.delay_of_slot(slot)
    value = value_of(arrays.nodes[plan.loop.rows[delay.row][0]])
    strides = {value_of(arrays.nodes[init]).stride() for init in delay.inits}
    return strides != {value.stride()} or not is_dense(value)


def _emit_counter(builder: Builder, trips: int, others: Sequence[Node]) -> Node:
    """A scan walks along something: the numbers of the steps, where a step has no input.

    They live where the scan's other operands do, or no kernel could take all of them.
    """
    values = (value_of(node) for node in others)
    device = next((v.device for v in values if isinstance(v, torch.Tensor)), torch.device("cpu"))
    return builder.call(aten.arange.default, trips, device=device)


def _unshared(builder: Builder, inits: Sequence[Node], others: Sequence[Node]) -> list[Node]:
    """The initial values, those copied that share memory with another or with an invariant."""
    seen = {storage_of(value_of(node)) for node in others if isinstance(value_of(node), torch.Tensor)}
    unshared = []
    for init in inits:
        is_shared = storage_of(value_of(init)) in seen
        unshared.append(builder.call(aten.clone.default, init) if is_shared else init)
        seen.add(storage_of(value_of(unshared[-1])))
    return unshared


def _results(builder: Builder, plan: ScanPlan, body: GraphModule) -> tuple[Any, ...]:
    values = [value_of(node) for node in body.graph.output_node().args[0]]  # type: ignore[union-attr]
    carried, by_step = values[: plan.carried_tensors], values[plan.carried_tensors :]
    last = [builder.own_value(value) for value in carried]
    return (*last, *(builder.stacked_value(value, plan.loop.trips) for value in by_step))


class _Body:
    """The graph of one step, made of the nodes of the first."""

    def __init__(
        self,
        outer: Builder,
        arrays: GraphArrays,
        plan: ScanPlan,
        given: Sequence[Node],
        is_differentiated: bool,
    ) -> None:
        self._arrays = arrays
        self._plan = plan
        self._is_differentiated = is_differentiated
        self._builder = Builder(Graph(), outer.value_key, outer._fake_mode)
        first_input = plan.carried_tensors
        first_invariant = len(given) - len(plan.invariants)
        names = ["carried"] * first_input + ["x"] * (first_invariant - first_input)
        names += ["whole"] * len(plan.invariants)
        self._given = [self._builder.graph.placeholder(f"{name}_{i}") for i, name in enumerate(names)]
        for i, (node, outside) in enumerate(zip(self._given, given, strict=True)):
            value = value_of(outside)
            self._builder.with_value(
                node, outer.first_of(value) if first_input <= i < first_invariant else value
            )
        slices = zip(plan.inputs, self._given[first_input:first_invariant], strict=False)
        self._inputs = {operand: self._as_it_was(operand, node) for operand, node in slices}
        self._invariants = dict(zip(plan.invariants, self._given[first_invariant:], strict=True))
        self._rows: list[Node] = []

    def _as_it_was(self, operand: PerStep, node: Node) -> Node:
        """What steps read of tensors that stood apart has the layout that these had."""
        value = value_of(self._arrays.nodes[operand.nodes[0]])
        return self._builder.with_strides(node, value) if isinstance(value, torch.Tensor) else node

    def build(self) -> GraphModule:
        for row, operands in enumerate(self._plan.loop.operands):
            origin = self._arrays.nodes[self._plan.loop.rows[row][0]]
            self._rows.append(self._copy(origin, map(self._node_of, operands)))
        self._builder.graph.output(self._outputs())
        return GraphModule(torch.nn.Module(), self._builder.graph)

    def _copy(self, origin: Node, operands: Any) -> Node:
        args = map_arg(origin.args, lambda _: next(operands))
        kwargs = map_arg(dict(origin.kwargs), lambda _: next(operands))
        node = self._builder.graph.create_node(origin.op, origin.target, args, kwargs, name=origin.name)  # type: ignore
        node.meta = dict(origin.meta)
        return node

    def _node_of(self, operand: Operand) -> Node:
        match operand:
            case SameStep(row):
                return self._rows[row]
            case Carried():
                return self._given[self._plan.slot(operand)]
            case PerStep():
                return self._inputs[operand]
            case Invariant(node):
                return self._invariants[node]

    def _outputs(self) -> list[Node]:
        """The next carried values, then the results of the step; no two share memory, nor with the inputs."""
        taken = self._memory_given()
        outputs: list[Node] = []
        for delay in self._plan.delays:
            first = len(outputs)
            outputs.append(self._next_of(delay.row, first, taken))
            for slot in range(first, first + len(delay.inits) - 1):
                outputs.append(self._clone(self._given[slot], slot + 1))
        outputs += [self._fresh(self._rows[row], taken) for row in self._plan.results]
        return outputs

    def _memory_given(self) -> set[int]:
        """Storages of what the first step of the unrolled graph read from outside."""
        nodes = self._arrays.nodes
        starts = [init for delay in self._plan.delays for init in delay.inits]
        read = [*starts, *(operand.nodes[0] for operand in self._plan.inputs), *self._plan.invariants]
        return {storage_of(value_of(nodes[n])) for n in read if isinstance(value_of(nodes[n]), torch.Tensor)}

    def _next_of(self, row: int, slot: int, taken: set[int]) -> Node:
        if _changes_layout(self._arrays, self._plan, slot):
            return self._clone(self._rows[row], slot)
        return self._fresh(self._rows[row], taken)

    def _fresh(self, node: Node, taken: set[int]) -> Node:
        storage = storage_of(value_of(node))
        # Autograd adds what the backward needs to the results: a value must not be there twice.
        if storage not in taken and not self._is_differentiated:
            taken.add(storage)
            return node
        return self._builder.call(aten.clone.default, node)

    def _clone(self, node: Node, slot: int) -> Node:
        if _changes_layout(self._arrays, self._plan, slot):
            return self._builder.call(aten.clone.default, node, memory_format=torch.contiguous_format)
        return self._builder.call(aten.clone.default, node)
