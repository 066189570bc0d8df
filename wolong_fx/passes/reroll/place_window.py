"""Placing orbits in time: which member of each orbit belongs to one step, and which steps the loop runs.

Orbits start at different members: the first step of a loop often lacks what zero or an input gives there.
A start step for each (retiming: Leiserson and Saxe, 1991) makes every distance between them at least 0; a
window of steps that most orbits fill is the loop, what lies outside is left as it was (peeled).
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from wolong_fx.passes.reroll.graph_arrays import GraphArrays
from wolong_fx.passes.reroll.orbits import FEWEST_STEPS

MOST_HOPS = 64  # an orbit pushed on more often runs backwards in time: no window holds it
NEVER = 10**9
MOST_ENDS = 8  # of the commonest first and last steps, all pairs are windows
MOST_WINDOWS = 4


@dataclass(frozen=True)
class Window:
    """A proposed loop: row k's node at step t is rows[k][t].

    gain: nodes it would take out of the graph if every row stayed
    """

    gain: int
    trips: int
    rows: list[tuple[int, ...]]


class _Edge(NamedTuple):
    """Orbit `reader` reads what orbit `producer` computed `distance` members earlier."""

    producer: int
    reader: int
    distance: int


def propose_windows(arrays: GraphArrays, orbits: list[list[int]]) -> Iterator[Window]:
    """Windows over the orbits, the best first; readings that move are left out: they are inputs of a step."""
    orbits = [orbit for orbit in orbits if arrays.numbers[orbit[0]] == arrays.numbers[orbit[1]]]
    starts = _find_starts(len(orbits), _edges_between(arrays, orbits))
    placed = [
        (start, start + len(orbit), orbit)
        for start, orbit in zip(starts, orbits, strict=True)
        if start < NEVER
    ]
    firsts, lasts = Counter(start for start, _, _ in placed), Counter(end for _, end, _ in placed)
    windows = []
    for first, _ in firsts.most_common(MOST_ENDS):
        for last, _ in lasts.most_common(MOST_ENDS):
            if last - first >= FEWEST_STEPS:
                filled = sum(start <= first and end >= last for start, end, _ in placed)
                windows.append((filled * (last - first - 1), first, last))
    for gain, first, last in sorted(windows, reverse=True)[:MOST_WINDOWS]:
        rows = [tuple(o[first - s : last - s]) for s, end, o in placed if s <= first and end >= last]
        yield Window(gain, last - first, rows)


def _edges_between(arrays: GraphArrays, orbits: list[list[int]]) -> set[_Edge]:
    """Distances in the middle and at the end: at the start, initial values take the place of producers."""
    place = {node: (row, j) for row, orbit in enumerate(orbits) for j, node in enumerate(orbit)}
    edges = set()
    for reader, orbit in enumerate(orbits):
        for j in {len(orbit) // 2, len(orbit) - 1}:
            for operand in arrays.operands[orbit[j]]:
                if operand in place:
                    producer, at = place[operand]
                    edges.add(_Edge(producer, reader, j - at))
    return edges


def _find_starts(count: int, edges: set[_Edge]) -> list[int]:
    """The earliest start of each orbit such that nothing is read before it is computed; NEVER: impossible."""
    starts, hops = [0] * count, [0] * count
    read_by = defaultdict(list)
    for edge in edges:
        read_by[edge.producer].append(edge)
    waiting = deque(range(count))
    while waiting:
        producer = waiting.popleft()
        for edge in read_by[producer]:
            earliest = starts[producer] - edge.distance
            if earliest > starts[edge.reader] and hops[edge.reader] <= MOST_HOPS:
                hops[edge.reader] += 1
                starts[edge.reader] = earliest if hops[edge.reader] <= MOST_HOPS else NEVER
                waiting.append(edge.reader)
    _start_inputs_late(starts, edges, read_by)
    return starts


def _start_inputs_late(starts: list[int], edges: set[_Edge], read_by: dict[int, list[_Edge]]) -> None:
    """What reads no other orbit is computed in the step that needs it first."""
    has_producer = {edge.reader for edge in edges if edge.producer != edge.reader}
    for orbit in range(len(starts)):
        if orbit not in has_producer and read_by[orbit]:
            latest = min(starts[edge.reader] + edge.distance for edge in read_by[orbit])
            starts[orbit] = max(starts[orbit], latest)
