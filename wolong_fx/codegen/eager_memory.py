"""What eager PyTorch would hold at once while running a graph: the figure our arena is read beside."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from wolong_fx.codegen.lower.uses import VIEWS


def eager_peak_bytes(gm: GraphModule) -> int:
    """Largest sum of intermediate tensors alive at once, node by node.

    Views are free; inputs and outputs are the caller's. Each operator holds its operands and its result; an
    operand goes after its last reader, as Python frees it.
    """
    dying = _owners_by_last_reader(gm.graph)
    owned = {owner for owners in dying.values() for owner in owners}
    alive = peak = 0
    for node in gm.graph.nodes:
        if node in owned:
            alive += _bytes(node)
            peak = max(peak, alive)
        alive -= sum(map(_bytes, dying[node]))
    return peak


def _owners_by_last_reader(graph: Graph) -> dict[Node, list[Node]]:
    """For each node, the operators whose memory nobody reads after it; graph outputs are in no list."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    last: dict[Node, Node] = {}
    for node in reversed(graph.nodes):
        readers = [last[user] if user.target in VIEWS and user in last else user for user in node.users]
        if readers and node.op == "call_function":
            last[node] = max(readers, key=position.__getitem__)
    found: dict[Node, list[Node]] = defaultdict(list)
    for owner, reader in last.items():
        if owner.target not in VIEWS and reader.op != "output":
            found[reader].append(owner)
    return found


def _bytes(node: Node) -> int:
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else (value,)
    return sum(t.numel() * t.element_size() for t in parts if isinstance(t, Tensor))
