"""`out[t] = h` at every step, into a tensor made for it, becomes a stack of what was written.

The common way to collect the states of a recurrence is an effect, and a graph with effects is not searched
for loops. The rewrite is exact where the tensor is made in the graph, each of its rows is written once at
most, and nothing looks at it before the last write but at rows that stay as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from wolong_fx.passes.reroll.builder import Builder, aten, find_fake_mode, storage_of
from wolong_fx.passes.reroll.purity import call_name
from wolong_fx.passes.reroll.readings import Part, find_reading, reading_of_index, value_of

_UNSET = {"empty", "new_empty", "empty_like"}
_MAKERS = _UNSET | {"zeros", "new_zeros", "zeros_like", "ones", "new_ones", "ones_like", "full", "new_full"}


@dataclass(frozen=True)
class _Writes:
    """All writes of `made`, each of one part of dimension `dim`: where a part starts -> (part, its write)."""

    made: Node
    dim: int
    parts: Mapping[int, tuple[Part, Node]]

    @property
    def is_by_row(self) -> bool:
        return all(part.is_row for part, _ in self.parts.values())


def has_writes(graph: Graph) -> bool:
    """Whether anything is assigned to a part of a tensor."""
    return bool(graph.find_nodes(op="call_function", target=operator.setitem, sort=False))


def join_writes(graph: Graph) -> None:
    """Replace all such writes of `graph`, in place; those of which that would not be exact stay.

    Exact if no other effect is left in the graph, which is for the caller to see.
    """
    if not has_writes(graph):
        return
    order = {node: place for place, node in enumerate(graph.nodes)}
    key = "val" if any("val" in node.meta for node in graph.nodes) else "example_value"
    builder = Builder(graph, key, find_fake_mode(graph))
    for made in [node for node in graph.nodes if _is_made_here(node)]:
        writes = _find_writes(made)
        if writes is not None and _can_join(writes, order):
            _join(writes, order, builder)


def _is_made_here(node: Node) -> bool:
    is_call = node.op in ("call_function", "call_method") and call_name(node) in _MAKERS
    value = value_of(node)
    if not is_call or {"out", "requires_grad"} & node.kwargs.keys() or not isinstance(value, torch.Tensor):
        return False
    return value.layout is torch.strided and value.is_contiguous()


def _find_writes(made: Node) -> _Writes | None:
    """The writes of `made`; None where there are none, or one that is not of a part of its own."""
    parts: dict[int, tuple[Part, Node]] = {}
    dims = set[int]()
    for write in made.users:
        if write.target is operator.setitem and write.args[0] is made:
            found = _find_part(write)
            if found is None or found[1].start in parts:
                return None
            dims.add(found[0])
            parts[found[1].start] = found[1], write
    if len(dims) != 1 or len({part.is_row for part, _ in parts.values()}) != 1:
        return None
    writes = _Writes(made, dims.pop(), dict(sorted(parts.items())))
    return writes if _are_apart(writes) else None


def _find_part(write: Node) -> tuple[int, Part] | None:
    """The dimension and part that a write replaces as a whole, by a tensor of just that shape and type."""
    made, index, value = tuple[Any, ...](write.args)
    reading = reading_of_index(made, index)
    if reading is None or len(reading.parts) != 1 or not isinstance(value, Node) or value is made:
        return None
    (dim, part), target, given = reading.parts[0], value_of(made), value_of(value)
    if not isinstance(given, torch.Tensor) or (given.dtype, given.device) != (target.dtype, target.device):
        return None
    shape = list(target.shape)
    shape[dim : dim + 1] = [] if part.is_row else [part.size]
    return (dim, part) if list(given.shape) == shape else None


def _are_apart(writes: _Writes) -> bool:
    end = 0
    for part, _ in writes.parts.values():
        if part.start < end or not part.size:
            return False
        end = part.start + part.size
    return True


def _can_join(writes: _Writes, order: Mapping[Node, int]) -> bool:
    gaps = sum(1 for _ in _find_gaps(writes))
    if gaps and (call_name(writes.made) in _UNSET or gaps > len(writes.parts)):
        return False
    return all(_is_safe(reader, writes, order) for reader in _early_readers(writes, order))


def _early_readers(writes: _Writes, order: Mapping[Node, int]) -> list[Node]:
    """Who looks at the tensor before its last write."""
    last = max(order[write] for _, write in writes.parts.values())
    own = {write for _, write in writes.parts.values()}
    return [user for user in writes.made.users if user not in own and order[user] < last]


def _is_safe(reader: Node, writes: _Writes, order: Mapping[Node, int]) -> bool:
    """Whether it reads one part that has its content already, and no view of that leaves the graph."""
    part = _part_read(reader, writes)
    if part is None or _leaves_as_view(reader):
        return False
    if part.start not in writes.parts:
        return not any(_overlap(part, written) for written, _ in writes.parts.values())
    written, write = writes.parts[part.start]
    is_there = written == part and order[write] < order[reader]
    return is_there and value_of(_written(writes, part.start)).is_contiguous()


def _overlap(one: Part, other: Part) -> bool:
    return one.start < other.start + other.size and other.start < one.start + one.size


def _part_read(reader: Node, writes: _Writes) -> Part | None:
    reading = find_reading(reader)
    if reading is None or reading.source is not writes.made or len(reading.parts) != 1:
        return None
    dim, part = reading.parts[0]
    return part if dim == writes.dim else None


def _leaves_as_view(node: Node) -> bool:
    """Whether the graph returns the node's memory by way of the node."""
    memory, waiting, seen = storage_of(value_of(node)), [node], {node}
    while waiting:
        for user in waiting.pop().users:
            if user.op == "output":
                return True
            value = value_of(user)
            items = value if isinstance(value, tuple | list) else (value,)
            shares = any(isinstance(v, torch.Tensor) and storage_of(v) == memory for v in items)
            if shares and user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


