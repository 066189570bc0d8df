"""Errors of our own float32 functions, in units of the last place, over dense grids against float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wolong_fx.ir.expr import Unary
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Program, Store
from wolong_fx.ir.types import DType
from wolong_fx.testing.programs import ProgramBuilder, at, load, operator

GRID = 1 << 19

LIMITS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "exp": (torch.exp, 1.5),
    "exp2": (torch.exp2, 1.5),
    "expm1": (torch.expm1, 2.0),
    "log": (torch.log, 1.5),
    "log2": (torch.log2, 2.0),
    "log10": (torch.log10, 2.0),
    "log1p": (torch.log1p, 2.5),
    "sigmoid": (torch.sigmoid, 3.0),
    "tanh": (torch.tanh, 2.0),
    "erf": (torch.erf, 2.0),
    "sqrt": (torch.sqrt, 0.51),
    "rsqrt": (torch.rsqrt, 1.51),
    "sin": (torch.sin, 1.0),
    "cos": (torch.cos, 1.0),
}
"""The exact function, and the largest error allowed in units of the last place."""


def grid() -> Tensor:
    """Floats of every magnitude, dense around the interesting ones, both signs."""
    bits = torch.linspace(0, 0x7F7FFFFF, GRID, dtype=torch.float64).to(torch.int32)
    everywhere = bits.view(torch.float32)
    near = torch.linspace(0, 20, GRID, dtype=torch.float64).float()
    around_one = 1 + torch.linspace(-0.6, 0.6, GRID, dtype=torch.float64).float()
    far = torch.linspace(20, 105, GRID // 4, dtype=torch.float64).float()
    found = torch.cat([everywhere, near, around_one, far])
    return torch.cat([found, -found])


def math_program(size: int) -> Program:
    p, i = ProgramBuilder("math"), Var("i", size)
    x = p.input("x", size)
    p.stage(
        *(operator(f, (i,), Store(at(p.output(f"y_{f}", size), i), Unary(f, load(x, i)))) for f in LIMITS)
    )
    return p.build()


def error_in_last_places(found: Tensor, exact: Tensor) -> Tensor:
    """Of float32 results; where both are NaN, the same infinity or overflow, 0."""
    rounded = exact.float()
    spacing = torch.ldexp(torch.ones_like(exact), torch.frexp(rounded)[1].double() - 24)
    spacing = spacing.clamp(min=2.0**-149)
    error = (found.double() - exact).abs() / spacing
    same = (found == rounded) | (found.isnan() & rounded.isnan())
    return torch.where(same, torch.zeros_like(error), error).nan_to_num(math.inf)


@pytest.fixture(scope="module")
def points() -> Tensor:
    return grid()


def test_functions_keep_within_their_error_limits(run_cpp, isa, points):
    found = run_cpp(math_program(points.numel()), [points], isa)
    for (name, (exact, limit)), result in zip(LIMITS.items(), found, strict=True):
        with torch.no_grad():
            error = error_in_last_places(result, exact(points.double()))
        worst = int(error.argmax())
        said = f"{name}({float(points[worst])!r}) = {float(result[worst])!r} is {float(error[worst]):.2f} off"
        assert error[worst] <= limit, said


def test_exp_of_float64_is_within_two_last_places(run_cpp, isa):
    dense = torch.linspace(-745, 709.7, GRID, dtype=torch.float64)
    special = torch.tensor([0.0, -0.0, 710, 1e300, -746, -1e300, math.inf, -math.inf, math.nan, 5e-324])
    x = torch.cat([dense, special.double()])
    p, i = ProgramBuilder("exp64"), Var("i", x.numel())
    loaded = load(p.input("x", x.numel(), dtype=DType.F64), i)
    store = Store(at(p.output("y", x.numel(), dtype=DType.F64), i), Unary("exp", loaded))
    p.stage(operator("exp", (i,), store))
    (found,) = run_cpp(p.build(), [x], isa)
    exact = x.exp()
    torch.testing.assert_close(
        found, exact, rtol=2 * torch.finfo(torch.float64).eps, atol=1e-323, equal_nan=True
    )


def test_error_measure_sees_one_last_place():
    exact = torch.tensor([1.0, 3.0, 1e-40], dtype=torch.float64)
    next_up = torch.nextafter(exact.float(), torch.tensor(math.inf))
    error = error_in_last_places(next_up, exact.float().double())
    torch.testing.assert_close(error, torch.ones(3, dtype=torch.float64))
