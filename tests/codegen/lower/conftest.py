"""What every family's tests need: a function lowered as it is written, run on the reference machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from wolong_fx._torch_compat import tree_leaves
from wolong_fx.codegen import build_programs, why_unsupported
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ir.program import OpInst
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.graphs import trace_graph


def small_tiles(op: OpInst) -> tuple[int, ...]:
    return tuple(d.extent if d.sequential else min(d.extent, 5) for d in op.dims)


def lowered_graph(function: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    """The very operators that `function` calls, not decomposed; all must have a lowering."""
    gm = trace_graph(lambda *xs: tuple(tree_leaves(function(*xs))), *inputs)
    gm.graph.eliminate_dead_code()
    calls = [n for n in gm.graph.nodes if n.op == "call_function"]
    assert {str(n.target): why_unsupported(n) for n in calls if why_unsupported(n)} == {}
    return gm


@pytest.fixture
def run():
    """run(function, *inputs): its results by way of a program."""

    def run_lowered(function: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
        gm = lowered_graph(function, inputs)
        program = build_programs(gm, Options.of(), Ledger(), small_tiles).run
        return run_program(program, list(inputs), seed=1)

    return run_lowered


@pytest.fixture
def check(run):
    """check(function, *inputs): the program gives eager's results, in eager's dtypes, shapes and strides."""

    def check_lowered(function: Callable[..., Any], *inputs: Tensor) -> None:
        expected = tree_leaves(function(*inputs))
        for ours, eager in zip(run(function, *inputs), expected, strict=True):
            torch.testing.assert_close(ours, eager, equal_nan=True, check_stride=bool(eager.numel()))

    return check_lowered
