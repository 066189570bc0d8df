"""share-saved-values: what a backward's loop needs of the forward's is kept once, and only if it varies.

Differentiating a scan, torch keeps every value that the backward reads as a result of the forward's loop, a
row a step, and walks it backwards: transposed weights too, once a step, and one value in several layouts. In
the joint graph both loops are in sight. A kept value that only views or copies

- an invariant of the forward's loop becomes an invariant of the backward's,
- a slice of the forward's loop becomes a slice of what that walked,
- a tensor of one number is made again (the gradient, at each step, of a weight that the body does not use),
- another value is read from that value, if it is kept as well or instead,

and the views are made again in the backward's body.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from wolong_fx import _torch_compat
from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.edit import Call, Editor
from wolong_fx.passes.loops.edit_scan import (
    add_invariant,
    add_result,
    add_slice,
    drop_unused,
    remove_dead_code,
    with_own_body,
)
from wolong_fx.passes.loops.scan import Scan, is_scan, scans_in
from wolong_fx.passes.values import aten, byte_size, is_call, is_effectful

# Operators that say again what their operand says, in another shape, order or place. AOTAutograd writes
# copies for views in the bodies of loops.
RESTATED = frozenset(
    {
        *(aten.clone.default, aten.permute_copy.default, aten.permute.default, aten.view.default),
        *(aten.view_copy.default, aten.t_copy.default, aten.t.default, aten.transpose_copy.int),
        *(aten.transpose.int, aten.unsqueeze_copy.default, aten.unsqueeze.default, aten.detach.default),
        *(aten.alias_copy.default, aten.alias.default, aten.detach_copy.default, aten.squeeze_copy.dim),
    }
)


@dataclass(frozen=True)
class ShareSavedValues(EditPass):
    """For the joint graph of a training step, before it is cut into forward and backward."""

    name: ClassVar[str] = "share-saved-values"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def edit(self, editor: Editor) -> None:
        pure = [scan for scan in scans_in(editor.graph_module) if not is_effectful(scan.node)]
        loops = [with_own_body(scan, editor.graph_module) for scan in pure]
        for reader in loops:
            for inner, xs in zip(reader.slices, reader.xs, strict=True):
                if saved := _find_saved(xs):
                    _share(saved, reader, inner, editor)
        for scan in reversed(loops):  # a loop that reads no more of another lets that one keep less
            drop_unused(scan)
            remove_dead_code(editor.graph.nodes)
        for reader in loops:
            for xs in reader.xs:
                _flip_in_backward(xs)


@dataclass(frozen=True)
class _Saved:
    """What a step of a loop kept, and whether its steps are read from the last to the first.

    restated: the operators of the body from the value that is new in it to the one that was kept
    """

    scan: Scan
    source: Node
    restated: tuple[Node, ...]
    is_flipped: bool


def _find_saved(xs: Node) -> _Saved | None:
    """The result of a loop that `xs` is, as it stands or flipped."""
    is_flipped = False
    while is_call(xs, aten.flip.default) and xs.args[1] == [0]:
        assert isinstance(xs.args[0], Node)
        xs, is_flipped = xs.args[0], not is_flipped
    if not is_call(xs, operator.getitem) or not is_scan(xs.args[0]):
        return None
    scan, index = Scan.of(xs.args[0]), xs.args[1]  # type: ignore[arg-type]
    if not isinstance(index, int) or index < len(scan.inits):
        return None
    source, restated = scan.outputs[index], []
    while source.target in RESTATED and byte_size(source.all_input_nodes[0]) == byte_size(source):
        restated.append(source)
        source = source.all_input_nodes[0]
    is_cheaper = restated or is_call(source, aten.full.default)
    return _Saved(scan, source, tuple(reversed(restated)), is_flipped) if is_cheaper else None


def _flip_in_backward(xs: Node) -> None:
    """Walking backwards is how a kept value is read; flipped before it is kept, it would be another one."""
    if is_call(xs, aten.flip.default):
        operand = xs.all_input_nodes[0]
        is_kept = is_call(operand, operator.getitem) and is_scan(operand.args[0])
        is_input = operand.op == "placeholder" and not operand.name.startswith("tangents")
        if is_kept or is_input:
            _torch_compat.recompute_in_backward(xs)


def _share(saved: _Saved, reader: Scan, inner: Node, editor: Editor) -> None:
    kept = byte_size(inner) * reader.trip_count
    body = Editor(reader.body, ShareSavedValues.name)
    first = next(node for node in reader.body.graph.nodes if node.op != "placeholder")
    if is_call(saved.source, aten.full.default):
        fill = Call(aten.full.default, saved.source.args, saved.source.kwargs)
        source, because = body.place(fill, first, origin=saved.source), "it is one number"
    else:
        source, because = _read_source(saved, reader, editor)
    for node in saved.restated:
        args = tuple(source if argument is node.all_input_nodes[0] else argument for argument in node.args)
        source = body.place(Call(node.target, args, node.kwargs), first, origin=node)  # type: ignore[arg-type]
    inner.replace_all_uses_with(source)
    editor.tell(inner, "replaced", f"{because}: {kept} bytes need not be kept for it")


def _read_source(saved: _Saved, reader: Scan, editor: Editor) -> tuple[Node, str]:
    """The body's placeholder of the reading loop for what was restated, and why that is enough."""
    forward = saved.scan
    if saved.source in forward.inner_invariants:
        outer = forward.invariants[forward.inner_invariants.index(saved.source)]
        return add_invariant(reader, outer), f"{outer} is the same in every step"
    if saved.source in forward.slices:
        outer = forward.xs[forward.slices.index(saved.source)]
        return _slice_of(outer, saved, reader, editor), f"{outer} holds it"
    outer = add_result(forward, saved.source)
    return _slice_of(outer, saved, reader, editor), f"{outer} holds it in another layout"


def _slice_of(outer: Node, saved: _Saved, reader: Scan, editor: Editor) -> Node:
    if saved.is_flipped:
        outer = editor.place(Call(aten.flip.default, (outer, [0])), reader.node)
    return add_slice(reader, outer)
