"""The plain torch.fx way to a graph, for inference with models that Dynamo need not see.

A symbolic trace gives every operator its module and the user's line; it is then run once on fake tensors,
which gives functional core ATen with shapes. It sees no control flow: where a model branches on its input,
torch.fx refuses, and so do we. Modes (train or eval) and shapes are those of the moment of capture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode

from wolong_fx import _torch_compat
from wolong_fx.capture.decompositions import decomposition_table
from wolong_fx.capture.expand_rnn import expansion_of
from wolong_fx.capture.settings import settings_for_tracing
from wolong_fx.errors import CannotCapture


class WolongTracer(fx.Tracer):
    """torch.fx tracing that keeps the user's lines, and looks through optimised submodules."""

    record_stack_traces = True

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """`forward` would run the compiled call of an optimised submodule, which cannot be traced."""
        return super().call_module(m, m._call_impl, args, kwargs)


@dataclass(frozen=True)
class CapturedGraph:
    """A model as one graph.

    graph_module: functional core ATen; takes the parameters and buffers of `names`, then the flattened inputs
    names: as in `state_dict()`, in the order of the placeholders
    unflatten: from the flat outputs of the graph to what the model returns
    """

    graph_module: fx.GraphModule
    names: tuple[str, ...]
    unflatten: Callable[[Sequence[Any]], Any]

    def arguments(self, model: nn.Module, *inputs: Any) -> list[Any]:
        """What to call the graph with: the tensors that `model` has now, and the leaves of `inputs`."""
        tensors = named_tensors(model)
        return [*(tensors[name] for name in self.names), *_torch_compat.flatten(inputs)[0]]

    def __call__(self, model: nn.Module, *inputs: Any) -> Any:
        """Run the graph as it stands, operator by operator."""
        return self.unflatten(self.graph_module(*self.arguments(model, *inputs)))


class _RecurrencesExpanded(TorchFunctionMode):
    """Inside of it, torch's recurrent functions run step by step."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (expansion_of(func, args) or func)(*args, **(kwargs or {}))


def _call_leaf(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The plain call: the compiled one of an optimised module cannot be traced."""
    with _RecurrencesExpanded():
        return module._call_impl(*args, **kwargs)


class _Interpreter(fx.Interpreter):
    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _call_leaf(self.fetch_attr(target), *args, **kwargs)


class _Traced(nn.Module):
    """A traced model, run node by node so that every operator inherits the meta of its node; or a leaf."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *inputs: Any) -> Any:
        if isinstance(self.traced, fx.GraphModule):
            return _Interpreter(self.traced).run(*inputs)
        return _call_leaf(self.traced, *inputs)


def capture_fx(model: nn.Module, inputs: Sequence[Any]) -> CapturedGraph:
    """`model(*inputs)` without gradients as a core-ATen graph. Recurrent modules come unrolled.

    Raises CannotCapture where the model branches on its input, or changes a buffer or an input.
    """
    traced = _trace_symbolically(model)
    tensors = named_tensors(model)
    leaves, unflatten_inputs = _torch_compat.flatten(tuple(inputs))
    outputs: list[Callable[[Sequence[Any]], Any]] = []

    def run(*flat: Any) -> list[Any]:
        own = {f"traced.{name}": t for name, t in zip(tensors, flat, strict=False)}
        result = torch.func.functional_call(traced, own, unflatten_inputs(flat[len(tensors) :]))
        flat_result, unflatten = _torch_compat.flatten(result)
        outputs.append(unflatten)
        return flat_result

    with torch.no_grad(), settings_for_tracing():
        graph_module = _torch_compat.trace_to_aten(run, [*tensors.values(), *leaves], decomposition_table())
    _check_functional(model, graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return CapturedGraph(graph_module, tuple(tensors), outputs[-1])


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _trace_symbolically(model: nn.Module) -> _Traced:
    tracer = WolongTracer()
    if tracer.is_leaf_module(model, ""):
        return _Traced(model)
    try:
        graph = tracer.trace(model)
    except (TraceError, TypeError) as error:
        raise CannotCapture(model=type(model).__name__, because=str(error)) from error
    return _Traced(fx.GraphModule(model, graph))


def _check_functional(model: nn.Module, graph_module: fx.GraphModule) -> None:
    for node in graph_module.graph.nodes:
        if node.target is torch.ops.aten.copy_.default:
            because = f"it changes {node.args[0]} in place"
            raise CannotCapture(model=type(model).__name__, because=because)
