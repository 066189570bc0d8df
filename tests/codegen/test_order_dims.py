"""The order of dimensions follows memory; merging them keeps every offset affine."""

from wolong_fx.codegen.collapse_dims import collapse_dims
from wolong_fx.codegen.order_dims import order_dims
from wolong_fx.ir.expr import Access, Load
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind, DType

A, B = Var("d0", 4), Var("d1", 6)
ROW, COLUMN = Index.of(A), Index.of(B)


def buffer(name, *shape, kind=BufferKind.TEMPORARY):
    return Buffer.contiguous(name, DType.F32, shape, kind)


def copy(source, read, target, written, sequential=False, fill=None):
    dims = (Dim(A, sequential), Dim(B))
    return OpInst("copy", dims, (Store(Access(target, written), Load(Access(source, read), fill)),))


def test_the_stored_rows_run_over_lanes_when_reads_and_stores_disagree():
    op = order_dims(copy(buffer("x", 4, 6), (ROW, COLUMN), buffer("y", 6, 4), (COLUMN, ROW)))
    assert op.domain == (6, 4)
    assert op.stores[0].access.offset().coefficient(op.dims[-1].var) == 1


def test_an_order_that_already_follows_memory_stays():
    assert order_dims(copy(buffer("x", 4, 6), (ROW, COLUMN), buffer("y", 4, 6), (ROW, COLUMN))).domain == (
        4,
        6,
    )


def test_sequential_dimensions_keep_their_order():
    op = copy(buffer("x", 4, 6), (ROW, COLUMN), buffer("y", 6, 4), (COLUMN, ROW), sequential=True)
    assert order_dims(op) is op
    assert collapse_dims(op).domain == (4, 6)


def test_neighbours_that_every_access_walks_as_one_are_merged():
    op = collapse_dims(copy(buffer("x", 4, 6), (ROW, COLUMN), buffer("y", 24), (ROW * 6 + COLUMN,)))
    assert op.domain == (24,)
    assert all(
        not a.offset().uses_nested(op.dims[0].var) for a in (op.stores[0].access, op.loads()[0].access)
    )


def test_neighbours_that_one_access_walks_otherwise_stay_apart():
    assert collapse_dims(copy(buffer("x", 4, 6), (ROW, COLUMN), buffer("y", 6, 4), (COLUMN, ROW))).domain == (
        4,
        6,
    )
    assert collapse_dims(copy(buffer("x", 4, 9), (ROW, COLUMN), buffer("y", 4, 6), (ROW, COLUMN))).domain == (
        4,
        6,
    )


def test_padded_coordinates_stay_apart_since_each_has_its_own_bound():
    op = copy(buffer("x", 4, 6), (ROW - 1, COLUMN), buffer("y", 4, 6), (ROW, COLUMN), fill=0.0)
    assert collapse_dims(op).domain == (4, 6)
