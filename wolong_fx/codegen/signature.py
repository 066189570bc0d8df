"""Which operators share one tile function: their structure, with buffers, offsets and names taken out.

An unrolled graph repeats the same few operators thousands of times. Each is described in linear time by a
signature; equal signatures get one tile function, and what differs (which buffer, at which offset) goes to
a table of bindings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wolong_fx.ir.expr import (
    Access,
    Binary,
    Cast,
    Const,
    Expr,
    IndexValue,
    Load,
    Reduce,
    Unary,
    Where,
)
from wolong_fx.ir.index import Index, Quotient, Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import Buffer

Key = tuple[object, ...]


@dataclass(frozen=True)
class Binding:
    """Where a pointer of a tile function starts: an element of a buffer."""

    buffer: Buffer
    element: int


@dataclass
class Bindings:
    """The pointers of an operator's tile function, in order of first use, and who uses which."""

    pointers: list[Binding] = field(default_factory=list)
    pointer_of: dict[int, int] = field(default_factory=dict)
    offset_of: dict[int, Index] = field(default_factory=dict)

    @classmethod
    def of(cls, op: OpInst) -> Bindings:
        found = cls()
        for access in accesses(op):
            found._bind(access)
        return found

    def _bind(self, access: Access) -> None:
        if id(access) in self.pointer_of:
            return
        offset = access.offset()
        binding = Binding(access.buffer, offset.constant)
        if binding not in self.pointers:
            self.pointers.append(binding)
        self.pointer_of[id(access)] = self.pointers.index(binding)
        self.offset_of[id(access)] = offset - offset.constant


def accesses(op: OpInst) -> list[Access]:
    """Every access, loads first, in an order that structure alone decides."""
    return [load.access for load in op.loads()] + [store.access for store in op.stores]


def signature(op: OpInst, bindings: Bindings, loop_depth: Mapping[Var, int]) -> Key:
    """A hashable description: operators with equal ones can run the same tile function."""
    return _Signer(op, bindings, loop_depth).key()


def inner_variables(op: OpInst) -> set[Var]:
    """Variables of an operator's domain and of its reductions."""
    reduced = {v for n in op.expressions() if isinstance(n, Reduce) for v in n.over}
    return reduced | {d.var for d in op.dims}


def outer_variables(op: OpInst) -> dict[Var, int]:
    """Variables of the loops around an operator that it uses, numbered."""
    inner = inner_variables(op)
    used = {v: None for access in accesses(op) for i in access.affine for v in sorted(i.variables(), key=str)}
    return {v: depth for depth, v in enumerate(v for v in used if v not in inner)}


class _Signer:
    def __init__(self, op: OpInst, bindings: Bindings, loop_depth: Mapping[Var, int]) -> None:
        self.op = op
        self.bindings = bindings
        self.names: dict[Var, Key] = {v: ("loop", d, v.extent) for v, d in loop_depth.items()}
        self.names |= {d.var: ("dim", i, d.extent) for i, d in enumerate(op.dims)}
        self.indices: dict[Index, Key] = {}
        self.number: dict[int, int] = {}

    def key(self) -> Key:
        nodes = list(self.op.expressions())
        for node in nodes:
            if isinstance(node, Reduce):
                for var in node.over:
                    self.names.setdefault(var, ("over", len(self.names), var.extent))
        body = []
        for node in nodes:
            self.number[id(node)] = len(self.number)
            body.append(self._node(node))
        stores = tuple(
            (self._access(s.access), self.number[id(s.value)], s.accumulate) for s in self.op.stores
        )
        dims = tuple((d.extent, d.sequential) for d in self.op.dims)
        return dims, self.op.tile, self._pointers(), tuple(body), stores

    def _pointers(self) -> Key:
        written = set(self.op.writes())
        return tuple((p.buffer.dtype, p.buffer in written) for p in self.bindings.pointers)

    def _node(self, node: Expr) -> Key:
        args = tuple(self.number[id(a)] for a in node.args)
        match node:
            case Load(access, fill):
                return "load", self._access(access), repr(fill), self._edges(access, fill)
            case Const(value, kind):
                return "const", repr(value), kind
            case IndexValue(index):
                return "index", self._index(index)
            case Cast(_, to):
                return "cast", to, args
            case Unary(op) | Binary(op):
                return op, args
            case Where():
                return "where", args
            case Reduce(op, over, _):
                return op, tuple(self.names[v] for v in over), args
        raise AssertionError(type(node))

    def _access(self, access: Access) -> Key:
        gathers = tuple(
            (d, access.buffer.shape[d], access.buffer.strides[d], self.number[id(g.value)], g.check)
            for d, g in enumerate(access.index)
            if not isinstance(g, Index)
        )
        pointer = self.bindings.pointer_of[id(access)]
        return pointer, self._index(self.bindings.offset_of[id(access)]), gathers

    def _edges(self, access: Access, fill: object) -> Key:
        """What the bounds of a padding load depend on."""
        if fill is None:
            return ()
        inside = zip(access.index, access.buffer.shape, strict=True)
        return tuple((self._index(i), n) for i, n in inside if isinstance(i, Index))

    def _index(self, index: Index) -> Key:
        if index not in self.indices:
            terms = tuple((self._atom(a), c) for a, c in index.terms)
            self.indices[index] = (index.constant, terms)
        return self.indices[index]

    def _atom(self, atom: object) -> Key:
        if isinstance(atom, Var):
            return self.names[atom]
        kind = "//" if isinstance(atom, Quotient) else "%"
        return kind, self._index(atom.of), atom.by  # type: ignore[attr-defined]
