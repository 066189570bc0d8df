"""Rolled loops: a scan becomes one loop of one program that computes what eager's scan does, on every target."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import build_programs, compile_partition, why_unsupported
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.targets import ReferenceTarget
from wolong_fx.ir.program import Loop, Stage
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.loops.scan import is_scan
from wolong_fx.testing.loops import FAMILIES, random_loop
from wolong_fx.testing.oracle import assert_results_close, widened
from wolong_fx.testing.tracing import trace_core

F32, F64 = torch.float32, torch.float64


def graph_of(case):
    return trace_core(case.function, *case.inputs)


def program_of(case, **options):
    target = ReferenceTarget()
    return build_programs(graph_of(case), Options.of(**options), Ledger(), target.choose_tile).run


def check(case, results):
    """The results are as near to float64 as eager's own scan."""
    eager, exact = case.function(*case.inputs), case.function(*map(widened, case.inputs))
    for n, (ours, e, x) in enumerate(zip(results, eager, exact, strict=True)):
        assert_results_close(ours, e, x, 16, cancels=True, what=f"result {n}")


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loop_computes_what_eager_does_in_any_order_of_blocks(family, steps):
    case = FAMILIES[family](steps, F32)
    program = program_of(case)
    first = run_program(program, list(case.inputs), seed=0)
    check(case, first)
    for seed in (1, 2):
        again = run_program(program, list(case.inputs), seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
