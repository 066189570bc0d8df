from __future__ import annotations

import copy

import pytest
import torch

import wolong_fx
from wolong_fx._torch_compat import fake_mode
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


# ---- on a GPU, by what its data sheet says


def gpu_matmul(m: int, k: int, n: int, dtype: torch.dtype) -> torch.fx.Node:
    with fake_mode():
        node = matmul(m, k, n, dtype)
        for each in node.graph.nodes:
            each.meta["val"] = torch.empty(each.meta["val"].shape, dtype=dtype, device="cuda")
    return node


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_one_for_tensor_cores_is_left_to_the_library_of_a_gpu(dtype):
    assert "left to the library" in (why_left_to_library(gpu_matmul(4096, 4096, 4096, dtype)) or "")


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1024, 4096), (16, 256, 1024), (80, 256, 1024), (256, 512, 512)]
)
def test_one_that_takes_no_longer_than_a_launch_stays_in_the_kernel_on_a_gpu(m, k, n):
    assert why_left_to_library(gpu_matmul(m, k, n, torch.bfloat16)) is None


def test_of_float32_a_gpu_has_tensor_cores_only_where_the_settings_say_so(tf32):
    large = gpu_matmul(4096, 4096, 4096, torch.float32)
    assert why_left_to_library(large) is not None
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert why_left_to_library(large) is None
