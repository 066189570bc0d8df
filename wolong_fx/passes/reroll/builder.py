"""Writing calls into the new graph, each with its fake value."""

from __future__ import annotations

import operator
from contextlib import nullcontext
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from wolong_fx.passes.reroll.readings import value_of
from wolong_fx.passes.values import same_strides

aten = torch.ops.aten


class Builder:
    """Appends ATen calls to `graph`.

    value_key: "val" in an ATen graph, "example_value" in Dynamo's
    fake_mode: the mode of the graph's fake tensors
    """

    def __init__(self, graph: Graph, value_key: str, fake_mode: Any) -> None:
        self.graph = graph
        self.value_key = value_key
        self._fake_mode = fake_mode
        self.meta: dict[str, Any] = {}

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """An operator call, computed on fake values."""
        node = self.graph.call_function(target, args, kwargs)
        values = map_aggregate((args, kwargs), lambda a: value_of(a) if isinstance(a, Node) else a)
        with self._fake_mode or nullcontext(), torch.no_grad():
            value = target(*values[0], **values[1])  # type: ignore[index, misc]
        return self.with_value(node, value)

    def part(self, node: Node, index: int) -> Node:
        """One result of a call that has several."""
        return self.with_value(
            self.graph.call_function(operator.getitem, (node, index)), value_of(node)[index]
        )

    def with_value(self, node: Node, value: Any) -> Node:
        """The node with that value, and the provenance of what is being replaced."""
        node.meta = self.meta | {self.value_key: value}
        return node

    def stacked_value(self, value: torch.Tensor, steps: int) -> torch.Tensor:
        """A contiguous tensor of `steps` such values, in fake."""
        with self._fake_mode or nullcontext():
            return torch.empty((steps, *value.shape), dtype=value.dtype, device=value.device)

    def own_value(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor of the same layout in memory of its own, in fake."""
        with self._fake_mode or nullcontext():
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)

    def first_of(self, value: torch.Tensor) -> torch.Tensor:
        """What a step of a scan gets of such an input."""
        with self._fake_mode or nullcontext(), torch.no_grad():
            return value.select(0, 0)

    def with_dim_at(self, node: Node, source: int, target: int) -> Node:
        """The tensor with dimension `source` moved to `target`: a view."""
        if source == target:
            return node
        dims = [d for d in range(value_of(node).dim()) if d != source]
        dims.insert(target, source)
        return self.call(aten.permute.default, node, dims)

    def contiguous(self, node: Node) -> Node:
        """The tensor in rows; copied only where it is not."""
        if value_of(node).is_contiguous():
            return node
        return self.call(aten.clone.default, node, memory_format=torch.contiguous_format)

    def with_strides(self, node: Node, like: torch.Tensor) -> Node:
        """The value with the strides of another, gaps included; copied only where it has others.

        A library's MatMul rounds a transposed operand otherwise than a contiguous one.
        """
        if same_strides(like, value_of(node)):
            return node
        meta = {"dtype": like.dtype, "device": like.device}
        empty = self.call(aten.empty_strided.default, list(like.shape), list(like.stride()), **meta)
        return self.call(aten.copy.default, empty, node)

    def merge_dims(self, node: Node, dim: int) -> Node:
        """Dimensions `dim` and `dim + 1` as one."""
        shape = list(value_of(node).shape)
        merged = [*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :]]
        return self.call(aten.view.default, self.contiguous(node), merged)


def find_fake_mode(graph: Graph) -> Any:
    """The mode of the first fake tensor of a graph; None if it has none."""
    for node in graph.nodes:
        value = value_of(node)
        for item in value if isinstance(value, tuple | list) else (value,):
            if (mode := getattr(item, "fake_mode", None)) is not None:
                return mode
    return None


def storage_of(value: torch.Tensor) -> int:
    """Equal for tensors that share memory, fake ones too."""
    return value.untyped_storage()._cdata
