from __future__ import annotations

import copy

import pytest
import torch

import wolong_fx
from wolong_fx.codegen import library_matmuls
from wolong_fx.codegen.library_matmuls import NATIVE, predict_bfloat16, why_left_to_library
from wolong_fx.runtime.machine_costs import usual_costs
from wolong_fx.testing.oracle import error_against_float64

COSTS = usual_costs("avx512", 2, {})


@pytest.fixture(params=sorted(NATIVE))
def native(monkeypatch, request):
    """A processor that multiplies bfloat16, of known speed."""
    monkeypatch.setattr(library_matmuls, "processor_flags", lambda: frozenset([request.param]))
    monkeypatch.setattr(library_matmuls, "_machine", lambda: (COSTS, 2))


def matmul(m: int, k: int, n: int, dtype: torch.dtype = torch.bfloat16, target=torch.ops.aten.mm.default):
    """A node of m x k by k x n."""
    graph = torch.fx.Graph()
    shapes = [(m, k), (k, n)]
    if target in (torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default):
        shapes.insert(0, (m, n))
    operands = [graph.placeholder(f"x{i}") for i in range(len(shapes))]
    for operand, shape in zip(operands, shapes, strict=True):
        operand.meta["val"] = torch.empty(shape, dtype=dtype)
    node = graph.call_function(target, tuple(operands))
    node.meta["val"] = torch.empty((m, n), dtype=dtype)
    return node


@pytest.mark.parametrize("target", [torch.ops.aten.mm.default, torch.ops.aten.addmm.default])
def test_a_large_one_of_bfloat16_is_left_to_the_library(native, target):
    reason = why_left_to_library(matmul(1024, 1024, 1024, target=target))
    assert reason is not None and reason.startswith("left to the library: ")


@pytest.mark.parametrize("shape", [(1, 1024, 1024), (64, 64, 64), (8, 512, 512), (1024, 1024, 1)])
def test_a_small_or_flat_one_stays_in_the_kernel(native, shape):
    assert why_left_to_library(matmul(*shape)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_types_stay_in_the_kernel(native, dtype):
    assert why_left_to_library(matmul(2048, 2048, 2048, dtype)) is None


def test_a_processor_that_does_not_multiply_bfloat16_leaves_nothing(monkeypatch):
    monkeypatch.setattr(library_matmuls, "processor_flags", lambda: frozenset(["avx512f"]))
    assert why_left_to_library(matmul(2048, 2048, 2048)) is None


def test_the_larger_the_more_the_library_gains(native):
    gains = []
    for n in (16, 64, 256, 1024):
        a = torch.empty(n, n, dtype=torch.bfloat16, device="meta")
        ours, librarys = predict_bfloat16(a, a, a, COSTS, 2)
        gains.append(ours / librarys)
    assert gains == sorted(gains)


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(512, 512, dtype=torch.bfloat16)

    def forward(self, x):
        return torch.tanh(self.inner(torch.sigmoid(x) * 2)) + 1


@pytest.mark.cpu
def test_a_model_around_one_runs_in_kernels_before_and_after_it_and_the_ledger_says_why(native):
    torch.manual_seed(0)
    model, x = Wide(), torch.randn(512, 512).bfloat16()
    optimized = wolong_fx.optimize(copy.deepcopy(model))
    with torch.no_grad():
        ours, eagers = (error_against_float64(one, model, (x,)) for one in (optimized, model))
    assert ours <= 1.5 * eagers
    stats = wolong_fx.stats(optimized)
    assert any(reason.startswith("left to the library") for reason in stats.fallbacks)
    assert stats.launches["inference"] == 2
