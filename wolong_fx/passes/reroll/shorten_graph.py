"""The graph with most steps of its long loops left out, and loops found there made whole again.

What the search costs then does not depend on the number of steps. Steps are left out of the middle of every
stretch; what read them reads instead what stands as many steps later, or earlier, as were left out. A loop of
the short graph becomes one of the graph by the steps that its rows lack: a claim, to be proved as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wolong_fx.passes.reroll.find_stretches import Stretch, find_stretches
from wolong_fx.passes.reroll.graph_arrays import GraphArrays
from wolong_fx.passes.reroll.loop import Carried, Invariant, Loop, Operand, PerStep

KEPT = 32  # steps at either end: more than a loop peels off
MOST_APART = 8  # steps: stretches whose numbers of steps differ by less lack as many steps as one another


@dataclass(frozen=True)
class _Cut:
    """A stretch of which `left_out` steps are, from place `first` to place `last` - 1."""

    stretch: Stretch
    left_out: int

    @property
    def first(self) -> int:
        return self.stretch.start + KEPT * self.stretch.period

    @property
    def last(self) -> int:
        return self.first + self.moved

    @property
    def moved(self) -> int:
        """How many places apart the two steps are between which steps are left out."""
        return self.left_out * self.stretch.period

    def is_left_out(self, place: int) -> bool:
        return self.first <= place < self.last

    def stand_in(self, place: int, reader: int, cut_of_reader: _Cut) -> int | None:
        """The place of what a node reads instead of one that is left out; None if that is left out too."""
        before = reader < cut_of_reader.first
        other = place + self.moved if before else place - self.moved
        is_there = self.stretch.start <= other < self.stretch.end and not self.is_left_out(other)
        return other if is_there else None


@dataclass(frozen=True)
class Shortened:
    """The short graph, and what it is of the graph: for each of its nodes, the number there."""

    arrays: GraphArrays
    full: _CutGraph
    numbers: list[int]

    def lengthen(self, loop: Loop) -> Loop | None:
        """The loop with the steps that were left out, unproved; None if its rows lack different ones."""
        rows = [row for steps in loop.rows if (row := self._lengthen_row(steps)) is not None]
        if len(rows) != len(loop.rows) or len(set(map(len, rows))) != 1:
            return None
        operands = [
            tuple([self._lengthen_operand(o, row, position) for position, o in enumerate(operands)])
            for row, operands in zip(rows, loop.operands, strict=True)
        ]
        return Loop(len(rows[0]), tuple(rows), tuple(operands))

    def _lengthen_row(self, steps: Sequence[int]) -> tuple[int, ...] | None:
        first, last = (self.full.place_of[self.numbers[node]] for node in (steps[0], steps[-1]))
        cut = self.full.cut_at(first)
        if cut is None or cut is not self.full.cut_at(last):
            return None
        row = tuple(self.full.arrays.live[first : last + 1 : cut.stretch.period])
        return row if len(row) == len(steps) + cut.left_out else None

    def _lengthen_operand(self, operand: Operand, row: Sequence[int], position: int) -> Operand:
        match operand:
            case Invariant(node):
                return Invariant(self.numbers[node])
            case Carried(producer, distance, inits):
                return Carried(producer, distance, tuple([self.numbers[node] for node in inits]))
            case PerStep():
                return PerStep(tuple([self.full.arrays.operands[node][position] for node in row]))
        return operand


def shorten_graph(arrays: GraphArrays) -> Shortened | None:
    """The short graph; None where nothing is to be left out, or what is left would not be a graph."""
    stretches = [] if arrays.next_draw else find_stretches(arrays)
    if not stretches:
        return None
    full = _CutGraph.of(arrays, _cut_alike(stretches))
    numbers = full.find_kept()
    operands = _read_stand_ins(full, numbers)
    return None if operands is None else Shortened(_take(arrays, numbers, operands), full, numbers)


def _cut_alike(stretches: Sequence[Stretch]) -> list[_Cut]:
    """Loops of one number of steps, but for those at the ends, read each other: they lose the same steps."""
    cuts: list[_Cut] = []
    fewest = 0
    for stretch in sorted(stretches, key=lambda s: s.steps):
        if stretch.steps > fewest + MOST_APART:
            fewest = stretch.steps
        cuts.append(_Cut(stretch, fewest - 2 * KEPT))
    return cuts


@dataclass(frozen=True)
class _CutGraph:
    """A graph and where it is cut; place_of: of each node among the live ones, -1 of all others."""

    arrays: GraphArrays
    cuts: list[_Cut]
    place_of: list[int]
    _cut_numbers: list[int]

    @classmethod
    def of(cls, arrays: GraphArrays, cuts: list[_Cut]) -> _CutGraph:
        place_of = np.full(arrays.size, -1)
        place_of[arrays.live] = np.arange(len(arrays.live))
        numbers = np.full(len(arrays.live), -1)
        for number, cut in enumerate(cuts):
            numbers[cut.stretch.start : cut.stretch.end] = number
        return cls(arrays, cuts, place_of.tolist(), numbers.tolist())

    def cut_at(self, place: int) -> _Cut | None:
        """The cut of the stretch that a place is in."""
        number = self._cut_numbers[place] if place >= 0 else -1
        return self.cuts[number] if number >= 0 else None

    def find_kept(self) -> list[int]:
        """Nodes that are not left out, and are leaves or live."""
        is_kept = np.frombuffer(self.arrays.is_leaf, dtype=np.uint8).astype(bool)
        is_kept[self.arrays.live] = True
        for cut in self.cuts:
            is_kept[self.arrays.live[cut.first : cut.last]] = False
        return np.flatnonzero(is_kept).tolist()

    def stand_in(self, node: int, reader: int) -> int | None:
        """What `reader`, in a stretch, reads instead of a node that is left out."""
        cut, cut_of_reader = self.cut_at(self.place_of[node]), self.cut_at(self.place_of[reader])
        assert cut is not None and cut_of_reader is not None
        place = cut.stand_in(self.place_of[node], self.place_of[reader], cut_of_reader)
        return None if place is None else self.arrays.live[place]


def _read_stand_ins(full: _CutGraph, numbers: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Operands of the nodes kept, in their numbers; None if one has no stand-in.

    Outside of stretches none is needed: a stack of all steps is one of fewer.
    """
    short_of = {node: short for short, node in enumerate(numbers)}
    operands = []
    for node in numbers:
        read = [short_of.get(o) for o in full.arrays.operands[node]]
        if None in read and full.cut_at(full.place_of[node]) is not None:
            named = [o if o in short_of else full.stand_in(o, node) for o in full.arrays.operands[node]]
            read = [None if o is None else short_of[o] for o in named]
            if None in read:
                return None
        operands.append(tuple([o for o in read if o is not None]))
    return operands


def _take(arrays: GraphArrays, numbers: Sequence[int], operands: list[tuple[int, ...]]) -> GraphArrays:
    return GraphArrays(
        nodes=[arrays.nodes[node] for node in numbers],
        operands=operands,
        numbers=[arrays.numbers[node] for node in numbers],
        kinds=[arrays.kinds[node] for node in numbers],
        firsts=arrays.firsts,
        is_leaf=bytearray([arrays.is_leaf[node] for node in numbers]),
        is_fixed=bytearray([arrays.is_fixed[node] for node in numbers]),
        live=[short for short, node in enumerate(numbers) if not arrays.is_leaf[node]],
        next_draw={},
        returned=frozenset(short for short, node in enumerate(numbers) if node in arrays.returned),
    )
