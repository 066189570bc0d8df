"""Operator batching: isomorphic independent operators become one, with one more dimension.

Operators of one level that are equal but for constants in their indices, each constant growing by the same
step from one operator to the next (the rows x[0], x[1], ... of one tensor), are run as one operator over that
step. What they wrote to separate temporaries goes to one stacked temporary. Eighty products x[t] @ W become
one product of eighty rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from wolong_fx.codegen.dataflow import dependences, levels
from wolong_fx.codegen.fuse_ops import is_heavy
from wolong_fx.codegen.loops import Element, Exit, carry_buffers, map_ops
from wolong_fx.codegen.rewrite import (
    Relocation,
    relocate_buffers,
    rename_variables,
    rewrite_op,
    stored_expressions,
)
from wolong_fx.ir.expr import Access, Const, Expr, IndexValue, Load, Reduce, walk
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.ledger import Ledger

STEP = "b"  # the new dimension's variable, renamed once the operator is made


def batch_ops(ops: list[Element], ledger: Ledger) -> list[Element]:
    """Batch level by level, so that what one level stacked is a regular read of the next.

    Loops stay as they are, and so do the buffers that they hand from trip to trip.
    """
    moved: dict[Buffer, Relocation] = {}
    pinned = carry_buffers(ops).union(*(op.reads() for op in ops if isinstance(op, Exit)))
    done: list[Element] = []
    for level in _by_level(ops):
        done += (op for op in level if not isinstance(op, OpInst))
        operators = [relocate_buffers(op, moved) for op in level if isinstance(op, OpInst)]
        for members in _isomorphic(operators):
            done += _batched(members, pinned, moved, ledger)
    return map_ops(done, lambda op: relocate_buffers(op, moved))


def _by_level(ops: Sequence[Element]) -> list[list[Element]]:
    found: dict[int, list[Element]] = defaultdict(list)
    for op, level in zip(ops, levels(dependences(ops)), strict=True):
        found[level].append(op)
    return [found[level] for level in sorted(found)]


def _isomorphic(ops: Sequence[OpInst]) -> list[list[OpInst]]:
    """Operators grouped by what they compute, constants of indices and temporaries written left open."""
    groups: dict[object, list[OpInst]] = defaultdict(list)
    for op in ops:
        groups[_signature(op)].append(op)
    return list(groups.values())


def _signature(op: OpInst) -> object:
    if not is_heavy(op) or any(s.accumulate or s.access.gathers for s in op.stores):
        return id(op)  # cheap operators are packed into one stage instead
    number: dict[int, int] = {}
    nodes = []
    renamed = _neutral_variables(op)
    for node in walk(stored_expressions(op)):
        number[id(node)] = len(number)
        nodes.append(_node_signature(node, tuple(number[id(a)] for a in node.args), renamed))
    stores = tuple(
        (_open_buffer(s.access.buffer), _open_index(s.access, {}), number[id(s.value)]) for s in op.stores
    )
    return (op.domain, tuple(d.sequential for d in op.dims), tuple(nodes), stores)


def _neutral_variables(op: OpInst) -> dict[Var, Var]:
    reduces = [e for e in op.expressions() if isinstance(e, Reduce)]
    over = [v for r in reduces for v in r.over]
    return {v: Var(f"k.{i}", v.extent) for i, v in enumerate(dict.fromkeys(over))}


def _node_signature(node: Expr, args: tuple[int, ...], renamed: dict[Var, Var]) -> object:
    match node:
        case Load(access, fill):
            return ("load", id(access.buffer), _open_index(access, renamed), repr(fill), args)
        case Const(value, kind):
            return ("const", repr(value), kind)
        case IndexValue(index):
            return ("index", index.substitute(renamed))
        case Reduce(op, over, _):
            return ("reduce", op, tuple(renamed[v] for v in over), args)
    return (type(node).__name__, getattr(node, "op", None), node.dtype, args)


def _open_buffer(buffer: Buffer) -> object:
    """Temporaries of one shape are interchangeable targets; others stand for themselves."""
    return (buffer.dtype, buffer.shape) if buffer.kind is BufferKind.TEMPORARY else id(buffer)


def _open_index(access: Access, renamed: dict[Var, Var]) -> object:
    """The index with the constants of its affine coordinates left open, unless one is gathered."""
    opened = [i.substitute(renamed) if isinstance(i, Index) else i.check for i in access.index]
    if access.gathers:
        return tuple(opened)
    return tuple(i.terms if isinstance(i, Index) else i for i in opened)


# ---- a group of isomorphic operators


@dataclass(frozen=True)
class _Member:
    """An operator, the constants of all its indices in order, and the buffers it writes."""

    op: OpInst
    constants: tuple[int, ...]


def _batched(
    ops: Sequence[OpInst], pinned: set[Buffer], moved: dict[Buffer, Relocation], ledger: Ledger
) -> Iterator[OpInst]:
    members = sorted((_Member(op, _constants(op)) for op in ops), key=lambda m: m.constants)
    for run in _runs(members):
        if len(run) == 1 or not _can_stack([m.op for m in run], pinned):
            yield from (m.op for m in run)
        else:
            yield _stacked(run, moved, ledger)


def _constants(op: OpInst) -> tuple[int, ...]:
    accesses = [e.access for e in walk(stored_expressions(op)) if isinstance(e, Load)]
    accesses += [s.access for s in op.stores if s.access.buffer.kind is not BufferKind.TEMPORARY]
    return tuple(i.constant for access in accesses for i in access.affine)


def _runs(members: Sequence[_Member]) -> Iterator[list[_Member]]:
    """Maximal stretches in which all constants grow by equal steps."""
    run = [members[0]]
    step: tuple[int, ...] | None = None
    for previous, member in pairwise(members):
        here = tuple(b - a for a, b in zip(previous.constants, member.constants, strict=True))
        if step is None or here == step:
            step = here
            run.append(member)
        else:
            yield run
            run, step = [member], None
    yield run


def _can_stack(ops: Sequence[OpInst], pinned: set[Buffer]) -> bool:
    """Each writes temporaries of its own, wholly; shared targets would have to be stepped through."""
    written = [s.access.buffer for op in ops for s in op.stores]
    own = len(set(written)) == len(written) and pinned.isdisjoint(written)
    own = own and all(b.kind is BufferKind.TEMPORARY for b in written)
    return own and all(s.access.buffer.elements == op.points for op in ops for s in op.stores)


def _stacked(run: Sequence[_Member], moved: dict[Buffer, Relocation], ledger: Ledger) -> OpInst:
    """One operator over the whole run; `moved` learns where each member's results went."""
    step = Var(STEP, len(run))
    first = run[0].op
    strides = iter([b - a for a, b in zip(run[0].constants, run[1].constants, strict=True)])
    stepped = _step_through(first, step, strides)
    stores = []
    for position, store in enumerate(stepped.stores):
        targets = [m.op.stores[position].access.buffer for m in run]
        whole = _stack_buffers(targets)
        moved.update({b: (whole, (Index(i),)) for i, b in enumerate(targets)})
        stores.append(replace(store, access=Access(whole, (Index.of(step), *store.access.index))))
    made_from = tuple(dict.fromkeys(n for m in run for n in m.op.made_from))
    batched = replace(first, dims=(Dim(step), *first.dims), stores=tuple(stores), made_from=made_from)
    for member in run[1:]:
        ledger.note(
            "batch-ops", ",".join(member.op.made_from), "fused", f"one of {len(run)} like {first.name}"
        )
    return rename_variables(batched)


def _step_through(op: OpInst, step: Var, strides: Iterator[int]) -> OpInst:
    """`op` with every constant advanced by its stride at each step. Loads are visited in `_constants`'s
    order.
    """
    advanced: dict[int, Access] = {}
    for node in walk(stored_expressions(op)):
        if isinstance(node, Load):
            advanced[id(node.access)] = Access(
                node.access.buffer,
                tuple(
                    i + Index.of(step) * next(strides) if isinstance(i, Index) else i
                    for i in node.access.index
                ),
            )

    def change(node: Expr) -> Expr | None:
        if isinstance(node, Load) and not node.access.gathers:
            return Load(advanced[id(node.access)], node.fill)
        return None

    return rewrite_op(op, change=change)


def _stack_buffers(buffers: Sequence[Buffer]) -> Buffer:
    first = buffers[0]
    return Buffer.contiguous(
        f"{first.name}_x{len(buffers)}", first.dtype, (len(buffers), *first.shape), BufferKind.TEMPORARY
    )
