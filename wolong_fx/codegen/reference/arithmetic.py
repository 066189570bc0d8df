"""What every operation of the IR means, said in torch: the table that other targets are measured against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

UNARY: dict[str, Callable[..., Tensor]] = {
    name: getattr(torch, name)
    for name in """neg abs sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sigmoid tanh erf
    erfc sin cos tan asin acos atan sinh cosh asinh acosh atanh floor ceil round trunc isnan isinf
    lgamma""".split()
} | {"not": torch.logical_not, "bitnot": torch.bitwise_not}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.true_divide,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "mod": torch.remainder,
    "fmod": torch.fmod,
    "pow": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "and": torch.bitwise_and,
    "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "shl": torch.bitwise_left_shift,
    "shr": torch.bitwise_right_shift,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
}

REDUCE: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "sum": lambda x, axes: x.sum(axes, keepdim=True, dtype=x.dtype),
    "prod": lambda x, axes: _one_by_one(lambda y, a: y.prod(a, keepdim=True, dtype=y.dtype), x, axes),
    "max": lambda x, axes: _extreme(x, axes, torch.amax, lowest=True),
    "min": lambda x, axes: _extreme(x, axes, torch.amin, lowest=False),
    "any": lambda x, axes: _one_by_one(lambda y, a: y.any(a, keepdim=True), x, axes),
    "all": lambda x, axes: _one_by_one(lambda y, a: y.all(a, keepdim=True), x, axes),
    "argmax": lambda x, axes: _position(x, axes, torch.argmax),
    "argmin": lambda x, axes: _position(x, axes, torch.argmin),
}
"""Functions from (operand, axes in the order of `over`) to the result, with those axes kept at extent 1."""


def unary(op: str, x: Tensor) -> Tensor:
    """`op` of x; half precisions computed in float32."""
    return _rounded(UNARY[op](_widened(x)), x.dtype)


def binary(op: str, a: Tensor, b: Tensor) -> Tensor:
    """`a op b`; half precisions computed in float32."""
    return _rounded(BINARY[op](_widened(a), _widened(b)), a.dtype)


def reduce(op: str, x: Tensor, axes: list[int]) -> Tensor:
    """Reduction of x over `axes`; half precisions accumulated in float32."""
    return _rounded(REDUCE[op](_widened(x), axes), x.dtype)


def accumulate(op: str, memory: Tensor, at: Tensor, values: Tensor) -> None:
    """Combine `values` into the flat `memory` at distinct positions `at`."""
    before = _widened(memory[at])
    combined = BINARY[op](before, _widened(values))
    memory[at] = combined.to(memory.dtype)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _rounded(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Back from float32 to the half precision that went in; bools and positions stay."""
    return y.to(dtype) if y.dtype is torch.float32 else y


def _one_by_one(step: Callable[[Tensor, int], Tensor], x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = step(x, axis)
    return x


def _extreme(x: Tensor, axes: list[int], of: Callable[..., Tensor], lowest: bool) -> Tensor:
    if all(x.shape[axis] for axis in axes):
        return of(x, axes, keepdim=True)
    shape = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    return torch.full(shape, _identity(x.dtype, lowest), dtype=x.dtype)


def _identity(dtype: torch.dtype, lowest: bool) -> float | int | bool:
    """What max (lowest) or min of nothing is."""
    if dtype.is_floating_point:
        return float("-inf") if lowest else float("inf")
    if dtype is torch.bool:
        return not lowest
    return torch.iinfo(dtype).min if lowest else torch.iinfo(dtype).max


def _position(x: Tensor, axes: list[int], of: Callable[..., Tensor]) -> Tensor:
    """Row-major position over `axes` of the first extreme."""
    kept = [a for a in range(x.ndim) if a not in axes]
    flat = x.permute(*kept, *axes).flatten(len(kept)) if axes else x.unsqueeze(-1)
    shape = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    return of(flat.to(torch.uint8) if x.dtype is torch.bool else flat, dim=-1).reshape(shape)
