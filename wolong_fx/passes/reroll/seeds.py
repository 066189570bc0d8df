"""Seeds: pairs of nodes that may be the same place of two neighbouring steps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from wolong_fx.passes.reroll.graph_arrays import GraphArrays
from wolong_fx.passes.reroll.labels import Labelling

FEWEST_MEMBERS = 3
MOST_SIZES = 3  # loops of other trip counts are found in later rounds
LEVELS = (-1, 1, 0)  # of refinement
MOST_SHIFTS = 4  # interleaved loops of one colour lie that many members apart


class Seed(NamedTuple):
    """One guess: `later` is `earlier`, one step on. members: all nodes of their colour, in order."""

    members: list[int]
    earlier: int
    later: int

    @property
    def shift(self) -> int:
        """How many members one step is."""
        return self.members.index(self.later) - self.members.index(self.earlier)


def find_seeds(arrays: GraphArrays, labelling: Labelling, free: Iterable[int]) -> Iterator[list[Seed]]:
    """Seeds of one colour at a time, the finest colours first, of those whose size most nodes share.

    A step has many colours of one size, the trip count; the middle of a loop is far from its odd ends. Where
    a step is one operator, a few rounds of refinement see both ends from everywhere: then coarser colours do.
    """
    free = [node for node in free if not arrays.is_fixed[node]]
    for level in LEVELS:
        yield from _seeds_of_colours(arrays, labelling.levels[level], free)


def has_repeated_calls(arrays: GraphArrays, free: Iterable[int]) -> bool:
    """Whether enough of these nodes are the same call for one to be the step of a loop.

    What only reads at a number computes nothing that steps could hand on: no loop is of such nodes alone.
    """
    computing = (node for node in free if not arrays.is_fixed[node] and not arrays.numbers[node])
    counts = Counter(arrays.kinds[node] for node in computing)
    return any(count >= FEWEST_MEMBERS for count in counts.values())


def _seeds_of_colours(arrays: GraphArrays, colours: list[int], free: list[int]) -> Iterator[list[Seed]]:
    members = _members_of_colours(colours, free)
    mass = Counter[int]()
    best: dict[int, list[int]] = {}
    for same in members:
        mass[len(same)] += len(same)
        known = best.get(len(same))
        if known is None or _connections(arrays, same[0]) > _connections(arrays, known[0]):
            best[len(same)] = same
    for size, _ in mass.most_common(MOST_SIZES):
        yield _pairs(best[size])


def _members_of_colours(colours: list[int], free: list[int]) -> list[list[int]]:
    members = defaultdict(list)
    for node in free:
        members[colours[node]].append(node)
    return [same for same in members.values() if len(same) >= FEWEST_MEMBERS]


def _connections(arrays: GraphArrays, node: int) -> tuple[int, int]:
    return len(arrays.operands[node]), len(arrays.users[node])


def _pairs(members: list[int]) -> list[Seed]:
    middle = len(members) // 2
    shifts = range(1, min(MOST_SHIFTS, max(1, len(members) // 3)) + 1)
    return [Seed(members, members[middle], members[middle + s]) for s in shifts if middle + s < len(members)]
