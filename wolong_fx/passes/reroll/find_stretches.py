"""Stretches: where a graph repeats itself in the order of its nodes, seen on one array of integers.

Whoever traces a loop writes its steps one after another. Where a node is of the same kind as the one `period`
nodes before it, and so are hundreds of its neighbours, there is a loop or what feeds one. That is a guess
made in a few passes of numpy; nothing rests on it but where the search looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from wolong_fx.passes.reroll.graph_arrays import GraphArrays

FEWEST_STEPS = 192  # below, searching all of them takes no time
FEWEST_USES = 64  # of a value that tells layers apart, as a weight does
NEIGHBOURS = 4  # nodes that are alike in so many have one context
MOST_PERIODS = 8

_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64: they mix bits well
_KIND, _WEIGHT, _PLACE = (np.array(odd, dtype=np.uint64) for odd in _ODD)


@dataclass(frozen=True)
class Stretch:
    """`steps` times `period` nodes, from `start` on; places among GraphArrays.live."""

    start: int
    period: int
    steps: int

    @property
    def end(self) -> int:
        return self.start + self.period * self.steps


def find_stretches(arrays: GraphArrays) -> list[Stretch]:
    """Stretches of FEWEST_STEPS steps or more, none overlapping."""
    if len(arrays.live) < FEWEST_STEPS:
        return []
    codes = _code_nodes(arrays)
    is_taken = np.zeros(len(codes), dtype=bool)
    found = []
    for period in _likely_periods(codes):
        for first, last in _find_true(codes[period:] == codes[:-period]):
            stretch = Stretch(first, period, (last - first) // period + 1)
            if stretch.steps >= FEWEST_STEPS and not is_taken[first : stretch.end].any():
                is_taken[first : stretch.end] = True
                found.append(stretch)
    return found


def _code_nodes(arrays: GraphArrays) -> np.ndarray:
    """An integer a live node, equal for nodes of one kind that read the same weights."""
    read = [arrays.operands[node] for node in arrays.live]
    ends = np.cumsum([0, *map(len, read)])
    flat = np.fromiter(chain.from_iterable(read), dtype=np.uint64, count=int(ends[-1]))
    is_shared = np.bincount(flat.astype(np.int64), minlength=arrays.size)[flat] >= FEWEST_USES
    sums = np.zeros(len(flat) + 1, dtype=np.uint64)
    np.cumsum((flat + np.uint64(1)) * _WEIGHT * is_shared, out=sums[1:])
    return np.array(arrays.kinds, dtype=np.uint64)[arrays.live] * _KIND + np.diff(sums[ends])


def _likely_periods(codes: np.ndarray) -> list[int]:
    """How far nodes of one context are apart, the commonest distance first."""
    contexts, weight = codes.copy(), _PLACE.copy()
    for place in range(1, NEIGHBOURS):
        contexts[:-place] += codes[place:] * weight
        weight = weight * _PLACE
    order = np.argsort(contexts, kind="stable")
    is_alike = np.diff(contexts[order]) == 0
    periods, counts = np.unique(np.diff(order)[is_alike], return_counts=True)
    return [int(period) for period in periods[np.argsort(-counts, kind="stable")][:MOST_PERIODS]]


def _find_true(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and past the last place of each stretch of True."""
    padded = np.concatenate([[False], flags, [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(padded))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
