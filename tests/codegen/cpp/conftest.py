"""Running programs as C++ kernels, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import pytest
import torch
from torch import Tensor

from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ir.program import Program
from wolong_fx.options import Options
from wolong_fx.testing.kernels import build_kernel, with_chosen_tiles
from wolong_fx.testing.programs import inputs_of

ISAS = [
    pytest.param("avx512", marks=[pytest.mark.cpu, pytest.mark.avx512]),
    pytest.param("avx2", marks=[pytest.mark.cpu, pytest.mark.avx2]),
    pytest.param("portable", marks=pytest.mark.cpu),
]

RunCpp = Callable[..., list[Tensor]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", ISAS)


@pytest.fixture
def run_cpp() -> RunCpp:
    """Outputs of a program's kernel; with `retiled`, on the tiles that the target chooses."""

    def run(
        program: Program,
        inputs: Sequence[Tensor],
        isa: str,
        threads: int = 2,
        retiled: bool = True,
        core_cache_bytes: float = inf,
    ) -> list[Tensor]:
        if retiled:
            program = with_chosen_tiles(program, isa, threads)
        return build_kernel(program, isa, threads, Options.of(), core_cache_bytes).launch(list(inputs))

    return run


@pytest.fixture
def check_cpp(run_cpp: RunCpp) -> Callable[..., None]:
    """Compare a program's kernel with the reference machine in float64."""

    def check(program: Program, isa: str, inputs: Sequence[Tensor] | None = None, **kwargs: object) -> None:
        given = list(inputs) if inputs is not None else inputs_of(program)
        rtol, atol = kwargs.pop("rtol", 2e-5), kwargs.pop("atol", 2e-5)
        found = run_cpp(program, given, isa, **kwargs)
        wanted = run_program(program, given, seed=0, precise=True)
        for ours, exact in zip(found, wanted, strict=True):
            loose = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(ours.dtype, 0.0)
            torch.testing.assert_close(
                ours.to(exact.dtype), exact, rtol=max(rtol, loose), atol=max(atol, loose), equal_nan=True
            )

    return check
