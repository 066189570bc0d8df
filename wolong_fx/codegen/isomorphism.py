"""Which operators compute the same of different data: signatures that leave open what batching may change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from wolong_fx.codegen.dataflow import is_ordered
from wolong_fx.codegen.rewrite import stored_expressions
from wolong_fx.ir.expr import Access, Const, Expr, IndexValue, Load, Reduce, walk
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind


def isomorphic(
    ops: Sequence[OpInst], pinned: Collection[Buffer], *, open_reads: bool = False
) -> list[list[OpInst]]:
    """Operators grouped by what they compute, constants of indices and temporaries of their own left open.

    pinned: buffers that stay where they are
    open_reads: any two temporaries of one shape and type may stand for each other where they are read, too
    """
    groups: dict[object, list[OpInst]] = defaultdict(list)
    for op in ops:
        groups[_signature(op, pinned, open_reads)].append(op)
    return list(groups.values())


def is_own(store: Store, op: OpInst, pinned: Collection[Buffer]) -> bool:
    """Whether a store fills a temporary that no other operator helps to fill."""
    buffer = store.access.buffer
    is_free = buffer.kind is BufferKind.TEMPORARY and buffer not in pinned
    return is_free and buffer.elements == op.points


def _signature(op: OpInst, pinned: Collection[Buffer], open_reads: bool) -> object:
    if any(is_ordered(s) for s in op.stores) or any(d.sequential for d in op.dims):
        return id(op)
    number: dict[int, int] = {}
    nodes = []
    renamed = _neutral_variables(op)
    opened = {b for b in op.reads() if open_reads and b.kind is BufferKind.TEMPORARY and b not in pinned}
    for node in walk(stored_expressions(op)):
        number[id(node)] = len(number)
        nodes.append(_node_signature(node, tuple(number[id(a)] for a in node.args), renamed, opened))
    stores = tuple(
        (_target(s, op, pinned), _open_index(s.access, {}), number[id(s.value)]) for s in op.stores
    )
    return op.domain, tuple(nodes), stores


def _neutral_variables(op: OpInst) -> dict[Var, Var]:
    over = [v for e in op.expressions() if isinstance(e, Reduce) for v in e.over]
    return {v: Var(f"k.{i}", v.extent) for i, v in enumerate(dict.fromkeys(over))}


def _node_signature(
    node: Expr, args: tuple[int, ...], renamed: dict[Var, Var], opened: Collection[Buffer]
) -> object:
    match node:
        case Load(access, fill):
            buffer = access.buffer
            what = (buffer.dtype, buffer.shape) if buffer in opened else id(buffer)
            return ("load", what, _open_index(access, renamed), repr(fill), args)
        case Const(value, kind):
            return ("const", repr(value), kind)
        case IndexValue(index):
            return ("index", index.substitute(renamed))
        case Reduce(op, over, _):
            return ("reduce", op, tuple(renamed[v] for v in over), args)
    return (type(node).__name__, getattr(node, "op", None), node.dtype, args)


def _target(store: Store, op: OpInst, pinned: Collection[Buffer]) -> object:
    """Temporaries of one shape are interchangeable targets; what others write too stands for itself."""
    buffer = store.access.buffer
    return (buffer.dtype, buffer.shape) if is_own(store, op, pinned) else id(buffer)


def _open_index(access: Access, renamed: dict[Var, Var]) -> object:
    """The index with the constants of its affine coordinates left open, unless one is gathered."""
    places = [i.substitute(renamed) if isinstance(i, Index) else i.check for i in access.index]
    if access.gathers:
        return tuple(places)
    return tuple(i.terms if isinstance(i, Index) else i for i in places)
