"""The proof: a loop computes, step by step and operand by operand, exactly what the graph does.

Soundness of re-rolling rests on `find_flaw` alone. It takes nothing from the search: only the claims of the
Loop and the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from wolong_fx.passes.reroll.graph_arrays import GraphArrays
from wolong_fx.passes.reroll.loop import Carried, Loop, SameStep, nodes_of, nodes_outside


def find_flaw(arrays: GraphArrays, loop: Loop, owner: dict[int, Loop]) -> str | None:
    """Why the loop is not what the graph computes; None when it is, for every input.

    owner: the loops that nodes belong to already; each of them will be one node of the graph
    """
    nodes = loop.nodes
    if len(nodes) != sum(map(len, loop.rows)) or any(node in owner for node in nodes):
        return "a node stands in two places"
    if any(len(row) != loop.trips for row in loop.rows):
        return "a row lacks a step"
    flaws = (_flaw_of_row(arrays, loop, row) for row in range(len(loop.rows)))
    return next((flaw for flaw in flaws if flaw), None) or _flaw_of_order(arrays, loop, owner)


def _flaw_of_row(arrays: GraphArrays, loop: Loop, row: int) -> str | None:
    steps, operands = loop.rows[row], loop.operands[row]
    for facts in (arrays.kinds, arrays.numbers):
        if len({facts[node] for node in steps}) != 1:
            return f"row {row} is not one operator"
    if any(arrays.is_fixed[node] for node in steps):
        return f"row {row} holds a node that must stay where it is"
    if any(len(arrays.operands[node]) != len(operands) for node in steps):
        return f"row {row} has other operands"
    for operand, read in zip(
        operands, zip(*(arrays.operands[node] for node in steps), strict=True), strict=True
    ):
        if isinstance(operand, SameStep) and operand.row >= row:
            return f"row {row} reads row {operand.row} before it is computed"
        if isinstance(operand, Carried) and (because := _flaw_of_carried(loop, operand)):
            return f"row {row} reads {because}"
        if read != nodes_of(loop, operand):
            return f"row {row} reads something else than it should"
    return None


def _flaw_of_carried(loop: Loop, carried: Carried) -> str | None:
    if not 1 <= carried.distance <= loop.trips or len(carried.inits) != carried.distance:
        return "a carried value without one initial value a step"
    return None


def _flaw_of_order(arrays: GraphArrays, loop: Loop, owner: dict[int, Loop]) -> str | None:
    """All of the loop runs at once: nothing that it reads may need it."""
    outside = {node for operand in loop.all_operands() for node in nodes_outside(operand)}
    if outside & loop.nodes:
        return "a value from outside is computed inside"
    return "a value from outside needs the loop" if _needs(arrays, outside, loop.nodes, owner) else None


def _needs(arrays: GraphArrays, nodes: set[int], wanted: Set[int], owner: dict[int, Loop]) -> bool:
    """Whether any of `nodes` comes after any that is wanted; a loop comes after all that it needs."""
    seen, waiting = set(nodes), list(nodes)
    while waiting:
        node = waiting.pop()
        together = owner[node].nodes if node in owner else (node,)
        seen.update(together)
        for earlier in (e for member in together for e in arrays.needed_by(member)):
            if earlier in wanted:
                return True
            if earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)
    return False


def find_dependents(arrays: GraphArrays, nodes: Iterable[int], owner: dict[int, Loop]) -> bytearray:
    """Marks what must come after any of `nodes`, themselves not counted; a loop comes after as a whole."""
    own = set(nodes)
    after, waiting, passed = bytearray(arrays.size), list(own), set[int]()
    while waiting:
        for node in arrays.followers(waiting.pop()):
            if after[node] or node in own:
                continue
            after[node] = 1
            waiting.append(node)
            loop = owner.get(node)
            if loop is not None and id(loop) not in passed:
                passed.add(id(loop))
                fresh = [other for other in loop.nodes if not after[other]]
                waiting += fresh
                for other in fresh:
                    after[other] = 1
    return after
