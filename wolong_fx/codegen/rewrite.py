"""Small changes to operator instances that several steps share: other buffers, other coordinates, shared
nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from wolong_fx.ir.expr import (
    Access,
    Binary,
    Cast,
    Const,
    Expr,
    Gather,
    IndexValue,
    Load,
    Reduce,
    Unary,
    Where,
    map_access,
    rebuild,
    walk,
    with_args,
)
from wolong_fx.ir.index import Index, IndexLike, Var
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer


def rewrite_op(
    op: OpInst,
    change: Callable[[Expr], Expr | None] = lambda e: None,
    index: Callable[[Index], Index] = lambda i: i,
    access: Callable[[Access], Access] = lambda a: a,
) -> OpInst:
    """A copy of `op`: `change` may replace expression nodes; `index` and `access` map what loads and stores
    use.
    """
    roots = stored_expressions(op)
    new = dict(zip(map(id, roots), rebuild(roots, change, index, access), strict=True))
    stores = tuple(
        Store(access(map_access(s.access, lambda e: new[id(e)], index)), new[id(s.value)], s.accumulate)
        for s in op.stores
    )
    return replace(op, stores=stores)


def stored_expressions(op: OpInst) -> list[Expr]:
    """The roots of an operator's expressions: stored values, and positions that stores gather."""
    return [s.value for s in op.stores] + [g.value for s in op.stores for g in s.access.gathers]


def substitute_variables(op: OpInst, values: Mapping[Var, IndexLike], dims: tuple[Dim, ...]) -> OpInst:
    """`op` over new dimensions `dims`, its old variables replaced by indices over them."""
    changed = rewrite_op(op, index=lambda i: i.substitute(values))
    return replace(changed, dims=dims)


Relocation = tuple[Buffer, tuple[Index, ...]]


def relocate_buffers(op: OpInst, moved: Mapping[Buffer, Relocation]) -> OpInst:
    """`op` with every access to a moved buffer going to (new buffer, leading coordinates) instead."""
    if not any(b in moved for b in (*op.reads(), *op.writes())):
        return op

    def access(old: Access) -> Access:
        if old.buffer not in moved:
            return old
        buffer, lead = moved[old.buffer]
        return Access(buffer, (*lead, *old.index))

    return rewrite_op(op, access=access)


def rename_variables(op: OpInst) -> OpInst:
    """`op` with its dimensions called d0, d1, ...: equal domains then have equal variables."""
    dims = tuple(Dim(Var(f"d{i}", d.extent), d.sequential) for i, d in enumerate(op.dims))
    if dims == op.dims:
        return op
    return substitute_variables(op, {old.var: new.var for old, new in zip(op.dims, dims, strict=True)}, dims)


def share_expressions(op: OpInst) -> OpInst:
    """`op` with equal expressions made one node: computed once, written once."""
    canonical = canonical_nodes(stored_expressions(op))
    stores = tuple(
        Store(
            map_access(s.access, lambda e: canonical[id(e)], lambda i: i),
            canonical[id(s.value)],
            s.accumulate,
        )
        for s in op.stores
    )
    return replace(op, stores=stores)


def canonical_nodes(roots: Iterable[Expr]) -> dict[int, Expr]:
    """For each node below `roots` (by id), the one that stands for all equal to it."""
    known: dict[tuple[object, ...], Expr] = {}
    canonical: dict[int, Expr] = {}
    for node in walk(roots):
        args = [canonical[id(a)] for a in node.args]
        key = _key(node, args)
        if key not in known:
            known[key] = _with_args(node, args)
        canonical[id(node)] = known[key]
    return canonical


def _key(node: Expr, args: Sequence[Expr]) -> tuple[object, ...]:
    ids = tuple(map(id, args))
    match node:
        case Load(access, fill):
            place = tuple(i if isinstance(i, Index) else i.check for i in access.index)
            return ("load", id(access.buffer), place, repr(fill), ids)
        case Const(value, kind):
            return ("const", repr(value), kind)
        case IndexValue(index):
            return ("index", index)
        case Cast():
            return ("cast", node.to, ids)
        case Unary() | Binary():
            return (node.op, ids)
        case Where():
            return ("where", ids)
        case Reduce():
            return ("reduce", node.op, node.over, ids)
    raise AssertionError(type(node))


def _with_args(node: Expr, args: Sequence[Expr]) -> Expr:
    if not isinstance(node, Load) or not args:
        return with_args(node, args)
    values = iter(args)
    place = tuple(Gather(next(values), i.check) if isinstance(i, Gather) else i for i in node.access.index)
    return Load(Access(node.access.buffer, place), node.fill)
