"""split-loops: what a loop need not compute step by step is computed before or after it, for all steps.

Before the loop: operators that see no carry. What is the same in every step is computed once; a MatMul of
this step's slice becomes one MatMul over the rows of all steps, also where slice and carry stand side by side
in one operand; but not where it is added to a product of the state, and a step has rows enough for both.
After the loop: operators that no carry needs. The MatMul of an output projection reads what the loop stacked;
a carry that only adds up what the steps contribute becomes a sum over the steps, and a sum of MatMuls one
MatMul whose inner dimension is that of all steps: the gradient of a weight.

MatMuls and reductions are what is worth it. They take along what stands between them and the loop's edge;
pointwise operators on their results leave with them where no more has to be kept for the loop than before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.edit import Editor
from wolong_fx.passes.loops.compute_after import compute_after
from wolong_fx.passes.loops.compute_before import compute_before
from wolong_fx.passes.loops.edit_scan import drop_unused, with_own_body
from wolong_fx.passes.loops.find_staying import IsWorthSteps, never_worth_steps
from wolong_fx.passes.loops.scan import Scan, scans_in
from wolong_fx.passes.loops.split_operands import split_operands
from wolong_fx.passes.loops.tidy_scan import tidy_scan
from wolong_fx.passes.values import is_effectful


@dataclass(frozen=True)
class SplitLoops(EditPass):
    """Loop fission, for MatMuls and reductions.

    is_worth_steps: whether products of what a step reads are better computed in it
    most_bytes: a value of all steps is kept for the loop, or by it, up to this size
    """

    is_worth_steps: IsWorthSteps = field(default=never_worth_steps, repr=False, compare=False)
    most_bytes: int = 1 << 28
    name: ClassVar[str] = "split-loops"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATING

    def edit(self, editor: Editor) -> None:
        for scan in scans_in(editor.graph_module):
            if not is_effectful(scan.node):
                self._split(with_own_body(scan, editor.graph_module), editor)

    def _split(self, scan: Scan, editor: Editor) -> None:
        tidy_scan(scan, editor)
        split_operands(scan, editor)
        compute_before(scan, editor, self.most_bytes, self.is_worth_steps)
        compute_after(scan, editor, self.most_bytes)
        drop_unused(scan)
        scan.body.recompile()
