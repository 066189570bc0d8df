"""cut-partitions: operators that codegen can lower go into as few kernels as possible, the rest runs between.

Ours and not torch's CapabilityBasedPartitioner, which takes 10 to 20 s on 1,700 nodes. The method and its
proof are in partition_plan.py.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from wolong_fx import _torch_compat
from wolong_fx.passes.base import Numerics, Pass
from wolong_fx.passes.decompose import nothing_is_supported
from wolong_fx.passes.edit import Note
from wolong_fx.passes.partition_plan import EAGER, Plan, WhyUnsupported, plan_partitions
from wolong_fx.passes.values import is_tensor, value_of

PARTITION_PREFIX = "partition_"


@dataclass(frozen=True)
class CutPartitions(Pass):
    """The graph becomes calls of modules `partition_0`, `partition_1` ... and ATen operators between them.

    A partition takes tensors and returns a tuple of tensors.
    why_unsupported: None for a node that codegen lowers, else the reason it does not
    min_ops: partitions of fewer operators stay eager
    """

    why_unsupported: WhyUnsupported = field(default=nothing_is_supported, repr=False, compare=False)
    min_ops: int = 2
    name: ClassVar[str] = "cut-partitions"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATING  # a kernel may add in another order than eager

    def apply(self, graph_module: GraphModule, note: Note) -> PassResult:
        plan = plan_partitions(graph_module.graph, self.why_unsupported, self.min_ops, note)
        return PassResult(_build(graph_module, plan), True)


def is_partition(node: object) -> bool:
    """True of a node that calls a partition."""
    return (
        isinstance(node, Node) and node.op == "call_module" and str(node.target).startswith(PARTITION_PREFIX)
    )


def _build(graph_module: GraphModule, plan: Plan) -> GraphModule:
    graph = Graph()
    made: dict[Node, Node] = {}
    for place, members in plan.steps():
        if place == EAGER:
            made.update((node, graph.node_copy(node, made.__getitem__)) for node in members)
        elif results := _results(members, place, plan.places):
            _call_partition(graph_module, graph, place, members, results, made)
    graph.node_copy(graph_module.graph.output_node(), made.__getitem__)
    return _torch_compat.lazy_graph_module(graph_module, graph)


def _call_partition(
    graph_module: GraphModule,
    graph: Graph,
    place: int,
    members: list[Node],
    results: list[Node],
    made: dict[Node, Node],
) -> None:
    inside = set(members)
    inputs = list(dict.fromkeys(p for node in members for p in node.all_input_nodes if p not in inside))
    name = f"{PARTITION_PREFIX}{place}"
    graph_module.add_submodule(name, _extract(graph_module, members, inputs, results))
    call = graph.call_module(name, tuple(made[node] for node in inputs))
    call.meta["val"] = tuple(map(value_of, results))
    for index, node in enumerate(results):
        made[node] = graph.call_function(operator.getitem, (call, index))
        made[node].meta = dict(node.meta)


def _extract(
    graph_module: GraphModule, members: Iterable[Node], inputs: list[Node], results: list[Node]
) -> GraphModule:
    graph = Graph()
    inner: dict[Node, Node] = {}
    for node in inputs:
        inner[node] = graph.placeholder(node.name)
        inner[node].meta = dict(node.meta)
    for node in members:
        inner[node] = graph.node_copy(node, inner.__getitem__)
    graph.output(tuple(inner[node] for node in results))
    return _torch_compat.lazy_graph_module(graph_module, graph)


def _results(members: Iterable[Node], place: int, places: Mapping[Node, frozenset[int]]) -> list[Node]:
    """Tensors computed in the partition that something outside looks at."""
    here = frozenset([place])
    return [
        node
        for node in members
        if places[node] == here
        and is_tensor(node)
        and any(places.get(user, EAGER_ALONE) != here for user in node.users)
    ]


EAGER_ALONE = frozenset([EAGER])
