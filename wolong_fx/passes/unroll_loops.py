"""unroll-loops: a loop that codegen cannot lower, or of hardly a step, becomes its steps in a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.fx import Node

from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.decompose import nothing_is_supported
from wolong_fx.passes.edit import Call, Editor, Rewrite
from wolong_fx.passes.loops.edit_scan import replace_result
from wolong_fx.passes.loops.inline import inline_body
from wolong_fx.passes.loops.scan import Scan, scans_in
from wolong_fx.passes.partition_plan import WhyUnsupported
from wolong_fx.passes.values import aten, is_effectful, shape_of


@dataclass(frozen=True)
class UnrollLoops(EditPass):
    """The body stands in the graph once a step; xs become selects, ys are concatenated.

    why_unsupported: None for a loop that codegen lowers, else the reason it does not
    most_trips: loops of at most so many steps are unrolled anyway
    most_operators: loops that would become more operators than this are left to torch
    """

    why_unsupported: WhyUnsupported = field(default=nothing_is_supported, repr=False, compare=False)
    most_trips: int = 1
    most_operators: int = 100_000
    name: ClassVar[str] = "unroll-loops"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def edit(self, editor: Editor) -> None:
        seen: set[Node] = set()
        while loop := next((s for s in scans_in(editor.graph_module) if s.node not in seen), None):
            seen.add(loop.node)  # what stands in the graph afterwards may hold loops of the body
            if because := self._find_reason(loop):
                _unroll(loop, editor, because)

    def _find_reason(self, scan: Scan) -> str | None:
        """Why the loop is to be unrolled; None if it is not."""
        if (
            is_effectful(scan.node)
            or not 0 < scan.trip_count * len(scan.body.graph.nodes) <= self.most_operators
        ):
            return None
        if scan.trip_count <= self.most_trips:
            return "it has hardly a step"
        return self.why_unsupported(scan.node)


def _unroll(scan: Scan, editor: Editor, because: str) -> None:
    carries: list[Any] = list(scan.inits)
    ys: list[list[Node]] = [[] for _ in scan.ys]
    for step in range(scan.trip_count):
        operands = [*carries, *_slices(scan, step, editor), *scan.invariants]
        outputs = inline_body(scan.body, operands, scan.node, editor)
        carries = outputs[: len(carries)]
        for rows, row in zip(ys, outputs[len(carries) :], strict=True):
            rows.append(row)
    because = f"{scan.trip_count} steps stand one after another: {because}"
    for index, by in enumerate([*carries, *map(_stacked, ys)]):
        for result in scan.results(index):
            replace_result(result, by, because, editor)
    if not scan.node.users:
        editor.apply(Rewrite(scan.node, None, because))


def _slices(scan: Scan, step: int, editor: Editor) -> list[Node]:
    calls = [Call(aten.select.int, (xs, 0, step)) for xs in scan.xs]
    return [editor.place(call, scan.node) for call in calls]


def _stacked(rows: list[Node]) -> Call:
    """What torch.stack does, in its canonical spelling."""
    parts = [Call(aten.view.default, (row, [1, *shape_of(row)])) for row in rows]
    return Call(aten.cat.default, (parts, 0))
