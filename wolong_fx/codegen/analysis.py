"""What the emitter asks of an operator before it writes any text: who depends on what, and how loads run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from wolong_fx.codegen.served_dims import free_variables
from wolong_fx.ir.expr import Access, Binary, Expr, Load, Reduce, walk
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst
from wolong_fx.ir.types import DType

_MANY = 1 << 40


class Analysis:
    """Facts about one operator, computed once."""

    def __init__(self, op: OpInst) -> None:
        self.op = op
        self.nodes: list[Expr] = list(op.expressions())
        self.written = frozenset(id(b) for b in op.writes())
        self.free = free_variables(self.nodes)
        self.level: dict[int, int] = {}
        for node in self.nodes:
            below = max((self.level[id(a)] for a in node.args), default=0)
            self.level[id(node)] = below + isinstance(node, Reduce)

    @cached_property
    def bound(self) -> frozenset[Var]:
        """Variables of all Reduce nodes."""
        return frozenset(v for n in self.nodes if isinstance(n, Reduce) for v in n.over)

    @cached_property
    def reductions(self) -> list[Reduce]:
        """Those that stand outside of every other's variables, so that they can be computed ahead of all
        else.
        """
        return [n for n in self.nodes if isinstance(n, Reduce) and not self.free[id(n)] & self.bound]

    @cached_property
    def loads_at_points(self) -> list[Load]:
        """Those that stand outside of every reduction."""
        return [n for n in self.nodes if isinstance(n, Load) and not self.free[id(n)] & self.bound]

    @cached_property
    def lane(self) -> Dim | None:
        """The dimension that vectors run along, if there is one."""
        if not self.op.dims or self.op.dims[-1].sequential or self.op.dims[-1].extent <= 1:
            return None
        return self.op.dims[-1]

    @cached_property
    def sequential(self) -> bool:
        return any(d.sequential for d in self.op.dims)

    def depends(self, node: Expr, var: Var | None) -> bool:
        return var in self.free[id(node)]

    def reads_written(self, node: Expr) -> bool:
        """Whether a load below `node` may see what an earlier point stored."""
        return any(isinstance(n, Load) and id(n.access.buffer) in self.written for n in walk([node]))

    @cached_property
    def dots(self) -> list[Reduce]:
        """Sums of products where one factor does not depend on the lane."""
        lane = self.lane.var if self.lane else None
        return [r for r in self.reductions if self.depends(r, lane) and _factors(self, r, lane)]

    @cached_property
    def widest(self) -> int:
        """Bytes of the widest float that is computed, 4 without any."""
        kinds = {n.dtype for n in self.nodes if n.dtype.is_float}
        if DType.F64 in kinds and not kinds - {DType.F64}:
            return 8
        return 4

    def lane_stride(self, access: Access, span: int) -> int | None:
        """Elements from one lane to the next where `span` lanes, aligned, are taken at once; None:
        irregular.
        """
        return self._stride(access, self.lane.var, span) if self.lane else 0

    def inner_stride(self, access: Access, reduce: Reduce) -> int | None:
        """Elements from one step of the innermost variable of `reduce` to the next."""
        return self._stride(access, reduce.over[-1], _MANY) if reduce.over else 0

    def _stride(self, access: Access, var: Var, span: int) -> int | None:
        if any(var in self.free[id(g.value)] for g in access.gathers):
            return None
        offset = access.offset()
        if not offset.uses_nested(var):
            return offset.coefficient(var) if min(span, var.extent) > 1 else 0
        step = Var("step", min(span, var.extent))
        block = Var("block", max(2, -(-var.extent // span)))
        whole = Index.of(step) + (Index.of(block) * span if span < var.extent else 0)
        offset = offset.substitute({var: whole})
        return None if offset.uses_nested(step) else offset.coefficient(step)


@dataclass(frozen=True)
class Factors:
    """The operands of a dot: `shared` does not depend on the lane, `streamed` does."""

    shared: Expr
    streamed: Expr


def _factors(analysis: Analysis, reduce: Reduce, lane: Var | None) -> Factors | None:
    body = reduce.body
    if reduce.op != "sum" or not isinstance(body, Binary) or body.op != "mul":
        return None
    a, b = body.a, body.b
    if analysis.depends(a, lane):
        a, b = b, a
    return None if analysis.depends(a, lane) else Factors(a, b)


def find_factors(analysis: Analysis, reduce: Reduce) -> Factors | None:
    """The factors of a dot; None for any other reduction."""
    return _factors(analysis, reduce, analysis.lane.var if analysis.lane else None)


def loads_at_steps(reduce: Reduce) -> Iterator[Load]:
    """Every load that a step of a reduction does: not those of reductions inside it, whose steps are their
    own.
    """
    stack, seen = [reduce.body], set[int]()
    while stack:
        node = stack.pop()
        if id(node) not in seen and not isinstance(node, Reduce):
            seen.add(id(node))
            stack += node.args
            if isinstance(node, Load):
                yield node


def loads_below(node: Expr) -> Iterator[Load]:
    """Every load that `node` is computed from."""
    return (n for n in walk([node]) if isinstance(n, Load))


def operands_first(roots: Sequence[Expr], operands: Callable[[Expr], tuple[Expr, ...]]) -> list[Expr]:
    """Every node once, operands before users; iterative, since fused graphs grow deep.

    operands: of a node, those that must come before it
    """
    order: list[Expr] = []
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(a, False) for a in reversed(operands(node)) if id(a) not in seen]
    return order
