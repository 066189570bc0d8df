"""How an operator is cut for a GPU: the tile whose stage is predicted to end first.

A tile has at most two dimensions, powers of two. Small tiles give every multiprocessor a virtual block and,
in a loop, let each keep its part of the weights; large ones read their operands less often and can use tensor
cores. What decides is arithmetic on what a block reads, multiplies and reduces (docs/decisions/0032).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

from wolong_fx.codegen.analysis import Analysis
from wolong_fx.codegen.signature import outer_variables
from wolong_fx.codegen.triton.gpu_costs import USUAL, GpuCosts
from wolong_fx.codegen.triton.keep import KEPT_BYTES
from wolong_fx.codegen.triton.reductions import SMALLEST_DOT, WHOLE
from wolong_fx.ir.expr import Binary, Cast, Expr, Load, Reduce
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst
from wolong_fx.ir.types import DType

POINTWISE = 512
"""Points of a tile without reductions: four of each of 128 threads."""

WIDEST = 512
"""Points of a tile along its lanes."""

TALLEST = 128
"""Points of a tile along its rows, where they are those of a matrix."""

RESULTS = 1 << 13
"""Accumulators of a block: 64 registers of each of 128 threads."""

EXACT_RESULTS = 1 << 12
"""The same of float32 products that tensor cores have no part in: operands take as many registers again."""

SPLIT_RESULTS = 512
"""The same where each is a sum over threads: four of each thread."""

SECTOR = 32
"""Bytes that memory hands out at once."""

PER_RESULT = 4.0
"""Clocks of a sum over the threads of a block: shuffles, and its share of an exchange in shared memory."""

PER_STEP = 100.0
"""Clocks of a block that nothing shortens: the exchange's barriers, and what ends the pipelines."""

TENSOR_RATE = 0.5
"""Share of the multiply-adds of tensor cores that instructions without asynchronous operands reach."""

SHARED_OPERAND, EXACT_OPERAND = 1 / 32, 1 / 11
"""Clocks of an operand of a product of matrices from shared memory, 32 words a clock. Tensor cores take each
once. Of exact products each of 128 threads has a square of the results and takes the rows and lanes of that,
an eleventh of all; four threads share what is read."""

SPLIT_RATE = 0.6
"""Share of the multiply-adds that sums over threads reach: each needs an operand of its own."""


@dataclass(frozen=True)
class Read:
    """A load of an operator: along what it varies, and what it finds next to each other.

    reduced: positions of the reduction around it, 1 outside of all
    run: along which of "row", "lane" and "reduced" neighbours in memory lie
    is_kept: whether a block may keep it over trips
    """

    bytes: int
    on_row: bool
    on_lane: bool
    reduced: int
    run: str
    is_kept: bool


@dataclass(frozen=True)
class Sum:
    """A reduction of an operator."""

    extent: int
    on_row: bool
    on_lane: bool
    is_product: bool
    is_narrow: bool


@dataclass(frozen=True)
class Work:
    """All that the choice of a tile looks at; operators alike have equal ones.

    rows, lanes, others: points along the last two parallel dimensions, and along all before
    """

    rows: int
    lanes: int
    others: int
    reads: tuple[Read, ...]
    sums: tuple[Sum, ...]


def choose_tile(op: OpInst, costs: GpuCosts = USUAL, precision: str = "ieee") -> tuple[int, ...]:
    """Points of each dimension that one virtual block takes.

    precision: of float32 products on tensor cores, "ieee" or "tf32"
    """
    tile = [d.extent if d.sequential else 1 for d in op.dims]
    parallel = [i for i, d in enumerate(op.dims) if not d.sequential and d.extent > 1]
    if not parallel:
        return tuple(tile)
    lane, row = parallel[-1], parallel[-2] if len(parallel) > 1 else None
    rows, lanes = _cut(_work(op, row, lane), costs, precision)
    tile[lane] = lanes
    if row is not None:
        tile[row] = rows
    return tuple(tile)


