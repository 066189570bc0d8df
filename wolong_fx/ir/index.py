"""Integer index expressions: sums of scaled variables, with `//` and `%` by positive constants.

An `Index` is kept in one normal form, so that equal maps are equal objects: a constant plus terms, each a
coefficient times an atom (a variable, a quotient or a remainder). Ranges of the variables are known, which
lets `(4*i + j) // 4` with `j < 4` become `i`: most views leave no division behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any, Union


@dataclass(frozen=True, order=True)
class Var:
    """A loop variable that runs from 0 to `extent` - 1. Two variables of one program differ in name."""

    name: str
    extent: int

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    @property
    def rank(self) -> tuple[int, str]:
        """Where the atom stands among the terms of a sum."""
        return 2, self.name


@dataclass(frozen=True)
class Quotient:
    """`of // by`, rounded down."""

    of: Index
    by: int

    def __str__(self) -> str:
        return f"({self.of})//{self.by}"

    @cached_property
    def rank(self) -> tuple[int, str]:
        """Where the atom stands among the terms of a sum."""
        return 0, str(self)


@dataclass(frozen=True)
class Remainder:
    """`of % by`, never negative."""

    of: Index
    by: int

    def __str__(self) -> str:
        return f"({self.of})%{self.by}"

    @cached_property
    def rank(self) -> tuple[int, str]:
        """Where the atom stands among the terms of a sum."""
        return 1, str(self)


Atom = Var | Quotient | Remainder
IndexLike = Union["Index", Var, int]


@dataclass(frozen=True)
class Index:
    """`constant + sum(coefficient * atom)`; terms are sorted by rank and have no zero coefficient."""

    constant: int = 0
    terms: tuple[tuple[Atom, int], ...] = ()

    @classmethod
    def of(cls, value: IndexLike) -> Index:
        """The index of an int, a variable or an index. A variable of extent 1 is 0."""
        if isinstance(value, Index):
            return value
        if isinstance(value, Var):
            return cls(0, ((value, 1),)) if value.extent != 1 else cls()
        return cls(value)

    @cached_property
    def _hash(self) -> int:
        return hash((self.constant, self.terms))

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: IndexLike) -> Index:
        other = Index.of(other)
        constant = self.constant + other.constant
        if not self.terms or not other.terms:
            return Index(constant, self.terms or other.terms)
        return _sum(constant, (*self.terms, *other.terms))

    __radd__ = __add__

    def __neg__(self) -> Index:
        return self * -1

    def __sub__(self, other: IndexLike) -> Index:
        return self + Index.of(other) * -1

    def __rsub__(self, other: IndexLike) -> Index:
        return Index.of(other) - self

    def __mul__(self, factor: int) -> Index:
        if not factor:
            return Index()
        if factor == 1:
            return self
        return Index(self.constant * factor, tuple((a, c * factor) for a, c in self.terms))

    __rmul__ = __mul__

    def __floordiv__(self, by: int) -> Index:
        whole, rest = self._split(by)
        low, high = rest.bounds()
        if low // by == high // by:
            return whole + low // by
        if (steps := rest._steps(by)) is not None:
            return whole + steps.of // (by // steps.size)
        return whole + _atom(_quotient(rest, by))

    def __mod__(self, by: int) -> Index:
        _, rest = self._split(by)
        low, high = rest.bounds()
        if low // by == high // by:
            return rest - low // by * by
        if (steps := rest._steps(by)) is not None:
            return steps.of % (by // steps.size) * steps.size + steps.inside
        return _atom(_remainder(rest, by))

    def _split(self, by: int) -> tuple[Index, Index]:
        """(q, r) with self == q * by + r, where r keeps only what `by` does not divide."""
        assert by > 0, by
        whole = Index(self.constant // by, tuple((a, c // by) for a, c in self.terms if c % by == 0))
        rest = Index(self.constant % by, tuple((a, c) for a, c in self.terms if c % by))
        return whole, rest

    def _steps(self, by: int) -> _Steps | None:
        """The largest steps that this index goes in which divide `by`: of 16*b + j, j < 16, those of 16.

        What is inside a step has no part in the quotient, so lanes of one vector share it.
        """
        for size in sorted({gcd(by, c) for _, c in self.terms} - {1}, reverse=True):
            of, inside = self._split(size)
            low, high = inside.bounds()
            if low >= 0 and high < size:
                return _Steps(size, of, inside)
        return None

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def coefficient(self, var: Var) -> int:
        """The factor of `var` itself, not counting uses inside `//` and `%` (see `uses_nested`)."""
        return next((c for a, c in self.terms if a == var), 0)

    def uses_nested(self, var: Var) -> bool:
        """Whether `var` occurs inside a quotient or a remainder."""
        return any(not isinstance(a, Var) and var in a.of.variables() for a, _ in self.terms)

    def variables(self) -> frozenset[Var]:
        return self._variables

    @cached_property
    def _variables(self) -> frozenset[Var]:
        return frozenset(v for a, _ in self.terms for v in ((a,) if isinstance(a, Var) else a.of.variables()))

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value (inclusive; exact for affine indices, safe for the rest)."""
        return self._bounds

    @cached_property
    def _bounds(self) -> tuple[int, int]:
        low = high = self.constant
        for atom, factor in self.terms:
            first, last = _atom_bounds(atom)
            low += min(first * factor, last * factor)
            high += max(first * factor, last * factor)
        return low, high

    def substitute(self, values: Mapping[Var, IndexLike]) -> Index:
        """This index with variables replaced; simplified again."""
        if not self._variables & values.keys():
            return self
        parts = [(_substitute_atom(atom, values), factor) for atom, factor in self.terms]
        return combine(parts, self.constant)

    def evaluate(self, values: Mapping[Var, Any]) -> Any:
        """The value for ints or arrays (anything with `+ * // %`) of the variables."""
        total: Any = self.constant
        for atom, factor in self.terms:
            total = total + _evaluate_atom(atom, values) * factor
        return total

    def __str__(self) -> str:
        parts = [str(a) if c == 1 else f"{c}*{a}" for a, c in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts)


