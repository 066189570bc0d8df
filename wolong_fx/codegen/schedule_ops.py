"""Operators to stages: each runs as early as its data allows; a stage is everything of one level, packed
together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from wolong_fx.codegen.dataflow import dependences, levels
from wolong_fx.ir.program import OpInst, Program, Stage
from wolong_fx.ir.types import Buffer, BufferKind

ChooseTile = Callable[[OpInst], tuple[int, ...]]


def schedule_ops(name: str, ops: Sequence[OpInst], io: Sequence[Buffer], choose_tile: ChooseTile) -> Program:
    """The program of these operators: stages by level, tiles chosen by the target, unused buffers left out.

    io: inputs and outputs in calling order
    """
    stages: dict[int, list[OpInst]] = defaultdict(list)
    for op, level in zip(ops, levels(dependences(ops)), strict=True):
        stages[level].append(replace(op, tile=choose_tile(op)))
    body = tuple(Stage(tuple(stages[level])) for level in sorted(stages))
    return Program(name, _all_buffers(ops, io), body)


def _all_buffers(ops: Sequence[OpInst], io: Sequence[Buffer]) -> tuple[Buffer, ...]:
    """Inputs and outputs as called, then constants and temporaries in use, under unique names."""
    used = dict.fromkeys(b for op in ops for b in (*op.reads(), *op.writes()))
    inner = [b for b in used if b.kind in (BufferKind.CONSTANT, BufferKind.TEMPORARY)]
    return (*io, *inner)