@lru_cache(maxsize=4096)
def _cut(work: Work, costs: GpuCosts, precision: str) -> tuple[int, int]:
    """Rows and lanes of a tile."""
    if not work.sums:
        return _pointwise(work, costs)
    candidates = list(_candidates(work, precision))
    return min(
        candidates,
        key=lambda tile: (predict_stage(work, *tile, costs, precision), prod(tile), kept_bytes(work, *tile)),
    )


def _pointwise(work: Work, costs: GpuCosts) -> tuple[int, int]:
    """Four points of each thread, or fewer where not every multiprocessor would have some."""
    points = work.rows * work.lanes * work.others
    room = max(128, min(POINTWISE, _up(ceil(points / costs.multiprocessors))))
    lanes = min(room, _up(work.lanes))
    return min(max(1, room // lanes), _up(work.rows)), lanes


def predict_product(
    rows: int, lanes: int, extent: int, others: int, dtype: DType, costs: GpuCosts, precision: str
) -> float:
    """Seconds of `others` products of matrices, rows x extent by extent x lanes, in a kernel of ours."""
    left = Read(dtype.bytes, True, False, extent, "reduced", False)
    right = Read(dtype.bytes, False, True, extent, "lane", False)
    is_narrow = dtype in (DType.BF16, DType.F16)
    work = Work(rows, lanes, others, (left, right), (Sum(extent, True, True, True, is_narrow),))
    return predict_stage(work, *_cut(work, costs, precision), costs, precision)


def _candidates(work: Work, precision: str) -> Iterator[tuple[int, int]]:
    accumulators = len(work.sums)
    is_exact = precision == "ieee" and not all(s.is_narrow for s in work.sums)
    for rows in _powers(min(TALLEST, _up(work.rows))):
        for lanes in _powers(min(WIDEST, _up(work.lanes))):
            of_matrix = EXACT_RESULTS if is_exact else RESULTS
            room = of_matrix if _is_matrix(work, rows, lanes) else SPLIT_RESULTS
            if rows * lanes * accumulators <= room or rows * lanes == 1:
                yield rows, lanes


def predict_stage(work: Work, rows: int, lanes: int, costs: GpuCosts, precision: str) -> float:
    """Seconds of a stage of one operator cut into tiles of rows x lanes, without the barrier behind it."""
    blocks = ceil(work.rows / rows) * ceil(work.lanes / lanes) * work.others
    busy = min(blocks, costs.multiprocessors)
    has_room = kept_bytes(work, rows, lanes) <= KEPT_BYTES
    keeps = has_room and blocks <= costs.multiprocessors and _is_whole(work, rows, lanes)
    read = sum(_bytes(r, rows, lanes) for r in work.reads if not (keeps and r.is_kept))
    clocks = max(_clocks(work, rows, lanes, costs, precision), read / costs.l2_port)
    return costs.latency + max(ceil(blocks / busy) * clocks / costs.clock, blocks * read / costs.l2)


def kept_bytes(work: Work, rows: int, lanes: int) -> float:
    """Bytes that a block of this tile would keep over the trips of a loop."""
    return sum(_bytes(read, rows, lanes, whole=True) for read in work.reads if read.is_kept)


def _clocks(work: Work, rows: int, lanes: int, costs: GpuCosts, precision: str) -> float:
    """Clocks of a multiprocessor for the arithmetic of one block."""
    total = PER_STEP
    for each in work.sums:
        results = (rows if each.on_row else 1) * (lanes if each.on_lane else 1)
        if each.is_product and _is_matrix(work, rows, lanes):
            total += each.extent * _clocks_of_step(rows, lanes, each, costs, precision)
        else:
            total += results * (each.extent / (SPLIT_RATE * costs.fma) + PER_RESULT)
    return total


def _clocks_of_step(rows: int, lanes: int, each: Sum, costs: GpuCosts, precision: str) -> float:
    """Clocks of one reduced position of a product of matrices: multiply-adds and operands from shared
    memory."""
    if each.is_narrow or precision != "ieee":
        peak = costs.tensor_16 if each.is_narrow else costs.tensor_tf32
        return rows * lanes / (TENSOR_RATE * peak) + (rows + lanes) * SHARED_OPERAND
    return rows * lanes / costs.fma + (rows + lanes) * EXACT_OPERAND


def _is_matrix(work: Work, rows: int, lanes: int) -> bool:
    """Whether the tile's sums of products are products of matrices."""
    return min(rows, lanes) >= SMALLEST_DOT and any(
        s.is_product and s.extent >= SMALLEST_DOT for s in work.sums
    )


def _is_whole(work: Work, rows: int, lanes: int) -> bool:
    """Whether a block takes all reduced positions at once, which keeping a factor needs."""
    return not _is_matrix(work, rows, lanes) and all(
        rows * lanes * _up(each.extent) <= WHOLE for each in work.sums
    )


def _bytes(read: Read, rows: int, lanes: int, *, whole: bool = False) -> float:
    """Bytes that a block reads, with what comes along unasked for; or (`whole`) those that it keeps."""
    wanted = (rows if read.on_row else 1) * (lanes if read.on_lane else 1) * read.reduced * read.bytes
    if whole:
        return wanted
    run = {"row": rows, "lane": lanes, "reduced": read.reduced}.get(read.run, 1) * read.bytes
    return wanted * max(1.0, SECTOR / run)


# ---- what an operator does


def _work(op: OpInst, row: int | None, lane: int) -> Work:
    analysis = Analysis(op)
    of_lane = op.dims[lane].var
    of_row = op.dims[row].var if row is not None else None
    others = prod(d.extent for i, d in enumerate(op.dims) if i not in (row, lane) and not d.sequential)
    reduces = [e for e in analysis.nodes if isinstance(e, Reduce)]
    outer = frozenset(outer_variables(op))
    reads = dict.fromkeys(
        (load.access.buffer, _read(load, analysis, of_row, of_lane, outer)) for load in op.loads()
    )  # sums that share an operand read it once
    sums = [_sum(reduce, analysis, of_row, of_lane) for reduce in reduces]
    rows = op.dims[row].extent if row is not None else 1
    return Work(rows, op.dims[lane].extent, others, tuple(r for _, r in reads), tuple(sums))


def _read(load: Load, analysis: Analysis, row: Var | None, lane: Var, outer: frozenset[Var]) -> Read:
    free = analysis.free[id(load)]
    over = [v for v in free if v in analysis.bound]
    offset = load.access.offset()
    run = ""
    for name, variables in (("row", [row]), ("lane", [lane]), ("reduced", over)):
        if any(v is not None and abs(offset.coefficient(v)) == 1 for v in variables):
            run = name
    return Read(
        load.dtype.bytes,
        row in free,
        lane in free,
        prod(v.extent for v in over),
        run,
        bool(outer) and not free & outer and not load.access.gathers and load.access.buffer.kind.is_given,
    )


def _sum(reduce: Reduce, analysis: Analysis, row: Var | None, lane: Var) -> Sum:
    free, body = analysis.free[id(reduce)], reduce.body
    is_product = (
        reduce.op == "sum" and isinstance(body, Binary) and body.op == "mul" and body.dtype is DType.F32
    )
    return Sum(
        prod(v.extent for v in reduce.over),
        row in free,
        lane in free,
        is_product,
        is_product and isinstance(body, Binary) and all(map(_is_narrow, (body.a, body.b))),
    )


def _is_narrow(factor: Expr) -> bool:
    return isinstance(factor, Cast) and factor.x.dtype in (DType.BF16, DType.F16)


def _powers(most: int) -> Iterator[int]:
    n = 1
    while n <= most:
        yield n
        n *= 2


def _up(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
