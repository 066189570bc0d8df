"""Readings: a part of one tensor at integers that may move with the step, x[t], x[:, t], x[:, 4*t : 4*t + 4].

Steps that read affine parts of one tensor are one view of it with the steps in front.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from wolong_fx.passes.values import structural_key

aten = torch.ops.aten

# Operator or method -> positions of the arguments that say where it reads.
STEP_NUMBERS: dict[Any, tuple[int, ...]] = {
    **dict.fromkeys((aten.select.int, torch.select, "select"), (2,)),
    aten.slice.Tensor: (2, 3),
    **dict.fromkeys((torch.narrow, "narrow", aten.narrow.default), (2,)),
}
_UNBINDS = {aten.unbind.int, torch.unbind, "unbind"}
_SPLITS = {
    *(aten.split.Tensor, aten.split_with_sizes.default, torch.split, torch.functional.split, "split"),
    *(aten.chunk.default, torch.chunk, "chunk"),
}
DIVISIONS = _UNBINDS | _SPLITS


class Indexed(NamedTuple):
    """An index taken apart: equal templates differ in numbers only."""

    template: object
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Elements from `start` to `start + size - 1` of a dimension; is_row: one, its dimension gone."""

    start: int
    size: int
    is_row: bool


@dataclass(frozen=True)
class Reading:
    """A part of `source` in some of its dimensions: dimension -> Part; the others are whole."""

    source: Node
    parts: tuple[tuple[int, Part], ...]


def value_of(node: Node) -> Any:
    """The fake value of a node of an ATen graph ("val") or of Dynamo's ("example_value")."""
    return node.meta["val"] if "val" in node.meta else node.meta.get("example_value")


def is_step_part(node: Node) -> bool:
    """True of part i of an unbind, split or chunk."""
    if node.target is not operator.getitem or not isinstance(node.args[0], Node):
        return False
    return type(node.args[1]) is int and node.args[0].target in DIVISIONS


def index_numbers(node: Node) -> Indexed | None:
    """The integers of x[index], where index is of integers, slices, None and `...` alone."""
    if node.target is not operator.getitem:
        return None
    source, index = _arguments(node)
    items = index if isinstance(index, tuple) else (index,)
    if not isinstance(value_of(source), torch.Tensor) or not all(map(_is_plain, items)):
        return None
    numbers: list[int] = []
    template = tuple([_index_template(item, numbers) for item in items])
    return Indexed(template, tuple(numbers))


def find_reading(node: Node) -> Reading | None:
    """What part of which tensor the node is; None when it is none, or one that we do not describe."""
    reading = None
    if is_step_part(node):
        reading = _part_of_split(node)
    elif node.target is operator.getitem:
        reading = reading_of_index(*_arguments(node))
    elif node.target in STEP_NUMBERS and node.args and not node.kwargs:
        reading = _reading_of_call(node)
    return reading if reading and _shape_of(reading) == tuple(value_of(node).shape) else None


def _shape_of(reading: Reading) -> tuple[int, ...]:
    sizes: dict[int, int] = dict(enumerate(value_of(reading.source).shape))
    for dim, part in reading.parts:
        sizes[dim] = part.size
    rows = {dim for dim, part in reading.parts if part.is_row}
    return tuple(size for dim, size in sizes.items() if dim not in rows)


def _arguments(node: Node) -> tuple[Any, ...]:
    return tuple(node.args)


def _is_plain(item: object) -> bool:
    if isinstance(item, slice):
        return all(bound is None or type(bound) is int for bound in (item.start, item.stop, item.step))
    return item is None or item is Ellipsis or type(item) is int


def _index_template(item: Any, numbers: list[int]) -> object:
    if type(item) is int:
        numbers.append(item)
        return "at"
    if not isinstance(item, slice):
        return structural_key(item)
    kinds = []
    for bound in (item.start, item.stop):
        kinds.append(bound is not None)
        numbers += [] if bound is None else [bound]
    return ("slice", *kinds, structural_key(item.step))


