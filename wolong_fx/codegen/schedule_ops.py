"""Operators to stages: each runs as early as its data allows; a stage is everything of one level, packed
together. A loop is a level's item of its own, its body scheduled the same way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from wolong_fx.codegen.dataflow import dependences, levels
from wolong_fx.codegen.loops import Element, LoopInst
from wolong_fx.codegen.place_carries import Moved, Places, place_carries
from wolong_fx.codegen.rewrite import relocate_buffers
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage
from wolong_fx.ir.types import Buffer, BufferKind

ChooseTile = Callable[[OpInst], tuple[int, ...]]


def schedule_ops(name: str, ops: Sequence[Element], io: Sequence[Buffer], choose_tile: ChooseTile) -> Program:
    """The program of these operators: stages by level, tiles chosen by the target, unused buffers left out.

    io: inputs and outputs in calling order
    """
    places = place_carries(ops)
    items = tuple(_items(ops, choose_tile, places, places.outside))
    program = Program(name, (), items)
    return replace(program, buffers=_all_buffers(program, io))


def drop_empty_stages(program: Program) -> Program:
    """The program without the stages that were there for a barrier alone and have lost it."""
    return replace(program, body=tuple(_without_empty(program.body)))


def _without_empty(body: Sequence[Item]) -> Iterator[Item]:
    for item in body:
        if isinstance(item, Loop):
            yield replace(item, body=tuple(_without_empty(item.body)))
        elif item.ops or item.barrier:
            yield item


def _items(ops: Sequence[Element], choose_tile: ChooseTile, places: Places, moved: Moved) -> Iterator[Item]:
    """The stage of each level, then its loops one after another: the barrier between orders nothing.

    A loop is followed by a barrier of its own: no trip has to wait for the sake of what comes after them all.
    """
    by_level: dict[int, list[Element]] = defaultdict(list)
    for op, level in zip(ops, levels(dependences(ops)), strict=True):
        by_level[level].append(op)
    for level in sorted(by_level):
        stage = [op for op in by_level[level] if isinstance(op, OpInst)]
        if stage:
            placed = (relocate_buffers(op, moved) for op in stage)
            yield Stage(tuple(replace(op, tile=choose_tile(op)) for op in placed))
        for loop in (op for op in by_level[level] if isinstance(op, LoopInst)):
            inside = {**moved, **places.inside[loop]}
            yield Loop(loop.var, tuple(_items(loop.body, choose_tile, places, inside)))
            yield Stage(())


def _all_buffers(program: Program, io: Sequence[Buffer]) -> tuple[Buffer, ...]:
    """Inputs and outputs as called, then constants and temporaries in use, under unique names."""
    used = dict.fromkeys(b for op in program.ops() for b in (*op.reads(), *op.writes()))
    inner = [b for b in used if b.kind in (BufferKind.CONSTANT, BufferKind.TEMPORARY)]
    return (*io, *inner)
