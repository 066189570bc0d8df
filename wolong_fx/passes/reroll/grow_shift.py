"""Growing the shift map: from one pair "this node, one step later" to all that follow from it.

If v is u one step later, their operands are so too, position by position; so are their users, where a colour
tells which user of the one is which of the other.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from wolong_fx.passes.reroll.budget import Budget
from wolong_fx.passes.reroll.graph_arrays import GraphArrays, Use
from wolong_fx.passes.reroll.labels import MOST_NEIGHBOURS, Labelling
from wolong_fx.passes.reroll.seeds import Seed

MOST_USERS = 4 * MOST_NEIGHBOURS  # through a value of more users (a weight) nothing is followed


@dataclass
class ShiftMap:
    """An injective partial map of nodes, as found so far; `later[u]` is u one step on."""

    arrays: GraphArrays
    labelling: Labelling
    free: Collection[int]
    budget: Budget
    later: dict[int, int] = field(default_factory=dict)
    earlier: dict[int, int] = field(default_factory=dict)
    _waiting: deque[tuple[int, int]] = field(default_factory=deque)
    _downstream: bytearray = field(default_factory=bytearray)

    def grow(self, seed: Seed) -> None:
        """Follow the edges from the seed until nothing is new. Raises OutOfBudgetError.

        Users are followed only downstream of the recurrence: from x[t] they would lead into a sibling that
        runs the other way. When further recurrences are met (layers), their users are followed as well.
        """
        self._downstream = bytearray(self.arrays.size)
        self._mark_downstream([seed.earlier])
        is_sibling = not self._downstream[seed.later]
        self._mark_downstream(seed.members)
        self._pair(seed.earlier, seed.later)
        if is_sibling:  # nothing leads from one to the next: every neighbouring pair is a seed
            for pair in zip(seed.members, seed.members[seed.shift :], strict=False):
                self._pair(*pair)
        self._follow_all()
        while self._mark_downstream(_find_recurrent(self.arrays, chains(self))):
            self._waiting.extend(self.later.items())
            self._follow_all()

    def _pair(self, node: int, later: int) -> None:
        if node not in self.later and later not in self.earlier and self._may_pair(node, later):
            self.later[node] = later
            self.earlier[later] = node
            self._waiting.append((node, later))

    def _may_pair(self, node: int, later: int) -> bool:
        arrays, own = self.arrays, self.labelling.own
        if node == later or arrays.kinds[node] != arrays.kinds[later] or arrays.is_fixed[node]:
            return False
        if node not in self.free or later not in self.free:
            return False
        operands = zip(arrays.operands[node], arrays.operands[later], strict=True)
        return not any(a != b and a in own and b in own for a, b in operands)

    def _follow_all(self) -> None:
        while self._waiting:
            node, later = self._waiting.popleft()
            operands, others = self.arrays.operands[node], self.arrays.operands[later]
            self.budget.spend(1 + len(operands))
            for pair in zip(operands, others, strict=True):
                self._pair(*pair)
            if self._downstream[later] and len(self.arrays.users[node]) <= MOST_USERS:
                self._follow_users(self.arrays.users[node], self.arrays.users[later])

    def _follow_users(self, users: list[Use], others: list[Use]) -> None:
        """Pair the users that one colour tells apart: of equal numbers first (gate slices), then any."""
        self.budget.spend(len(users) + len(others))
        if len(users) == 1 == len(others) and users[0].position == others[0].position:
            self._pair(users[0].user, others[0].user)
            return
        for with_numbers in (True, False):
            for colours in reversed(self.labelling.levels):
                mine = _unambiguous(self.arrays, users, colours, with_numbers)
                theirs = _unambiguous(self.arrays, others, colours, with_numbers)
                for key in mine.keys() & theirs.keys():
                    self._pair(mine[key], theirs[key])
                users = [use for use in users if use.user not in self.later]
                others = [use for use in others if use.user not in self.earlier]
                if not users or not others:
                    return

    def _mark_downstream(self, nodes: Iterable[int]) -> bool:
        """Mark these nodes and all that needs them; False when all were marked before."""
        marks, waiting = self._downstream, [n for n in nodes if not self._downstream[n]]
        is_new = bool(waiting)
        while waiting:
            node = waiting.pop()
            if not marks[node]:
                marks[node] = 1
                waiting += [use.user for use in self.arrays.users[node]]
        return is_new


def chains(shift: ShiftMap) -> list[list[int]]:
    """The orbits of the map: a node, the same one step later, two steps later, ..."""
    found = []
    for node in shift.later:
        if node not in shift.earlier:
            chain = [node]
            while chain[-1] in shift.later:
                chain.append(shift.later[chain[-1]])
            found.append(chain)
    return found


def _unambiguous(
    arrays: GraphArrays, users: list[Use], colours: list[int], with_numbers: bool
) -> dict[object, int]:
    """Users by (colour, operand position[, numbers]), those left out that share theirs with another."""
    found: dict[object, int] = {}
    ambiguous = set()
    for user, position in users:
        key = (colours[user], position, arrays.numbers[user] if with_numbers else 0)
        if key in found:
            ambiguous.add(key)
        found[key] = user
    for key in ambiguous:
        del found[key]
    return found


def _find_recurrent(arrays: GraphArrays, rows: list[list[int]]) -> list[int]:
    """Members of the rows on, or fed by, a cycle among rows: the carried chains.

    What is left over by Kahn's topological sort of the graph of rows.
    """
    row_of = {node: row for row, nodes in enumerate(rows) for node in nodes}
    edges = {
        (row_of[operand], row)
        for row, nodes in enumerate(rows)
        for node in nodes[-2:]
        for operand in arrays.operands[node]
        if operand in row_of
    }
    needs, readers = Counter(row for _, row in edges), defaultdict(list)
    for producer, row in edges:
        readers[producer].append(row)
    ready = [row for row in range(len(rows)) if not needs[row]]
    while ready:
        for row in readers[ready.pop()]:
            needs[row] -= 1
            ready += [row] * (not needs[row])
    return [node for row, nodes in enumerate(rows) if needs[row] for node in nodes]
