"""Loops of equally many trips that need nothing of each other become one: the directions of a bidirectional
recurrence, two recurrences side by side.

A trip of the joint loop does what a trip of each did. Their operators share stages, so there is one barrier
where there were two, and a thread that is done with one loop's part goes on with the other's. What a trip
touches grows, though: weights that a cache kept from trip to trip may not fit any more. So loops are joined
only where the target expects the joint one to be faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from wolong_fx.codegen.dataflow import dependences
from wolong_fx.codegen.fuse_ops import fuse_ops
from wolong_fx.codegen.loops import Element, LoopInst, on_body, walk_ops
from wolong_fx.codegen.rewrite import rewrite_op
from wolong_fx.ir.footprint import Touch, boxes_are_apart, residues_are_apart, touches_of
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ledger import Ledger

Estimate = Callable[[Sequence[Element]], float | None]
"""Seconds that elements take, one after another where they must; None if the target cannot say."""


def never_known(elements: Sequence[Element]) -> None:
    """The Estimate of a target that cannot say: its loops are joined wherever that is possible."""


@dataclass(frozen=True)
class JoinLoops:
    """Join independent loops of one trip count where that pays; the same values, bit by bit."""

    estimate: Estimate = never_known

    def __call__(self, ops: list[Element], ledger: Ledger) -> list[Element]:
        refused: set[tuple[LoopInst, LoopInst]] = set()
        while pair := next((p for p in _independent_pairs(ops) if p not in refused), None):
            joint = self._join(*pair, ledger)
            if joint is None:
                refused.add(pair)
            else:
                ops = _replaced(ops, pair, joint)
        return ops

    def _join(self, first: LoopInst, second: LoopInst, ledger: Ledger) -> LoopInst | None:
        """The joint loop; None if it would take longer."""
        joint = on_body(self._settle, ledger, _joint(first, second))
        apart, together = self.estimate([first, second]), self.estimate([joint])
        what = ",".join(second.made_from)
        if apart is None or together is None:
            ledger.note("join-loops", what, "fused", f"runs in the trips of {first.name}")
            return joint
        verdict = f"{_microseconds(together)} in the trips of {first.name}, {_microseconds(apart)} apart"
        is_faster = together < apart
        ledger.note("join-loops", what, "fused" if is_faster else "kept", verdict)
        return joint if is_faster else None

    def _settle(self, body: list[Element], ledger: Ledger) -> list[Element]:
        """The body of a joint loop: siblings meet there, and loops that it has inside."""
        return self(fuse_ops(body, ledger), ledger)


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} us"


def _joint(first: LoopInst, second: LoopInst) -> LoopInst:
    return replace(
        first,
        body=(*first.body, *(_with_variable(e, second.var, first.var) for e in second.body)),
        carries=(*first.carries, *second.carries),
        stacks=tuple(dict.fromkeys((*first.stacks, *second.stacks))),
        made_from=(*first.made_from, *second.made_from),
    )


def _with_variable(element: Element, old: Var, new: Var) -> Element:
    if old == new:
        return element
    if isinstance(element, LoopInst):
        return replace(element, body=tuple(_with_variable(e, old, new) for e in element.body))
    assert isinstance(element, OpInst), type(element)
    return rewrite_op(element, index=lambda i: i.substitute({old: new}))


def _independent_pairs(ops: Sequence[Element]) -> Iterator[tuple[LoopInst, LoopInst]]:
    """Pairs of loops, in order, that may run trip by trip side by side."""
    loops = [(n, e) for n, e in enumerate(ops) if isinstance(e, LoopInst)]
    if len(loops) < 2:
        return
    followers = {n: _followers(dependences(ops), n) for n, _ in loops[:-1]}
    for (n, first), (m, second) in combinations(loops, 2):
        is_alike = first.var.extent == second.var.extent
        if is_alike and m not in followers[n] and _touch_apart(first, second):
            yield first, second


def _followers(before: Sequence[set[int]], start: int) -> set[int]:
    """The elements that need what the one at `start` computes, or what those compute."""
    found: set[int] = set()
    for n in range(start + 1, len(before)):
        if start in before[n] or before[n] & found:
            found.add(n)
    return found


def _touch_apart(first: LoopInst, second: LoopInst) -> bool:
    """Whether neither loop writes where a trip of the other may read or write, as far as indices tell.

    The second reads nothing that the first writes: it does not follow it.
    """
    written = {*first.writes()} & {*second.writes()}
    if {*first.reads()} & {*second.writes()}:
        return False
    mine, others = ([t for t in _stores(loop) if t.buffer in written] for loop in (first, second))
    return all(_are_apart(a, b) for a in mine for b in others if a.buffer is b.buffer)


def _stores(loop: LoopInst) -> list[Touch]:
    return [touch for op, _ in walk_ops(loop.body) for touch in touches_of(op, ())]


def _are_apart(a: Touch, b: Touch) -> bool:
    return boxes_are_apart(a.box({}), b.box({})) or residues_are_apart(a.access, b.access)


def _replaced(ops: Sequence[Element], pair: tuple[LoopInst, LoopInst], joint: LoopInst) -> list[Element]:
    """The elements with a joint loop for the two: behind all that these follow, before what follows them."""
    first, second = (ops.index(loop) for loop in pair)
    late = _followers(dependences(ops), first)
    before = [e for n, e in enumerate(ops[:second]) if n != first and n not in late]
    between = [e for n, e in enumerate(ops[:second]) if n in late]
    return [*before, joint, *between, *ops[second + 1 :]]
