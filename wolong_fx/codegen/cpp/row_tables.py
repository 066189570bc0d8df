"""Values that a row's reduction computes for every element, and that the row's points need once more.

The exponentials of a softmax: summed first, divided by the sum then. Where both are computed by one virtual
block, the loop of the reduction leaves them in an array on the stack, and the points read them from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from wolong_fx.codegen.cpp.tiles import LIBM, SPECIAL, Planner
from wolong_fx.codegen.rewrite import canonical_nodes
from wolong_fx.ir.expr import Binary, Expr, Reduce, Unary, rebuild, walk
from wolong_fx.ir.index import Index, Var

MOST_BYTES = 1 << 15
"""Of one array: what the first-level cache keeps while a row is walked twice."""


@dataclass(frozen=True)
class RowTable:
    """An array of one row.

    kept: the node below `reduce` whose values are stored
    used: the same function of a point of the domain, which reads them
    elements: of the row, and as many more as fill its last vector
    """

    name: str
    reduce: Reduce
    kept: Expr
    used: Expr
    elements: int


def find_row_tables(planner: Planner) -> list[RowTable]:
    """The tables of an operator whose rows are its lanes; each expensive node has one."""
    lane = planner.analysis.lane
    if lane is None or planner.served != {len(planner.op.dims) - 1}:
        return []
    size = ceil(lane.extent / planner.lanes) * planner.lanes
    points = [n for n in planner.analysis.nodes if _is_expensive(n) and planner.analysis.depends(n, lane.var)]
    found: dict[int, RowTable] = {}
    for reduce in _row_reductions(planner, lane.var):
        for kept, used in _pairs(reduce, lane.var, points):
            if id(used) not in found and size * used.dtype.compute.bytes <= MOST_BYTES:
                found[id(used)] = RowTable(f"row{len(found)}", reduce, kept, used, size)
    return list(found.values())


def _row_reductions(planner: Planner, lane: Var) -> list[Reduce]:
    """Reductions of whole rows, element by element in the order of the lanes."""
    return [
        r
        for r in planner.analysis.reductions
        if not planner.analysis.depends(r, lane)
        and len(r.over) == 1
        and r.over[0].extent == lane.extent
        and planner.runs_along_inner(r)
    ]


def _pairs(reduce: Reduce, lane: Var, points: list[Expr]) -> list[tuple[Expr, Expr]]:
    """(node below a reduction, node of a point) that are one function of its variable and of the lane."""
    kept = [n for n in walk([reduce.body]) if _is_expensive(n)]
    at_lane: Mapping[Var, Index] = {reduce.over[0]: Index.of(lane)}
    moved = rebuild(kept, index=lambda i: i.substitute(at_lane))
    canonical = canonical_nodes([*points, *moved])
    by_node = {id(canonical[id(n)]): n for n in points}
    pairs = ((k, by_node.get(id(canonical[id(m)]))) for k, m in zip(kept, moved, strict=True))
    return [(k, used) for k, used in pairs if used is not None]


def _is_expensive(node: Expr) -> bool:
    return isinstance(node, Unary | Binary) and node.op in SPECIAL | LIBM | {"pow"}
