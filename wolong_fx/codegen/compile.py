"""An FX partition to a kernel: the steps of the back end in order, each timed, verified and dumped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch.fx import GraphModule

from wolong_fx.codegen.assign_outputs import assign_outputs
from wolong_fx.codegen.batch_ops import BatchOps
from wolong_fx.codegen.collapse_dims import collapse_dims
from wolong_fx.codegen.cost_model import Forecast
from wolong_fx.codegen.count_copies import copies_of_ops, copies_of_torch
from wolong_fx.codegen.drop_dead_ops import drop_dead_ops
from wolong_fx.codegen.eager_memory import eager_peak_bytes
from wolong_fx.codegen.fuse_ops import fuse_ops
from wolong_fx.codegen.join_loops import Estimate, JoinLoops, never_known
from wolong_fx.codegen.loops import Element, Step, count_ops, in_every_scope, map_ops
from wolong_fx.codegen.lower import lower_graph
from wolong_fx.codegen.order_dims import order_dims
from wolong_fx.codegen.plan_memory import plan_memory
from wolong_fx.codegen.rotate_loops import rotate_loops
from wolong_fx.codegen.schedule_ops import ChooseTile, drop_empty_stages, schedule_ops
from wolong_fx.codegen.split_ops import split_ops
from wolong_fx.codegen.split_prepare import Preparation, PrepareSplitter
from wolong_fx.codegen.split_reductions import split_reductions
from wolong_fx.codegen.targets import CPU, Target, find_costs, find_target
from wolong_fx.ir.happens_before import Owner, check_races, remove_redundant_barriers
from wolong_fx.ir.program import Program
from wolong_fx.ir.text import print_program
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ir.verify import verify
from wolong_fx.ledger import PARTITIONS, LaunchTime, Ledger
from wolong_fx.options import Options
from wolong_fx.passes.values import device_of, value_of
from wolong_fx.runtime import Kernel, ResidentKernel, Wiring
from wolong_fx.runtime.gpu.kernel import GpuKernel
from wolong_fx.runtime.gpu.resident import CapturedResidentKernel
from wolong_fx.runtime.machine_costs import USUAL_COSTS, MachineCosts


def _order_all(ops: list[Element], _ledger: Ledger) -> list[Element]:
    """Put the dimension whose steps touch neighbours last, in every operator."""
    return map_ops(ops, order_dims)


def _collapse_all(ops: list[Element], _ledger: Ledger) -> list[Element]:
    """Neighbouring dimensions that every access walks through as one become one."""
    return map_ops(ops, collapse_dims)


def _split_all(ops: list[Element], _ledger: Ledger) -> list[Element]:
    """A reduction over two dimensions seen as one runs over both, where that makes every read regular."""
    return map_ops(ops, split_reductions)


SPLIT = "split-prepare"
"""Between the steps and after them: what depends on weights alone goes to a program that rarely runs."""

FORECAST = "forecast"
"""Between planning and building: how long a program will take, and whether it is worth a team of threads."""

LAUNCH = "launch"
"""What the ledger calls the choice of a form and a grid on a GPU."""

PACK = "pack-operands"
"""The target's own step, after those of STEPS: what many operators stream is copied into their order."""

PackOperands = Callable[[list[Element], Collection[Buffer], int], list[Element]]


FindOwner = Callable[[Program], Owner | None]
"""Which thread of a team will run which virtual block of a scheduled program, if that is settled."""


def owner_unknown(program: Program) -> None:
    """The FindOwner of a target whose blocks run wherever there is room."""


def leave_operands(ops: list[Element], static: Collection[Buffer], room: int) -> list[Element]:
    """The PackOperands of a target that reads every operand where it is."""
    return ops


BEFORE_SPLIT: tuple[tuple[str, Step], ...] = (
    ("drop-dead-ops", drop_dead_ops),
    ("assign-outputs", in_every_scope(assign_outputs)),
    ("split-ops", in_every_scope(split_ops)),
)
"""What happens to the operators while those of the two programs stand side by side."""


