"""Orbits: the chains of the shift map, cut where they stop to be one row of a loop's body."""

from __future__ import annotations

from itertools import pairwise

from wolong_fx.passes.reroll.graph_arrays import GraphArrays

FEWEST_STEPS = 3  # two of a kind are no pattern


def cut_orbits(arrays: GraphArrays, found: list[list[int]]) -> list[list[int]]:
    """The chains, cut where an invariant operand changes (from the encoder's weight to the decoder's)
    and down to the longest stretch in which numbers move by the same distance a step."""
    cut = []
    for chain in found:
        for start, end in pairwise(_cuts(arrays, chain)):
            cut += _affine_stretch(arrays, chain[start:end])
    return [orbit for orbit in cut if len(orbit) >= FEWEST_STEPS]


def _cuts(arrays: GraphArrays, chain: list[int]) -> list[int]:
    cuts = {0, len(chain)}
    for position in range(len(arrays.operands[chain[0]])):
        read = [arrays.operands[node][position] for node in chain]
        changes = [j for j in range(1, len(read)) if read[j] != read[j - 1]]
        if len(changes) < len(read) - 1:  # otherwise it never is invariant
            cuts.update(j for j in changes if _is_stable_beside(read, j))
    return sorted(cuts)


def _is_stable_beside(read: list[int], change: int) -> bool:
    before = change >= 2 and read[change - 1] == read[change - 2]
    after = change + 1 < len(read) and read[change] == read[change + 1]
    return before or after


def _affine_stretch(arrays: GraphArrays, chain: list[int]) -> list[list[int]]:
    if not chain or not arrays.numbers[chain[0]]:
        return [chain] if chain else []
    start, best = 0, (0, 0)
    for j in range(2, len(chain) + 1):
        if j == len(chain) or not _is_affine(arrays, chain[j - 2 : j + 1]):
            best = max(best, (start, j), key=lambda stretch: stretch[1] - stretch[0])
            start = j - 1
    return [chain[best[0] : best[1]]]


def _is_affine(arrays: GraphArrays, three: list[int]) -> bool:
    numbers = zip(*(arrays.numbers[node] for node in three), strict=True)
    return all(c - b == b - a for a, b, c in numbers)
