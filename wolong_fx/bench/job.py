"""One model with one input, and the calls that a benchmark times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wolong_fx._torch_compat import tree_leaves


class ContenderMissing(Exception):
    """A contender that cannot take part here; the text says why."""


@dataclass(frozen=True)
class Contender:
    """Something that is timed.

    call: what is timed
    results: what it computes, in the order of the model's own results; None where they are not comparable
    model: the module that wolong_fx.stats() is asked about, if it is one of ours
    """

    call: Callable[[], object]
    results: Callable[[], Sequence[Tensor]] | None = None
    model: nn.Module | None = None


@dataclass(frozen=True)
class Job:
    """What all contenders of a row do: one call, or one step of training, of copies of a model.

    model: in evaluation mode, or in training mode if is_training
    is_training: a call is a forward and a backward of the mean square of the first result
    flops: floating-point operations of the products in a call; 0 = not counted
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    is_training: bool = False
    flops: float = 0.0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batch: int = 1,
        *,
        is_training: bool = False,
        count_flops: bool = False,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Job:
        """With the model's own example inputs, floats of a dtype, all on a device."""
        model = model.to(device, dtype)
        given: Sequence[Tensor] = model.example_inputs(batch)  # type: ignore[operator]
        inputs = tuple(x.to(device, dtype if x.is_floating_point() else x.dtype) for x in given)
        flops = count_product_flops(model, inputs) * (3 if is_training else 1) if count_flops else 0.0
        return cls(model.train(is_training), inputs, is_training, flops)

    def contender(self, model: nn.Module, call: Callable[..., Any] | None = None) -> Contender:
        """One that runs a module, or what stands for it."""
        run = model if call is None else call  # a module may have a length, of zero
        if not self.is_training:
            return Contender(lambda: run(*self.inputs), lambda: tree_leaves(run(*self.inputs)), model)

        def step() -> None:
            model.zero_grad()
            tree_leaves(run(*self.inputs))[0].square().mean().backward()

        def gradients() -> list[Tensor]:
            step()
            return [p.grad for p in model.parameters() if p.grad is not None]

        return Contender(step, gradients, model)

    def exact_results(self) -> Sequence[Tensor]:
        """The results in float64: outputs, or in training gradients of the parameters."""
        inputs = tuple(x.double() if x.is_floating_point() else x for x in self.inputs)
        job = Job(copy.deepcopy(self.model).double(), inputs, self.is_training)
        results = job.contender(job.model).results
        assert results is not None
        return results()

    def error(self, contender: Contender, exact: Sequence[Tensor]) -> float | None:
        """The largest distance from float64: absolute; of gradients relative, by norm of each."""
        if contender.results is None:
            return None
        pairs = list(zip(contender.results(), exact, strict=True))
        if self.is_training:
            return max(((found.double() - e).norm() / e.norm()).item() for found, e in pairs)
        return max((found.double() - e).abs().max().item() for found, e in pairs)


def count_product_flops(model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Multiplications and additions in the matrix products and convolutions of one forward call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return float(counter.get_total_flops())
