"""C++ text of loads and stores: contiguous, broadcast, strided or any lanes; row ends, padding and bounds
checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from wolong_fx.codegen.cpp.pointwise import Use, as_vectors, binary_text, const_text
from wolong_fx.codegen.cpp.scope import C_TYPES, Scopes, Value, c_type, index_text
from wolong_fx.codegen.signature import Bindings
from wolong_fx.ir.expr import Access, Load
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Store
from wolong_fx.ir.types import DType

STORAGE_TYPES = {**C_TYPES, DType.BF16: "u16", DType.F16: "u16", DType.BOOL: "u8"}
"""C++ type of an element in memory."""

_CONVERSIONS = {DType.BF16: "bf16", DType.F16: "f16", DType.BOOL: "bool"}


@dataclass(frozen=True)
class Active:
    """How many lanes of a vector stand for points, where that may be fewer than all (or none)."""

    text: str
    needs: frozenset[Var] = frozenset()


@dataclass(frozen=True)
class Context:
    """Where in a tile function a value is computed.

    env: what the variables of the domain and of reductions are here, in variables of the text
    lane: the variable that differs from lane to lane, if values may be vectors
    cell: position in the micro-kernel: (row, vector)
    inner: variables of the reductions around
    column: the point along the lane dimension, where lanes run along something else: its lane in a vector of
        points
    guards: variables of the steps around that do not appear in positions, being 0 where the step is taken:
        what reads memory stays inside it all the same, for blocks that do not take the step have less memory
    """

    env: dict[Var, Index]
    scopes: Scopes
    lane: Var | None
    active: Active | None = None
    cell: tuple[int, int] = (0, 0)
    inner: frozenset[Var] = frozenset()
    column: Index | None = None
    guards: frozenset[Var] = frozenset()

    def inside(self, scopes: Scopes, env: dict[Var, Index], **changes: object) -> Context:
        return replace(self, scopes=scopes, env={**self.env, **env}, **changes)


@dataclass
class MemoryText:
    """Emits the memory accesses of one tile function."""

    bindings: Bindings
    number_check: Callable[[str], int]
    use: Use
    pinned: dict[int, frozenset[Var]] = field(default_factory=dict)
    """For buffers that the operator also writes, the sequential variables a load has to stay inside of."""

    def load(self, node: Load, gathered: Sequence[Value], ctx: Context) -> Value:
        access = node.access
        place = self._place(access, gathered, ctx)
        inside = self._inside(access, ctx) if node.fill is not None else []
        pinned = self.pinned.get(id(access.buffer), frozenset())
        needs = place.needs.union(pinned, ctx.guards, *(v.needs for v in inside))
        ok = _all([*place.checks, *inside], ctx)
        is_vector = ctx.lane in needs
        ragged = ctx.active if is_vector else None
        needs |= ragged.needs if ragged else frozenset()
        kind, is_lanewise = access.buffer.dtype, ok is not None and ok.is_vector
        if is_vector and place.stride == 1 and is_lanewise:
            text = f"load_where({place.address}, {_mask(ok, ragged)})"
        elif is_vector and (place.stride is None or is_lanewise):
            text = f"gather({place.pointer}, {_vector_offset(place)}, {_mask(ok, ragged)})"
        elif is_vector:
            text = place.vector_load(ragged)
        else:
            text = f"{place.pointer}[{place.offset}]"
        value = self._from_memory(text, kind, needs, is_vector, ctx)
        if ok is None:
            return value
        if is_lanewise and is_vector and not node.fill:  # lanes that are not read are zeros
            return replace(value, needs=value.needs | ok.needs)
        other = 0 if node.fill is None else node.fill
        return self._guarded(value, ok, const_text(other, kind), ctx, lazy=not is_lanewise, raw=text)

    def address(self, load: Load, ctx: Context) -> str:
        """Where an affine load finds its first lane."""
        return self._place(load.access, (), ctx).address

    def _from_memory(
        self, text: str, kind: DType, needs: frozenset[Var], is_vector: bool, ctx: Context
    ) -> Value:
        if kind in _CONVERSIONS:
            self.use(_CONVERSIONS[kind])
            text = f"from_{_CONVERSIONS[kind]}({text})"
        return Value(text, kind, is_vector, needs)

    def _guarded(self, value: Value, ok: Value, other: str, ctx: Context, *, lazy: bool, raw: str) -> Value:
        """The value where `ok`; memory is not touched elsewhere."""
        fallback = f"broadcast({other})" if value.is_vector else other
        if lazy:
            kind = c_type(value.dtype, value.is_vector)
            return replace(
                value, text=f"{ok.text} ? {value.text} : ({kind})({fallback})", needs=value.needs | ok.needs
            )
        if value.dtype is DType.BOOL:
            text = f"({ok.text} & {value.text}) | (~{ok.text} & {fallback})"
        else:
            text = f"select({ok.text}, {value.text}, {fallback})"
        return replace(value, text=text, needs=value.needs | ok.needs)

    def store(self, store: Store, gathered: Sequence[Value], value: Value, ctx: Context) -> None:
        access, kind = store.access, store.access.buffer.dtype
        place = self._place(access, gathered, ctx)
        ok = _all(place.checks, ctx)
        is_vector = ctx.lane is not None and (ctx.lane in place.needs or value.is_vector)
        ragged = ctx.active if is_vector else None
        any_lanes = is_vector and (place.stride in (None, 0) or (ok is not None and ok.is_vector))
        if store.accumulate:
            value = self._combined(store, place, ok, value, is_vector, any_lanes, ragged, ctx)
        stored = self._to_memory(value.as_vector if is_vector else value.text, kind)
        if any_lanes:
            ctx.scopes.add(
                f"scatter({place.pointer}, {_vector_offset(place)}, {stored}, {_mask(ok, ragged)});"
            )
            return
        text = (
            place.vector_store(stored, ragged)
            if is_vector
            else f"{place.pointer}[{place.offset}] = {stored};"
        )
        ctx.scopes.add(text if ok is None else f"if ({ok.text}) {text}")

    def _combined(
        self,
        store: Store,
        place: _Place,
        ok: Value | None,
        value: Value,
        is_vector: bool,
        any_lanes: bool,
        ragged: Active | None,
        ctx: Context,
    ) -> Value:
        kind = store.access.buffer.dtype
        if any_lanes:
            text = f"gather({place.pointer}, {_vector_offset(place)}, {_mask(ok, ragged)})"
        else:
            text = place.vector_load(ragged) if is_vector else f"{place.pointer}[{place.offset}]"
        before = self._from_memory(text, kind, frozenset(), is_vector, ctx)
        if ok is not None and not any_lanes:
            before = self._guarded(before, ok, const_text(0, kind), ctx, lazy=True, raw=text)
        name = ctx.scopes.new_name("old")
        ctx.scopes.add(f"const {before.c_type} {name} = {before.text};")
        pair = as_vectors([replace(before, text=name), value])
        combined = binary_text(store.accumulate or "add", pair[0], pair[1], self.use)
        name = ctx.scopes.new_name("new")
        ctx.scopes.add(f"const {c_type(kind, pair[0].is_vector)} {name} = {combined};")
        return Value(name, kind, pair[0].is_vector, value.needs)

    def _to_memory(self, text: str, kind: DType) -> str:
        if kind not in _CONVERSIONS:
            return text
        self.use(_CONVERSIONS[kind])
        return f"to_{_CONVERSIONS[kind]}({text})"

    def _place(self, access: Access, gathered: Sequence[Value], ctx: Context) -> _Place:
        offset = self.bindings.offset_of[id(access)].substitute(ctx.env)
        place = _Place(f"p{self.bindings.pointer_of[id(access)]}", offset, ctx.lane)
        dims = [d for d, i in enumerate(access.index) if not isinstance(i, Index)]
        for d, gather, value in zip(dims, access.gathers, gathered, strict=True):
            extent, stride = access.buffer.shape[d], access.buffer.strides[d]
            at = _as_i64(value)
            place.checks.append(self._check(at, extent, gather.check, ctx))
            place.gathered.append((at, stride))
        return place

    def _check(self, at: Value, extent: int, message: str, ctx: Context) -> Value:
        number = self.number_check(message) + 1
        active, needs = "", at.needs
        if at.is_vector and ctx.active:
            active, needs = f", {ctx.active.text}", needs | ctx.active.needs
        elif at.is_vector:
            active = ", W"
        text = f"is_within({at.text}, {extent}, failure, {number}{active})"
        kind = c_type(DType.BOOL, at.is_vector)
        return Value(ctx.scopes.define(kind, text, needs), DType.BOOL, at.is_vector, needs)

    def _inside(self, access: Access, ctx: Context) -> list[Value]:
        """Conditions, of those not certain, for affine coordinates to lie inside the buffer."""
        found = []
        for index, extent in zip(access.index, access.buffer.shape, strict=True):
            if not isinstance(index, Index):
                continue
            at = index.substitute(ctx.env)
            low, high = at.bounds()
            tests = ([f"({index_text(at)} >= 0)"] if low < 0 else []) + (
                [f"({index_text(at)} < {extent})"] if high >= extent else []
            )
            needs = at.variables()
            is_vector = ctx.lane in needs
            for test in tests:
                name = ctx.scopes.define(c_type(DType.BOOL, is_vector), f"mask({test})", needs)
                found.append(Value(name, DType.BOOL, is_vector, needs))
        return found


@dataclass
class _Place:
    """Where in memory an access is, for one cell of the micro-kernel."""

    pointer: str
    affine: Index
    lane: Var | None
    gathered: list[tuple[Value, int]] = field(default_factory=list)
    checks: list[Value] = field(default_factory=list)

    @property
    def needs(self) -> frozenset[Var]:
        return self.affine.variables().union(*(v.needs for v, _ in self.gathered))

    @property
    def stride(self) -> int | None:
        """Elements from one lane to the next; None where that differs."""
        if self.lane is None:
            return 0
        if any(v.is_vector for v, _ in self.gathered) or self.affine.uses_nested(self.lane):
            return None
        return self.affine.coefficient(self.lane)

    @property
    def offset(self) -> str:
        """Element offset of the first lane."""
        first = self.affine.substitute({self.lane: 0}) if self.lane is not None else self.affine
        return self._with_gathered(first)

    def _with_gathered(self, index: Index) -> str:
        parts = [index_text(index)] if index != Index() or not self.gathered else []
        return " + ".join(parts + [v.text if s == 1 else f"{v.text} * {s}" for v, s in self.gathered])

    @property
    def every_offset(self) -> str:
        return self._with_gathered(self.affine)

    def vector_load(self, ragged: Active | None) -> str:
        if self.stride == 1:
            return f"load({self.address}{f', {ragged.text}' if ragged else ''})"
        return f"load_strided({self.address}, {self.stride}{f', {ragged.text}' if ragged else ''})"

    def vector_store(self, value: str, ragged: Active | None) -> str:
        if self.stride == 1:
            return f"store({self.address}, {value}{f', {ragged.text}' if ragged else ''});"
        return f"store_strided({self.address}, {self.stride}, {value}{f', {ragged.text}' if ragged else ''});"

    @property
    def address(self) -> str:
        return self.pointer if self.offset == "0" else f"{self.pointer} + {self.offset}"


def _vector_offset(place: _Place) -> str:
    text = place.every_offset
    is_vector = place.stride is None or place.stride != 0
    return f"({text})" if is_vector else f"broadcast((i64)({text}))"


def _as_i64(value: Value) -> Value:
    if value.dtype is DType.I64:
        return value
    text = f"__builtin_convertvector({value.text}, i64v)" if value.is_vector else f"(i64){value.text}"
    return replace(value, text=text, dtype=DType.I64)


def _all(conditions: Sequence[Value], ctx: Context) -> Value | None:
    """Their conjunction; None when there is none."""
    if not conditions:
        return None
    parts = as_vectors(list(dict.fromkeys(conditions)))
    text = " & ".join(v.text for v in parts)
    needs = frozenset[Var]().union(*(v.needs for v in parts))
    if len(parts) > 1:
        text = ctx.scopes.define(c_type(DType.BOOL, parts[0].is_vector), text, needs)
    return Value(text, DType.BOOL, parts[0].is_vector, needs)


def _mask(ok: Value | None, ragged: Active | None) -> str:
    lanes = f"first_lanes({ragged.text})" if ragged else "first_lanes(W)"
    if ok is None:
        return lanes
    return f"{ok.as_vector} & {lanes}" if ragged else ok.as_vector
