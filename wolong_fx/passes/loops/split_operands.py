"""In a loop's body, a MatMul of tensors that were put side by side becomes a sum of a MatMul of each.

    [x h] [W; U]  =  x W + h U

Many cells are written with one matrix for this step's input and the state. Apart, the product of the input
sees no carry: it leaves the loop, for all steps at once. And nothing has to be copied side by side in every
step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import torch
from torch.fx import Node

from wolong_fx.passes.edit import Call, Editor, Rewrite, silent
from wolong_fx.passes.loops.compute_before import lifted_operands
from wolong_fx.passes.loops.scan import Scan
from wolong_fx.passes.values import aten, is_call, shape_of, value_of

MOST_TERMS = 4
"""Products that one becomes: more of them would each be too thin."""

LEFT: Mapping[object, int] = {aten.mm.default: 0, aten.addmm.default: 1}
"""Where the left operand of a MatMul stands; the right one follows."""


def split_operands(scan: Scan, editor: Editor) -> None:
    """Split what reads a concatenation of columns; what sees no carry stays together where it is adjacent."""
    body = Editor(scan.body, "split-operands", silent)
    free = _free_of_carries(scan)
    for node in list(scan.body.graph.nodes):
        groups = _groups_of(node, free)
        if groups is None or not body.may_change(node):
            continue
        because = f"{len(groups)} products need no concatenation of {sum(map(len, groups))} operands"
        editor.tell(node, "replaced", because)
        body.apply(Rewrite(node, _sum_of_products(node, groups), because))


def _free_of_carries(scan: Scan) -> set[Node]:
    """What the slices and invariants decide."""
    free = set(lifted_operands(scan))
    for node in scan.body.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and free.issuperset(node.all_input_nodes)):
            free.add(node)
    return free


def _groups_of(node: Node, free: Collection[Node]) -> list[list[Node]] | None:
    """The operands that a MatMul reads side by side, in groups that belong together; None if it does not."""
    if node.target not in LEFT or node.kwargs or value_of(node).dtype not in (torch.float32, torch.float64):
        return None  # halves would be rounded once more
    parts = _columns_of(node.args[LEFT[node.target]], free)
    # What needs a carry is a group of its own: it may be ready before its neighbours.
    keyed = [("" if part in free else f"{position}", part) for position, part in enumerate(parts)]
    groups = [[part for _, part in group] for _, group in groupby(keyed, itemgetter(0))]
    return groups if 2 <= len(groups) <= MOST_TERMS else None


def _columns_of(left: object, free: Collection[Node]) -> list[Node]:
    """What a concatenation of columns that needs a carry puts side by side."""
    if not isinstance(left, Node) or not is_call(left, aten.cat.default) or left in free:
        return []
    parts, *axis = left.args
    assert isinstance(parts, Sequence)
    nodes = [part for part in parts if isinstance(part, Node)]
    return nodes if axis in ([1], [-1]) and all(len(shape_of(part)) == 2 for part in nodes) else []


def _sum_of_products(node: Node, groups: Sequence[Sequence[Node]]) -> Call:
    """The products in order, the bias with the first; a group that is no single operand is concatenated."""
    *bias, _, right = node.args
    target, total, start = node.target, None, 0
    assert callable(target)
    for group in groups:
        end = start + sum(shape_of(part)[1] for part in group)
        left = group[0] if len(group) == 1 else Call(aten.cat.default, (list(group), 1))
        operands = (left, Call(aten.slice.Tensor, (right, 0, start, end)))
        if total is None:
            total = Call(target, (*bias, *operands))
        else:
            total = Call(aten.add.Tensor, (total, Call(aten.mm.default, operands)))
        start = end
    assert total is not None
    return total
