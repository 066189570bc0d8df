"""Which thread of a team runs which virtual blocks.

Whoever asks gets the same answer: the tables of the emitted text, the owners by which barriers are removed
(`ir/happens_before.py`), and the cost model. It depends on the operators of a stage alone, not on barriers
nor on other stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wolong_fx.codegen.cpp.machine import MACHINES, Machine
from wolong_fx.codegen.cpp.team import team_of
from wolong_fx.codegen.cpp.tiles import Planner, block_order, op_cycles
from wolong_fx.codegen.signature import Bindings, Key, outer_variables, signature
from wolong_fx.ir.program import OpInst, Program, Stage

SMALL_STAGE = 1500.0
"""Cycles of a stage that is left to one thread: handing cache lines around would cost more."""


UNFAIR = 1 / 16
"""Of its share of a stage, what a thread may have too much by estimate so that operators stay whole."""


@dataclass(frozen=True)
class Piece:
    """An operator as a cut sees it.

    blocks: virtual blocks
    panel: blocks that share an operand and are numbered one after another: a cut should keep them together
    cycles: estimated work of all blocks
    """

    blocks: int
    panel: int
    cycles: float


@dataclass(frozen=True)
class Part:
    """Consecutive virtual blocks of the operator at position `op` of a stage, for one thread."""

    op: int
    first: int
    last: int


def cut_stage(pieces: Sequence[Piece], threads: int) -> list[list[Part]]:
    """The parts of each thread: of an operator, static ranges that follow each other from thread to thread,
    so that a thread meets the same memory in every trip of a loop.

    Whole operators are dealt out where that is fair: what follows one of them then often stays on its thread.
    Else a large operator whose panels can be dealt out equally is cut by itself, since no estimate of cycles
    is needed to be fair then. What is left is dealt out by estimated cycles, between panels where there are
    at least two a thread, else between blocks. A block that is alone is the first thread's, always: no
    barrier is needed between two such stages.
    """
    if sum(p.blocks for p in pieces) == 1 or sum(p.cycles for p in pieces) <= SMALL_STAGE:
        return _of_whole_operators(pieces, [0] * len(pieces), threads)
    owners = _fair_owners(pieces, threads)
    return _of_whole_operators(pieces, owners, threads) if owners else _cut_operators(pieces, threads)


def _of_whole_operators(pieces: Sequence[Piece], owners: Sequence[int], threads: int) -> list[list[Part]]:
    found: list[list[Part]] = [[] for _ in range(threads)]
    for op, (piece, owner) in enumerate(zip(pieces, owners, strict=True)):
        if piece.blocks:
            found[owner].append(Part(op, 0, piece.blocks))
    return found


def _fair_owners(pieces: Sequence[Piece], threads: int) -> list[int] | None:
    """The thread of each operator, neighbours together; None where one would have more than a fair share."""
    share, before = sum(piece.cycles for piece in pieces) / threads, 0.0
    owners, loads = [], [0.0] * threads
    for piece in pieces:
        owner = min(threads - 1, int((before + piece.cycles / 2) / share))
        owners.append(owner)
        loads[owner] += piece.cycles
        before += piece.cycles
    return owners if max(loads) <= (1 + UNFAIR) * share else None


def _cut_operators(pieces: Sequence[Piece], threads: int) -> list[list[Part]]:
    found: list[list[Part]] = [[] for _ in range(threads)]
    is_even = [_is_even(piece, threads) for piece in pieces]
    rest = sum(piece.cycles for piece, even in zip(pieces, is_even, strict=True) if not even)
    share, before = rest / threads, 0.0
    for op, (piece, even) in enumerate(zip(pieces, is_even, strict=True)):
        if even:
            bounds = [piece.blocks * (thread + 1) // threads for thread in range(threads)]
        else:
            unit = _unit(piece, piece.cycles / rest * threads if rest else 1)
            ends = [_part(share * (thread + 1) - before, piece.cycles) for thread in range(threads)]
            bounds = [*(_cut(piece, end, unit) for end in ends[:-1]), piece.blocks]
            before += piece.cycles
        _deal_out(op, bounds, found)
    return found


def _deal_out(op: int, bounds: Sequence[int], found: Sequence[list[Part]]) -> None:
    """Give each thread the blocks of an operator up to its bound that no earlier one has."""
    first = 0
    for parts, last in zip(found, bounds, strict=True):
        if last > first:
            parts.append(Part(op, first, last))
            first = last


def _is_even(piece: Piece, threads: int) -> bool:
    """Whether an operator is worth a team by itself, and has as many whole panels for each thread."""
    panels, rest = divmod(piece.blocks, max(1, piece.panel))
    return piece.cycles > SMALL_STAGE and panels > 0 and not rest and panels % threads == 0


def _unit(piece: Piece, threads: float) -> int:
    panels = piece.blocks // max(1, piece.panel)
    return piece.panel if panels >= 8 * threads or (threads > 1 and panels % round(threads) == 0) else 1


def _part(cycles: float, whole: float) -> float:
    """`cycles` as a part of `whole`, between 0 and 1."""
    if cycles >= whole:
        return 1.0
    return cycles / whole if cycles > 0 else 0.0


def _cut(piece: Piece, part: float, unit: int) -> int:
    return piece.blocks if part >= 1 else min(piece.blocks, round(piece.blocks / unit * part) * unit)


@dataclass
class Cutter:
    """Cuts stages of scheduled operators for a team; operators that are alike are looked at once."""

    machine: Machine
    threads: int
    _alike: dict[Key, tuple[Piece, tuple[int, ...]]] = field(default_factory=dict)
    _known: dict[OpInst, tuple[Piece, tuple[int, ...]]] = field(default_factory=dict)

    def parts(self, stage: Stage) -> list[list[Part]]:
        """For each thread, in the order of the stage's operators."""
        return cut_stage([self._look_at(op)[0] for op in stage.ops], self.threads)

    def owners(self, stage: Stage) -> dict[OpInst, np.ndarray]:
        """For each operator, the thread of each virtual block, by its row-major number."""
        numbered = [np.zeros(op.virtual_blocks, dtype=np.int64) for op in stage.ops]
        for thread, parts in enumerate(self.parts(stage)):
            for part in parts:
                numbered[part.op][part.first : part.last] = thread
        return {op: self._row_major(op, owner) for op, owner in zip(stage.ops, numbered, strict=True)}

    def _row_major(self, op: OpInst, numbered: np.ndarray) -> np.ndarray:
        """What stands in the order in which tile functions number blocks, in row-major order."""
        order = self._look_at(op)[1]
        grid = numbered.reshape([op.grid[dim] for dim in order])
        return grid.transpose([order.index(dim) for dim in range(len(order))]).reshape(-1)

    def _look_at(self, op: OpInst) -> tuple[Piece, tuple[int, ...]]:
        if op not in self._known:
            key = signature(op, Bindings.of(op), outer_variables(op))
            if key not in self._alike:
                self._alike[key] = self._piece(op)
            self._known[op] = self._alike[key]
        return self._known[op]

    def _piece(self, op: OpInst) -> tuple[Piece, tuple[int, ...]]:
        if not op.points:
            return Piece(0, 1, 0.0), tuple(range(len(op.dims)))
        planner = Planner(op, self.machine)
        order = block_order(planner)
        row = planner.plan.row if planner.plan.blocked else None
        panel = 1 if row is None else op.grid[row]
        return Piece(op.virtual_blocks, panel, op_cycles(planner)), order


class BlockOwners:
    """Which thread of a team runs a virtual block of a program, by its row-major number: an `Owner`.

    It holds for kernels that `emit_program` makes for this team, and for one thread.
    """

    def __init__(self, program: Program, isa: str, threads: int) -> None:
        cutter = Cutter(MACHINES[isa], team_of(threads))
        self._threads: dict[OpInst, np.ndarray] = {}
        for stage in program.stages():
            self._threads |= cutter.owners(stage)

    def __call__(self, op: OpInst, block: int) -> int:
        return int(self._threads[op][block])