def _find_gaps(writes: _Writes) -> Iterator[Part]:
    """What no write replaces; row by row where writes go by rows."""
    end = 0
    size = value_of(writes.made).shape[writes.dim]
    for start in (*writes.parts, size):
        if writes.is_by_row:
            yield from (Part(row, 1, is_row=True) for row in range(end, start))
        elif end < start:
            yield Part(end, start - end, is_row=False)
        end = start + (writes.parts[start][0].size if start in writes.parts else 0)


def _join(writes: _Writes, order: Mapping[Node, int], builder: Builder) -> None:
    made, early = writes.made, _early_readers(writes, order)
    own = [write for _, write in writes.parts.values()]
    late = [user for user in made.users if user not in early and user not in own]
    with builder.graph.inserting_before(max(own, key=order.__getitem__).next):
        joined = _call_join(writes, builder)
    for user in late:
        user.replace_input_with(made, joined)
    for reader in early:
        part = _part_read(reader, writes)
        if part is not None and part.start in writes.parts:
            reader.replace_all_uses_with(_written(writes, part.start))
            builder.graph.erase_node(reader)
    for write in own:
        builder.graph.erase_node(write)


def _call_join(writes: _Writes, builder: Builder) -> Node:
    last = list(writes.parts.values())[-1][1]
    builder.meta = {key: last.meta[key] for key in ("stack_trace", "nn_module_stack") if key in last.meta}
    pieces = {start: _written(writes, start) for start in writes.parts}
    for gap in _find_gaps(writes):
        where = (writes.dim, gap.start) if gap.is_row else (writes.dim, gap.start, gap.start + gap.size)
        cut = aten.select.int if gap.is_row else aten.slice.Tensor
        pieces[gap.start] = builder.call(cut, writes.made, *where)
    join = aten.stack.default if writes.is_by_row else aten.cat.default
    return builder.call(join, [pieces[start] for start in sorted(pieces)], writes.dim)


def _written(writes: _Writes, start: int) -> Node:
    """What the write of the part from `start` puts there."""
    value = writes.parts[start][1].args[2]
    assert isinstance(value, Node)
    return value
