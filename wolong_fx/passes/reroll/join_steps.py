"""Putting steps together: results of scans where there are such, views of what was read, else stacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.fx import Node

from wolong_fx.passes.reroll.builder import Builder, aten
from wolong_fx.passes.reroll.find_joins import Join, Piece, Places, Run
from wolong_fx.passes.reroll.graph_arrays import GraphArrays, value_of
from wolong_fx.passes.reroll.loop import Loop
from wolong_fx.passes.reroll.readings import Part, Stride, read_along
from wolong_fx.passes.reroll.step_numbers import emit_numbers, is_number_tensor

Series = Callable[[Loop, int], Node]  # the scan's result of a row, steps in front


class StepJoiner:
    """Joins nodes of the old graph in the new one.

    node_of: the new graph's node for one of the old
    series: the result of a scan that holds all steps of a row
    """

    def __init__(
        self,
        builder: Builder,
        arrays: GraphArrays,
        places: Places,
        node_of: Callable[[int], Node],
        series: Series,
    ) -> None:
        self._builder = builder
        self._arrays = arrays
        self._places = places
        self._node_of = node_of
        self._series = series
        self._known: dict[object, Node] = {}

    def steps_in_front(self, nodes: Sequence[int]) -> Node:
        """A tensor with the value of nodes[t] at [t]: where the steps read one tensor, a view of it."""
        stride = read_along([self._arrays.nodes[node] for node in nodes])
        if stride is not None and _is_view(stride):
            if stride not in self._known:
                source = self._arrays.nodes.index(stride.first.source)
                self._known[stride] = _emit_stride(self._builder, stride, self._node_of(source))
            return self._known[stride]
        key = tuple(nodes)
        if key not in self._known:
            originals = [self._arrays.nodes[node] for node in nodes]
            self._known[key] = (
                emit_numbers(self._builder, originals)
                if all(map(is_number_tensor, originals))
                else self._put_together(nodes, 0, is_stack=True)
            )
        return self._known[key]

    def join(self, join: Join, nodes: Sequence[int]) -> Node:
        """The value of a stack or concat of the old graph; contiguous, as torch makes it."""
        return self._builder.contiguous(self._put_together(nodes, join.dim, is_stack=join.is_stack))

    def _put_together(self, nodes: Sequence[int], dim: int, *, is_stack: bool) -> Node:
        pieces = [self._emit_piece(piece, dim, is_stack) for piece in self._places.find_pieces(nodes)]
        return pieces[0] if len(pieces) == 1 else self._builder.call(aten.cat.default, pieces, dim)

    def _emit_piece(self, piece: Piece, dim: int, is_stack: bool) -> Node:
        if isinstance(piece, Run):
            moved = self._builder.with_dim_at(self._emit_run(piece), 0, dim)
            return moved if is_stack else self._builder.merge_dims(moved, dim)
        nodes = [self._node_of(node) for node in piece]
        if not is_stack:
            return nodes[0] if len(nodes) == 1 else self._builder.call(aten.cat.default, nodes, dim)
        return self._builder.call(aten.stack.default, nodes, dim)

    def _emit_run(self, run: Run) -> Node:
        first = run.first if run.distance > 0 else run.first - run.steps + 1
        series = _emit_slice(self._builder, self._series(run.loop, run.row), 0, first, run.steps)
        return self._builder.call(aten.flip.default, series, [0]) if run.distance < 0 else series


def is_cheap(arrays: GraphArrays, places: Places, nodes: Sequence[int]) -> bool:
    """True when `steps_in_front` of these nodes is a view, numbers, or a copy made by one operator."""
    if all(is_number_tensor(arrays.nodes[node]) for node in nodes):
        return True
    stride = read_along([arrays.nodes[node] for node in nodes])
    if stride is not None and _is_view(stride):
        return True
    return nodes[0] in places and len(places.find_pieces(nodes)) == 1


def _is_view(stride: Stride) -> bool:
    """Rows, at any distance; or slices that lie end to end."""
    return stride.part.is_row or abs(stride.distance) == stride.part.size


def _emit_stride(builder: Builder, stride: Stride, source: Node) -> Node:
    part, distance = stride.part, abs(stride.distance)
    lowest = part.start + min(0, (stride.steps - 1) * stride.distance)
    span = (stride.steps - 1) * distance + part.size
    whole = _emit_slice(builder, source, stride.dim, lowest, span, 1 if not part.is_row else distance)
    if not part.is_row:
        shape = list(value_of(whole).shape)
        shape[stride.dim : stride.dim + 1] = [stride.steps, part.size]
        whole = builder.call(aten.view.default, whole, shape)
    if stride.distance < 0:
        whole = builder.call(aten.flip.default, whole, [stride.dim])
    in_front = builder.with_dim_at(whole, stride.dim, 0)
    return _read_others(builder, in_front, stride)


def _read_others(builder: Builder, whole: Node, stride: Stride) -> Node:
    """The parts of the dimensions that do not move, the last first: a row takes its dimension away."""
    for dim, part in sorted(stride.first.parts, reverse=True):
        if dim == stride.dim:
            continue
        # The moving dimension stands in front now; where it was, a slice has left one of its own.
        at = dim + 1 if dim < stride.dim or not stride.part.is_row else dim
        whole = _emit_part(builder, whole, at, part)
    return whole


def _emit_part(builder: Builder, whole: Node, dim: int, part: Part) -> Node:
    if part.is_row:
        return builder.call(aten.select.int, whole, dim, part.start)
    return _emit_slice(builder, whole, dim, part.start, part.size)


def _emit_slice(builder: Builder, whole: Node, dim: int, start: int, size: int, step: int = 1) -> Node:
    if start == 0 and size == value_of(whole).shape[dim] and step == 1:
        return whole
    return builder.call(aten.slice.Tensor, whole, dim, start, start + size, step)
