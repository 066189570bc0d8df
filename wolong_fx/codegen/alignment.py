"""When does a reader look at exactly the point that a writer computes? The map between their domains, if
there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wolong_fx.ir.expr import Access
from wolong_fx.ir.index import Index, Var, contiguous_strides, linear
from wolong_fx.ir.program import OpInst

PointMap = Mapping[Var, Index]


def find_point_map(writer: OpInst, stored: Access, read: Access) -> PointMap | None:
    """The writer's variables as indices over the reader's, such that `stored` becomes `read`; None if not
    solvable.

    Solves `stored.index == read.index` dimension by dimension, each stored coordinate being a constant, plus
    or minus one variable at most.
    """
    if stored.gathers or read.gathers:
        return None
    values: dict[Var, Index] = {}
    for place, wanted in zip(stored.affine, read.affine, strict=True):
        if place.is_constant:
            if wanted != place:
                return None
            continue
        (atom, factor), *rest = place.terms
        if rest or abs(factor) != 1 or not isinstance(atom, Var) or atom in values:
            return None
        values[atom] = (wanted - place.constant) * factor
    return values if _is_total(writer, values) else None


def _is_total(writer: OpInst, values: PointMap) -> bool:
    """Every variable of the writer has a value, inside its range; any other (a loop's) is what it was."""
    dims = {dim.var for dim in writer.dims}
    if any(value != Index.of(var) for var, value in values.items() if var not in dims):
        return False
    for dim in writer.dims:
        if dim.var not in values:
            return False
        low, high = values[dim.var].bounds()
        if low < 0 or high >= dim.extent:
            return False
    return True


def is_bijective(point_map: PointMap, writer: OpInst, reader: OpInst) -> bool:
    """Whether the map takes the reader's points to all of the writer's, each once: a permutation or a
    reshape.
    """
    if writer.points != reader.points:
        return False
    images = [point_map[d.var] for d in writer.dims]
    variables = [Index.of(d.var) for d in reader.dims]
    if sorted(map(str, images)) == sorted(map(str, variables)):
        return True
    return _row_major(images, writer.domain) == _row_major(variables, reader.domain)


def _row_major(coordinates: Sequence[Index], shape: tuple[int, ...]) -> Index:
    return linear(coordinates, contiguous_strides(shape))
