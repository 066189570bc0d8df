"""Labels: colours of nodes by what surrounds them, so that the same place of each step has one colour.

Colour refinement (Weisfeiler and Leman, 1968): a node's next colour is its colour with those of its operands
and users. A few rounds tell the places of a step apart and still do not see the ends of the loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from wolong_fx.passes.reroll.graph_arrays import GraphArrays

ROUNDS = 3
MOST_NEIGHBOURS = 16  # a node with more operands or users (a stack, a weight) is not looked through
MOST_ORDERED = 4  # operands of which a user tells the position; those of a stack all look alike
FEWEST_USES = 3  # of a weight: fewer say nothing about repetition


@dataclass(frozen=True)
class Labelling:
    """Colours of all nodes, coarse to fine.

    levels: levels[r][node] is the colour after r rounds
    own: nodes that keep a colour of their own, since their identity tells gates, layers and directions apart
    """

    levels: list[list[int]]
    own: dict[int, int]


def label_nodes(arrays: GraphArrays, *, by_identity: bool) -> Labelling:
    """Refined colours; by_identity: weights keep a colour each (otherwise all of one shape look alike)."""
    colours = list(arrays.kinds)
    own = _find_identities(arrays) if by_identity else {}
    for node, colour in own.items():
        colours[node] = colour
    levels = [colours]
    for _ in range(ROUNDS):
        levels.append(_refine(arrays, levels[-1]))
    return Labelling(levels, own)


def _refine(arrays: GraphArrays, colours: list[int]) -> list[int]:
    table: dict[object, int] = {}
    refined = list(colours)
    for node in arrays.live:
        operands, users = arrays.operands[node], arrays.users[node]
        above = tuple([colours[o] for o in operands]) if len(operands) <= MOST_NEIGHBOURS else ()
        below = _colours_of_users(arrays, node, colours) if len(users) <= MOST_NEIGHBOURS else ()
        refined[node] = table.setdefault((colours[node], above, below), len(table))
    return refined


def _colours_of_users(arrays: GraphArrays, node: int, colours: list[int]) -> tuple[tuple[int, int], ...]:
    few = MOST_ORDERED
    return tuple(
        sorted([(colours[u], p if len(arrays.operands[u]) <= few else 0) for u, p in arrays.users[node]])
    )


def _find_identities(arrays: GraphArrays) -> dict[int, int]:
    """A weight has many like uses and few siblings; a saved activation has few uses and many siblings."""
    uses = {node: _most_like_uses(arrays, node) for node in _find_invariants(arrays) if arrays.users[node]}
    siblings = Counter((arrays.kinds[node], count) for node, count in uses.items())
    weights = (n for n, c in uses.items() if c >= FEWEST_USES and c >= siblings[arrays.kinds[n], c])
    return {node: -1 - node for node in weights}


def _most_like_uses(arrays: GraphArrays, node: int) -> int:
    return max(Counter((arrays.kinds[user], position) for user, position in arrays.users[node]).values())


def _find_invariants(arrays: GraphArrays) -> list[int]:
    """Leaves, and what is made of one leaf alone: a transposed weight is as good as the weight."""
    invariant = bytearray(arrays.size)
    for node, operands in enumerate(arrays.operands):
        alone = len(operands) == 1 and invariant[operands[0]] and not arrays.numbers[node]
        invariant[node] = arrays.is_leaf[node] or alone
    return [node for node in range(arrays.size) if invariant[node]]
