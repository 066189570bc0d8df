"""Runs virtual blocks of one operator: all points of a block at once, an axis for every variable.

A value is a tensor with one axis for each dimension of the domain and one for each nesting level of Reduce
variables; it has extent 1 along axes that it does not depend on. So every node of the expression DAG is
computed once a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from string import ascii_letters
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wolong_fx.codegen.reference import arithmetic
from wolong_fx.codegen.reference.memory import Memory
from wolong_fx.errors import KernelCheckFailed, ProgramFault
from wolong_fx.ir.expr import (
    Access,
    Binary,
    Cast,
    Const,
    Expr,
    Gather,
    IndexValue,
    Load,
    Reduce,
    Unary,
    Where,
)
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import OpInst, Program, Store

PIECE = 1 << 22
"""Elements of the largest intermediate that is worth materialising; bigger blocks are run in pieces."""

SMALL_DOT = 1 << 13
"""Products up to which a dot is not worth a call of a matrix multiplication."""

Positions = Mapping[Var, Any]
Range = tuple[int, int]


class OperatorRun:
    """One operator, prepared to run any of its virtual blocks."""

    def __init__(self, program: Program, op: OpInst, memory: Memory) -> None:
        self.program = program
        self.op = op
        self.memory = memory
        self.nodes = list(op.expressions())
        self.reduce_axes, axes = _axes_of_reductions(self.nodes, len(op.dims))
        self.rank = max(axes, 1)  # numpy turns arrays without axes into scalars
        self.dots = {id(n): n for n in self.nodes if _is_dot(n)}
        self.computed = _needed(op, self.nodes, self.dots)
        self.ranges = {v: self._along(a, np.arange(v.extent)) for v, a in self.reduce_axes.items()}
        self.tile = op.tile or op.domain
        self.grid = tuple(-(-n // t) if t else 0 for n, t in zip(op.domain, self.tile, strict=True))

    @property
    def virtual_blocks(self) -> int:
        return prod(self.grid)

    def run_block(self, block: int, loops: Positions) -> None:
        """Run the virtual block with this row-major number; `loops` holds the enclosing loops' variables."""
        corner = np.unravel_index(block, self.grid) if self.grid else ()
        ranges = [
            (int(c) * t, min(int(c) * t + t, n))
            for c, t, n in zip(corner, self.tile, self.op.domain, strict=True)
        ]
        for piece in self._pieces(ranges):
            self._run_points(piece, loops)

    def _pieces(self, block: list[Range]) -> Iterator[list[Range]]:
        """The block cut into boxes: single points along sequential dimensions, in order, and bounded
        elsewhere.
        """
        heaviest = max((prod(v.extent for v in n.over) for n in self._plain_reductions()), default=1)
        steps = [
            1 if d.sequential else high - low for d, (low, high) in zip(self.op.dims, block, strict=True)
        ]
        while prod(steps) * heaviest > PIECE and max(steps) > 1:
            longest = steps.index(max(steps))
            steps[longest] = -(-steps[longest] // 2)
        ordered = sorted(range(len(steps)), key=lambda axis: not self.op.dims[axis].sequential)
        for starts in product(*(range(*block[axis], max(steps[axis], 1)) for axis in ordered)):
            at = dict(zip(ordered, starts, strict=True))
            yield [(at[a], min(at[a] + steps[a], block[a][1])) for a in range(len(steps))]

    def _plain_reductions(self) -> list[Reduce]:
        return [n for n in self.nodes if isinstance(n, Reduce) and id(n) not in self.dots]

    def _run_points(self, box: list[Range], loops: Positions) -> None:
        at: dict[Var, Any] = {**loops, **self.ranges}
        for axis, (dim, span) in enumerate(zip(self.op.dims, box, strict=True)):
            at[dim.var] = self._along(axis, np.arange(*span))
        shape = [high - low for low, high in box] + [1] * (self.rank - len(box))
        values: dict[int, Tensor] = {}
        for node in self.computed:
            values[id(node)] = self._value(node, values, at)
        # All places and values are settled before the first store happens: loads see what was there before.
        settled = [(s, self._offset(s.access, values, at), values[id(s.value)]) for s in self.op.stores]
        for store, offset, value in settled:
            self._store(store, np.broadcast_to(offset, shape), value.expand(shape))

    def _along(self, axis: int, values: np.ndarray) -> np.ndarray:
        shape = [1] * self.rank
        shape[axis] = values.size
        return values.reshape(shape)

    def _value(self, node: Expr, values: Mapping[int, Tensor], at: Positions) -> Tensor:
        args = [values.get(id(a)) for a in node.args]
        match node:
            case Load():
                return self._load(node, values, at)
            case Const(value, kind):
                return torch.full([1] * self.rank, value, dtype=self.memory.dtype(kind))
            case IndexValue(index):
                return torch.from_numpy(self._ranked(index.evaluate(at)))
            case Cast(_, to):
                return args[0].to(self.memory.dtype(to))  # type: ignore[union-attr]
            case Unary(op):
                return arithmetic.unary(op, args[0])  # type: ignore[arg-type]
            case Binary(op):
                return arithmetic.binary(op, args[0], args[1])  # type: ignore[arg-type]
            case Where():
                return torch.where(args[0], args[1], args[2])  # type: ignore[arg-type]
            case Reduce():
                return self._reduce(node, values)
        raise AssertionError(type(node))

    def _reduce(self, node: Reduce, values: Mapping[int, Tensor]) -> Tensor:
        axes = [self.reduce_axes[v] for v in node.over]
        if id(node) in self.dots and isinstance(node.body, Binary):
            a, b = values[id(node.body.a)], values[id(node.body.b)]
            is_large = prod(np.broadcast_shapes(a.shape, b.shape)) > SMALL_DOT
            if is_large and all(a.shape[axis] > 1 and b.shape[axis] > 1 for axis in axes):
                return _dot(a, b, axes)
            body = arithmetic.binary("mul", a, b)
        else:
            body = values[id(node.body)]
        shape = list(body.shape)
        for var, axis in zip(node.over, axes, strict=True):
            shape[axis] = var.extent
        return arithmetic.reduce(node.op, body.expand(shape), axes)

    def _load(self, node: Load, values: Mapping[int, Tensor], at: Positions) -> Tensor:
        storage = self.memory.storages[node.access.buffer]
        if node.fill is None:
            offset = torch.from_numpy(self._offset(node.access, values, at))
            self._check_written(node.access, offset, None)
            return storage.elements[offset]
        coordinates = [self._coordinate(node.access, d, values, at) for d in range(len(node.access.index))]
        inside, offset = self._clipped(node.access, coordinates)
        if not storage.elements.numel():
            return torch.full(inside.shape, node.fill, dtype=storage.elements.dtype)
        self._check_written(node.access, offset, inside)
        return torch.where(
            inside, storage.elements[offset], torch.tensor(node.fill, dtype=storage.elements.dtype)
        )

    def _clipped(self, access: Access, coordinates: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Which points lie inside the buffer, and an offset for every point that is safe to read."""
        inside, offset = self._ranked(True), self._ranked(0)
        buffer = access.buffer
        for at, extent, stride in zip(coordinates, buffer.shape, buffer.strides, strict=True):
            inside = inside & (at >= 0) & (at < extent)
            offset = offset + np.clip(at, 0, max(extent - 1, 0)) * stride
        shape = np.broadcast_shapes(inside.shape, offset.shape)
        return torch.from_numpy(np.broadcast_to(inside, shape).copy()), torch.from_numpy(offset)

    def _offset(self, access: Access, values: Mapping[int, Tensor], at: Positions) -> np.ndarray:
        """Element offsets of an access that must lie inside its buffer."""
        total = self._ranked(0)
        for dim, (extent, stride) in enumerate(zip(access.buffer.shape, access.buffer.strides, strict=True)):
            position = self._coordinate(access, dim, values, at)
            if position.size and (position.min() < 0 or position.max() >= extent):
                raise self._fault(f"went outside dimension {dim}", access)
            total = total + position * stride
        return total

    def _coordinate(
        self, access: Access, dim: int, values: Mapping[int, Tensor], at: Positions
    ) -> np.ndarray:
        index = access.index[dim]
        if isinstance(index, Index):
            return self._ranked(index.evaluate(at))
        return self._gathered(index, access.buffer.shape[dim], values)

    def _gathered(self, gather: Gather, extent: int, values: Mapping[int, Tensor]) -> np.ndarray:
        position = values[id(gather.value)].long().numpy()
        if position.size and (position.min() < 0 or position.max() >= extent):
            raise KernelCheckFailed(message=gather.check, kernel=self.program.name)
        return position

    def _ranked(self, value: Any) -> np.ndarray:
        array = np.asarray(value)
        return array if array.ndim == self.rank else array.reshape([1] * self.rank)

    def _check_written(self, access: Access, offset: Tensor, inside: Tensor | None) -> None:
        storage = self.memory.storages[access.buffer]
        if storage.writer is None:
            return
        written = storage.writer[offset] == storage.mark
        if inside is not None:
            written = written | ~inside
        if not written.all():
            raise self._fault("read an element that nobody wrote or another buffer overwrote", access)

    def _store(self, store: Store, offset: np.ndarray, value: Tensor) -> None:
        storage = self.memory.storages[store.access.buffer]
        if not _is_injective(offset):
            raise self._fault("stored twice to one element from points that are parallel", store.access)
        at = torch.from_numpy(np.array(offset))
        if store.accumulate:
            self._check_written(store.access, at, None)
            arithmetic.accumulate(store.accumulate, storage.elements, at, value)
        else:
            storage.elements[at] = value
        if storage.writer is not None:
            storage.writer[at] = storage.mark

    def _fault(self, fault: str, access: Access) -> ProgramFault:
        where = f"operator {self.op.name!r}, buffer {access.buffer.name!r}"
        return ProgramFault(program=self.program.name, fault=fault, where=where)


def _axes_of_reductions(nodes: list[Expr], first: int) -> tuple[dict[Var, int], int]:
    """An axis for every Reduce variable, reused by reductions that are not nested; and the number of axes."""
    depth: dict[int, int] = {}
    axes: dict[Var, int] = {}
    for node in nodes:
        depth[id(node)] = max((depth[id(a)] for a in node.args), default=first)
        if isinstance(node, Reduce):
            for var in node.over:
                axes[var] = depth[id(node)]
                depth[id(node)] += 1
    return axes, max(depth.values(), default=first)


def _is_dot(node: Expr) -> bool:
    return (
        isinstance(node, Reduce)
        and node.op == "sum"
        and isinstance(node.body, Binary)
        and node.body.op == "mul"
        and node.dtype.is_float
        and node.dtype.compute is node.dtype
    )


def _needed(op: OpInst, nodes: list[Expr], dots: Mapping[int, Expr]) -> list[Expr]:
    """Nodes to compute, in order: products that only dots consume are left to the dots."""
    needed = {id(s.value) for s in op.stores} | {id(g.value) for s in op.stores for g in s.access.gathers}
    for node in reversed(nodes):
        args = node.args[0].args if id(node) in dots else node.args
        if id(node) in needed:
            needed.update(id(a) for a in args)
    return [n for n in nodes if id(n) in needed]


def _dot(a: Tensor, b: Tensor, axes: list[int]) -> Tensor:
    """Sum of a*b over `axes`, by the matrix multiplication that torch finds in it."""
    letters = ascii_letters[: a.ndim]
    of_a = [x for x, n in enumerate(a.shape) if n != 1]
    of_b = [x for x, n in enumerate(b.shape) if n != 1]
    kept = [x for x in range(a.ndim) if x not in axes and (x in of_a or x in of_b)]
    spelled = ["".join(letters[x] for x in some) for some in (of_a, of_b, kept)]
    result = torch.einsum(f"{spelled[0]},{spelled[1]}->{spelled[2]}", a.squeeze(), b.squeeze())
    return result.reshape(
        [(a.shape[x] if x in of_a else b.shape[x]) if x in kept else 1 for x in range(a.ndim)]
    )


def _is_injective(offset: np.ndarray) -> bool:
    flat = offset.reshape(-1)
    return bool((flat[1:] > flat[:-1]).all()) or np.unique(flat).size == flat.size
