"""Products of a step's input that stay in their loop, beside products of the state that they are added to.

    x W + h U   is one sum: in a step, the registers that hold the state's product take in the input's

Before the loop, the input's product is computed for all steps, written, and read again step by step. In a
step nothing of it is written, but its weights are read anew. That is the better way where what is written
leaves the caches before it is read, and a step has so many rows that arithmetic hides the reading of weights;
the target's code generator knows where that begins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch.fx import Node

from wolong_fx.passes.loops.scan import Scan
from wolong_fx.passes.loops.stacked_ops import MATMULS, VIEWS, Lifted
from wolong_fx.passes.values import byte_size, is_pointwise_operator, shape_of, value_of


@dataclass(frozen=True)
class Cost:
    """What it takes to keep products in the steps of a loop.

    multiply_adds: of a step, those of the state's products included
    weight_bytes: what these read in every step
    stacked_bytes: what would be written before the loop instead, and read in it
    """

    multiply_adds: int
    weight_bytes: int
    stacked_bytes: int


IsWorthSteps = Callable[[Cost], bool]
"""Whether products are better computed step by step than before the loop."""


def never_worth_steps(_cost: Cost) -> bool:
    """The IsWorthSteps of a pipeline without a code generator: all that can leaves the loop."""
    return False


def find_staying(scan: Scan, lifted: dict[Node, Lifted], is_worth_steps: IsWorthSteps) -> list[Node]:
    """The MatMuls of the body that could leave and should not.

    lifted: what could stand outside of the loop
    """
    once = {node for node, at in lifted.items() if not at.is_stacked}
    products = [n for n in scan.body.graph.nodes if n.target in MATMULS and n not in once]
    bound = {n for n in products if n not in lifted}
    free = [n for n in products if n in lifted and _reads_slice(n)]
    found = [n for n in free if _is_added_to_one_of(bound, n, lifted)]
    weights = {operand for n in products for operand in n.all_input_nodes[-1:]} & once
    cost = Cost(
        sum(map(_multiply_adds, products)),
        sum(map(byte_size, weights)),
        scan.trip_count * sum(map(byte_size, found)),
    )
    return found if found and is_worth_steps(cost) else []


def _multiply_adds(product: Node) -> int:
    return value_of(product).numel() * shape_of(product.args[-1])[-2]  # type: ignore[arg-type]


def _reads_slice(product: Node) -> bool:
    """Whether its left operand lies in memory as it is; halves are left to where a library may take them."""
    left = product.args[-2]
    while isinstance(left, Node) and left.target in VIEWS:
        left = left.args[0]
    is_plain = isinstance(left, Node) and left.op == "placeholder"
    return is_plain and value_of(product).dtype in (torch.float32, torch.float64)


def _is_added_to_one_of(bound: Collection[Node], product: Node, lifted: Collection[Node]) -> bool:
    """Whether all that it is used for, point by point, meets a product among `bound` that is used so too."""
    pending, meetings = [product], set[Node]()
    while pending:
        value = pending.pop()
        sums = {user for user in value.users if _is_added_by(bound, user, value)}
        users = [user for user in value.users if user not in sums]
        if not all(map(_is_by_points, users)):
            return False
        pending += [user for user in users if user in lifted]
        meetings |= sums | {user for user in users if user not in lifted}
    return bool(meetings) and all(_is_made_of(bound, meeting) for meeting in meetings)


def _is_added_by(bound: Collection[Node], user: Node, value: Node) -> bool:
    """Whether a product among `bound` adds a value itself: addmm(value, state, weights)."""
    is_sum = user in bound and user.target is torch.ops.aten.addmm.default
    return is_sum and user.args[0] is value and value not in user.args[1:]


def _is_made_of(bound: Collection[Node], node: Node) -> bool:
    """Whether a value is computed point by point from one of `bound`, among others."""
    seen, pending = set[Node](), [node]
    while pending:
        found = pending.pop()
        if found in bound:
            return True
        if found not in seen and _is_by_points(found):
            pending += found.all_input_nodes
        seen.add(found)
    return False


def _is_by_points(node: Node) -> bool:
    return node.op == "call_function" and (is_pointwise_operator(node.target) or node.target in VIEWS)
