"""Which elements an operator touches: intervals of index expressions, and boxes of them.

Intervals are inclusive and safe: every value an index takes lies inside. A bound is an int, or an array when
the index was taken at several trips of a loop, or for several virtual blocks, at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np

from wolong_fx.ir.expr import Access, Expr, Load
from wolong_fx.ir.index import Atom, Index, Quotient, Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer

Bound = int | np.ndarray
Interval = tuple[Bound, Bound]
Ranges = Mapping[Var, Interval]


@dataclass(frozen=True, eq=False)
class Touch:
    """A load or store of an operator. A filled load touches only what lies inside the buffer's shape."""

    op: OpInst
    access: Access
    writes: bool
    filled: bool = False

    @property
    def buffer(self) -> Buffer:
        return self.access.buffer

    @cached_property
    def variables(self) -> frozenset[Var]:
        return frozenset().union(*(i.variables() for i in self.access.affine))

    def interval(self, dim: int, ranges: Ranges) -> Interval:
        """Where coordinate `dim` lies; variables without a range take all their values.

        A dimension of stride 0 tells no elements apart: its coordinate counts as 0.
        """
        index, extent = self.access.index[dim], self.buffer.shape[dim]
        if not self.buffer.strides[dim]:
            return 0, 0
        if not isinstance(index, Index):
            return 0, extent - 1
        low, high = interval(index, ranges)
        if not self.filled:
            return low, high
        if isinstance(low, int) and isinstance(high, int):
            return min(max(low, 0), extent), min(max(high, -1), extent - 1)
        return np.clip(low, 0, extent), np.clip(high, -1, extent - 1)

    def box(self, ranges: Ranges) -> tuple[Interval, ...]:
        """Intervals of all coordinates."""
        return tuple(self.interval(d, ranges) for d in range(len(self.access.index)))

    def hull(self, ranges: Ranges) -> Interval:
        """Interval of element offsets from the buffer's first element."""
        low: Bound = 0
        high: Bound = 0
        for dim, stride in enumerate(self.buffer.strides):
            first, last = self.interval(dim, ranges)
            low, high = low + first * stride, high + last * stride
        return low, high

    def __str__(self) -> str:
        return f"{'store' if self.writes else 'load'} of {self.buffer.name!r} in {self.op.name!r}"


def touches_of(op: OpInst, expressions: Iterable[Expr] | None = None) -> list[Touch]:
    """Every access of an operator once; an accumulating store counts as a store. None for an empty domain."""
    if not op.points:
        return []
    nodes = op.expressions() if expressions is None else expressions
    found = [Touch(op, e.access, False, e.fill is not None) for e in nodes if isinstance(e, Load)]
    return found + [Touch(op, s.access, True) for s in op.stores]


def interval(index: Index, ranges: Ranges) -> Interval:
    """Smallest and largest value of an index whose variables lie in `ranges` (absent: all their values)."""
    if not ranges or index.variables().isdisjoint(ranges):
        return index.bounds()
    low: Bound = index.constant
    high: Bound = index.constant
    for atom, factor in index.terms:
        first, last = _atom_interval(atom, ranges)
        if factor < 0:
            first, last = last, first
        low, high = low + first * factor, high + last * factor
    return low, high


def _atom_interval(atom: Atom, ranges: Ranges) -> Interval:
    if isinstance(atom, Var):
        return ranges[atom] if atom in ranges else (0, max(atom.extent - 1, 0))
    low, high = interval(atom.of, ranges)
    first, last = low // atom.by, high // atom.by
    if isinstance(atom, Quotient):
        return first, last
    # With no multiple of `by` between them the remainder does not wrap.
    if isinstance(low, int) and isinstance(high, int):
        return (low % atom.by, high % atom.by) if first == last else (0, atom.by - 1)
    within = np.equal(first, last)
    return np.where(within, low % atom.by, 0), np.where(within, high % atom.by, atom.by - 1)


def boxes_are_apart(a: Iterable[Interval], b: Iterable[Interval]) -> Any:
    """Whether two boxes of one buffer share no element: apart in some dimension, at every trip."""
    apart: Any = False
    for (low_a, high_a), (low_b, high_b) in zip(a, b, strict=True):
        here = (high_a < low_b) | (high_b < low_a)
        if here is True or (isinstance(here, np.bool_) and here):
            return True
        apart = apart | here
    return bool(np.all(apart))


def residues_are_apart(a: Access, b: Access) -> bool:
    """Whether some coordinate of two accesses differs modulo what divides all its factors (even and odd
    columns).
    """
    for x, y, stride in zip(a.index, b.index, a.buffer.strides, strict=True):
        if stride and isinstance(x, Index) and isinstance(y, Index):
            step = gcd(*(c for _, c in x.terms), *(c for _, c in y.terms))
            if (x.constant - y.constant) % step if step else x.constant != y.constant:
                return True
    return False


def separates(index: Index, var: Var) -> bool:
    """Whether equal values of `index` need equal values of `var`, whatever its other variables are."""
    factor = abs(index.coefficient(var))
    if not factor or index.uses_nested(var):
        return False
    low, high = index.bounds()
    rest = (high - low) - factor * (var.extent - 1)
    return factor > rest


def is_injective(offset: Index, variables: Iterable[Var]) -> bool:
    """Whether an offset tells `variables` whatever else is in it: the factors of its atoms nest like digits.

    A quotient or remainder is a digit like a variable; what it is made of is not told.
    """
    low_and_high = {atom: Index(0, ((atom, 1),)).bounds() for atom, _ in offset.terms}
    reach = 0
    for atom, factor in sorted(offset.terms, key=lambda term: abs(term[1])):
        if abs(factor) <= reach:
            return False
        low, high = low_and_high[atom]
        reach += abs(factor) * (high - low)
    return all(v in low_and_high or v.extent <= 1 for v in variables)
