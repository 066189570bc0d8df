"""Every operation of the IR on every type, against torch: special values, ends of ranges, ragged vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wolong_fx.codegen.lower.value import TORCH_DTYPES
from wolong_fx.codegen.reference import arithmetic
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ir.expr import ARITHMETIC, COMPARISON, UNARY, Binary, Cast, Const, Expr, Load, Unary, Where
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import OpInst, Program, Store
from wolong_fx.ir.types import DType
from wolong_fx.testing.programs import ProgramBuilder, at, load, operator

SIZE = 77
DIVISIONS = frozenset("floordiv truncdiv mod fmod".split())
INFINITY, NAN = float("inf"), float("nan")
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    INFINITY,
    -INFINITY,
    NAN,
    1e-40,
    -1e-40,
    1e-10,
    3.0,
    -3.0,
    2.5,
    -2.5,
    1.5,
    88.0,
    89.5,
    -88.0,
    -104.0,
    1e30,
    -1e30,
    100.25,
    0.9,
    -0.3,
    7.0,
    0.001,
    8388609.0,
    -8388607.5,
    5e-08,
]


def values(dtype: DType, seed: int) -> Tensor:
    generator, kind = torch.Generator().manual_seed(seed), TORCH_DTYPES[dtype]
    if dtype is DType.BOOL:
        return torch.rand(SIZE, generator=generator) > 0.5
    if dtype.is_float:
        rest = torch.randn(SIZE - len(SPECIAL), generator=generator) * 3
        found = torch.cat([torch.tensor(SPECIAL), rest])
    else:
        ends = torch.iinfo(kind)
        some = torch.tensor([ends.min, ends.max, 0, 1, 3, 5, max(ends.min, -1)])
        found = torch.cat([some, torch.randint(max(ends.min, -9), 9, (SIZE - 7,), generator=generator)])
    return found.to(kind)[torch.randperm(SIZE, generator=generator)]


def is_defined(op: str, dtype: DType, operands: int) -> bool:
    """Whether torch has the operation on this type, with the result type that the IR gives it."""
    table = arithmetic.UNARY if operands == 1 else arithmetic.BINARY
    kind = TORCH_DTYPES[dtype.compute]
    try:
        result = table[op](*[torch.ones(3, dtype=kind)] * operands)
    except (RuntimeError, TypeError):
        return False
    is_test = op in ("isnan", "isinf", "not") or op in COMPARISON
    return result.dtype == (torch.bool if is_test else kind)


def expression(op: str, operands: list[Load]) -> Expr:
    if len(operands) == 1:
        return Unary(op, operands[0])
    a, b = operands
    if op not in DIVISIONS or b.dtype.is_float:
        return Binary(op, a, b)
    is_zero = Binary("eq", b, Const(0, b.dtype))
    return Binary(op, a, Where(is_zero, Const(3, b.dtype), b))


def table_program(dtype: DType, operands: int) -> Program:
    """One output an operation, all in one kernel."""
    p, i = ProgramBuilder(f"table{operands}_{dtype}"), Var("i", SIZE)
    sources = [load(p.input(f"x{n}", SIZE, dtype=dtype), i) for n in range(operands)]
    ops: list[OpInst] = []
    for op in sorted(UNARY if operands == 1 else ARITHMETIC | COMPARISON):
        if is_defined(op, dtype, operands):
            value = expression(op, sources)
            ops.append(operator(op, (i,), Store(at(p.output(f"y_{op}", SIZE, dtype=value.dtype), i), value)))
    p.stage(*ops)
    return p.build()


def cast_program(dtype: DType) -> Program:
    p, i = ProgramBuilder(f"cast_{dtype}"), Var("i", SIZE)
    x, ops = load(p.input("x", SIZE, dtype=dtype), i), []
    for to in DType:
        ops.append(operator(str(to), (i,), Store(at(p.output(f"y_{to}", SIZE, dtype=to), i), Cast(x, to))))
    p.stage(*ops)
    return p.build()


def assert_agrees(name: str, found: Tensor, wanted: Tensor, given: list[Tensor]) -> None:
    if name in ("mod", "fmod") and wanted.is_floating_point():
        # torch's vectorised fmod overflows where the quotient does; libm's, which we call, does not.
        quotient = (given[0].double() / given[1].double()).abs()
        usual = (quotient < 1e30) | ~quotient.isfinite()
        found, wanted = found[usual], wanted[usual]
    rtol = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
    torch.testing.assert_close(
        found, wanted, rtol=rtol.get(found.dtype, 0), atol=1e-44, equal_nan=True, msg=name
    )
    if found.is_floating_point():
        zeros = (found == 0) & (wanted == 0)
        assert torch.equal(torch.signbit(found[zeros]), torch.signbit(wanted[zeros])), f"sign of zero: {name}"


@pytest.mark.parametrize("operands", [1, 2])
@pytest.mark.parametrize("dtype", DType, ids=str)
def test_operation_agrees_with_torch(run_cpp, isa, dtype, operands):
    program = table_program(dtype, operands)
    given = [values(dtype, seed) for seed in range(operands)]
    found = run_cpp(program, given, isa, threads=1)
    wanted = run_program(program, given, seed=0)
    for op, ours, torchs in zip(program.ops(), found, wanted, strict=True):
        assert_agrees(op.name, ours, torchs, given)


@pytest.mark.parametrize("dtype", DType, ids=str)
def test_cast_agrees_with_torch(run_cpp, isa, dtype):
    program, given = cast_program(dtype), values(dtype, 0)
    if dtype.is_float:  # out of range and NaN to integers is undefined in C++ and in torch
        given = given.nan_to_num(3, 7, -7).clamp(-100, 100)
    found, wanted = run_cpp(program, [given], isa, threads=1), run_program(program, [given], seed=0)
    for op, ours, torchs in zip(program.ops(), found, wanted, strict=True):
        assert_agrees(op.name, ours, torchs, [given])


def test_every_operation_is_tried_on_some_type():
    tried = {op.name for dtype in DType for n in (1, 2) for op in table_program(dtype, n).ops()}
    assert tried == UNARY | ARITHMETIC | COMPARISON


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16], ids=str)
@pytest.mark.cpu
def test_every_half_precision_number_survives_the_round_trip(run_cpp, dtype):
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    p, i = ProgramBuilder("round_trip"), Var("i", bits.numel())
    x, y, wide = (
        p.input("x", bits.numel(), dtype=dtype),
        p.output("y", bits.numel(), dtype=dtype),
        p.output("wide", bits.numel()),
    )
    value = load(x, i)
    p.stage(
        operator("copy", (i,), Store(at(y, i), Cast(Cast(value, DType.F32), dtype))),
        operator("widen", (i,), Store(at(wide, i), Cast(value, DType.F32))),
    )
    given = bits.view(TORCH_DTYPES[dtype])
    copied, widened = run_cpp(p.build(), [given], "portable")
    numbers = ~given.isnan()
    assert torch.equal(copied.view(torch.int16)[numbers], bits[numbers])
    assert copied[~numbers].isnan().all()
    torch.testing.assert_close(widened, given.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16], ids=str)
@pytest.mark.cpu
def test_rounding_to_half_precision_is_torchs(run_cpp, dtype):
    generator = torch.Generator().manual_seed(0)
    scales = 2.0 ** torch.randint(-30, 20, (1 << 16,), generator=generator)
    given = torch.cat([torch.randn(1 << 16, generator=generator) * scales, torch.tensor(SPECIAL)])
    near = torch.tensor([65519.0, 65520.0, 65536.0, 5.960464477539063e-08, 2.98e-08, 2.99e-08, 6.1e-05])
    given = torch.cat([given, near, -near])
    p, i = ProgramBuilder("narrow"), Var("i", given.numel())
    x, y = p.input("x", given.numel()), p.output("y", given.numel(), dtype=dtype)
    p.stage(operator("narrow", (i,), Store(at(y, i), Cast(load(x, i), dtype))))
    found = run_cpp(p.build(), [given], "portable")[0]
    torch.testing.assert_close(found, given.to(TORCH_DTYPES[dtype]), rtol=0, atol=0, equal_nan=True)
