"""What a loop is as a scan: which tensors it carries, walks along, reads whole, and gives back by step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from wolong_fx.passes.reroll.graph_arrays import GraphArrays
from wolong_fx.passes.reroll.loop import Carried, Invariant, Loop, PerStep


@dataclass(frozen=True)
class Delay:
    """A row's values of the last len(inits) steps, one carried tensor each; inits are the oldest first."""

    row: int
    inits: tuple[int, ...]

    def slots(self) -> Iterator[int]:
        """The nodes that the carried tensors start with: of one step ago, of two steps ago, ..."""
        return reversed(self.inits)


@dataclass(frozen=True)
class ScanPlan:
    """A scan over `loop`.

    delays: what is carried, one after the other
    inputs: operands that are another node each step; each becomes one tensor with the steps in front
    invariants: nodes that every step reads
    results: rows of which a step before the last is needed outside (or the last, if it is not carried)
    readers: who reads a node of the loop and is not in it, of every node that has such readers
    """

    loop: Loop
    delays: tuple[Delay, ...]
    inputs: tuple[PerStep, ...]
    invariants: tuple[int, ...]
    results: tuple[int, ...]
    readers: Mapping[int, list[int]]

    @property
    def carried_tensors(self) -> int:
        return sum(len(delay.inits) for delay in self.delays)

    def slot(self, carried: Carried) -> int:
        """Which carried tensor the operand is."""
        slot = 0
        for delay in self.delays:
            if _serves(delay, carried):
                return slot + carried.distance - 1
            slot += len(delay.inits)
        raise KeyError(carried)

    def delay_of_slot(self, slot: int) -> Delay:
        """What the carried tensor is part of."""
        return [delay for delay in self.delays for _ in delay.inits][slot]

    def slot_of_last(self, row: int) -> int | None:
        """Which carried tensor ends as the row's last value, if any does."""
        slot = 0
        for delay in self.delays:
            if delay.row == row:
                return slot
            slot += len(delay.inits)
        return None


def plan_scan(arrays: GraphArrays, loop: Loop) -> ScanPlan:
    """The plan; nothing of the graph is changed."""
    operands = list(dict.fromkeys(loop.all_operands()))
    delays = _plan_delays(loop)
    carried, readers = {delay.row for delay in delays}, _find_readers(arrays, loop.nodes)
    needed = arrays.returned | readers.keys()
    return ScanPlan(
        loop=loop,
        delays=delays,
        inputs=tuple(o for o in operands if isinstance(o, PerStep)),
        invariants=tuple(o.node for o in operands if isinstance(o, Invariant)),
        results=tuple(
            row
            for row, steps in enumerate(loop.rows)
            if not needed.isdisjoint(steps[:-1] if row in carried else steps)
        ),
        readers=readers,
    )


def _find_readers(arrays: GraphArrays, inside: Set[int]) -> Mapping[int, list[int]]:
    readers = defaultdict(list)
    for reader in arrays.live:
        if reader not in inside:
            for node in arrays.operands[reader]:
                if node in inside:
                    readers[node].append(reader)
    return readers


def _plan_delays(loop: Loop) -> tuple[Delay, ...]:
    """The longest first: it serves the shorter ones of the same row that start with the same values."""
    delays: list[Delay] = []
    for carried in sorted(loop.carried, key=lambda c: -c.distance):
        if not any(_serves(delay, carried) for delay in delays):
            delays.append(Delay(carried.row, carried.inits))
    return tuple(delays)


def _serves(delay: Delay, carried: Carried) -> bool:
    return delay.row == carried.row and delay.inits[-carried.distance :] == carried.inits
