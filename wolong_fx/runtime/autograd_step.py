"""A forward and a backward graph as one operator of autograd, as AOTAutograd joins them, but thin.

Its wrappers cost 0.2 ms of a training step whose kernels have just emptied the caches. What they promise is
promised here: saved tensors know when they were overwritten, `retain_graph` keeps them, unused results
have gradients of zero, gradients come laid out as the backward was compiled for, and what cannot be had,
gradients of gradients and batched gradients, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from wolong_fx import _torch_compat
from wolong_fx.errors import NoBatchedBackward, NoDoubleBackward, UnexpectedGradient
from wolong_fx.runtime.image import TensorSpec

Boxed = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class StepGraphs:
    """The two graphs and how they are called.

    forward: takes the inputs; returns results, then what is kept
    backward: takes what is kept, then the gradients of some results; returns gradients of the inputs, or None
    layout: of the forward's outputs
    gradients: metadata of the gradients that the backward takes
    detached: positions of the inputs that no gradient flows to although they want one
    """

    forward: Boxed
    backward: Boxed
    layout: _torch_compat.StepLayout
    gradients: tuple[TensorSpec, ...]
    detached: tuple[int, ...]


def autograd_step(graphs: StepGraphs) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """Takes the inputs, writes those that `layout.updated` names; returns the results behind the updates."""
    apply = _autograd_function(graphs).apply
    updated, detached = graphs.layout.updated, graphs.detached

    def step(inputs: list[Tensor]) -> Sequence[Tensor]:
        for position in detached:
            inputs[position] = inputs[position].detach()
        results = apply(*inputs)
        for position, value in zip(updated, results, strict=False):
            inputs[position].copy_(value)
        return results[len(updated) :]

    return step


def _autograd_function(graphs: StepGraphs) -> type[Function]:
    """A class for each pair of graphs: what a class holds is found sooner than arguments are passed on."""
    layout, run_forward, run_backward = graphs.layout, graphs.forward, graphs.backward
    wanted = graphs.gradients

    class Step(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = run_forward(list(inputs))
            # A view would keep the graph alive that it is a view in; its data and version are shared.
            ctx.save_for_backward(*[t.detach() if t._is_view() else t for t in outputs[layout.results :]])
            results = list(outputs[: layout.results])
            for position in layout.unsafe_views:
                results[position] = _torch_compat.unsafe_view(results[position])
            ctx.mark_non_differentiable(*[results[position] for position in layout.constants])
            ctx._materialize_non_diff_grads = False
            return tuple(results)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            flowing = [gradients[position] for position in layout.tangents]
            if _torch_compat.are_transformed(flowing):
                raise NoBatchedBackward()
            inputs = [*ctx.saved_tensors, *map(_laid_out, flowing, wanted)]
            _torch_compat.release_saved_tensors(ctx)
            if torch.is_grad_enabled():  # create_graph=True
                return _Final.apply(run_backward, torch.empty(0, requires_grad=True), *inputs)
            return tuple(run_backward(inputs))

    return Step


class _Final(Function):
    """Gradients that want gradients, as create_graph=True asks for, and refuse them when it comes to it."""

    @staticmethod
    def forward(ctx: Any, run: Boxed, anchor: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(run(list(inputs)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NoDoubleBackward()


def _laid_out(gradient: Tensor, spec: TensorSpec) -> Tensor:
    """The gradient in the strides that the backward was compiled for; raises UnexpectedGradient."""
    if type(gradient) not in (Tensor, torch.nn.Parameter) or gradient.layout is not torch.strided:
        raise UnexpectedGradient(found=f"{type(gradient).__name__} of layout {gradient.layout}")
    if spec.is_met_by(gradient, gradient.device.type):
        return gradient
    made = torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device=gradient.device)
    return made.copy_(gradient)
