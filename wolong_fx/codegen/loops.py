"""Loops before scheduling: a body of operators, what a trip hands to the next one, and walks over both.

What a trip computes for the next one has a buffer of its own, `new`, beside the one that it reads, `old`: a
body is as free of overwriting as straight-line code, and steps that rewrite operators run on it unchanged.
`place_carries` gives the two their memory at last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer


@dataclass(frozen=True)
class Carry:
    """A value that goes from trip to trip.

    old: what the trip before computed; before the first trip, an operator outside of the loop fills it
    new: what this trip computes, stored once; after the last trip, the loop's result
    Both are whole, contiguous temporaries of one shape and type that nothing else uses.
    """

    old: Buffer
    new: Buffer


@dataclass(frozen=True, eq=False)
class LoopInst:
    """Operators that run `var.extent` times, in an order that respects their data; `var` stands in their
    indices.

    made_from: names of the FX nodes it computes
    """

    name: str
    var: Var
    body: tuple[Element, ...]
    carries: tuple[Carry, ...]
    made_from: tuple[str, ...] = ()

    def reads(self) -> tuple[Buffer, ...]:
        """Buffers that the body reads, each once, its own temporaries included."""
        return tuple(dict.fromkeys(b for element in self.body for b in element.reads()))

    def writes(self) -> tuple[Buffer, ...]:
        """Buffers that the body writes, each once, its own temporaries included."""
        return tuple(dict.fromkeys(b for element in self.body for b in element.writes()))


Element = OpInst | LoopInst
"""What a partition is made of before scheduling."""


def map_ops(elements: Iterable[Element], change: Callable[[OpInst], OpInst]) -> list[Element]:
    """The elements with every operator changed, those in loops too."""
    return [
        change(e) if isinstance(e, OpInst) else replace(e, body=tuple(map_ops(e.body, change)))
        for e in elements
    ]


def map_bodies(elements: Iterable[Element], change: Callable[[LoopInst], LoopInst]) -> list[Element]:
    """The elements with every loop changed, innermost first."""
    return [
        e if isinstance(e, OpInst) else change(replace(e, body=tuple(map_bodies(e.body, change))))
        for e in elements
    ]


def walk_ops(elements: Iterable[Element], trips: int = 1) -> Iterator[tuple[OpInst, int]]:
    """Every operator in order, with how often it runs."""
    for element in elements:
        if isinstance(element, OpInst):
            yield element, trips
        else:
            yield from walk_ops(element.body, trips * element.var.extent)


def carry_buffers(elements: Iterable[Element]) -> set[Buffer]:
    """The buffers of all carries of loops that stand among the elements, not deeper."""
    loops = (e for e in elements if isinstance(e, LoopInst))
    return {b for loop in loops for carry in loop.carries for b in (carry.old, carry.new)}


def all_carry_buffers(elements: Iterable[Element]) -> set[Buffer]:
    """The buffers of all carries of all loops."""
    found = carry_buffers(elements)
    for element in elements:
        if isinstance(element, LoopInst):
            found |= all_carry_buffers(element.body)
    return found
