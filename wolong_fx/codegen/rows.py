"""Rows: what a reader uses all along a row is computed by the virtual block that owns the row.

A norm, a softmax: elements, a few numbers made of a row of them, then every element again. As operators of
their own the numbers cost a stage and a barrier each. In their reader they are computed once a row; and what
the row is made of is computed there again, for the reduction and for the result, instead of being stored.
A block takes whole rows then, so it pays where there are rows enough for all threads, or so little to do that
a barrier costs more.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from wolong_fx.codegen.alignment import PointMap, find_point_map, is_bijective
from wolong_fx.codegen.order_dims import find_lane
from wolong_fx.codegen.served_dims import served_dims
from wolong_fx.ir.expr import Access, Load, Reduce
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst
from wolong_fx.ir.types import Buffer

LEAST_ROWS = 8
"""Rows that keep a team busy: fewer are cut along their elements instead."""

LONE_POINTS = 2048
"""Points of so few rows that one thread is done before a team has met at a barrier."""

MOST_COPIED = 4
"""Times its own elements that a reader reduces again, rather than wait for who does it for others too."""

MOST_REPEATED = 48
"""Expression nodes of an element that are computed again where its row is reduced."""


def is_row_map(point_map: PointMap, writer: OpInst, reader: OpInst) -> bool:
    """Whether whole rows of `reader` use one result of `writer` each, every result is used, and it pays that
    the blocks that own the rows compute it.
    """
    rows = _row_dims(point_map, reader)
    if len(rows) == len(reader.dims) or not is_bijective(point_map, writer, replace(reader, dims=rows)):
        return False
    along = [d for d in reader.dims if d not in rows]
    is_walked_once = len(along) == 1 or find_lane(reader) in along
    is_balanced = prod(d.extent for d in rows) >= LEAST_ROWS or reader.points <= LONE_POINTS
    return is_walked_once and is_balanced


def is_cheap_to_copy(writer: OpInst, reader: OpInst) -> bool:
    """Whether `reader` had better reduce its rows again than wait for what others need as well."""
    reduced = sum(prod(v.extent for v in n.over) for n in writer.expressions() if isinstance(n, Reduce))
    return reduced * writer.points <= MOST_COPIED * reader.points


def find_row_maps(writer: OpInst, reader: OpInst) -> tuple[PointMap, dict[int, PointMap]] | None:
    """Where the loads of a reader that owns rows find what `writer` computes: some at their own point, by the
    first map; others (by id) at every point of the row, for a reduction.

    None if there are none of both, or any elsewhere.
    """
    along = served_dims(reader)
    if not along or len(writer.expressions()) > MOST_REPEATED:
        return None
    stores = {s.access.buffer: s.access for s in writer.stores}
    loads = [load for load in reader.loads() if load.access.buffer in stores]
    maps = {id(load): _find_map(writer, stores, load) for load in loads}
    bound = {v for n in reader.expressions() if isinstance(n, Reduce) for v in n.over}
    own = next((m for m in maps.values() if m and is_bijective(m, writer, reader)), None)
    if own is None or not all(m and _is_along_row(m, own, along, bound) for m in maps.values()):
        return None
    return own, {key: m for key, m in maps.items() if m is not None and m != own}


def _find_map(writer: OpInst, stores: dict[Buffer, Access], load: Load) -> PointMap | None:
    stored = stores[load.access.buffer]
    return None if load.fill is not None else find_point_map(writer, stored, load.access)


def _is_along_row(point_map: PointMap, own: PointMap, along: frozenset[Var], bound: set[Var]) -> bool:
    """Whether a map differs from a point's own only in what moves along the row: bound variables do that."""
    walked = {Index.of(v) for v in along}
    reduced = {Index.of(v) for v in bound}
    return all(i == own[v] or (own[v] in walked and i in reduced) for v, i in point_map.items())


def _row_dims(point_map: PointMap, reader: OpInst) -> tuple[Dim, ...]:
    used = frozenset[Var]().union(*(i.variables() for i in point_map.values()))
    return tuple(d for d in reader.dims if d.var in used)
