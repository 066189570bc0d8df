"""How many bytes are copied and not computed: by torch, running a graph, and by the operators it becomes.

Torch writes the pieces of a concat a second time, so do a stack, a clone, a flip. The difference between its
copies and those that are left in our program is what the ledger calls removed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch.fx import GraphModule, Node

from wolong_fx.codegen.loops import Element, walk_ops
from wolong_fx.codegen.lower.uses import VIEWS
from wolong_fx.ir.expr import Const, Expr, Load, Where
from wolong_fx.ir.program import OpInst
from wolong_fx.ledger import Copies
from wolong_fx.passes.cut_partitions import is_partition
from wolong_fx.passes.loops.scan import Scan, is_scan
from wolong_fx.passes.values import byte_size, is_update

aten = torch.ops.aten


def copies_of_torch(gm: GraphModule, *, role: str = "", results: int | None = None) -> Copies:
    """What torch would copy in one call of a graph, operator by operator; partitions are looked into.

    A stacked result of a loop is one copy a step if something reads it as a whole: an unrolled program then
    calls stack. It does not for what is read row by row, nor for what a forward saves for its backward or
    what a backward computes.
    role: "inference", "forward" or "backward" of a whole graph, else all stacked results count
    results: how many of a forward's are for its caller, if that is known
    """
    if role == "backward":
        return _copies_of_graph(gm, None)
    return _copies_of_graph(gm, _saved_results(gm, results) if role == "forward" else frozenset())


def copies_of_ops(elements: Iterable[Element]) -> Copies:
    """What operators copy in one call; see `copies_of_op`."""
    return sum((copies_of_op(op) * trips for op, trips in walk_ops(elements)), Copies())


def copies_of_op(op: OpInst) -> Copies:
    """One copy for each store of elements of memory that are chosen but not computed with.

    What is gathered is looked up, not copied; what an operator stores twice, it read from no memory.
    """
    copied = [s.value for s in op.stores if not s.accumulate and _is_memory(s.value)]
    return Copies(len(copied), sum(op.points * value.dtype.bytes for value in copied))


def _is_memory(value: Expr) -> bool:
    """Whether a value is an element of one of several buffers, or else a number."""
    if isinstance(value, Where):
        return any(map(_is_memory, value.args[1:])) and all(map(_is_memory_or_number, value.args[1:]))
    return isinstance(value, Load) and not value.access.gathers


def _is_memory_or_number(value: Expr) -> bool:
    return isinstance(value, Const) or _is_memory(value)


def _saved_results(gm: GraphModule, count: int | None) -> frozenset[Node]:
    """The results of a forward graph that are not among the `count` first, its caller's."""
    results = gm.graph.output_node().args[0]
    if not isinstance(results, list | tuple):
        return frozenset()
    nodes = (node for node in results if isinstance(node, Node))
    return frozenset(nodes).difference(node for node in results[:count] if isinstance(node, Node))


def _copies_of_graph(gm: GraphModule, saved: Collection[Node] | None, *, is_step: bool = False) -> Copies:
    """saved: results that nobody stacks without a loop; None for all
    is_step: the graph is a loop's body; its clones may be ours, so none of them counts
    """
    nodes = (n for n in gm.graph.nodes if not (is_step and n.target is aten.clone.default))
    return sum((_copies_of_node(gm, node, saved) for node in nodes), Copies())


def _copies_of_node(gm: GraphModule, node: Node, saved: Collection[Node] | None) -> Copies:
    if is_partition(node):
        return copies_of_torch(gm.get_submodule(str(node.target)))  # type: ignore[arg-type]
    if is_scan(node):
        return _copies_of_scan(Scan.of(node), saved)
    copies = _COPYING.get(node.target)
    return copies(node) if copies else Copies()


def _copies_of_scan(scan: Scan, saved: Collection[Node] | None) -> Copies:
    within = _copies_of_graph(scan.body, saved, is_step=True) * scan.trip_count
    if saved is None:
        return within
    stacks = (node for n in range(len(scan.ys)) for node in scan.results(len(scan.inits) + n)[:1])
    return sum((Copies(scan.trip_count, byte_size(n)) for n in stacks if _is_read_whole(n, saved)), within)


def _is_read_whole(stack: Node, saved: Collection[Node]) -> bool:
    readers = [user for user in stack.users if user.op != "output" or stack not in saved]
    return any(user.target is not aten.select.int or user.args[1] != 0 for user in readers)


def _result(node: Node) -> Copies:
    return Copies(1, byte_size(node))


def _apart_from_loops(node: Node) -> Copies:
    """One beside a loop may be ours or torch's, which runs a loop backwards: an unrolled program has none."""
    (source,) = node.all_input_nodes
    of_loop = source.target is operator.getitem and any(map(is_scan, source.all_input_nodes))
    return Copies() if of_loop or all(map(is_scan, node.users)) else _result(node)


def _pieces(node: Node) -> Copies:
    pieces: list[Node] = [n for n in node.args[0] if byte_size(n)]  # type: ignore[union-attr]
    return Copies(len(pieces), byte_size(node))


def _written_part(node: Node) -> Copies:
    """A program writes the part alone; that torch copies all around it in a functional graph is no copy of
    the program's.
    """
    assert isinstance(node.args[1], Node)
    return Copies(1, byte_size(node.args[1]))


def _update(node: Node) -> Copies:
    """`x.copy_(y)` of a `y` that was there before; what is computed, an operator in place writes itself."""
    source = node.args[1]
    while isinstance(source, Node) and source.target in VIEWS and source.target is not operator.getitem:
        source = source.args[0]
    is_given = isinstance(source, Node) and source.op == "placeholder"
    return Copies(1, byte_size(node)) if is_update(node) and is_given else Copies()


_COPYING: Mapping[object, Callable[[Node], Copies]] = {
    aten.cat.default: _pieces,
    aten.stack.default: _pieces,
    aten.clone.default: _apart_from_loops,
    aten.copy.default: _result,
    aten.copy_.default: _update,
    aten.flip.default: _apart_from_loops,
    aten.repeat.default: _result,
    aten.constant_pad_nd.default: _result,
    aten.select_scatter.default: _written_part,
    aten.slice_scatter.default: _written_part,
}
"""Operators that only move elements, and what they copy."""
