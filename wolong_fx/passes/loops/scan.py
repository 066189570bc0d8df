"""A rolled loop in an FX graph, read: torch's own `scan` operator and where its parts stand.

    scan(body, inits, xs, invariants)  ->  (*final carries, *ys)

`body` is a GraphModule that runs once a step: its placeholders are the carries, one slice of every xs along
dimension 0, and the invariants; it returns a flat list, the new carries and then what the step gives to ys.
The node's results are read by `operator.getitem`; a ys result has the steps as its dimension 0.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

SCAN = torch.ops.higher_order.scan


def is_scan(node: object) -> bool:
    """True of a node that runs a rolled loop."""
    return isinstance(node, Node) and node.op == "call_function" and node.target is SCAN


def is_scan_body(node: Node) -> bool:
    """True of the attribute that is the body of a loop."""
    return node.op == "get_attr" and any(is_scan(user) and user.args[0] is node for user in node.users)


def body_of(node: Node) -> GraphModule:
    """The body of a scan node; the node's graph has to be a module's."""
    attribute, module = node.args[0], node.graph.owning_module
    assert isinstance(attribute, Node) and module is not None, node.format_node()
    body = module.get_submodule(str(attribute.target))
    assert isinstance(body, GraphModule), type(body)
    return body


@dataclass(frozen=True)
class Scan:
    """One scan node; every property reads the node as it is now."""

    node: Node
    body: GraphModule

    @classmethod
    def of(cls, node: Node) -> Scan:
        """The loop that `node` runs."""
        return cls(node, body_of(node))

    @property
    def inits(self) -> tuple[Node, ...]:
        """What the carries are before the first step."""
        return tuple(self.node.args[1])  # type: ignore[arg-type]

    @property
    def xs(self) -> tuple[Node, ...]:
        """What is walked along its dimension 0."""
        return tuple(self.node.args[2])  # type: ignore[arg-type]

    @property
    def invariants(self) -> tuple[Node, ...]:
        """What every step sees whole (torch: additional_inputs)."""
        return tuple(self.node.args[3])  # type: ignore[arg-type]

    @property
    def operands(self) -> tuple[Node, ...]:
        """inits, xs and invariants: one for each placeholder of the body."""
        return (*self.inits, *self.xs, *self.invariants)

    @property
    def trip_count(self) -> int:
        """How many steps there are."""
        return int(self.xs[0].meta["val"].shape[0])

    @property
    def placeholders(self) -> list[Node]:
        """The body's: carries, slices, invariants."""
        return list(self.body.graph.find_nodes(op="placeholder"))

    @property
    def carries(self) -> list[Node]:
        """The body's placeholders for the values that one step hands to the next."""
        return self.placeholders[: len(self.inits)]

    @property
    def slices(self) -> list[Node]:
        """The body's placeholders for this step's part of each xs."""
        return self.placeholders[len(self.inits) : len(self.inits) + len(self.xs)]

    @property
    def inner_invariants(self) -> list[Node]:
        """The body's placeholders for the invariants."""
        return self.placeholders[len(self.inits) + len(self.xs) :]

    @property
    def outputs(self) -> list[Node]:
        """What the body returns: new carries, then this step's part of each ys."""
        return list(self.body.graph.output_node().args[0])  # type: ignore[arg-type]

    @property
    def new_carries(self) -> list[Node]:
        """What the body hands to the next step."""
        return self.outputs[: len(self.inits)]

    @property
    def ys(self) -> list[Node]:
        """What the body gives to each ys."""
        return self.outputs[len(self.inits) :]

    def results(self, index: int) -> Sequence[Node]:
        """The nodes that read result `index`, of final carries and ys counted together."""
        users = (user for user in self.node.users if user.target is operator.getitem)
        return [user for user in users if user.args[1] == index]


def scans_in(graph_module: GraphModule) -> Iterator[Scan]:
    """The loops of a graph, in its order; not those inside of their bodies."""
    for node in list(graph_module.graph.nodes):
        if is_scan(node):
            yield Scan.of(node)


def bodies_in(graph_module: GraphModule) -> dict[str, GraphModule]:
    """The bodies of the loops of a graph by the name of their attribute; not those inside of bodies."""
    return {str(scan.node.args[0].target): scan.body for scan in scans_in(graph_module)}  # type: ignore[union-attr]
