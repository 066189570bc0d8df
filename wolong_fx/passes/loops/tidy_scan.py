"""A loop without what only looks as if it changed from step to step: carries, slices and results."""

from __future__ import annotations

from torch.fx import Node

from wolong_fx.passes.edit import Call, Editor
from wolong_fx.passes.loops.edit_scan import add_invariant, drop_unused, replace_result
from wolong_fx.passes.loops.scan import Scan
from wolong_fx.passes.loops.stacked_ops import MATMULS
from wolong_fx.passes.values import aten, is_call, shape_of, value_of


def tidy_scan(scan: Scan, editor: Editor) -> None:
    """Carries and slices that never change become invariants, copies of a value one, what is unused goes."""
    _make_invariants_of_carries(scan, editor)
    _make_invariants_of_slices(scan, editor)
    _join_equal_slices(scan, editor)
    _read_operands_uncopied(scan, editor)
    _read_results_at_their_source(scan, editor)
    if dropped := drop_unused(scan):
        editor.tell(scan.node, "removed", f"{dropped} operators, carries and results of its body were unused")


def _make_invariants_of_carries(scan: Scan, editor: Editor) -> None:
    for index, (old, new) in enumerate(zip(scan.carries, scan.new_carries, strict=True)):
        if _without_copies(new) is not old:
            continue
        because = "every step hands on what it got"
        for result in scan.results(index):
            replace_result(result, scan.inits[index], because, editor)
        if len(old.users) > 1:
            invariant = add_invariant(scan, scan.inits[index])
            old.replace_all_uses_with(invariant, delete_user_cb=lambda user: user.op != "output")
            editor.tell(old, "replaced", because)


def _without_copies(value: Node) -> Node:
    """What a value is a copy of; torch lets no carry be handed on as it is."""
    while is_call(value, aten.clone.default) and isinstance(value.args[0], Node):
        value = value.args[0]
    return value


def _make_invariants_of_slices(scan: Scan, editor: Editor) -> None:
    for inner, xs in zip(scan.slices, scan.xs, strict=True):
        if inner.users and is_same_in_all_rows(xs):
            row = editor.place(Call(aten.select.int, (xs, 0, 0)), scan.node)
            inner.replace_all_uses_with(add_invariant(scan, row))
            editor.tell(inner, "replaced", f"every step's part of {xs} is the same")


def is_same_in_all_rows(xs: Node) -> bool:
    """True of a tensor whose parts along dimension 0 are one and the same."""
    if is_call(xs, aten.flip.default):
        operand = xs.args[0]
        return isinstance(operand, Node) and is_same_in_all_rows(operand)
    if is_call(xs, aten.expand.default):
        operand = xs.args[0]
        return len(shape_of(operand)) < len(shape_of(xs)) or shape_of(operand)[0] == 1
    return is_call(xs, aten.full.default) or (value_of(xs).dim() > 0 and value_of(xs).stride(0) == 0)


def _join_equal_slices(scan: Scan, editor: Editor) -> None:
    first: dict[Node, Node] = {}
    for inner, xs in zip(scan.slices, scan.xs, strict=True):
        if (earlier := first.setdefault(xs, inner)) is not inner and inner.users:
            inner.replace_all_uses_with(earlier)
            editor.tell(inner, "removed", f"{xs} was walked twice")


def _read_operands_uncopied(scan: Scan, editor: Editor) -> None:
    """A MatMul reads operands of any strides, and nothing is written in place in a body: copies for it go."""
    for node in scan.body.graph.nodes:
        if node.target in MATMULS:
            for copy in [operand for operand in node.all_input_nodes if is_call(operand, aten.clone.default)]:
                node.replace_input_with(copy, copy.all_input_nodes[0])
                editor.tell(copy, "removed", "a MatMul reads operands of any strides")


def _read_results_at_their_source(scan: Scan, editor: Editor) -> None:
    """A stacked result that is an operand, or another result, is read there."""
    sources: dict[Node, Node] = dict(zip(scan.slices, scan.xs, strict=True))
    for index, value in enumerate(scan.ys, len(scan.inits)):
        for result in scan.results(index):
            if value in sources:
                replace_result(result, sources[value], f"{sources[value]} holds the same", editor)
            elif value in scan.inner_invariants:
                outer = scan.invariants[scan.inner_invariants.index(value)]
                whole = Call(aten.expand.default, (outer, [scan.trip_count, *shape_of(value)]))
                replace_result(result, whole, "it is the same in every step", editor)
            else:
                sources[value] = result
