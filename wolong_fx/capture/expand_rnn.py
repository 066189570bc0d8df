"""Point a Dynamo graph's recurrent calls at our step-by-step functions, so that tracing unrolls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import fx

from wolong_fx._torch_compat import GraphBreak
from wolong_fx.capture import rnn
from wolong_fx.ledger import Ledger

STEP = "expand-rnn"
PACKED = "a recurrent module runs a packed sequence eagerly: how many rows a step has depends on the data"


@cache
def expansions() -> dict[Any, Callable[..., Any]]:
    """torch's recurrent functions, whole sequences and cells, and what each is expanded to."""
    return {
        torch.lstm: rnn.lstm,
        torch.gru: rnn.one_state_rnn(rnn.GRU),
        torch.rnn_tanh: rnn.one_state_rnn(rnn.RNN_TANH),
        torch.rnn_relu: rnn.one_state_rnn(rnn.RNN_RELU),
        torch.lstm_cell: rnn.lstm_cell,
        torch.gru_cell: rnn.one_state_cell(rnn.GRU),
        torch.rnn_tanh_cell: rnn.one_state_cell(rnn.RNN_TANH),
        torch.rnn_relu_cell: rnn.one_state_cell(rnn.RNN_RELU),
    }


def expansion_of(function: Any, args: tuple[Any, ...]) -> Callable[..., Any] | None:
    """What a call of `function` is expanded to; None for all but recurrent functions of plain sequences."""
    return expansions()[function] if _is_recurrent(function) and not is_packed(args) else None


def is_rnn_call(node: fx.Node) -> bool:
    """True for a call of one of torch's recurrent functions."""
    return node.op == "call_function" and _is_recurrent(node.target)


def is_expansion(node: fx.Node) -> bool:
    """True for a recurrent call that has been expanded: a call of one of our functions."""
    return getattr(node.target, "__module__", None) == rnn.__name__


def has_expansions(gm: fx.GraphModule) -> bool:
    """True when recurrent calls of the graph, or of a body in it, have been expanded."""
    return any(is_expansion(node) for g in graph_modules(gm) for node in g.graph.nodes)


def graph_modules(gm: fx.GraphModule) -> list[fx.GraphModule]:
    """The graph and the bodies of its higher-order operators, such as checkpointed regions."""
    return [m for m in gm.modules() if isinstance(m, fx.GraphModule)]


def find_rnn_calls(gm: fx.GraphModule) -> Iterator[fx.Node]:
    """The recurrent calls of a graph and of the bodies in it."""
    return (node for g in graph_modules(gm) for node in g.graph.nodes if is_rnn_call(node))


def recompile(gm: fx.GraphModule) -> None:
    """Make the Python code of a graph and of its bodies follow their nodes."""
    for module in graph_modules(gm):
        module.recompile()


def is_break_of_packed_sequence(found: GraphBreak) -> bool:
    """True when it comes of packing, of unpacking, or of a recurrent module that met a packed sequence."""
    if f'"{torch.nn.modules.rnn.__file__}"' in found.stack_trace:
        return True
    return "`pack_padded_sequence`" in found.reason or "`pad_packed_sequence`" in found.reason


def is_packed(args: tuple[Any, ...]) -> bool:
    """True for the overload that takes a PackedSequence apart: (data, batch_sizes, hx, params, ...)."""
    return len(args) > 3 and isinstance(args[3], list | tuple)


def why_rnn_stays_whole(gm: fx.GraphModule) -> str | None:
    """Why the recurrent calls of this graph cannot be expanded; None when they can, or there are none."""
    calls = list(find_rnn_calls(gm))
    if any(is_packed(n.args) for n in calls):
        return PACKED
    if calls and (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda") or _has_autocast(gm)):
        return "a recurrent module under autocast chooses its precision by kernel: it runs eagerly"
    return None


def expand_rnn_calls(gm: fx.GraphModule, ledger: Ledger) -> Callable[[], None]:
    """Retarget the recurrent calls of `gm` in place; returns what puts them back."""
    calls = [(node, node.target) for node in find_rnn_calls(gm)]
    for node, target in calls:
        node.target = expansions()[target]
        ledger.note(STEP, node, "replaced", "a recurrent operator becomes its steps, which can be fused")
    recompile(gm)
    return lambda: _restore(gm, calls)


def _restore(gm: fx.GraphModule, calls: Iterable[tuple[fx.Node, Any]]) -> None:
    for node, target in calls:
        node.target = target
    recompile(gm)


def _is_recurrent(target: Any) -> bool:
    try:
        return target in expansions()
    except TypeError:  # an unhashable callable
        return False


def _has_autocast(gm: fx.GraphModule) -> bool:
    graphs = (g.graph for g in graph_modules(gm))
    return any("autocast" in getattr(n.target, "__name__", "") for graph in graphs for n in graph.nodes)
