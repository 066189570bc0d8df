"""split-loops: what a loop need not compute step by step is computed before or after it, for all steps.

Before the loop: operators that see no carry. What is the same in every step is computed once; a MatMul of
this step's slice becomes one MatMul over the rows of all steps, also where slice and carry stand side by side
in one operand. After the loop: operators that no carry needs. The MatMul of an output projection reads what
the loop stacked; a carry that only adds up what the steps contribute becomes a sum over the steps, and a sum
of MatMuls one MatMul whose inner dimension is that of all steps: the gradient of a weight.

MatMuls and reductions are what is worth it. They take along what stands between them and the loop's edge;
pointwise operators on their results leave with them where no more has to be kept for the loop than before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.edit import Editor
from wolong_fx.passes.loops.compute_after import compute_after
from wolong_fx.passes.loops.compute_before import compute_before
from wolong_fx.passes.loops.edit_scan import drop_unused, with_own_body
from wolong_fx.passes.loops.scan import Scan, scans_in
from wolong_fx.passes.loops.split_operands import split_operands
from wolong_fx.passes.loops.tidy_scan import tidy_scan
from wolong_fx.passes.values import is_effectful


@dataclass(frozen=True)
class SplitLoops(EditPass):
    """Loop fission, for MatMuls and reductions.

    most_bytes: a value of all steps is kept for the loop, or by it, up to this size
    """

    most_bytes: int = 1 << 28
    name: ClassVar[str] = "split-loops"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATING

    def edit(self, editor: Editor) -> None:
        for scan in scans_in(editor.graph_module):
            if not is_effectful(scan.node):
                _split(with_own_body(scan, editor.graph_module), editor, self.most_bytes)


def _split(scan: Scan, editor: Editor, most_bytes: int) -> None:
    tidy_scan(scan, editor)
    split_operands(scan, editor)
    compute_before(scan, editor, most_bytes)
    compute_after(scan, editor, most_bytes)
    drop_unused(scan)
    scan.body.recompile()
