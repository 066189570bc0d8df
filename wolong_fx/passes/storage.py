"""Storage: which tensors of a graph share memory, which leave it, which are written."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator

from torch.fx import Graph, Node

from wolong_fx.passes.values import find_argument, is_view, written_arguments


class Storage:
    """Classes of nodes that share memory: a union-find over views, correct while a pass edits the graph.

    The root of a class is the node that owns the memory: a placeholder, a constant or an operator. An
    operator that *may* return a view counts as one.
    """

    def __init__(self, graph: Graph) -> None:
        self._above: dict[Node, Node] = {}
        self.returned = set(graph.output_node().all_input_nodes)
        self.leaving = {self.root(node) for node in self.returned}
        self.written = {self.root(node) for node in written_nodes(graph.nodes)}

    def root(self, node: Node) -> Node:
        """The owner of the node's memory; near-constant time amortised."""
        path = []
        while (above := self._step(node)) is not node:
            path.append(node)
            node = above
        self._above.update(dict.fromkeys(path, node))
        return node

    def touches_written(self, node: Node) -> bool:
        """True when the node reads, writes or shares memory that some operator writes in place."""
        if not self.written:
            return False
        return any(self.root(n) in self.written for n in (node, *node.all_input_nodes))

    def replaced(self, node: Node, by: Node) -> None:
        """Tell that every use of `node` is now a use of `by`."""
        root = self.root(node)
        self._above[node] = by
        if node in self.returned:
            self.returned.add(by)
        if root in self.leaving:
            self.leaving.add(self.root(by))

    def _step(self, node: Node) -> Node:
        return self._above.get(node) or memory_parent(node) or node


def memory_parent(node: Node) -> Node | None:
    """The operand whose memory the node's result shares, if it is a view or a part of several views."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    operand = node.all_input_nodes[0]
    is_shared = is_view(operand) if node.target is operator.getitem else is_view(node)
    return operand if is_shared else None


def written_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    """The operands that operators write in place."""
    for node in nodes:
        yield from written_by(node)


def written_by(node: Node) -> Iterator[Node]:
    """The operands that this operator writes in place."""
    for name in written_arguments(node.target) if node.op == "call_function" else ():
        operand = find_argument(node, name)
        items = operand if isinstance(operand, tuple | list) else (operand,)
        yield from (item for item in items if isinstance(item, Node))
