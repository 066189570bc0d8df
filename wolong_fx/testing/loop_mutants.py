"""Faults planted into the loops of programs, one a copy: a trip or a state that is off by one, and its like.

The verifier, the race check or a comparison of results must tell every mutant from the program that it was
made of, provided that every state and everything that is read by trip differs from trip to trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from wolong_fx.ir.expr import Access, Binary, Const, Expr, Load, map_access, rebuild
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage, Store
from wolong_fx.ir.types import Buffer, DType

Plant = Callable[[Program, Loop], Iterator[Program]]
"""The program with a fault in one of its loops, or around it, once for each place."""


def loop_mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Every fault at every place of every loop of a program, by name."""
    for loop in _loops(program.body):
        for name, plant in PLANTS.items():
            for place, mutant in enumerate(plant(program, loop)):
                yield f"loop {loop.var}: {name}, place {place}", mutant


# ---- what a trip reads by its number


def read_the_next_trip(program: Program, loop: Loop) -> Iterator[Program]:
    """A trip reads what is the next one's, the last the first one's."""
    return _read_otherwise(program, loop, (Index.of(loop.var) + 1) % loop.var.extent)


def walk_backwards(program: Program, loop: Loop) -> Iterator[Program]:
    """Trips read from the end."""
    return _read_otherwise(program, loop, Index.of(loop.var) * -1 + (loop.var.extent - 1))


# ---- what a trip hands on


def read_the_other_half(program: Program, loop: Loop) -> Iterator[Program]:
    """A trip reads the half of a state's two places that it writes."""
    var = loop.var
    for op in _ops(loop):
        for load in op.loads():
            if _turns(load.access, var):
                yield _with_load(program, op, load, _renumbered(load.access, var, Index.of(var) + 1))


def write_the_other_half(program: Program, loop: Loop) -> Iterator[Program]:
    """A trip writes the half of a state's two places that it reads."""
    var = loop.var
    for op, store in _stores(loop):
        if _turns(store.access, var):
            yield _with_store(program, op, store, _renumbered(store.access, var, Index.of(var) + 1))


def read_another_state(program: Program, loop: Loop) -> Iterator[Program]:
    """A trip reads one state in place of another."""
    states = _states(loop)
    for op in _ops(loop):
        for load in op.loads():
            for other in states if load.access.buffer in states else ():
                if _is_alike(other, load.access.buffer):
                    yield _with_load(program, op, load, Access(other, load.access.index))


def keep_a_state(program: Program, loop: Loop) -> Iterator[Program]:
    """A state is not written."""
    states = _states(loop)
    for op, store in _stores(loop):
        if store.access.buffer in states and len(op.stores) > 1:
            kept = tuple(s for s in op.stores if s is not store)
            yield _with_op(program, op, replace(op, stores=kept))


# ---- where a state starts and ends


def start_elsewhere(program: Program, loop: Loop) -> Iterator[Program]:
    """A state starts from another value."""
    for op, store in _starts(program, loop):
        value = Binary("add", store.value, Const(1, store.value.dtype))
        yield _with_op(program, op, _with_stores(op, store, replace(store, value=value)))


def start_in_the_other_half(program: Program, loop: Loop) -> Iterator[Program]:
    """A state's first value stands where its second belongs."""
    turning = {s.access.buffer for _, s in _stores(loop) if _turns(s.access, loop.var)}
    for op, store in _starts(program, loop):
        if store.access.buffer in turning:
            yield _with_store(program, op, store, _in_other_half(store.access))


def end_in_the_other_half(program: Program, loop: Loop) -> Iterator[Program]:
    """The last state is read where the one before it stands."""
    turning = {s.access.buffer for _, s in _stores(loop) if _turns(s.access, loop.var)}
    for op in _around(program, loop)[1]:
        for load in op.loads():
            if load.access.buffer in turning:
                yield _with_load(program, op, load, _in_other_half(load.access))


# ---- what trips leave, and how many there are


def stack_backwards(program: Program, loop: Loop) -> Iterator[Program]:
    """Results of trips stand in the wrong order."""
    return _write_otherwise(program, loop, Index.of(loop.var) * -1 + (loop.var.extent - 1))


def stack_a_trip_later(program: Program, loop: Loop) -> Iterator[Program]:
    """Results of trips stand one place further on, the last one first."""
    return _write_otherwise(program, loop, (Index.of(loop.var) + 1) % loop.var.extent)


def leave_out_the_last_trip(program: Program, loop: Loop) -> Iterator[Program]:
    """There is a trip less."""
    yield _with_trips(program, loop, loop.var.extent - 1)


def run_a_trip_more(program: Program, loop: Loop) -> Iterator[Program]:
    """There is a trip after the last."""
    yield _with_trips(program, loop, loop.var.extent + 1)


PLANTS: dict[str, Plant] = {
    f.__name__: f
    for f in (
        read_the_next_trip,
        walk_backwards,
        read_the_other_half,
        write_the_other_half,
        read_another_state,
        keep_a_state,
        start_elsewhere,
        start_in_the_other_half,
        end_in_the_other_half,
        stack_backwards,
        stack_a_trip_later,
        leave_out_the_last_trip,
        run_a_trip_more,
    )
}
"""Every fault by name."""


