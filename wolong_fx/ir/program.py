"""Programs: operator instances in stages, stages in loops, buffers in one arena."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod

from wolong_fx.ir.expr import Access, Expr, Load, walk
from wolong_fx.ir.index import Var
from wolong_fx.ir.types import Buffer


@dataclass(frozen=True)
class Dim:
    """One dimension of an operator's domain.

    A parallel dimension's points are independent. A sequential one is run in order by one virtual block, so
    that a point may read what an earlier one stored (scatter-add, scans).
    """

    var: Var
    sequential: bool = False

    @property
    def extent(self) -> int:
        return self.var.extent


@dataclass(frozen=True, eq=False)
class Store:
    """`access = value`, or with `accumulate` "add", "mul", "max" or "min": combined with what is there."""

    access: Access
    value: Expr
    accumulate: str | None = None


@dataclass(frozen=True, eq=False)
class OpInst:
    """A tile program over a domain: at every point, its stores in order.

    dims: outermost first; the last one is the lane (vector) dimension, the one before it the row dimension
    tile: points of each dimension that one virtual block takes; () before scheduling; the whole extent of a
        sequential
          dimension
    made_from: names of the FX nodes it computes
    """

    name: str
    dims: tuple[Dim, ...]
    stores: tuple[Store, ...]
    tile: tuple[int, ...] = ()
    made_from: tuple[str, ...] = ()

    @property
    def domain(self) -> tuple[int, ...]:
        return tuple(d.extent for d in self.dims)

    @property
    def points(self) -> int:
        return prod(self.domain)

    @property
    def grid(self) -> tuple[int, ...]:
        """Virtual blocks along each dimension."""
        return tuple(ceil(n / t) if t else 0 for n, t in zip(self.domain, self.tile, strict=True))

    @property
    def virtual_blocks(self) -> int:
        return prod(self.grid)

    def expressions(self) -> tuple[Expr, ...]:
        """Every expression node once, operands first: stored values and gathered store coordinates."""
        return self._expressions

    @cached_property
    def _expressions(self) -> tuple[Expr, ...]:
        roots = [s.value for s in self.stores]
        roots += [g.value for s in self.stores for g in s.access.gathers]
        return tuple(walk(roots))

    def loads(self) -> list[Load]:
        return [e for e in self._expressions if isinstance(e, Load)]

    def reads(self) -> tuple[Buffer, ...]:
        """Buffers read, each once; an accumulating store reads too."""
        return self._reads

    @cached_property
    def _reads(self) -> tuple[Buffer, ...]:
        found = [e.access.buffer for e in self.loads()]
        found += [s.access.buffer for s in self.stores if s.accumulate]
        return tuple(dict.fromkeys(found))

    def writes(self) -> tuple[Buffer, ...]:
        return self._writes

    @cached_property
    def _writes(self) -> tuple[Buffer, ...]:
        return tuple(dict.fromkeys(s.access.buffer for s in self.stores))


@dataclass(frozen=True, eq=False)
class Stage:
    """Independent operator instances whose virtual blocks run side by side; then a barrier, unless it orders
    nothing.
    """

    ops: tuple[OpInst, ...]
    barrier: bool = True


@dataclass(frozen=True, eq=False)
class Loop:
    """A body run `var.extent` times; `var` may stand in the body's indices. Every trip ends with its last
    stage's barrier.
    """

    var: Var
    body: tuple[Item, ...]


Item = Stage | Loop


@dataclass(frozen=True)
class ArenaPlan:
    """Byte offset of every TEMPORARY buffer in the arena, and the arena's size."""

    offsets: Mapping[Buffer, int]
    size: int


@dataclass(frozen=True, eq=False)
class Program:
    """A whole kernel.

    buffers: inputs and outputs in calling order, then constants and temporaries
    arena: None before memory planning
    """

    name: str
    buffers: tuple[Buffer, ...]
    body: tuple[Item, ...]
    arena: ArenaPlan | None = field(default=None)

    def stages(self) -> Iterator[Stage]:
        """Every stage once, in program order, loops entered once."""
        yield from _stages(self.body)

    def ops(self) -> Iterator[OpInst]:
        for stage in self.stages():
            yield from stage.ops


def _stages(body: tuple[Item, ...]) -> Iterator[Stage]:
    for item in body:
        if isinstance(item, Stage):
            yield item
        else:
            yield from _stages(item.body)
