"""`x[t, None]` is read as `x[t]`, which may be a step of a loop, and then gets its new dimension."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch.fx import Graph, Node

from wolong_fx.passes.reroll.builder import Builder, aten, find_fake_mode
from wolong_fx.passes.reroll.readings import index_numbers, value_of


def has_new_axes(graph: Graph) -> bool:
    """Whether an index reads at a number and adds a dimension."""
    return any(map(_has_both, _readings(graph)))


def split_new_axes(graph: Graph) -> None:
    """Replace, in place, indices of integers, slices and None by two views, one without and one with None."""
    if not has_new_axes(graph):
        return
    key = "val" if any("val" in node.meta for node in graph.nodes) else "example_value"
    builder = Builder(graph, key, find_fake_mode(graph))
    for node in filter(_has_both, _readings(graph)):
        _split(node, builder)


def _readings(graph: Graph) -> list[Node]:
    return list(graph.find_nodes(op="call_function", target=operator.getitem, sort=False))


def _has_both(node: Node) -> bool:
    index: Any = node.args[1]
    is_tuple = isinstance(index, tuple) and any(type(item) is int for item in index)
    return is_tuple and any(item is None for item in index) and index_numbers(node) is not None


def _split(node: Node, builder: Builder) -> None:
    source: Any
    index: Any
    source, index = node.args
    builder.meta = {k: node.meta[k] for k in ("stack_trace", "nn_module_stack") if k in node.meta}
    with builder.graph.inserting_before(node):
        part = builder.call(operator.getitem, source, tuple([item for item in index if item is not None]))
        for dim in _new_dims(index, value_of(source).dim()):
            part = builder.call(aten.unsqueeze.default, part, dim)
    node.replace_all_uses_with(part)
    builder.graph.erase_node(node)


def _new_dims(index: Sequence[Any], rank: int) -> list[int]:
    """Where the dimensions of size 1 are in the result, in ascending order."""
    dims, place = list[int](), 0
    named = sum(item is not None and item is not Ellipsis for item in index)
    for item in index:
        if item is None:
            dims.append(place)
        place += rank - named if item is Ellipsis else int(item is None or isinstance(item, slice))
    return dims
