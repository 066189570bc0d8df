"""Regions that a user marked by `torch.compiler.nested_compile_region` become part of the graph around them.

Dynamo traces a marked function once and stamps out its further calls: 1,000 steps of a recurrence, whose
step is marked, are traced in seconds. In its graph each call is one operator with a graph of its own; written
out, the steps are rolled as if Dynamo had walked through them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

INVOKE = torch.ops.higher_order.invoke_subgraph


def inline_regions(graph_module: GraphModule) -> None:
    """Write every call of a region out, in place; the fake values of each have memory of their own.

    Where that fails, the graph still computes the same.
    """
    calls = graph_module.graph.find_nodes(op="call_function", target=INVOKE)
    for call in calls:
        _write_out(graph_module, call)
    if calls:
        graph_module.recompile()


def _write_out(graph_module: GraphModule, call: Node) -> None:
    attribute, _, *operands = call.args
    assert isinstance(attribute, Node)
    region = graph_module.get_submodule(str(attribute.target))
    assert isinstance(region, GraphModule)
    inline_regions(region)
    inputs = region.graph.find_nodes(op="placeholder")
    known: dict[Node, Any] = dict(zip(inputs, operands, strict=True))
    memory = _Memory()
    for given, operand in known.items():
        memory.stands_for(given.meta.get("example_value"), operand.meta.get("example_value"))
    written: list[Node] = []
    try:
        for node in (n for n in region.graph.nodes if n.op not in ("placeholder", "output")):
            with graph_module.graph.inserting_before(call):
                known[node] = graph_module.graph.node_copy(node, known.__getitem__)
            written.append(known[node])
            known[node].meta["example_value"] = memory.twin(node.meta.get("example_value"))
            if node.op == "get_attr":
                known[node].target = _hoist(graph_module, region, str(attribute.target), str(node.target))
    except Exception:  # beside the call, effects of its half would happen twice
        for node in reversed(written):
            graph_module.graph.erase_node(node)
        raise
    results: Any = region.graph.output_node().args[0]
    for part in list(call.users):  # operator.getitem, all of them
        part.replace_all_uses_with(known[results[part.args[1]]])
        graph_module.graph.erase_node(part)
    graph_module.graph.erase_node(call)
    if not attribute.users:
        graph_module.graph.erase_node(attribute)


def _hoist(graph_module: GraphModule, region: GraphModule, prefix: str, name: str) -> str:
    """Have the outer module hold what the region's module does; all calls of a region share it."""
    hoisted = f"{prefix}_{name}"
    if not hasattr(graph_module, hoisted):
        setattr(graph_module, hoisted, getattr(region, name))
    return hoisted


class _Memory:
    """Which storage of the outer graph takes the place of each storage of a region's graph."""

    def __init__(self) -> None:
        # storage -> a tensor in the other, and how many elements further there
        self._places: dict[int, tuple[Tensor, int | torch.SymInt]] = {}

    def stands_for(self, inner: Any, outer: Any) -> None:
        """`outer` is what a region calls `inner`, its input."""
        if isinstance(inner, Tensor) and isinstance(outer, Tensor):
            apart = outer.storage_offset() - inner.storage_offset()
            self._places.setdefault(inner.untyped_storage()._cdata, (outer, apart))

    def twin(self, value: Any) -> Any:
        """A value like that of a region's node, sharing memory with what the node's shares memory with."""
        return map_aggregate(value, lambda item: self._twin(item) if isinstance(item, Tensor) else item)

    def _twin(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        with getattr(value, "fake_mode", None) or nullcontext(), torch.no_grad():
            if storage._cdata not in self._places:
                elements = storage.nbytes() // value.element_size()
                whole = torch.empty(elements, dtype=value.dtype, device=value.device)
                self._places[storage._cdata] = whole, 0
            base, apart = self._places[storage._cdata]
            return base.as_strided(value.shape, value.stride(), value.storage_offset() + apart)
