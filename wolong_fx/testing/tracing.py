"""Graphs of plain functions, for tests of everything behind capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from wolong_fx import _torch_compat
from wolong_fx.capture.decompositions import decomposition_table


def trace_core(function: Callable[..., Any], *inputs: torch.Tensor) -> GraphModule:
    """The functional graph of `function(*inputs)`: a placeholder an input, a flat tuple as output."""

    def flat(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(_torch_compat.tree_leaves(function(*args)))

    gm = make_fx(flat, decomposition_table=dict(decomposition_table()), tracing_mode="fake")(*inputs)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def dynamo_graph(model: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[Any]]:
    """The one graph that Dynamo hands to a backend, traced without gradients, and the inputs it is given."""
    caught: list[tuple[GraphModule, list[Any]]] = []

    def backend(graph_module: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        caught.append((graph_module, example_inputs))
        return graph_module.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, dynamic=False)(*inputs)
    assert len(caught) == 1
    return caught[0]
