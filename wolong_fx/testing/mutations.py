"""Faults planted into correct programs: what analyses and targets must notice.

Each mutation takes a program and a random source and returns a program that may be wrong, or None where it
does not apply. Most break the order of accesses or the places of buffers; whether a mutant really misbehaves
is for the reference machine to say (`misbehaves`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from wolong_fx.codegen.reference import run_program
from wolong_fx.errors import ProgramFault
from wolong_fx.ir.expr import Access, rebuild
from wolong_fx.ir.index import Index
from wolong_fx.ir.program import ArenaPlan, Item, Loop, OpInst, Program, Stage, Store
from wolong_fx.testing.programs import ALIGNMENT

Mutation = Callable[[Program, random.Random], "Program | None"]


def misbehaves(program: Program, inputs: Sequence[Tensor], orders: int = 4) -> bool:
    """Whether the result depends on the order of virtual blocks, or some order meets a fault."""
    first: list[Tensor] | None = None
    for seed in range(orders):
        try:
            results = run_program(program, inputs, seed=seed)
        except ProgramFault:
            return True
        first = first or results
        if not all(torch.equal(a, b) for a, b in zip(first, results, strict=True)):
            return True
    return False


def drop_barrier(program: Program, rng: random.Random) -> Program | None:
    """A stage loses its barrier."""
    return _change_stage(program, rng, lambda s: replace(s, barrier=False), lambda s: s.barrier)


def merge_stages(program: Program, rng: random.Random) -> Program | None:
    """Two neighbouring stages become one."""
    body = list(program.body)
    places = [n for n, pair in enumerate(pairwise(body)) if all(isinstance(i, Stage) for i in pair)]
    if not places:
        return None
    place = rng.choice(places)
    first, second = body[place], body[place + 1]
    assert isinstance(first, Stage) and isinstance(second, Stage)
    body[place : place + 2] = [Stage((*first.ops, *second.ops), second.barrier)]
    return replace(program, body=tuple(body))


def swap_stages(program: Program, rng: random.Random) -> Program | None:
    """Two neighbouring items change places."""
    body = list(program.body)
    if len(body) < 2:
        return None
    place = rng.randrange(len(body) - 1)
    body[place], body[place + 1] = body[place + 1], body[place]
    return replace(program, body=tuple(body))


def shift_offset(program: Program, rng: random.Random) -> Program | None:
    """A temporary moves a little in the arena."""
    return _move(program, rng, lambda start, _: start + rng.choice((-2, -1, 1, 2)) * ALIGNMENT)


def overlap_buffers(program: Program, rng: random.Random) -> Program | None:
    """A temporary moves to where another one is."""
    return _move(program, rng, lambda _, others: rng.choice(others))


def shift_store(program: Program, rng: random.Random) -> Program | None:
    """An operator stores one element further along some coordinate, its last point where it should."""
    return _change_store(program, rng, lambda index, extent: _clamped(index + rng.choice((-1, 1)), extent))


def fold_store(program: Program, rng: random.Random) -> Program | None:
    """Two points of an operator store to one element."""
    return _change_store(program, rng, lambda index, extent: index // 2)


def turn_double_buffer(program: Program, rng: random.Random) -> Program | None:
    """A loop writes the half of a double buffer that it reads."""
    loops = [n for n, item in enumerate(program.body) if isinstance(item, Loop)]
    if not loops:
        return None
    place = rng.choice(loops)
    loop = program.body[place]
    assert isinstance(loop, Loop)
    wrong = {(Index.of(loop.var) + 1) % 2: Index.of(loop.var) % 2}
    body = tuple(_stores_renamed(item, lambda i: wrong.get(i, i)) for item in loop.body)
    return replace(
        program, body=(*program.body[:place], replace(loop, body=body), *program.body[place + 1 :])
    )


def reverse_loads(program: Program, rng: random.Random) -> Program | None:
    """An operator reads its first dimension backwards: harmless unless it replaces what it reads."""

    def change(op: OpInst) -> OpInst:
        var = op.dims[0].var
        values = rebuild(
            [s.value for s in op.stores],
            index=lambda i: i.substitute({var: Index.of(var) * -1 + (var.extent - 1)}),
        )
        stores = [replace(s, value=v) for s, v in zip(op.stores, values, strict=True)]
        return replace(op, stores=tuple(stores))

    return _change_op(program, rng, change, lambda op: bool(op.dims) and not op.dims[0].sequential)


MUTATIONS: dict[str, Mutation] = {
    f.__name__: f
    for f in (
        drop_barrier,
        merge_stages,
        swap_stages,
        shift_offset,
        overlap_buffers,
        shift_store,
        fold_store,
        turn_double_buffer,
        reverse_loads,
    )
}
"""Every mutation by name."""


def _clamped(index: Index, extent: int) -> Index | None:
    """An index that stays inside, or None."""
    low, high = index.bounds()
    return index if low >= 0 and high < extent else None


def _move(program: Program, rng: random.Random, place: Callable[[int, list[int]], int]) -> Program | None:
    plan = program.arena
    if plan is None or len(plan.offsets) < 2:
        return None
    buffer = rng.choice(list(plan.offsets))
    others = [start for b, start in plan.offsets.items() if b is not buffer]
    start = place(plan.offsets[buffer], others)
    if start < 0:
        return None
    size = max(plan.size, start + buffer.span_bytes)
    return replace(program, arena=ArenaPlan({**plan.offsets, buffer: start}, size))


def _change_store(
    program: Program, rng: random.Random, change: Callable[[Index, int], Index | None]
) -> Program | None:
    """One coordinate of one store changed, where the result stays inside its buffer."""

    def change_op(op: OpInst) -> OpInst:
        number = rng.randrange(len(op.stores))
        store = op.stores[number]
        places = [d for d, i in enumerate(store.access.index) if isinstance(i, Index) and not i.is_constant]
        if not places:
            return op
        dim, index = rng.choice(places), list(store.access.index)
        old = index[dim]
        assert isinstance(old, Index)
        new = change(old, store.access.buffer.shape[dim])
        index[dim] = old if new is None else new
        moved = replace(store, access=Access(store.access.buffer, tuple(index)))
        return replace(op, stores=(*op.stores[:number], moved, *op.stores[number + 1 :]))

    return _change_op(program, rng, change_op, lambda op: True)


def _change_op(
    program: Program,
    rng: random.Random,
    change: Callable[[OpInst], OpInst],
    fits: Callable[[OpInst], bool],
) -> Program | None:
    candidates = [op for op in program.ops() if fits(op)]
    if not candidates:
        return None
    chosen = rng.choice(candidates)
    changed = change(chosen)

    def in_stage(stage: Stage) -> Stage:
        return replace(stage, ops=tuple(changed if op is chosen else op for op in stage.ops))

    return replace(program, body=tuple(_mapped(item, in_stage) for item in program.body))


def _change_stage(
    program: Program,
    rng: random.Random,
    change: Callable[[Stage], Stage],
    fits: Callable[[Stage], bool],
) -> Program | None:
    candidates = [stage for stage in program.stages() if fits(stage)]
    if not candidates:
        return None
    chosen = rng.choice(candidates)
    body = tuple(_mapped(item, lambda s: change(s) if s is chosen else s) for item in program.body)
    return replace(program, body=body)


def _stores_renamed(item: Item, index: Callable[[Index], Index]) -> Item:
    def in_store(store: Store) -> Store:
        moved = tuple(index(i) if isinstance(i, Index) else i for i in store.access.index)
        return replace(store, access=Access(store.access.buffer, moved))

    def in_stage(stage: Stage) -> Stage:
        return replace(
            stage, ops=tuple(replace(op, stores=tuple(map(in_store, op.stores))) for op in stage.ops)
        )

    return _mapped(item, in_stage)


def _mapped(item: Item, change: Callable[[Stage], Stage]) -> Item:
    """An item with every stage changed."""
    if isinstance(item, Stage):
        return change(item)
    return replace(item, body=tuple(_mapped(inner, change) for inner in item.body))
