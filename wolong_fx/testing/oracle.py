"""The oracle of numbers: a result may be as wrong as eager's own, times a factor, against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wolong_fx._torch_compat import tree_leaves

ULPS = 1.0
"""Units in the last place that eager is taken to be wrong by at least: rounding once costs a half."""


def assert_close_to_float64(
    fn: Callable[..., Any],
    eager_fn: Callable[..., Any],
    inputs: Sequence[Tensor],
    factor: float = 4,
    *,
    cancels: bool = False,
) -> None:
    """Assert that `fn` is no further from the float64 result than `factor` times as far as `eager_fn` is.

    Runs `eager_fn` on the inputs and on their float64 copies, `fn` on the inputs; see `assert_results_close`.
    """
    ours, eager = tree_leaves(fn(*inputs)), tree_leaves(eager_fn(*inputs))
    exact = tree_leaves(eager_fn(*map(widened, inputs)))
    assert len(ours) == len(eager), f"{len(ours)} results, eager has {len(eager)}"
    for position, (a, b, c) in enumerate(zip(ours, eager, exact, strict=True)):
        assert_results_close(a, b, c, factor, cancels=cancels, what=f"result {position}")


@torch.no_grad()
def error_against_float64(fn: Callable[..., Any], model: torch.nn.Module, inputs: Sequence[Tensor]) -> float:
    """The largest distance of what `fn` gives for the inputs from what `model` gives in float64.

    fn: the model itself, or something that stands for it and has its results
    """
    exact = tree_leaves(copy.deepcopy(model).double()(*map(widened, inputs)))
    found = tree_leaves(fn(*inputs))
    return max((a.double() - b).abs().max().item() for a, b in zip(found, exact, strict=True))


def assert_results_close(
    ours: Tensor,
    eager: Tensor,
    exact: Tensor,
    factor: float = 4,
    *,
    cancels: bool = False,
    what: str = "result",
) -> None:
    """Assert that a result equals eager's in dtype, shape, NaN and infinities, and else in error.

    A NaN or infinity of eager that float64 does not confirm (gelu of infinity) may also be what float64 says.

    ours, eager: of one dtype; whatever is no float must be equal
    exact: the same in float64
    cancels: whether terms may cancel (sums of both signs): the error is then measured against the largest
        error of eager in the tensor, else in units in the last place of each element
    """
    assert ours.dtype == eager.dtype, f"{what}: dtype {ours.dtype}, eager has {eager.dtype}"
    assert ours.shape == eager.shape, f"{what}: shape {list(ours.shape)}, eager has {list(eager.shape)}"
    if not eager.is_floating_point():
        assert torch.equal(ours, eager), f"{what}: {_difference(ours != eager, ours, eager)}"
        return
    odd = ~(ours.isfinite() & eager.isfinite())
    same = _are_same(ours, eager) | _are_same(ours, exact.to(ours.dtype))
    assert bool(same[odd].all()), f"{what}: {_difference(odd & ~same, ours, eager)}"
    exact = torch.where(odd, 0.0, exact.double())
    errors = [torch.where(odd, 0.0, (x.double() - exact).abs()) for x in (ours, eager)]
    allowed = factor * _error_of_eager(errors[1], exact, ours.dtype, cancels)
    wrong = errors[0] > allowed
    assert not bool(wrong.any()), (
        f"{what}: {_difference(wrong, ours, eager)}; allowed {allowed[wrong][0]:.3g}"
    )


def _are_same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def widened(tensor: Tensor) -> Tensor:
    """A float64 copy of floats; others as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring numbers of `dtype` at |x|, in float64."""
    info = torch.finfo(dtype)
    exponent = x.abs().double().clamp(min=info.tiny).log2().floor()
    return torch.exp2(exponent) * info.eps


def _error_of_eager(error: Tensor, exact: Tensor, dtype: torch.dtype, cancels: bool) -> Tensor:
    """What eager is wrong by, element by element."""
    unit = ulp(exact, dtype)
    if not error.numel():
        return error
    if cancels:
        return torch.maximum(error.max(), ULPS * ulp(exact.abs().max(), dtype)).expand(exact.shape)
    return (error / unit).max().clamp(min=ULPS) * unit


def _difference(where: Tensor, ours: Tensor, eager: Tensor) -> str:
    at = where.nonzero()[0].tolist()
    mine, theirs = ours[tuple(at)].item(), eager[tuple(at)].item()
    return f"{int(where.sum())} of {where.numel()} elements, first at {at}: {mine!r}, eager has {theirs!r}"
