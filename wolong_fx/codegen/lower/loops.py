"""Rolled loops: a scan node becomes one loop whose body is lowered as a graph of its own.

What the loop walks over is read where it lies: a step's slice is an index map with the loop's variable in it.
What a step gives to a stacked result is stored there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from wolong_fx.codegen.loops import Carry, LoopInst
from wolong_fx.codegen.lower.lowering import Lowering
from wolong_fx.codegen.lower.registry import lowers
from wolong_fx.codegen.lower.value import TensorValue, of_buffer
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.types import Buffer
from wolong_fx.passes.loops.scan import SCAN, Scan


@lowers(SCAN)
def lower_scan(
    lowering: Lowering,
    node: Node,
    body: GraphModule,
    inits: Sequence[TensorValue],
    xs: Sequence[TensorValue],
    invariants: Sequence[TensorValue] = (),
) -> tuple[TensorValue, ...]:
    """The final carries, then the stacked results."""
    loop = _Loop(lowering, Scan(node, body), Var(f"t{lowering.nesting}", xs[0].shape[0]))
    loop.enter(inits, xs, invariants)
    return loop.leave()


@dataclass
class _Loop:
    """One scan being lowered: `inner` walks its body."""

    outer: Lowering
    scan: Scan
    var: Var

    def enter(
        self, inits: Sequence[TensorValue], xs: Sequence[TensorValue], invariants: Sequence[TensorValue]
    ) -> None:
        """Lower the body, its placeholders standing for what a step sees."""
        self.inner = self.outer.inside(self.scan.body)
        self.olds: list[Buffer | None] = []
        for place, value in zip(self.scan.carries, inits, strict=True):
            self.inner.values[place] = self._carried(place, value)
        for place, value in zip(self.scan.slices, xs, strict=True):
            self.inner.values[place] = self._slice(_cheap(self.outer, value))
        for place, value in zip(self.scan.inner_invariants, invariants, strict=True):
            self.inner.values[place] = _cheap(self.outer, value)
        for node in self.scan.body.graph.nodes:
            if node.op not in ("placeholder", "output"):
                self.inner.visit(node)

    def _carried(self, place: Node, init: TensorValue) -> TensorValue:
        """The carried value as a trip finds it; one that no trip changes is what it was before the loop."""
        if self.scan.new_carries[len(self.olds)] is place:
            self.olds.append(None)
            return _cheap(self.outer, init)
        old = self.outer.temporary(init.shape, init.dtype)
        self.outer.store_whole(old, init)
        self.olds.append(old)
        return of_buffer(old)

    def _slice(self, x: TensorValue) -> TensorValue:
        def at(point: tuple[Index, ...]) -> object:
            return x.at((Index.of(self.var), *point))

        return TensorValue(x.shape[1:], x.dtype, at, cost=x.cost, is_load=x.is_load)  # type: ignore[arg-type]

    def leave(self) -> tuple[TensorValue, ...]:
        """Store what the body returns, and add the loop to the operators around it."""
        self.inner.node = self.scan.node
        pairs = list(zip(self.olds, self.scan.new_carries, strict=True))
        finals = [self._final(old, place) for old, place in pairs]
        stacks = [self._stacked(self.inner.values[place]) for place in self.scan.ys]
        carries = (
            Carry(old, of.buffer) for (old, _), of in zip(pairs, finals, strict=True) if old and of.buffer
        )
        written = (stack.buffer for stack in stacks if stack.buffer)
        name = self.scan.node.name
        if self.inner.ops and self.var.extent:
            loop = LoopInst(name, self.var, tuple(self.inner.ops), tuple(carries), tuple(written), (name,))
            self.outer.ops.append(loop)
        return (*finals, *stacks)

    def _final(self, old: Buffer | None, place: Node) -> TensorValue:
        """What a trip hands to the next one, and the loop to what follows it."""
        if old is None:
            return self.inner.values[place]
        new = self.outer.temporary(old.shape, old.dtype)
        self.inner.store_whole(new, self.inner.values[place])
        return of_buffer(new)

    def _stacked(self, step: TensorValue) -> TensorValue:
        stack = self.outer.temporary((self.var.extent, *step.shape), step.dtype)
        self.inner.store_whole(stack, step, lead=(Index.of(self.var),))
        return of_buffer(stack)


def _cheap(lowering: Lowering, value: TensorValue) -> TensorValue:
    """A value that the body may read as often as it likes: in memory, if reading it would compute much."""
    return lowering.realised(value) if value.cost else value
