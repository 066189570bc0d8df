"""The search: seed, grow, place, settle, prove; the best loop first, then what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

from wolong_fx.passes.reroll.budget import Budget, OutOfBudgetError
from wolong_fx.passes.reroll.check_loop import find_flaw
from wolong_fx.passes.reroll.describe_operands import settle_window
from wolong_fx.passes.reroll.graph_arrays import GraphArrays
from wolong_fx.passes.reroll.grow_shift import ShiftMap, chains
from wolong_fx.passes.reroll.labels import Labelling, label_nodes
from wolong_fx.passes.reroll.loop import Loop
from wolong_fx.passes.reroll.orbits import cut_orbits
from wolong_fx.passes.reroll.place_window import propose_windows
from wolong_fx.passes.reroll.seeds import Seed, find_seeds, has_repeated_calls
from wolong_fx.passes.reroll.shorten_graph import shorten_graph

MOST_LOOPS = 16
WORK_PER_NODE = 400  # 80-step LSTMs take 20 to 40 units a node
LEAST_GAIN = 3  # nodes taken out
LEAST_SHARE = 50  # and no less than one in so many: crumbs cost more search than they give
ENOUGH_OF_LABELLING, ENOUGH = 0.5, 0.85  # share of the free nodes at which no other guess is tried


@dataclass
class Search:
    """What was found so far in one graph.

    siblings: sets of nodes that repeat without a carried value; they are a batch, not a loop
    """

    arrays: GraphArrays
    budget: Budget
    loops: list[Loop] = field(default_factory=list)
    siblings: list[Loop] = field(default_factory=list)
    owner: dict[int, Loop] = field(default_factory=dict)
    is_cut_short: bool = False


def find_loops(arrays: GraphArrays) -> Search:
    """The loops of a graph, none overlapping, every one proved. Near-linear: the search is cut short."""
    return _find_in_short_graph(arrays) or _find_in_graph(arrays)


def _find_in_short_graph(arrays: GraphArrays) -> Search | None:
    """Loops found with most of their steps left out; None if they do not explain nearly all of the graph."""
    shortened = shorten_graph(arrays)
    if shortened is None:
        return None
    short = _find_in_graph(shortened.arrays)
    search = Search(arrays, short.budget)
    for loop in map(shortened.lengthen, (*short.loops, *short.siblings)):
        if loop is None or find_flaw(arrays, loop, search.owner):
            return None
        _keep(search, loop)
    computing = [node for node in arrays.live if not arrays.is_fixed[node] and not arrays.numbers[node]]
    found = sum(len(loop.nodes) for loop in (*search.loops, *search.siblings))
    return search if found >= ENOUGH * len(computing) else None


def _find_in_graph(arrays: GraphArrays) -> Search:
    search = Search(arrays, Budget(WORK_PER_NODE * max(len(arrays.live), 1)))
    # Each is made when it is asked for, once: the second costs as much as the first and is rarely needed.
    labellings = [cache(partial(label_nodes, arrays, by_identity=known)) for known in (True, False)]
    free = set(arrays.live)
    least = max(LEAST_GAIN, len(free) // LEAST_SHARE)
    try:
        while has_repeated_calls(arrays, free) and len(search.loops) + len(search.siblings) < MOST_LOOPS:
            best = _find_best(search, labellings, free, least)
            if best is None:
                break
            free -= best.nodes
            _keep(search, best)
    except OutOfBudgetError:
        search.is_cut_short = True
    return search


def _keep(search: Search, loop: Loop) -> None:
    if not loop.carried:
        search.siblings.append(loop)
        return
    search.loops.append(loop)
    search.owner.update(dict.fromkeys(loop.nodes, loop))


def _gain(loop: Loop) -> int:
    return len(loop.rows) * (loop.trips - 1)


def _find_best(
    search: Search, labellings: Sequence[Callable[[], Labelling]], free: set[int], least: int
) -> Loop | None:
    """The loop that takes most nodes out; shapes alone are a guess only where identity found little."""
    best, most = None, least - 1
    for labelled in labellings:
        labelling = labelled()
        for seeds in find_seeds(search.arrays, labelling, sorted(free)):
            for loop in _loops_of_seeds(search, labelling, free, seeds, most):
                best, most = loop, _gain(loop)
            if most > ENOUGH * len(free):
                return best
        if most > ENOUGH_OF_LABELLING * len(free):
            return best
    return best


def _loops_of_seeds(
    search: Search, labelling: Labelling, free: set[int], seeds: list[Seed], most: int
) -> Iterator[Loop]:
    """Ever better loops grown from the seeds of one colour, until one explains the whole colour."""
    for shift, seed in enumerate(seeds, 1):
        grown = ShiftMap(search.arrays, labelling, free, search.budget)
        grown.grow(seed)
        is_explained = False
        for window in propose_windows(search.arrays, cut_orbits(search.arrays, chains(grown))):
            if window.gain <= most:
                break
            loop = settle_window(search.arrays, window, search.owner)
            if loop is None or find_flaw(search.arrays, loop, search.owner):
                continue
            if _gain(loop) > most:
                most = _gain(loop)
                yield loop
            covers = loop.trips * shift > 0.7 * len(seed.members)
            is_explained |= covers and len(loop.rows) > 0.5 * len(window.rows)
        if is_explained:
            return
