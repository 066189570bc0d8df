"""The proof: a loop computes, step by step and operand by operand, exactly what the graph does.

Soundness of re-rolling rests on `find_flaw` alone. It takes nothing from the search: only the claims of the
Loop and the graph.
"""

from __future__ import annotations

from collections.abc import Iterable

from wolong_fx.passes.reroll.graph_arrays import GraphArrays
from wolong_fx.passes.reroll.loop import Carried, Loop, SameStep, node_at, nodes_outside


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
    first = steps[0]
    for step, node in enumerate(steps):
        if arrays.kinds[node] != arrays.kinds[first] or arrays.numbers[node] != arrays.numbers[first]:
            return f"row {row} is another operator in step {step}"
        if arrays.is_fixed[node]:
            return f"row {row} holds a node that must stay where it is"
        if arrays.operands[node] != tuple([node_at(loop, operand, step) for operand in operands]):
            return f"row {row} reads something else in step {step}"
    for operand in operands:
        if isinstance(operand, SameStep) and operand.row >= row:
            return f"row {row} reads row {operand.row} before it is computed"
        if isinstance(operand, Carried) and (because := _flaw_of_carried(arrays, loop, operand)):
            return f"row {row} reads {because}"
    return None


def _flaw_of_carried(arrays: GraphArrays, loop: Loop, carried: Carried) -> str | None:
    if not 1 <= carried.distance <= loop.trips or len(carried.inits) != carried.distance:
        return "a carried value without one initial value a step"
    return None


def _flaw_of_order(arrays: GraphArrays, loop: Loop, owner: dict[int, Loop]) -> str | None:
    """All of the loop runs at once: nothing that it reads may need it."""
    outside = {node for operand in loop.all_operands() for node in nodes_outside(operand)}
    if outside & loop.nodes:
        return "a value from outside is computed inside"
    later = find_dependents(arrays, loop.nodes, owner)
    return "a value from outside needs the loop" if any(later[node] for node in outside) else None


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
