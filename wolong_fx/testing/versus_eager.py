"""A model compiled by Wolong FX against the same model in eager PyTorch and in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import wolong_fx
from wolong_fx import _torch_compat
from wolong_fx.testing.oracle import assert_results_close, widened


@dataclass(frozen=True)
class Run:
    """What one training step left behind, in a fixed order; None where there is no gradient."""

    outputs: Sequence[Tensor]
    gradients: Mapping[str, Tensor | None]
    buffers: Mapping[str, Tensor]


def train_step(model: nn.Module, inputs: Sequence[Any], *, seed: int = 0) -> Run:
    """One forward and backward of a loss that weighs every output element differently.

    Floating-point inputs are leaves that get gradients too. Their strides are kept.
    """
    inputs = [_leaf(x) for x in inputs]
    model.zero_grad()
    torch.manual_seed(seed)
    outputs = _tensors(model(*inputs))
    loss = weighted_loss(outputs)
    if loss.requires_grad:
        loss.backward()
    named = [*model.named_parameters(), *((f"input {i}", x) for i, x in enumerate(inputs) if _is_real(x))]
    return Run(
        [y.detach().clone() for y in outputs],
        {name: None if x.grad is None else x.grad.detach().clone() for name, x in named},
        {name: buffer.clone() for name, buffer in model.named_buffers()},
    )


def weighted_loss(outputs: Sequence[Tensor]) -> Tensor:
    """A smooth scalar of all floating-point outputs, each element with a weight of its own."""
    return sum((_weighted(y) for y in outputs if _is_real(y)), torch.zeros((), dtype=torch.float64))


def infer(model: nn.Module, inputs: Sequence[Any], *, seed: int = 0) -> list[Tensor]:
    """The outputs without gradients; training mode stays as it is."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return [y.clone() for y in _tensors(model(*inputs))]


def check_training(model: nn.Module, inputs: Sequence[Any], *, tolerance: float = 1e-5) -> nn.Module:
    """Assert that one compiled training step computes what eager does; returns the compiled twin.

    Outputs and buffers: the rule of the oracle, see `assert_near`. Gradients: within `tolerance` of eager's,
    relative to the largest, or four times as far as eager is from float64.
    """
    twin = wolong_fx.optimize(copy.deepcopy(model))
    exact = copy.deepcopy(model).double()
    ours, eagers = train_step(twin, inputs), train_step(copy.deepcopy(model), inputs)
    truth = train_step(exact, [_in_double(x) for x in inputs])
    assert_near(ours.outputs, eagers.outputs, truth.outputs)
    assert_near(list(ours.buffers.values()), list(eagers.buffers.values()), list(truth.buffers.values()))
    assert ours.gradients.keys() == eagers.gradients.keys()
    for name, eager in eagers.gradients.items():
        assert_gradient(name, ours.gradients[name], eager, truth.gradients[name], tolerance)
    return twin


def check_inference(model: nn.Module, inputs: Sequence[Any]) -> nn.Module:
    """Assert that the compiled model's outputs without gradients are as near to float64; returns the twin."""
    twin = wolong_fx.optimize(copy.deepcopy(model))
    truth = infer(copy.deepcopy(model).double(), [_in_double(x) for x in inputs])
    assert_near(infer(twin, inputs), infer(model, inputs), truth)
    return twin


def assert_near(ours: Sequence[Tensor], eager: Sequence[Tensor], truth: Sequence[Tensor]) -> None:
    """Assert the oracle's rule of every output: no farther from float64 than four times eager."""
    assert len(ours) == len(eager) == len(truth)
    for at, (y, e, t) in enumerate(zip(ours, eager, truth, strict=True)):
        assert_results_close(y, e, t, cancels=True, what=f"output {at}")


def assert_gradient(
    name: str, ours: Tensor | None, eager: Tensor | None, truth: Tensor | None, tolerance: float
) -> None:
    """Assert the error rule of gradients; a gradient is missing where eager's is."""
    assert (ours is None) == (eager is None), f"gradient of {name}: {ours} but eager {eager}"
    if ours is None or eager is None or truth is None:
        return
    assert (ours.dtype, ours.shape) == (eager.dtype, eager.shape), name
    assert_same_specials(f"gradient of {name}", ours, eager)
    distance, scale = _error(ours, eager), _largest(eager)
    allowed = max(tolerance * scale, 4 * _error(eager, truth))
    assert distance <= allowed, f"gradient of {name}: off by {distance:.3g} of {scale:.3g}"


def assert_same_specials(name: str, ours: Tensor, eager: Tensor) -> None:
    """Assert NaN, inf and -inf in the same places."""
    for special in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(special(ours), special(eager)), f"{name}: {special.__name__} in other places"


def _error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    both = found.isfinite() & expected.isfinite()
    return _largest((found - expected)[both])


def _largest(x: Tensor) -> float:
    finite = x.double()[x.isfinite()].abs()
    return finite.max().item() if finite.numel() else 0.0


def _weighted(y: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].view(y.shape)
    return (y * weights.to(y)).sum().double()


def _leaf(x: Any) -> Any:
    return x.detach().requires_grad_() if _is_real(x) else x


def _in_double(x: Any) -> Any:
    return widened(x) if isinstance(x, Tensor) else x


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in _torch_compat.tree_leaves(value) if isinstance(leaf, Tensor)]