def after_split(
    estimate: Estimate = never_known, costs: MachineCosts = USUAL_COSTS
) -> tuple[tuple[str, Step], ...]:
    """What happens to the operators of each of them, up to scheduling.

    estimate: how long the target expects elements to take
    costs: of the machine, for choices of single operators
    """
    return (
        ("fuse-ops", in_every_scope(fuse_ops)),
        ("rotate-loops", in_every_scope(rotate_loops)),
        ("join-loops", in_every_scope(JoinLoops(estimate))),
        ("batch-ops", in_every_scope(BatchOps(costs))),
        ("order-dims", _order_all),
        ("collapse-dims", _collapse_all),
        ("split-reductions", _split_all),
    )


STEPS = (*BEFORE_SPLIT, *after_split())
"""What happens to the operators between lowering and scheduling."""

STEP_DOCS = {
    **{name: step.__doc__ or "" for name, step in STEPS},
    SPLIT: PrepareSplitter.__doc__ or "",
    PACK: Target.pack_operands.__doc__ or "",
}
"""Every step that may be disabled by name, in order, and what it does."""


def compile_partition(gm: GraphModule, options: Options, ledger: Ledger) -> Any:
    """The kernel of a partition: placeholders -> supported operators -> a tuple of tensors.

    Returns a `runtime.Kernel`, a `ReferenceKernel` with the same `launch`, or None if the target builds none.
    Raises UnsupportedOperator for a node that `why_unsupported` refuses, NoCompiler and CompilerFailed.
    """
    target = find_target(options, _device_of(gm))
    choices = target.choose_tile, target.pack_operands, target.estimate, target.owner
    split = build_programs(gm, options, ledger, *choices, costs=find_costs(target))
    run, prepare = split.run, split.prepare
    with ledger.timed(FORECAST):
        forecast = target.forecast(run)
    ledger.add_memory(arena=_arena_bytes(run), eager=eager_peak_bytes(gm), kept=split.kept_bytes)
    for program in (run, prepare) if prepare else (run,):
        dump(options, "program", partial(print_program, program))
        dump(options, "source", partial(target.source_of, program))
    with ledger.timed("build"):
        kernel, preparing = target.build(run), target.build(prepare) if prepare else None
        if forecast is not None:
            _note_forecast(ledger, forecast, kernel)
        for built in (preparing, kernel):
            if isinstance(built, GpuKernel):
                _note_gpu_kernel(ledger, built)
        if kernel is None or preparing is None:
            return kernel
        resident = CapturedResidentKernel if isinstance(kernel, GpuKernel) else ResidentKernel
        return resident(preparing, kernel, split.wiring, options)


def _device_of(gm: GraphModule) -> torch.device:
    """Where the tensors of a partition live: all on one device, but for constant numbers."""
    found = {device_of(value_of(node)) for node in gm.graph.nodes if node.op != "output"}
    return next((device for device in found if device is not None and device.type != "cpu"), CPU)


def _note_gpu_kernel(ledger: Ledger, kernel: GpuKernel) -> None:
    known = ref(kernel)
    ledger.gpu_reports.append(lambda: found.report() if (found := known()) else None)
    ledger.note(LAUNCH, kernel.name, "kept", str(kernel.report()))


def _note_forecast(ledger: Ledger, forecast: Forecast, kernel: Kernel) -> None:
    threads = "one thread" if forecast.threads == 1 else f"{forecast.threads} threads"
    ledger.note(FORECAST, kernel.name, "kept", f"on {threads}: {forecast}")
    ledger.launch_times.append(LaunchTime(kernel.name, forecast.threads, forecast.seconds, ref(kernel)))


@dataclass(frozen=True)
class SplitProgram:
    """The program of a partition, and of what it needs of the weights beforehand, if that is anything.

    wiring: which inputs of the partition go to which of the two
    """

    run: Program
    prepare: Program | None
    wiring: Wiring

    @property
    def kept_bytes(self) -> int:
        """Bytes that stay between calls: the results of prepare."""
        buffers = self.prepare.buffers if self.prepare else ()
        return sum(b.span_bytes for b in buffers if b.kind is BufferKind.OUTPUT)


