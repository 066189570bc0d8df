"""Loops before scheduling: a body of operators, what a trip hands to the next one, and walks over both.

What a trip computes for the next one has a buffer of its own, `new`, beside the one that it reads, `old`: a
body is as free of overwriting as straight-line code, and steps that rewrite operators run on it unchanged.
`place_carries` gives the two their memory at last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial, wraps

from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer
from wolong_fx.ledger import Ledger


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

    stacks: buffers that every trip writes its own part of, for what follows the loop
    made_from: names of the FX nodes it computes
    """

    name: str
    var: Var
    body: tuple[Element, ...]
    carries: tuple[Carry, ...]
    stacks: tuple[Buffer, ...] = ()
    made_from: tuple[str, ...] = ()

    def reads(self) -> tuple[Buffer, ...]:
        """Buffers that the body reads, each once, its own temporaries included."""
        return tuple(dict.fromkeys(b for element in self.body for b in element.reads()))

    def writes(self) -> tuple[Buffer, ...]:
        """Buffers that the body writes, each once, its own temporaries included."""
        return tuple(dict.fromkeys(b for element in self.body for b in element.writes()))


@dataclass(frozen=True, eq=False)
class Exit:
    """Stands behind a loop's body while a step runs on it: what comes after a trip reads these buffers.

    carried: what the trip hands to the next; stacks: what it has written a part of
    """

    carried: tuple[Buffer, ...]
    stacks: tuple[Buffer, ...]
    made_from: tuple[str, ...] = ()

    def reads(self) -> tuple[Buffer, ...]:
        return (*self.carried, *self.stacks)

    def writes(self) -> tuple[Buffer, ...]:
        return ()


Element = OpInst | LoopInst | Exit
"""What a partition is made of before scheduling."""

Step = Callable[[list[Element], Ledger], list[Element]]


def in_every_scope(step: Step) -> Step:
    """The step run on the bodies of loops, innermost first, and then on what is around them."""

    @wraps(step)
    def run(elements: list[Element], ledger: Ledger) -> list[Element]:
        return step(map_bodies(elements, partial(on_body, step, ledger)), ledger)

    return run


def on_body(step: Step, ledger: Ledger, loop: LoopInst) -> LoopInst:
    """The loop with a step run on its body."""
    leave = Exit(tuple(c.new for c in loop.carries), loop.stacks)
    done = step([*loop.body, leave], ledger)
    return replace(loop, body=tuple(e for e in done if not isinstance(e, Exit)))


def map_ops(elements: Iterable[Element], change: Callable[[OpInst], OpInst]) -> list[Element]:
    """The elements with every operator changed, those in loops too."""
    return [
        change(e) if isinstance(e, OpInst) else _with_body(e, lambda body: map_ops(body, change))
        for e in elements
    ]


def _with_body(element: Element, change: Callable[[Iterable[Element]], list[Element]]) -> Element:
    return replace(element, body=tuple(change(element.body))) if isinstance(element, LoopInst) else element


def map_bodies(elements: Iterable[Element], change: Callable[[LoopInst], LoopInst]) -> list[Element]:
    """The elements with every loop changed, innermost first."""
    return [
        change(replace(e, body=tuple(map_bodies(e.body, change)))) if isinstance(e, LoopInst) else e
        for e in elements
    ]


def walk_ops(elements: Iterable[Element], trips: int = 1) -> Iterator[tuple[OpInst, int]]:
    """Every operator in order, with how often it runs."""
    for element in elements:
        if isinstance(element, OpInst):
            yield element, trips
        elif isinstance(element, LoopInst):
            yield from walk_ops(element.body, trips * element.var.extent)


def walk_loops(elements: Iterable[Element]) -> Iterator[LoopInst]:
    """Every loop, outer ones first."""
    for element in elements:
        if isinstance(element, LoopInst):
            yield element
            yield from walk_loops(element.body)


def count_ops(elements: Iterable[Element]) -> int:
    """Operators, those of a loop's body once."""
    return sum(1 for _ in walk_ops(elements))


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
