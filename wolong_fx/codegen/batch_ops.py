"""Operator batching: isomorphic independent operators become one, with one more dimension.

Operators of one level that are equal but for constants in their indices, each constant growing by the same
step from one operator to the next (the rows x[0], x[1], ... of one tensor), are run as one operator over that
step. What they wrote to separate temporaries goes to one stacked temporary; into a buffer they share, they
step. Eighty products x[t] @ W become one product of eighty rows; then eighty products for each of four heads
become one with two more dimensions. Where operands lie in separate places, they are gathered if that pays
(`gather_operands`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from wolong_fx.codegen.dataflow import dependences, levels
from wolong_fx.codegen.gather_operands import Moves, find_gathering
from wolong_fx.codegen.isomorphism import is_own, isomorphic
from wolong_fx.codegen.loops import Element, Exit, carry_buffers, map_ops
from wolong_fx.codegen.rewrite import rename_variables, rewrite_op, stored_expressions
from wolong_fx.ir.expr import Access, Expr, Load, walk
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer
from wolong_fx.ledger import Ledger
from wolong_fx.runtime.machine_costs import USUAL_COSTS, MachineCosts

STEP = "b"  # the new dimension's variable, renamed once the operator is made


@dataclass(frozen=True)
class BatchOps:
    """Batch level by level, so that what one level stacked is a regular read of the next.

    Loops stay as they are, and so do the buffers that they hand from trip to trip.
    costs: by which siblings whose operands lie apart are gathered, or not
    """

    costs: MachineCosts = USUAL_COSTS

    def __call__(self, ops: list[Element], ledger: Ledger) -> list[Element]:
        pinned = carry_buffers(ops).union(*(op.reads() for op in ops if isinstance(op, Exit)))
        written = {b for op in ops for b in op.writes()}
        elsewhere = {b for op in ops for b in op.reads() if b not in written}
        batcher = _Batcher(frozenset(pinned), frozenset(pinned | elsewhere), self.costs, ledger)
        done: list[Element] = []
        for level in _by_level(ops):
            done += (op for op in level if not isinstance(op, OpInst))
            operators = [op for op in level if isinstance(op, OpInst)]
            for members in isomorphic(operators, pinned, open_reads=True):
                done += batcher.batch(members)
        return map_ops(done, batcher.moves.relocate)


def _by_level(ops: Sequence[Element]) -> list[list[Element]]:
    found: dict[int, list[Element]] = defaultdict(list)
    for op, level in zip(ops, levels(dependences(ops)), strict=True):
        found[level].append(op)
    return [found[level] for level in sorted(found)]


@dataclass(frozen=True)
class _Member:
    """An operator, and the constants of all indices that batching can step through, in order."""

    op: OpInst
    constants: tuple[int, ...]


@dataclass
class _Batcher:
    """Batches groups of operators, each group of one level, levels in order.

    pinned: buffers that others write, or read, at places of their own choice
    immovable: those, and what nobody here writes: it is filled outside of the loop that this is the body of
    """

    pinned: Collection[Buffer]
    immovable: Collection[Buffer]
    costs: MachineCosts
    ledger: Ledger
    moves: Moves = field(default_factory=Moves)

    def batch(self, ops: Sequence[OpInst]) -> list[OpInst]:
        """The operators that do the work of these, which are isomorphic with their reads left open."""
        here = [self.moves.relocate(op) for op in ops]
        stretches = len(self._runs(here))
        gathering = None
        if stretches > 1:
            gathering = find_gathering(ops, stretches, self.moves, self.immovable, self.costs)
        if gathering is None:
            return self._to_fixpoint(here)
        for op in ops[1:]:
            self._note(op, f"its operands are gathered with those of {ops[0].name}")
        return self._to_fixpoint(gathering.copies) + self._to_fixpoint(gathering.members)

    def _to_fixpoint(self, ops: list[OpInst]) -> list[OpInst]:
        while len(runs := self._runs(ops)) < len(ops):
            ops = [self._stack(run) if len(run) > 1 else run[0].op for run in runs]
        return ops

    def _runs(self, ops: Sequence[OpInst]) -> list[list[_Member]]:
        """Stretches of operators that are equal but for constants that grow by equal steps."""
        found = []
        for group in isomorphic(ops, self.pinned):
            members = sorted((self._member(op) for op in group), key=lambda m: m.constants)
            for run in _equal_steps(members):
                found += [run] if self._fills_its_part(run) else [[member] for member in run]
        return found

    def _fills_its_part(self, run: Sequence[_Member]) -> bool:
        """Whether what the members write to a buffer they share lies side by side, without gaps in which
        others would write.
        """
        if len(run) == 1:
            return True
        pairs = zip(run[0].op.stores, run[1].op.stores, strict=True)
        return all(
            is_own(first, run[0].op, self.pinned) or _are_neighbours(first.access, second.access)
            for first, second in pairs
        )

    def _member(self, op: OpInst) -> _Member:
        accesses = [e.access for e in walk(stored_expressions(op)) if isinstance(e, Load)]
        accesses += [s.access for s in op.stores if not is_own(s, op, self.pinned)]
        return _Member(op, tuple(i.constant for access in accesses for i in access.affine))

    def _stack(self, run: Sequence[_Member]) -> OpInst:
        """One operator over the whole run; where each member's results went is learnt."""
        step = Var(STEP, len(run))
        first = run[0].op
        strides = iter([b - a for a, b in zip(run[0].constants, run[1].constants, strict=True)])
        stepped = _step_through_loads(first, step, strides)
        stores = [
            self._stack_store([m.op.stores[position] for m in run], store, step)
            if is_own(store, first, self.pinned)
            else replace(store, access=_advanced(store.access, step, strides))
            for position, store in enumerate(stepped.stores)
        ]
        made_from = tuple(dict.fromkeys(n for m in run for n in m.op.made_from))
        for member in run[1:]:
            self._note(member.op, f"one of {len(run)} like {first.name}")
        dims = (Dim(step), *first.dims)
        return rename_variables(replace(first, dims=dims, stores=tuple(stores), made_from=made_from))

    def _stack_store(self, of_members: Sequence[Store], store: Store, step: Var) -> Store:
        whole = self.moves.stack([s.access.buffer for s in of_members])
        return replace(store, access=Access(whole, (Index.of(step), *store.access.index)))

    def _note(self, op: OpInst, because: str) -> None:
        self.ledger.note("batch-ops", ",".join(op.made_from), "fused", because)


def _equal_steps(members: Sequence[_Member]) -> Iterator[list[_Member]]:
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


def _are_neighbours(first: Access, second: Access) -> bool:
    """Whether two accesses differ in one coordinate, by as much as each covers there."""
    moved = [
        (b.constant - a.constant, a.bounds())
        for a, b in zip(first.affine, second.affine, strict=True)
        if a.constant != b.constant
    ]
    return len(moved) == 1 and abs(moved[0][0]) == moved[0][1][1] - moved[0][1][0] + 1


def _step_through_loads(op: OpInst, step: Var, strides: Iterator[int]) -> OpInst:
    """`op` with the constants of its loads advanced by their strides at each step."""
    loads = [e for e in walk(stored_expressions(op)) if isinstance(e, Load)]
    advanced = {id(load): _advanced(load.access, step, strides) for load in loads}

    def change(node: Expr) -> Expr | None:
        if isinstance(node, Load) and not node.access.gathers:
            return Load(advanced[id(node)], node.fill)
        return None

    return rewrite_op(op, change=change)


def _advanced(access: Access, step: Var, strides: Iterator[int]) -> Access:
    index = (i + Index.of(step) * next(strides) if isinstance(i, Index) else i for i in access.index)
    return Access(access.buffer, tuple(index))
