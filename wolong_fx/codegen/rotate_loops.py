"""A trip that ends in an operator whose result the next one reads point by point begins with it instead.

The backward of a recurrence goes from the gradient of a state, by pointwise work, to those of the gates, and
by a product of them to the gradient of the state before: two stages a trip, a barrier after each. Begun with
the product of what the trip before computed, a trip is one stage:

    dz = f(dh); dh = dz U^T       becomes       dh = dz U^T (in the first trip: what dh was); dz = f(dh)

What that operator reads is then carried instead of its result. After the last trip it runs once more, for the
loop's own result, if anybody wants that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from wolong_fx.codegen.dataflow import dependences, levels
from wolong_fx.codegen.fuse_ops import fuse_ops, is_heavy
from wolong_fx.codegen.loops import Carry, Element, LoopInst, on_body, walk_ops
from wolong_fx.codegen.rewrite import relocate_buffers, rewrite_op
from wolong_fx.ir.expr import Access, Binary, Const, Expr, IndexValue, Load, Reduce, Where, walk
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind, DType
from wolong_fx.ledger import Ledger


def rotate_loops(ops: list[Element], ledger: Ledger) -> list[Element]:
    """Begin a trip with what ended the one before, where that saves a stage; the same values, bit by bit."""
    done: list[Element] = []
    for position, element in enumerate(ops):
        if isinstance(element, LoopInst):
            others = (*ops[:position], *ops[position + 1 :])
            done += _rotated(element, {b for other in others for b in other.reads()}, ledger)
        else:
            done.append(element)
    return done


def _rotated(loop: LoopInst, wanted: set[Buffer], ledger: Ledger) -> Sequence[Element]:
    """The loop with what has to run before and after it; itself if no carried value is worth it."""
    for carry in loop.carries:
        last = _find_last(loop, carry)
        if last is None:
            continue
        rotation = _Rotation(loop, carry, last)
        if not rotation.carries_all():
            continue
        rotated = on_body(fuse_ops, Ledger(), rotation.loop())
        if _stages(rotated) < _stages(loop):
            because = f"begins a step of {loop.name}: one barrier less in each"
            ledger.note("rotate-loops", ",".join(last.made_from), "replaced", because)
            after = [rotation.after()] if carry.new in wanted else []
            return [*rotation.before(), rotated, *after]
    return [loop]


def _find_last(loop: LoopInst, carry: Carry) -> OpInst | None:
    """The heavy operator that does nothing but fill a carried value, which the next trip reads by points."""
    writers = [e for e in loop.body if carry.new in e.writes()]
    if len(writers) != 1 or not isinstance(writers[0], OpInst) or not is_heavy(writers[0]):
        return None
    last = writers[0]
    users = [op for op, _ in walk_ops(loop.body) if carry.old in op.reads()]
    is_plain = len(last.stores) == 1 and not any(d.sequential for d in last.dims)
    if not is_plain or last.stores[0].accumulate or any(carry.new in e.reads() for e in loop.body):
        return None
    is_awaited = users and all(user in loop.body and _reads_points(user, carry.old) for user in users)
    return last if is_awaited else None


def _reads_points(op: OpInst, buffer: Buffer) -> bool:
    """Whether an operator reads a buffer only outside of reductions: what fills it may join it."""
    reduced = walk(e for e in op.expressions() if isinstance(e, Reduce))
    return not any(isinstance(e, Load) and e.access.buffer is buffer for e in reduced)


def _stages(loop: LoopInst) -> int:
    return max(levels(dependences(loop.body)), default=-1) + 1


@dataclass
class _Rotation:
    """One operator on its way from the end of a loop's trips to their beginning.

    kept: operators at the end of a trip that copy what it will read to what the next trip finds
    pairs: the new carries; places: where the next trip finds the elements of a buffer of this one
    parts: the same for values of the operator's own that need no reduction
    """

    whole: LoopInst
    carry: Carry
    last: OpInst
    kept: list[OpInst] = field(default_factory=list)
    pairs: list[Carry] = field(default_factory=list)
    places: dict[Buffer, tuple[Carry, tuple[int, ...]]] = field(default_factory=dict)
    parts: dict[int, Carry] = field(default_factory=dict)

    def carries_all(self) -> bool:
        """Make the carries that hold all it reads; False if there is something that none could hold."""
        return not self.last.stores[0].access.gathers and self._carry(self.last.stores[0].value)

    def _carry(self, value: Expr) -> bool:
        if not self._varies(value):
            return True
        if isinstance(value, Reduce):
            return all(self._carry_load(e) for e in walk([value]) if isinstance(e, Load | IndexValue))
        if any(isinstance(e, Reduce) for e in walk([value])):
            return all(self._carry(argument) for argument in value.args)
        self._carry_part(value)
        return True

    def _varies(self, value: Expr) -> bool:
        return any(self._is_of_trip(e) for e in walk([value]))

    def _is_of_trip(self, node: Expr) -> bool:
        if isinstance(node, IndexValue):
            return self.whole.var in node.index.variables()
        if not isinstance(node, Load):
            return False
        access = node.access
        return access.buffer in self._changed or any(self.whole.var in i.variables() for i in access.affine)

    @property
    def _changed(self) -> set[Buffer]:
        return {*self.whole.writes(), *(c.old for c in self.whole.carries)}

    def _carry_load(self, node: Load | IndexValue) -> bool:
        """Carry the part of a buffer that a trip writes and a reduction of the next one reads."""
        if not self._is_of_trip(node):
            return True
        if not isinstance(node, Load) or node.fill is not None or node.access.gathers:
            return False
        buffer, place = node.access.buffer, node.access.affine
        of_trip = [self.whole.var in i.variables() for i in place]
        if buffer not in self._changed or (any(of_trip) and not self._is_written_at(node.access, of_trip)):
            return False
        if buffer not in self.places:
            kept = tuple(n for n, varies in enumerate(of_trip) if not varies)
            pair = self._new_pair(tuple(buffer.shape[n] for n in kept), buffer.dtype)
            self.places[buffer] = pair, kept
            self._keep_whole(pair, buffer, place, kept)
        return all((n not in self.places[buffer][1]) == varies for n, varies in enumerate(of_trip))

    def _is_written_at(self, access: Access, of_trip: Sequence[bool]) -> bool:
        """Whether those of its coordinates that depend on the trip, and on nothing else, are as stored."""
        stores = [s for op, _ in walk_ops(self.whole.body) for s in op.stores]
        mine = [s.access for s in stores if s.access.buffer is access.buffer]
        return all(
            not other.gathers and other.affine[n] == i and i.variables() == {self.whole.var}
            for other in mine
            for n, i in enumerate(access.affine)
            if of_trip[n]
        )

    def _keep_whole(self, pair: Carry, buffer: Buffer, place: Sequence[Index], kept: tuple[int, ...]) -> None:
        variables = [Var(f"d{n}", extent) for n, extent in enumerate(pair.new.shape)]
        at = dict(zip(kept, map(Index.of, variables), strict=True))
        source = Access(buffer, tuple(at.get(n, i) for n, i in enumerate(place)))
        dims = tuple(Dim(v) for v in variables if v.extent != 1)
        self._keep(dims, Access(pair.new, tuple(at.values())), Load(source))

    def _carry_part(self, value: Expr) -> None:
        if id(value) not in self.parts:
            self.parts[id(value)] = self._new_pair(self.last.domain, value.dtype)
            self._keep(self.last.dims, self._at_point(self.parts[id(value)].new), value)

    def _keep(self, dims: tuple[Dim, ...], target: Access, value: Expr) -> None:
        name = f"{target.buffer.name}_kept"
        self.kept.append(OpInst(name, dims, (Store(target, value),), made_from=self.last.made_from))

    def _new_pair(self, shape: tuple[int, ...], dtype: DType) -> Carry:
        name = f"{self.carry.new.name}_of{len(self.pairs)}"
        made = (Buffer.contiguous(name + end, dtype, shape, BufferKind.TEMPORARY) for end in ("", "_next"))
        self.pairs.append(Carry(*made))
        return self.pairs[-1]

    def _at_point(self, buffer: Buffer) -> Access:
        return Access(buffer, tuple(Index.of(d.var) for d in self.last.dims))

    def _reading(self, end: Callable[[Carry], Buffer]) -> OpInst:
        """The operator reading what was carried, from one end of the carries."""

        def access(old: Access) -> Access:
            if old.buffer not in self.places:
                return old
            pair, kept = self.places[old.buffer]
            return Access(end(pair), tuple(old.index[n] for n in kept))

        def change(node: Expr) -> Expr | None:
            pair = self.parts.get(id(node))
            return pair and Load(self._at_point(end(pair)))

        return rewrite_op(self.last, change=change, access=access)

    def before(self) -> list[OpInst]:
        """What the first trip finds; it does not look at it, but what is read has to have been written."""
        return [_zeros(pair.old, self.last) for pair in self.pairs]

    def loop(self) -> LoopInst:
        """The loop that begins with the operator."""
        first = self._reading(lambda pair: pair.old)
        state = replace(self.carry.old, name=f"{self.carry.old.name}_now")
        (store,) = first.stores
        is_first = Binary("eq", IndexValue(Index.of(self.whole.var)), Const(0, DType.I64))
        value = Where(is_first, Load(Access(self.carry.old, store.access.index)), store.value)
        first = replace(first, stores=(Store(Access(state, store.access.index), value),))
        others = [e for e in self.whole.body if e is not self.last]
        moved = [_relocated(e, {self.carry.old: (state, ())}) for e in (*others, *self.kept)]
        carries = (*(c for c in self.whole.carries if c is not self.carry), *self.pairs)
        return replace(self.whole, body=(first, *moved), carries=carries)

    def after(self) -> OpInst:
        """The operator once more, on what the last trip leaves."""
        return replace(self._reading(lambda pair: pair.new), name=f"{self.last.name}_last")


def _relocated(element: Element, moved: dict[Buffer, tuple[Buffer, tuple[Index, ...]]]) -> Element:
    return relocate_buffers(element, moved) if isinstance(element, OpInst) else element


def _zeros(buffer: Buffer, like: OpInst) -> OpInst:
    variables = [Var(f"d{n}", extent) for n, extent in enumerate(buffer.shape)]
    dims = tuple(Dim(v) for v in variables if v.extent != 1)
    store = Store(Access(buffer, tuple(map(Index.of, variables))), Const(0, buffer.dtype))
    return OpInst(f"{buffer.name}_start", dims, (store,), made_from=like.made_from)
