"""From a window of rows to a loop: what each operand is, and which rows must go because of theirs."""

from __future__ import annotations

from collections.abc import Sequence

from wolong_fx.passes.reroll.check_loop import find_dependents
from wolong_fx.passes.reroll.graph_arrays import GraphArrays, value_of
from wolong_fx.passes.reroll.loop import Carried, Invariant, Loop, Operand, PerStep, SameStep
from wolong_fx.passes.reroll.place_window import Window
from wolong_fx.passes.values import same_value

Place = tuple[int, int]  # row, step


def settle_window(arrays: GraphArrays, window: Window, owner: dict[int, Loop]) -> Loop | None:
    """The loop of those rows of the window whose operands all have a description; None if no row has."""
    rows = window.rows
    while rows:
        places = {node: (row, t) for row, steps in enumerate(rows) for t, node in enumerate(steps)}
        after = find_dependents(arrays, places, owner)
        operands = [_describe_row(arrays, steps, places, after) for steps in rows]
        bad = {row for row, described in enumerate(operands) if described is None}
        if not bad:
            return _in_order(window.trips, rows, operands)  # type: ignore[arg-type]
        _spread(arrays, rows, bad, places, after)
        rows = [steps for row, steps in enumerate(rows) if row not in bad]
    return None


def _describe_row(
    arrays: GraphArrays, steps: tuple[int, ...], places: dict[int, Place], after: bytearray
) -> tuple[Operand, ...] | None:
    described = []
    for read in zip(*(arrays.operands[node] for node in steps), strict=True):
        operand = _describe(arrays, read, places, after)
        if operand is None:
            return None
        described.append(operand)
    return tuple(described)


def _describe(
    arrays: GraphArrays, read: Sequence[int], places: dict[int, Place], after: bytearray
) -> Operand | None:
    """What one operand is over all steps; None if it is nothing that a loop can have."""
    row, step = places.get(read[-1], (-1, 0))
    distance = len(read) - 1 - step
    if row < 0 or distance < 0 or distance == len(read):
        outside = read
    else:
        outside = read[:distance]
        if any(places.get(node) != (row, t) for t, node in enumerate(read[distance:])):
            return None
    if any(node in places or after[node] for node in outside):
        return None
    if row >= 0:
        return _recurrence(arrays, row, read, distance)
    return Invariant(read[0]) if len(set(read)) == 1 else PerStep(tuple(read))


def _recurrence(arrays: GraphArrays, row: int, read: Sequence[int], distance: int) -> Operand | None:
    if distance == 0:
        return SameStep(row)
    inits = tuple(read[:distance])
    value = value_of(arrays.nodes[read[-1]])
    is_alike = all(same_value(value_of(arrays.nodes[init]), value) for init in inits)
    return Carried(row, distance, inits) if is_alike and not isinstance(value, tuple | list) else None


def _spread(
    arrays: GraphArrays,
    rows: list[tuple[int, ...]],
    bad: set[int],
    places: dict[int, Place],
    after: bytearray,
) -> None:
    """A dropped row that needs the loop takes its readers along: it would lie between two of its nodes."""
    waiting = list(bad)
    while waiting:
        node = rows[waiting.pop()][len(rows[0]) // 2]
        if not any(operand in places or after[operand] for operand in arrays.operands[node]):
            continue
        for user, _ in arrays.users[node]:
            row = places.get(user, (-1, 0))[0]
            if row >= 0 and row not in bad:
                bad.add(row)
                waiting.append(row)


def _in_order(trips: int, rows: list[tuple[int, ...]], operands: list[tuple[Operand, ...]]) -> Loop:
    """The rows in the order in which the graph computes them in one step."""
    order = sorted(range(len(rows)), key=lambda row: rows[row][trips // 2])
    moved = {row: k for k, row in enumerate(order)}

    def renumbered(operand: Operand) -> Operand:
        match operand:
            case SameStep(row):
                return SameStep(moved[row])
            case Carried(row, distance, inits):
                return Carried(moved[row], distance, inits)
        return operand

    described = tuple(tuple(map(renumbered, operands[row])) for row in order)
    return Loop(trips, tuple(rows[row] for row in order), described)