@dataclass(frozen=True)
class _Steps:
    """An index as `size * of + inside`, where `inside` lies in [0, size)."""

    size: int
    of: Index
    inside: Index


def linear(coordinates: Iterable[IndexLike], strides: Iterable[int]) -> Index:
    """Dot product of coordinates and strides: the element offset of a point."""
    return combine(zip(map(Index.of, coordinates), strides, strict=True))


def combine(parts: Iterable[tuple[Index, int]], constant: int = 0) -> Index:
    """`constant` and the sum of each index times its factor."""
    parts = list(parts)
    terms = [(atom, c * factor) for part, factor in parts for atom, c in part.terms]
    if not any(isinstance(atom, Remainder) for atom, _ in terms):
        return _sum(sum([part.constant * factor for part, factor in parts], constant), terms)
    total = Index(constant)  # one by one: a remainder may join its quotient on the way
    for part, factor in parts:
        total = total + part * factor
    return total


def delinearise(offset: Index, shape: tuple[int, ...]) -> tuple[Index, ...]:
    """Coordinates in `shape` (row-major) of a flat offset known to lie inside it."""
    out: list[Index] = []
    for extent in reversed(shape[1:]):
        out.append(offset % extent)
        offset = offset // extent
    return (offset, *reversed(out)) if shape else ()


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements; extents of 0 count as 1, as torch has it."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def _atom(atom: Atom | Index) -> Index:
    return atom if isinstance(atom, Index) else Index(0, ((atom, 1),))


def _quotient(of: Index, by: int) -> Atom | Index:
    """`of // by`, nesting undone: (x // a) // b == x // (a * b), and (x % (a * b)) // a == (x // a) % b."""
    if by == 1:
        return of
    inner = _only_atom(of)
    if isinstance(inner, Quotient):
        return inner.of // (inner.by * by)
    if isinstance(inner, Remainder) and inner.by % by == 0:
        return (inner.of // by) % (inner.by // by)
    return Quotient(of, by)


def _remainder(of: Index, by: int) -> Atom | Index:
    """`of % by` with nested remainders merged: (x % a) % b == x % b when b divides a."""
    if by == 1:
        return Index()
    inner = _only_atom(of)
    if isinstance(inner, Remainder) and inner.by % by == 0:
        return inner.of % by
    return Remainder(of, by)


def _only_atom(of: Index) -> Atom | None:
    """The atom of an index that is nothing else."""
    return of.terms[0][0] if of.constant == 0 and len(of.terms) == 1 and of.terms[0][1] == 1 else None


def _atom_bounds(atom: Atom) -> tuple[int, int]:
    if isinstance(atom, Var):
        return 0, max(atom.extent - 1, 0)
    low, high = atom.of.bounds()
    if isinstance(atom, Quotient):
        return low // atom.by, high // atom.by
    return 0, atom.by - 1


def _substitute_atom(atom: Atom, values: Mapping[Var, IndexLike]) -> Index:
    if isinstance(atom, Var):
        return Index.of(values.get(atom, atom))
    of = atom.of.substitute(values)
    return of // atom.by if isinstance(atom, Quotient) else of % atom.by


def _evaluate_atom(atom: Atom, values: Mapping[Var, Any]) -> Any:
    if isinstance(atom, Var):
        return values[atom]
    of = atom.of.evaluate(values)
    return of // atom.by if isinstance(atom, Quotient) else of % atom.by


def _sum(constant: int, terms: Iterable[tuple[Atom, int]]) -> Index:
    collected: dict[Atom, int] = {}
    for atom, factor in terms:
        collected[atom] = collected.get(atom, 0) + factor
    collected = {a: c for a, c in collected.items() if c}
    if any(isinstance(atom, Remainder) for atom in collected):
        joined = _join_quotient_and_remainder(collected)
        if joined is not None:
            return joined + constant
    return Index(constant, tuple(sorted(collected.items(), key=_rank_of_term)))


def _rank_of_term(term: tuple[Atom, int]) -> tuple[int, str]:
    return term[0].rank


def _join_quotient_and_remainder(terms: dict[Atom, int]) -> Index | None:
    """n*(x//n) + x%n == x, and a*((x//a)%b) + x%a == x%(a*b): what undoing a split leaves behind."""
    for low, factor in terms.items():
        if not isinstance(low, Remainder):
            continue
        for high, weight in terms.items():
            whole = _rejoined(high, low) if weight == factor * low.by else None
            if whole is not None:
                rest = tuple((a, c) for a, c in terms.items() if a not in (low, high))
                return _sum(0, rest) + whole * factor
    return None


def _rejoined(high: Atom, low: Remainder) -> Index | None:
    if isinstance(high, Quotient) and (high.of, high.by) == (low.of, low.by):
        return low.of
    if isinstance(high, Remainder) and high.of == low.of // low.by:
        return low.of % (low.by * high.by)
    return None
