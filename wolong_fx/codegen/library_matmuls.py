"""MatMuls that torch's library does faster than a kernel of ours: on a CPU large ones of bfloat16, where the
processor multiplies bfloat16 itself and our micro-kernels widen to float32 first; on a GPU large ones for
tensor cores, which the library feeds asynchronously.

On a CPU none of float32, float64 and float16 is left to it: square ones of 64 to 2,048, flat ones and tall
ones took a kernel of ours 0.1 to 0.7 of the library's time (docs/decisions/0022).
"""

from __future__ import annotations

from functools import cache
from math import prod

import torch
from torch.fx import Node

from wolong_fx.codegen.triton.gpu_costs import USUAL, GpuCosts
from wolong_fx.codegen.triton.precision import float32_precision
from wolong_fx.codegen.triton.tiles import predict_product
from wolong_fx.ir.types import DType
from wolong_fx.runtime import MachineCosts, team_size
from wolong_fx.runtime.machine_costs import usual_costs
from wolong_fx.toolchain import choose_isa
from wolong_fx.toolchain.isa import processor_flags

aten = torch.ops.aten

FIRST_FACTOR: dict[object, int] = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
}
"""MatMuls, and which operand is the first factor."""

NATIVE = frozenset(("avx512_bf16", "amx_bf16"))
"""Processor flags, one of which the library needs to be fast."""

OURS, LIBRARYS = 0.6, 1.5
"""Multiply-adds of bfloat16, as a share of the float32 ones that the processor can do."""

LIBRARYS_OF_GPU = 0.7
"""Share of the multiply-adds of tensor cores that the library reaches; for ours, see tiles.TENSOR_RATE."""

CALL = 10e-6
"""Seconds of the library's call, and of one more kernel, since ours is cut in two there."""

LEAST_ROWS = 32
"""Rows, and columns, below which the library is slower in proportion."""

WORTH_A_CUT = 0.7
"""Share of our time that the library may be predicted to take at most."""


def why_left_to_library(node: Node) -> str | None:
    """Why a node that could be part of a kernel is not; None if it should be."""
    result = node.meta.get("val")
    if node.target not in FIRST_FACTOR or not isinstance(result, torch.Tensor):
        return None
    if result.device.type == "cuda":
        return _why_left(predict_on_gpu(result, _value(node, 0)))
    if result.device.type != "cpu" or result.dtype != torch.bfloat16 or not NATIVE & processor_flags():
        return None
    return _why_left(predict_bfloat16(result, _value(node, 0), _value(node, 1), *_machine()))


def _why_left(seconds: tuple[float, float] | None) -> str | None:
    """The reason, of seconds in a kernel of ours and in the library."""
    if seconds is None:
        return None
    ours, librarys = seconds
    if librarys > WORTH_A_CUT * ours:
        return None
    return f"left to the library: {1e6 * librarys:.3g} us predicted there, {1e6 * ours:.3g} us in a kernel"


def predict_bfloat16(
    result: torch.Tensor, a: torch.Tensor, b: torch.Tensor, costs: MachineCosts, threads: int
) -> tuple[float, float]:
    """Seconds of result = a @ b in a kernel of ours, and in the library."""
    multiply_adds, rate = result.numel() * a.shape[-1], costs.fma_rate * threads
    full = prod(min(1.0, extent / LEAST_ROWS) for extent in result.shape[-2:])
    touched = sum(t.numel() * t.element_size() for t in (result, a, b))
    busy = max(multiply_adds / (LIBRARYS * rate * full), touched / costs.team_l3_rate)
    return multiply_adds / (OURS * rate), CALL + busy


def predict_on_gpu(
    result: torch.Tensor, a: torch.Tensor, costs: GpuCosts = USUAL, precision: str | None = None
) -> tuple[float, float] | None:
    """Seconds of result = a @ b in a kernel of ours, and in the library with one more kernel of ours, since
    it is cut in two there; None of types that tensor cores have no part in.

    precision: of float32 products, "ieee" or "tf32"; by default what torch's settings say
    """
    precision = precision or float32_precision()
    dtype = _ON_TENSOR_CORES.get(result.dtype)
    if dtype is None or (dtype is DType.F32 and precision == "ieee"):
        return None
    *others, rows, lanes = result.shape
    extent = a.shape[-1]
    ours = predict_product(rows, lanes, extent, prod(others), dtype, costs, precision)
    peak = costs.tensor_tf32 if dtype is DType.F32 else costs.tensor_16
    rate = LIBRARYS_OF_GPU * peak * costs.multiprocessors * costs.clock
    moved = (result.numel() + a.numel() + prod(others) * extent * lanes) * dtype.bytes
    return ours, 2 * costs.launch + max(result.numel() * extent / rate, moved / costs.memory)


_ON_TENSOR_CORES = {torch.float32: DType.F32, torch.bfloat16: DType.BF16, torch.float16: DType.F16}


def _value(node: Node, factor: int) -> torch.Tensor:
    operand = node.args[FIRST_FACTOR[node.target] + factor]
    assert isinstance(operand, Node)
    return operand.meta["val"]


@cache
def _machine() -> tuple[MachineCosts, int]:
    threads = team_size()
    return usual_costs(choose_isa("auto"), threads), threads
