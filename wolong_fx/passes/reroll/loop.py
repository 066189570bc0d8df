"""A loop found in a graph: its rows, and what each operand of each row is at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Invariant:
    """The same node outside of the loop at every step."""

    node: int


@dataclass(frozen=True)
class SameStep:
    """What a row above computed in this step."""

    row: int


@dataclass(frozen=True)
class Carried:
    """What a row computed `distance` steps ago, inits[t] in step t < distance."""

    row: int
    distance: int
    inits: tuple[int, ...]


@dataclass(frozen=True)
class PerStep:
    """nodes[t], outside of the loop, in step t."""

    nodes: tuple[int, ...]


Operand = Invariant | SameStep | Carried | PerStep


@dataclass(frozen=True)
class Loop:
    """`trips` steps of a body of rows, in an order that can be computed.

    rows: rows[k][t] is the node that row k stands for in step t
    operands: operands[k][p] is operand p of row k
    """

    trips: int
    rows: tuple[tuple[int, ...], ...]
    operands: tuple[tuple[Operand, ...], ...]

    def all_operands(self) -> Iterator[Operand]:
        for operands in self.operands:
            yield from operands

    @property
    def carried(self) -> list[Carried]:
        """The carried values, each once."""
        return list(dict.fromkeys(o for o in self.all_operands() if isinstance(o, Carried)))

    @cached_property
    def nodes(self) -> frozenset[int]:
        return frozenset().union(*self.rows)


def nodes_of(loop: Loop, operand: Operand) -> tuple[int, ...]:
    """The nodes that the operand is, step by step."""
    match operand:
        case Invariant(node):
            return (node,) * loop.trips
        case SameStep(row):
            return loop.rows[row]
        case Carried(row, distance, inits):
            return (*inits, *loop.rows[row][: max(loop.trips - distance, 0)])
        case PerStep(nodes):
            return nodes


def nodes_outside(operand: Operand) -> tuple[int, ...]:
    """The nodes that an operand takes from outside of the loop."""
    match operand:
        case Invariant(node):
            return (node,)
        case SameStep():
            return ()
        case Carried(inits=nodes) | PerStep(nodes):
            return nodes
