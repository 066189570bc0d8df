"""Which elements of a buffer may have been written so far: what a read can rely on."""

from __future__ import annotations

from math import prod

import numpy as np

from wolong_fx.ir.footprint import Interval, Touch
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.types import Buffer

LARGEST = 1 << 24
"""Elements of a buffer up to which they are told apart; a larger one counts as whole after its first write.
"""


class Coverage:
    """Elements that stores may have reached, buffer by buffer; boxes stand for stores, so it errs on the safe
    side of reporting nothing.
    """

    def __init__(self) -> None:
        self.whole: set[Buffer] = set()
        self.parts: dict[Buffer, np.ndarray] = {}

    def add(self, store: Touch) -> None:
        """A store happened, in every trip of the loops around it."""
        buffer = store.buffer
        if buffer in self.whole:
            return
        shape, box = _told_apart(buffer), store.box({})
        if prod(shape) > LARGEST or _box_size(box) == prod(shape):
            self.whole.add(buffer)
            return
        part = self.parts.setdefault(buffer, np.zeros(shape, dtype=bool))
        part[_slices(box)] = True
        if part.all():
            self.whole.add(buffer)

    def has(self, load: Touch, loops: tuple[Var, ...]) -> bool:
        """Whether a load may find all it certainly reads in the first trip of the loops around it."""
        if load.buffer in self.whole:
            return True
        part = self.parts.get(load.buffer)
        if part is None:
            return False
        box = load.box(dict.fromkeys(loops, (0, 0)))
        is_sure = _reads_whole_box(load, dict.fromkeys(loops, Index()))
        return not is_sure or bool(part[_slices(box)].all())

    def missing(self, buffer: Buffer) -> int:
        """How many distinct elements of a buffer no store can have reached."""
        if buffer in self.whole or not buffer.elements:
            return 0
        part = self.parts.get(buffer)
        return prod(_told_apart(buffer)) if part is None else int((~part).sum())


def _box_size(box: tuple[Interval, ...]) -> int:
    return prod(int(high) - int(low) + 1 for low, high in box)


def _told_apart(buffer: Buffer) -> tuple[int, ...]:
    return tuple(n if stride else min(n, 1) for n, stride in zip(buffer.shape, buffer.strides, strict=True))


def _slices(box: tuple[Interval, ...]) -> tuple[slice, ...]:
    return tuple(slice(int(low), int(high) + 1) for low, high in box)


def _reads_whole_box(load: Touch, first_trip: dict[Var, Index]) -> bool:
    """Whether every element of the load's box is read: each coordinate runs along a variable of its own, or
    rests.
    """
    seen: set[Var] = set()
    for coordinate in load.access.index:
        if not isinstance(coordinate, Index):
            return False
        index = coordinate.substitute(first_trip)
        if index.is_constant:
            continue
        (atom, factor), *others = index.terms
        if others or not isinstance(atom, Var) or abs(factor) != 1 or atom in seen:
            return False
        seen.add(atom)
    return True
