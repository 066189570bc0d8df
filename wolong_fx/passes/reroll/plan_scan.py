"""What a loop is as a scan: which tensors it carries, walks along, reads whole, and gives back by step."""

from __future__ import annotations

from collections.abc import Iterator
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
    """

    loop: Loop
    delays: tuple[Delay, ...]
    inputs: tuple[PerStep, ...]
    invariants: tuple[int, ...]
    results: tuple[int, ...]

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
    carried, inside = {delay.row for delay in delays}, loop.nodes
    return ScanPlan(
        loop=loop,
        delays=delays,
        inputs=tuple(o for o in operands if isinstance(o, PerStep)),
        invariants=tuple(o.node for o in operands if isinstance(o, Invariant)),
        results=tuple(
            row
            for row, steps in enumerate(loop.rows)
            if _is_needed(arrays, steps[:-1] if row in carried else steps, inside)
        ),
    )


def outside_users(arrays: GraphArrays, node: int, inside: set[int]) -> list[int]:
    """Users of a loop's node that are not in the loop themselves."""
    return [use.user for use in arrays.users[node] if use.user not in inside]


def _plan_delays(loop: Loop) -> tuple[Delay, ...]:
    """The longest first: it serves the shorter ones of the same row that start with the same values."""
    delays: list[Delay] = []
    for carried in sorted(loop.carried, key=lambda c: -c.distance):
        if not any(_serves(delay, carried) for delay in delays):
            delays.append(Delay(carried.row, carried.inits))
    return tuple(delays)


def _serves(delay: Delay, carried: Carried) -> bool:
    return delay.row == carried.row and delay.inits[-carried.distance :] == carried.inits


def _is_needed(arrays: GraphArrays, nodes: tuple[int, ...], inside: set[int]) -> bool:
    return any(node in arrays.returned or outside_users(arrays, node, inside) for node in nodes)
