"""When a reader looks at exactly the point that a writer computes."""

import pytest

from wolong_fx.codegen.alignment import find_point_map, is_bijective
from wolong_fx.ir.expr import Access, Const, Gather
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst
from wolong_fx.ir.types import Buffer, BufferKind, DType

D0, D1 = Var("d0", 4), Var("d1", 6)
ROW, COLUMN = Index.of(D0), Index.of(D1)
BUFFER = Buffer.contiguous("b", DType.F32, (4, 6), BufferKind.TEMPORARY)


def op(*extents):
    return OpInst("op", tuple(Dim(Var(f"d{n}", extent)) for n, extent in enumerate(extents)), ())


WRITER = op(4, 6)
STORED = Access(BUFFER, (ROW, COLUMN))


def is_joined(reader, *read):
    point_map = find_point_map(WRITER, STORED, Access(BUFFER, read))
    return point_map is not None and is_bijective(point_map, WRITER, reader)


def test_the_same_coordinates_are_aligned():
    assert is_joined(op(4, 6), ROW, COLUMN)


def test_a_transposed_reader_is_aligned():
    first, second = Index.of(Var("d0", 6)), Index.of(Var("d1", 4))
    assert is_joined(op(6, 4), second, first)


def test_a_reader_that_walks_the_elements_in_one_row_is_aligned():
    flat = Index.of(Var("d0", 24))
    assert is_joined(op(24), flat // 6, flat % 6)


@pytest.mark.parametrize(
    "reader, read",
    [
        (op(4, 6), (3 - ROW, COLUMN)),  # flipped: each point reads another's
        (op(4, 4), (ROW, Index.of(Var("d1", 4)))),  # a slice leaves points without a reader
        (op(2, 4, 6), (Index.of(Var("d1", 4)), Index.of(Var("d2", 6)))),  # broadcast: points with two readers
        (op(4, 6), (ROW, Index.of(2))),  # one column, read by all
        (op(4, 6), (ROW, COLUMN + 1)),  # past the end
    ],
)
def test_readers_of_other_points_are_not_aligned(reader, read):
    assert not is_joined(reader, *read)


def test_a_gathered_position_is_never_aligned():
    assert not is_joined(op(4, 6), Gather(Const(0, DType.I64), "out of range"), COLUMN)


def test_a_store_at_scaled_coordinates_is_not_solved():
    assert find_point_map(op(2, 6), Access(BUFFER, (Index.of(Var("d0", 2)) * 2, COLUMN)), STORED) is None
