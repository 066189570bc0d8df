"""Whether a loop is worth being one: enough steps, enough nodes saved, little that must be copied for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from wolong_fx.capture.expand_rnn import is_expansion, is_rnn_call
from wolong_fx.passes.reroll.find_joins import Places, needed_in_one_piece
from wolong_fx.passes.reroll.graph_arrays import GraphArrays, value_of
from wolong_fx.passes.reroll.join_steps import is_cheap
from wolong_fx.passes.reroll.loop import Loop, nodes_outside
from wolong_fx.passes.reroll.plan_scan import ScanPlan, plan_scan

FEWEST_TRIPS = 4
LEAST_SAVED = 16
MOST_STACKED = 0.25  # bytes copied into stacks, of the bytes that the steps move anyway
EXPANDED = 12  # nodes that a recurrent cell, one node in Dynamo's graph, becomes


def why_not_worth(arrays: GraphArrays, loop: Loop, places: Places) -> str | None:
    """Why the loop stays unrolled; None when rolling it pays."""
    if loop.trips < FEWEST_TRIPS:
        return f"{loop.trips} steps are too few for a loop"
    plan = plan_scan(arrays, loop)
    stacked = [o.nodes for o in plan.inputs if not is_cheap(arrays, places, o.nodes)]
    extra = sum(map(len, stacked)) + _count_selects(arrays, plan, places)
    saved = _weight(arrays, loop) * (loop.trips - 1) - extra
    if saved < LEAST_SAVED:
        return f"a loop of {loop.trips} steps would save {max(saved, 0)} operators only, {extra} being added"
    copied = sum(_bytes(value_of(arrays.nodes[node])) for nodes in stacked for node in nodes)
    if copied > MOST_STACKED * _bytes_moved(arrays, loop):
        return f"a loop would first copy {copied} bytes of inputs that stand apart"
    return None


def _weight(arrays: GraphArrays, loop: Loop) -> int:
    firsts = (arrays.nodes[row[0]] for row in loop.rows)
    return sum(EXPANDED if is_rnn_call(n) or is_expansion(n) else 1 for n in firsts)


def _count_selects(arrays: GraphArrays, plan: ScanPlan, places: Places) -> int:
    """Steps that must be cut out of results one by one."""
    steps = [node for row in plan.results for node in plan.loop.rows[row]]
    users = {node: plan.readers.get(node, ()) for node in steps}
    in_one_piece = {
        u: needed_in_one_piece(arrays, places, u) for u in set(chain.from_iterable(users.values()))
    }
    return sum(node in arrays.returned or not all(in_one_piece[u] for u in users[node]) for node in steps)


def _bytes_moved(arrays: GraphArrays, loop: Loop) -> int:
    """What the operators of all steps read and write."""
    first = [[row[0] for row in loop.rows]]
    read = [
        [node for operand in operands for node in nodes_outside(operand)[:1]] for operands in loop.operands
    ]
    nodes: Sequence[int] = [node for group in (*first, *read) for node in group]
    return loop.trips * sum(_bytes(value_of(arrays.nodes[node])) for node in nodes)


def _bytes(value: Any) -> int:
    items = value if isinstance(value, tuple | list) else (value,)
    return sum(item.numel() * item.element_size() for item in items if isinstance(item, torch.Tensor))