# ---- what there is


def _loops(body: tuple[Item, ...]) -> Iterator[Loop]:
    for item in body:
        if isinstance(item, Loop):
            yield item
            yield from _loops(item.body)


def _ops(item: Item) -> Iterator[OpInst]:
    if isinstance(item, Stage):
        yield from item.ops
    else:
        for inner in item.body:
            yield from _ops(inner)


def _around(program: Program, loop: Loop) -> tuple[list[OpInst], list[OpInst]]:
    """The operators before and after the loop in the text of the program."""
    inside = set(map(id, _ops(loop)))
    everything = list(program.ops())
    numbers = [n for n, op in enumerate(everything) if id(op) in inside]
    return everything[: numbers[0]], everything[numbers[-1] + 1 :]


def _stores(item: Item) -> list[tuple[OpInst, Store]]:
    return [(op, store) for op in _ops(item) for store in op.stores]


def _states(loop: Loop) -> list[Buffer]:
    """What trips both read and write."""
    read = {buffer for op in _ops(loop) for buffer in op.reads()}
    return [b for b in dict.fromkeys(b for op in _ops(loop) for b in op.writes()) if b in read]


def _starts(program: Program, loop: Loop) -> list[tuple[OpInst, Store]]:
    """Stores of numbers before the loop into what trips read and write."""
    states = _states(loop)
    before = [(op, store) for op in _around(program, loop)[0] for store in op.stores]
    return [(o, s) for o, s in before if s.access.buffer in states and s.value.dtype is not DType.BOOL]


def _is_alike(other: Buffer, buffer: Buffer) -> bool:
    return other is not buffer and other.shape == buffer.shape and other.dtype is buffer.dtype


def _turns(access: Access, var: Var) -> bool:
    """Whether even and odd trips find different places there."""
    return any(i.uses_nested(var) and (i % 2) != i * 0 and i.bounds() == (0, 1) for i in access.affine)


def _counts(access: Access, var: Var) -> bool:
    """Whether every trip finds a place of its own there."""
    return any(i.coefficient(var) for i in access.affine)


# ---- changes


def _read_otherwise(program: Program, loop: Loop, trip: Index) -> Iterator[Program]:
    for op in _ops(loop):
        for load in op.loads():
            if _counts(load.access, loop.var):
                yield _with_load(program, op, load, _renumbered(load.access, loop.var, trip))


def _write_otherwise(program: Program, loop: Loop, trip: Index) -> Iterator[Program]:
    for op, store in _stores(loop):
        if _counts(store.access, loop.var):
            yield _with_store(program, op, store, _renumbered(store.access, loop.var, trip))


def _renumbered(access: Access, var: Var, trip: Index) -> Access:
    return map_access(access, lambda value: value, lambda i: i.substitute({var: trip}))


def _in_other_half(access: Access) -> Access:
    first, *rest = access.index
    assert isinstance(first, Index)
    return Access(access.buffer, (first * -1 + 1, *rest))


def _with_load(program: Program, op: OpInst, load: Load, access: Access) -> Program:
    def change(node: Expr) -> Expr | None:
        return Load(access, load.fill) if node is load else None

    return _with_op(program, op, _rebuilt(op, change))


def _rebuilt(
    op: OpInst, change: Callable[[Expr], Expr | None], index: Callable[[Index], Index] = lambda i: i
) -> OpInst:
    """Expressions and indices changed, in the places of stores too."""
    roots = [e for s in op.stores for e in (s.value, *(g.value for g in s.access.gathers))]
    new = dict(zip(map(id, roots), rebuild(roots, change, index), strict=True))
    stores = (
        replace(s, value=new[id(s.value)], access=map_access(s.access, lambda e: new[id(e)], index))
        for s in op.stores
    )
    return replace(op, stores=tuple(stores))


def _with_store(program: Program, op: OpInst, store: Store, access: Access) -> Program:
    return _with_op(program, op, _with_stores(op, store, replace(store, access=access)))


def _with_stores(op: OpInst, old: Store, new: Store) -> OpInst:
    return replace(op, stores=tuple(new if store is old else store for store in op.stores))


def _with_op(program: Program, old: OpInst, new: OpInst) -> Program:
    def changed(item: Item) -> Item:
        if isinstance(item, Loop):
            return replace(item, body=tuple(map(changed, item.body)))
        return replace(item, ops=tuple(new if op is old else op for op in item.ops))

    return replace(program, body=tuple(map(changed, program.body)))


def _with_trips(program: Program, loop: Loop, trips: int) -> Program:
    var = Var(loop.var.name, trips)
    number = {loop.var: Index(0, ((var, 1),))}

    def renumbered(op: OpInst) -> OpInst:
        return _rebuilt(op, lambda node: None, lambda i: i.substitute(number))

    def changed(item: Item, inside: bool = False) -> Item:
        if isinstance(item, Stage):
            return replace(item, ops=tuple(map(renumbered, item.ops))) if inside else item
        inside = inside or item is loop
        body = tuple(changed(inner, inside) for inner in item.body)
        return replace(item, body=body, var=var if item is loop else item.var)

    return replace(program, body=tuple(map(changed, program.body)))
