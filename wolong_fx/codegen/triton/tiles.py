"""How an operator is cut for a GPU: tiles of at most two dimensions, powers of two, small ones of few
points."""

from __future__ import annotations

from wolong_fx.codegen.analysis import Analysis
from wolong_fx.codegen.triton.reductions import SMALLEST_DOT
from wolong_fx.ir.expr import Reduce
from wolong_fx.ir.program import OpInst

POINTWISE = 512
"""Points of a tile without reductions: four of each of 128 threads."""

REDUCED = 32
"""Results of a tile, each of which is reduced by the lanes of a warp or more."""


def choose_tile(op: OpInst) -> tuple[int, ...]:
    """Points of each dimension that one virtual block takes."""
    tile = [d.extent if d.sequential else 1 for d in op.dims]
    parallel = [i for i, d in enumerate(op.dims) if not d.sequential and d.extent > 1]
    if not parallel:
        return tuple(tile)
    lane, rows = parallel[-1], parallel[-2:-1]
    extents = [d.extent for d in op.dims]
    if rows and _has_dot(op, rows[0], lane):
        tile[lane], tile[rows[0]] = min(32, _up(extents[lane])), min(32, _up(extents[rows[0]]))
        return tuple(tile)
    room = REDUCED if any(isinstance(e, Reduce) for e in op.expressions()) else POINTWISE
    tile[lane] = min(room, _up(extents[lane]))
    for row in rows:
        tile[row] = min(max(1, room // tile[lane]), _up(extents[row]))
    return tuple(tile)


def _has_dot(op: OpInst, row: int, lane: int) -> bool:
    """Whether sums of products over rows and lanes are large enough for tensor cores."""
    if min(op.dims[row].extent, op.dims[lane].extent) < SMALLEST_DOT:
        return False
    analysis = Analysis(op)
    return any(analysis.depends(dot, op.dims[row].var) for dot in analysis.dots)


def _up(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
