"""An FX partition to a kernel: the steps of the back end in order, each timed, verified and dumped."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from wolong_fx.codegen.assign_outputs import assign_outputs
from wolong_fx.codegen.batch_ops import batch_ops
from wolong_fx.codegen.collapse_dims import collapse_dims
from wolong_fx.codegen.drop_dead_ops import drop_dead_ops
from wolong_fx.codegen.eager_memory import eager_peak_bytes
from wolong_fx.codegen.fuse_ops import fuse_ops
from wolong_fx.codegen.lower import lower_graph
from wolong_fx.codegen.order_dims import order_dims
from wolong_fx.codegen.plan_memory import plan_memory
from wolong_fx.codegen.schedule_ops import schedule_ops
from wolong_fx.codegen.targets import Target, find_target
from wolong_fx.ir.happens_before import check_races, remove_redundant_barriers
from wolong_fx.ir.program import OpInst, Program
from wolong_fx.ir.text import print_program
from wolong_fx.ir.verify import verify
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options


def _order_all(ops: list[OpInst], _ledger: Ledger) -> list[OpInst]:
    """Put the dimension whose steps touch neighbours last, in every operator."""
    return [order_dims(op) for op in ops]


def _collapse_all(ops: list[OpInst], _ledger: Ledger) -> list[OpInst]:
    """Neighbouring dimensions that every access walks through as one become one."""
    return [collapse_dims(op) for op in ops]


PACK = "pack-operands"
"""The target's own step, after those of STEPS: what many operators stream is copied into their order."""

Step = Callable[[list[OpInst], Ledger], list[OpInst]]

STEPS: tuple[tuple[str, Step], ...] = (
    ("drop-dead-ops", drop_dead_ops),
    ("assign-outputs", assign_outputs),
    ("fuse-ops", fuse_ops),
    ("batch-ops", batch_ops),
    ("order-dims", _order_all),
    ("collapse-dims", _collapse_all),
)
"""What happens to the operators between lowering and scheduling."""

STEP_DOCS = {name: step.__doc__ or "" for name, step in STEPS} | {PACK: Target.pack_operands.__doc__ or ""}
"""Every step that may be disabled by name, in order, and what it does."""


def compile_partition(gm: GraphModule, options: Options, ledger: Ledger) -> Any:
    """The kernel of a partition: placeholders -> supported operators -> a tuple of tensors.

    Returns a `runtime.Kernel`, or a `ReferenceKernel` with the same `launch`.
    Raises UnsupportedOperator for a node that `why_unsupported` refuses, NoCompiler and CompilerFailed.
    """
    target = find_target(options)
    program = build_program(gm, options, ledger, target.choose_tile, target.pack_operands)
    ledger.add_memory(arena=program.arena.size if program.arena else 0, eager=eager_peak_bytes(gm))
    dump(options, "program", lambda: print_program(program))
    dump(options, "source", lambda: target.source_of(program))
    with ledger.timed("build"):
        return target.build(program)


def build_program(
    gm: GraphModule,
    options: Options,
    ledger: Ledger,
    choose_tile: Callable[[OpInst], tuple[int, ...]],
    pack_operands: Callable[[list[OpInst]], list[OpInst]] = list,
) -> Program:
    """The scheduled and planned program of a partition, verified, with only the barriers it needs.

    choose_tile, pack_operands: the target's choices; by default operands stay as they are
    """
    with ledger.timed("lower"):
        lowered = lower_graph(gm)
    ops = _run_steps(lowered.ops, options, ledger)
    if PACK not in options.disable:
        with ledger.timed(PACK):
            ops = pack_operands(ops)
    with ledger.timed("schedule-ops"):
        program = schedule_ops("wolong", ops, lowered.io, choose_tile)
    with ledger.timed("plan-memory"):
        program = plan_memory(program)
    with ledger.timed("verify-program"):
        verify(program, after="plan-memory")
    with ledger.timed("remove-barriers"):
        check_races(program)
        return remove_redundant_barriers(program)


def _run_steps(ops: list[OpInst], options: Options, ledger: Ledger) -> list[OpInst]:
    for name, step in STEPS:
        if name not in options.disable:
            with ledger.timed(name):
                before = len(ops)
                ops = step(ops, ledger)
                ledger.op_counts[name] = (before, len(ops))
    return ops


def dump(options: Options, what: str, text: Callable[[], str]) -> None:
    """Write an artefact to `dump_dir` under a name of its content, if the options ask for it."""
    if what not in options.dump:
        return
    content = text()
    suffix = {"program": "wir", "source": "cpp"}[what]
    path = Path(options.dump_dir) / f"{sha256(content.encode()).hexdigest()[:12]}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
