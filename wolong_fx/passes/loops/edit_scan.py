"""Changes to one scan node in place: an operand or a result more, or those that nobody needs less.

Adding keeps every position; only `drop_unused` renumbers. Values of the loop's results are replaced by their
users' Editor, not here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from wolong_fx import _torch_compat
from wolong_fx.passes.edit import Call, Editor, Rewrite
from wolong_fx.passes.loops.inline import share_attribute
from wolong_fx.passes.loops.scan import Scan
from wolong_fx.passes.values import aten, is_effectful, value_of


def with_own_body(scan: Scan, graph_module: GraphModule) -> Scan:
    """The loop with a copy of its body under a new name: another loop may run the old one."""
    graph, old = Graph(), scan.node.args[0]
    assert isinstance(old, Node)
    graph.output(graph.graph_copy(scan.body.graph, {}))
    body = _torch_compat.lazy_graph_module(scan.body, graph)
    with scan.node.graph.inserting_before(scan.node):
        attribute = scan.node.graph.get_attr(share_attribute(body, f"{old.target}_split", graph_module))
    scan.node.args = (attribute, *scan.node.args[1:])
    if not old.users:
        scan.node.graph.erase_node(old)
    if not any(node.target == old.target for node in graph_module.graph.find_nodes(op="get_attr")):
        graph_module.delete_submodule(str(old.target))
    return Scan(scan.node, body)


def add_slice(scan: Scan, xs: Node) -> Node:
    """Walk one more operand; returns the body's placeholder for this step's part of it."""
    placeholder = _add_placeholder(scan, len(scan.inits) + len(scan.xs), xs.name)
    placeholder.meta["val"] = value_of(xs).select(0, 0)
    _set_operands(scan, xs=(*scan.xs, xs))
    return placeholder


def add_invariant(scan: Scan, operand: Node) -> Node:
    """Show every step one more operand whole; returns the body's placeholder for it."""
    if operand in scan.invariants:
        return scan.inner_invariants[scan.invariants.index(operand)]
    placeholder = _add_placeholder(scan, len(scan.operands), operand.name)
    placeholder.meta["val"] = value_of(operand)
    _set_operands(scan, invariants=(*scan.invariants, operand))
    return placeholder


def add_result(scan: Scan, value: Node) -> Node:
    """Keep this value of every step; returns the node of the graph outside that reads them all."""
    if value in scan.ys:
        return _read(scan, len(scan.inits) + scan.ys.index(value))
    _set_outputs(scan, [*scan.outputs, value])
    step = value_of(value)
    scan.node.meta["val"] = (*scan.node.meta["val"], step.new_empty((scan.trip_count, *step.shape)))
    return _read(scan, len(scan.outputs) - 1)


def replace_result(result: Node, by: Node | Call, because: str, editor: Editor) -> bool:
    """Have something else stand for a result of a loop; a copy of it where memory or layout would be noticed.

    False where that cannot be.
    """
    if editor.apply(Rewrite(result, by, because)) is not None:
        return True
    copy = Call(aten.clone.default, (by,), {"memory_format": torch.contiguous_format})
    return editor.apply(Rewrite(result, copy, because)) is not None


def drop_unused(scan: Scan) -> int:
    """Remove from the body what no used result needs, and every operand and result without use.

    One xs always stays: it says how many steps there are. Returns how many operators and results went.
    """
    live = _live_outputs(scan)
    dropped = len(scan.outputs) - len(live)
    dead = [index for index in range(len(scan.outputs)) if index not in live]
    for result in [node for index in dead for node in scan.results(index)]:
        result.graph.erase_node(result)
    _keep_outputs(scan, live)
    dropped += remove_dead_code(scan.body.graph.nodes)
    _drop_operands(scan)
    return dropped


def remove_dead_code(nodes: Iterable[Node]) -> int:
    """Erase those calls among `nodes`, given users last, whose results nobody uses; returns how many."""
    dead = 0
    for node in reversed(list(nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not is_effectful(node):
            node.graph.erase_node(node)
            dead += 1
    return dead


def ancestors(nodes: Iterable[Node]) -> set[Node]:
    """These nodes and all that they are computed from."""
    found: set[Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _add_placeholder(scan: Scan, position: int, name: str) -> Node:
    placeholders = scan.placeholders
    if position < len(placeholders):
        point = scan.body.graph.inserting_before(placeholders[position])
    elif placeholders:
        point = scan.body.graph.inserting_after(placeholders[-1])
    else:
        point = scan.body.graph.inserting_before(next(iter(scan.body.graph.nodes)))
    with point:
        placeholder = scan.body.graph.placeholder(name)
    placeholder.target = placeholder.name  # its name as an argument: free, unlike perhaps the one asked for
    return placeholder


def _set_operands(
    scan: Scan,
    inits: Sequence[Node] | None = None,
    xs: Sequence[Node] | None = None,
    invariants: Sequence[Node] | None = None,
) -> None:
    groups = zip((inits, xs, invariants), (scan.inits, scan.xs, scan.invariants), strict=True)
    scan.node.args = (scan.node.args[0], *(list(old if new is None else new) for new, old in groups))


def _set_outputs(scan: Scan, outputs: Sequence[Any]) -> None:
    scan.body.graph.output_node().args = (tuple(outputs),)


def _read(scan: Scan, index: int) -> Node:
    if existing := scan.results(index):
        return existing[0]
    with scan.node.graph.inserting_after(scan.node):
        node = scan.node.graph.call_function(operator.getitem, (scan.node, index))
    node.meta = {"val": scan.node.meta["val"][index]}
    return node


def _live_outputs(scan: Scan) -> list[int]:
    """Positions of the results that somebody uses, and of carries that those are computed from."""
    used = [i for i in range(len(scan.outputs)) if any(node.users for node in scan.results(i))]
    live: set[int] = set()
    while used:
        live.update(used)
        needed = ancestors(scan.outputs[index] for index in live)
        used = [i for i, carry in enumerate(scan.carries) if carry in needed and i not in live]
    return sorted(live)


def _keep_outputs(scan: Scan, kept: Sequence[int]) -> None:
    results = [(new, node) for new, old in enumerate(kept) for node in scan.results(old)]
    carries = [index for index in kept if index < len(scan.inits)]
    gone = [carry for index, carry in enumerate(scan.carries) if index not in carries]
    outputs, values, inits = scan.outputs, scan.node.meta["val"], scan.inits
    _set_outputs(scan, [outputs[index] for index in kept])
    scan.node.meta["val"] = tuple(values[index] for index in kept)
    for new, node in results:
        node.args = (scan.node, new)
    remove_dead_code(scan.body.graph.nodes)
    _set_operands(scan, inits=[inits[index] for index in carries])
    for placeholder in gone:
        scan.body.graph.erase_node(placeholder)


def _drop_operands(scan: Scan) -> None:
    slices, invariants = scan.slices, scan.inner_invariants
    xs = [i for i, inner in enumerate(slices) if inner.users] or [0]
    kept = [i for i, inner in enumerate(invariants) if inner.users]
    old_xs, old_invariants = scan.xs, scan.invariants
    _set_operands(scan, xs=[old_xs[i] for i in xs], invariants=[old_invariants[i] for i in kept])
    for group, stays in ((slices, xs), (invariants, kept)):
        for index, placeholder in enumerate(group):
            if index not in stays:
                scan.body.graph.erase_node(placeholder)