def _part_of_split(node: Node) -> Reading | None:
    split, index = _arguments(node)
    arguments = _arguments(split)
    if not arguments or not isinstance(value_of(arguments[0]), torch.Tensor):
        return None
    parts, is_row = value_of(split), split.target in _UNBINDS
    given = [*arguments[1 if is_row else 2 :], *(v for k, v in split.kwargs.items() if k == "dim")]
    dim = (given[0] if given else 0) % value_of(arguments[0]).dim()
    index = index % len(parts)
    if is_row:
        return Reading(arguments[0], ((dim, Part(index, 1, is_row)),))
    start = sum([part.shape[dim] for part in parts[:index]])
    return Reading(arguments[0], ((dim, Part(start, parts[index].shape[dim], is_row)),))


def reading_of_index(source: Node, index: Any) -> Reading | None:
    """What x[index] reads, and x[index] = y writes; None for an index of more than integers and slices."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not isinstance(value_of(source), torch.Tensor) or not all(map(_is_plain, items)):
        return None
    shape = value_of(source).shape
    if None in items or items.count(Ellipsis) > 1:
        return None
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    parts = [(dim, _part(item, shape[dim])) for dim, item in enumerate(items)]
    described = tuple((d, p) for d, p in parts if p is not None and (p.is_row or p.size != shape[d]))
    return Reading(source, described) if all(p is not None for _, p in parts) else None


def _part(item: Any, size: int) -> Part | None:
    if isinstance(item, int):
        return Part(item % size, 1, is_row=True)
    start, stop, step = item.indices(size)
    return Part(start, max(stop - start, 0), is_row=False) if step == 1 else None


def _reading_of_call(node: Node) -> Reading | None:
    """select(x, dim, at), narrow(x, dim, start, size) or slice(x, dim, start, end)."""
    source, *numbers = _arguments(node)
    if not all(type(number) is int for number in numbers) or len(numbers) not in (2, 3):
        return None
    shape = value_of(source).shape
    dim = numbers[0] % len(shape)
    if len(numbers) == 2 and node.target is not aten.slice.Tensor:
        part = _part(numbers[1], shape[dim])
    elif node.target is aten.slice.Tensor:
        part = _part(slice(*numbers[1:3]), shape[dim]) if len(numbers) == 3 else None
    else:
        part = Part(numbers[1] % shape[dim], numbers[2], is_row=False)
    return Reading(source, ((dim, part),)) if part else None


def read_along(nodes: Sequence[Node]) -> Stride | None:
    """The one tensor of which every node is a part, and how the parts move by the same distance a step."""
    readings = [find_reading(node) for node in nodes]
    first = readings[0]
    if first is None or any(r is None or r.source is not first.source for r in readings):
        return None
    moving = _moving_dimension(readings)  # type: ignore[arg-type]
    if moving is None:
        return None
    starts = [dict(r.parts)[moving].start for r in readings]  # type: ignore[union-attr]
    stride = starts[1] - starts[0]
    is_affine = all(start == starts[0] + t * stride for t, start in enumerate(starts))
    return Stride(first, moving, stride, len(nodes)) if is_affine else None


@dataclass(frozen=True)
class Stride:
    """`steps` readings that move by `distance` elements of dimension `dim` a step; the first is `first`."""

    first: Reading
    dim: int
    distance: int
    steps: int

    @property
    def part(self) -> Part:
        """The part of the moving dimension that the first step reads."""
        return dict(self.first.parts)[self.dim]


def _moving_dimension(readings: Sequence[Reading]) -> int | None:
    """The one dimension in which the readings differ, and only in where they start."""
    if len({tuple((d, p.size, p.is_row) for d, p in r.parts) for r in readings}) != 1:
        return None
    starts = zip(*([p.start for _, p in r.parts] for r in readings), strict=True)
    moving = [d for (d, _), s in zip(readings[0].parts, starts, strict=True) if len(set(s)) > 1]
    return moving[0] if len(moving) == 1 else None
