"""A rolled loop seen for editing: every part of a scan node and of its body under its own name.

    scan(body, inits, xs, invariants)  ->  (*final carries, *ys)

The body's placeholders are the carries, one slice of every xs along dimension 0, and the invariants; it
returns the new carries and then what the step gives to each ys.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from wolong_fx.passes.loops import body_of, is_loop


@dataclass(frozen=True)
class RolledLoop:
    """One scan node; every property reads the node and its body as they are now."""

    node: Node
    body: GraphModule

    @classmethod
    def of(cls, node: Node) -> RolledLoop:
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


def body_of(node: Node) -> GraphModule:
    """The body of a scan node, found through the module that the node's graph belongs to."""
    owner = node.graph.owning_module
    assert isinstance(owner, GraphModule), f"the graph of {node} belongs to no module"
    return Scan.of(node, owner).body


def is_scan_body(node: Node) -> bool:
    """True of the attribute that is the body of a loop."""
    return node.op == "get_attr" and any(is_scan(user) and user.args[0] is node for user in node.users)


def rolled_loops_in(graph_module: GraphModule) -> Iterator[RolledLoop]:
    """The loops of a graph, in its order; not those inside of their bodies."""
    for node in list(graph_module.graph.nodes):
        if is_loop(node):
            yield RolledLoop.of(node)