def build_programs(
    gm: GraphModule,
    options: Options,
    ledger: Ledger,
    choose_tile: ChooseTile,
    pack_operands: PackOperands = leave_operands,
    estimate: Estimate = never_known,
    find_owner: FindOwner = owner_unknown,
    costs: MachineCosts = USUAL_COSTS,
) -> SplitProgram:
    """The programs of a partition, scheduled and planned, verified, with only the barriers they need.

    Placeholders with meta["static"] are weights; what depends on them alone is prepared.
    choose_tile, pack_operands: the target's choices; by default operands stay as they are
    estimate: by default what may be joined is
    find_owner: by default barriers stay between blocks that might run on two threads
    costs: of the machine, by default usual ones
    """
    finish = partial(_finish_program, choose_tile=choose_tile, find_owner=find_owner, ledger=ledger)
    with ledger.timed("lower"):
        lowered = lower_graph(gm)
    inputs = [b for b in lowered.io if b.kind.is_given]
    splitter = PrepareSplitter(_static_inputs(gm, inputs, options))
    ledger.count_copies(PARTITIONS, copies_of_torch(gm))
    ledger.count_copies("lower", copies_of_ops(lowered.ops))
    ops = _run_steps(lowered.ops, BEFORE_SPLIT, options, ledger)
    with ledger.timed(SPLIT):
        ops = splitter.take(ops)
    ledger.count_copies(SPLIT, copies_of_ops(ops))
    ops = _run_steps(ops, after_split(estimate, costs), options, ledger)
    if PACK not in options.disable:
        with ledger.timed(PACK):
            ops = pack_operands(ops, splitter.readable, splitter.room)
    with ledger.timed(SPLIT):
        ops = splitter.take(ops)
        preparation = splitter.finish(ops)
    if preparation is None:
        run = finish("wolong", ops, lowered.io)
        return SplitProgram(run, None, Wiring((), tuple(range(len(inputs))), ()))
    prepare = _prepare_program(preparation, options, finish, ledger)
    read = {b for op in ops for b in op.reads()}
    others = [b for b in inputs if b not in splitter.static]
    weights = [b for b in inputs if b in splitter.static and b in read]
    outputs = [b for b in lowered.io if b.kind is BufferKind.OUTPUT]
    io = [*others, *weights, *preparation.residents, *outputs]
    run = finish("wolong", ops, io)
    groups = (preparation.inputs, others, weights)
    return SplitProgram(run, prepare, Wiring(*(tuple(map(inputs.index, group)) for group in groups)))


def _static_inputs(gm: GraphModule, inputs: list[Buffer], options: Options) -> frozenset[Buffer]:
    """The buffers of those placeholders that are weights, if anything of them may be kept."""
    if SPLIT in options.disable:
        return frozenset()
    nodes = (node for node in gm.graph.nodes if node.op == "placeholder")
    weights = (b for b, node in zip(inputs, nodes, strict=True) if node.meta.get("static"))
    return frozenset(b for b in weights if b.kind is BufferKind.INPUT)


def _prepare_program(
    preparation: Preparation, options: Options, finish: Callable[..., Program], ledger: Ledger
) -> Program:
    with ledger.timed(SPLIT):  # its steps are not counted among those of the graph
        ops = _run_steps(list(preparation.ops), after_split(), options, Ledger())
    io = [*preparation.inputs, *preparation.outputs]
    return finish("wolong_prepare", ops, io)


def _finish_program(
    name: str,
    ops: list[Element],
    io: list[Buffer],
    choose_tile: ChooseTile,
    find_owner: FindOwner,
    ledger: Ledger,
) -> Program:
    """Operators to a verified program with only the barriers it needs."""
    with ledger.timed("schedule-ops"):
        program = schedule_ops(name, ops, io, choose_tile)
    with ledger.timed("plan-memory"):
        program = plan_memory(program)
    with ledger.timed("verify-program"):
        verify(program, after="plan-memory")
    with ledger.timed("remove-barriers"):
        check_races(program)
        return drop_empty_stages(remove_redundant_barriers(program, find_owner(program)))


def _arena_bytes(program: Program) -> int:
    return program.arena.size if program.arena else 0


def _run_steps(
    ops: list[Element], steps: Sequence[tuple[str, Step]], options: Options, ledger: Ledger
) -> list[Element]:
    for name, step in steps:
        if name not in options.disable:
            with ledger.timed(name):
                before = count_ops(ops)
                ops = step(ops, ledger)
                ledger.op_counts[name] = (before, count_ops(ops))
                ledger.count_copies(name, copies_of_ops(ops))
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
