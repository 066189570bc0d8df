"""Operators that torch refuses to run on operands of different dtypes, found before their graph is traced.

Fake tensors do not tell: `F.linear` of a float64 input and float32 weights is an error in eager, passes as
a trace, and would become a kernel that works. Which operators refuse which dtypes is written nowhere, so
torch itself is asked, on zeros.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from wolong_fx import _torch_compat


def find_refused_dtypes(gm: GraphModule) -> str | None:
    """torch's error at the first operator of Dynamo's graph that it would not run on such dtypes; else None.

    Asked about are torch's own operators on operands of more than one dtype, each kind once. A graph that
    turns autocast on is not looked at: dtypes of operands say little there.
    """
    if not _has_several_dtypes(gm) or any(
        getattr(node.target, "__name__", "") == "_enter_autocast" for node in gm.graph.nodes
    ):
        return None
    calls = {key: node for node in gm.graph.nodes if (key := _mixed_call(node)) is not None}
    if not calls:
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _torch_compat.outside_fake_mode():
        return next((because for node in calls.values() if (because := _find_refusal(node))), None)


def _has_several_dtypes(gm: GraphModule) -> bool:
    """Nearly no graph has; what follows costs much more than this."""
    values = (node.meta.get("example_value") for node in gm.graph.nodes)
    return len({value.dtype for value in values if isinstance(value, Tensor)}) > 1


def _mixed_call(node: Node) -> object:
    """What tells one kind of call on mixed dtypes from others; None for a call that is not to be tried."""
    if node.op not in ("call_function", "call_method") or not _is_torchs_own(node):
        return None
    values = list(_values_of(node))
    dtypes = {value.dtype for value in values}
    if len(dtypes) < 2 or not all(map(_can_be_made, values)):
        return None
    others = [a for a in node.args if not isinstance(a, Node)], dict(node.kwargs)
    return str(node.target), repr(others), tuple((v.dtype, tuple(v.shape)) for v in values)


def _is_torchs_own(node: Node) -> bool:
    """Operators of others may do more than compute: a collective waits for other processes."""
    if node.op == "call_method":
        return callable(getattr(Tensor, str(node.target), None))
    namespace = getattr(node.target, "namespace", "")
    return namespace == "aten" or node.target in _functions_of_torch()


@cache
def _functions_of_torch() -> frozenset[Callable[..., Any]]:
    of_torch = (f for group in torch.overrides.get_overridable_functions().values() for f in group)
    return frozenset(of_torch) | {operator.matmul, operator.imatmul, operator.setitem}


def _values_of(node: Node) -> Iterator[Tensor]:
    """Fake values of the tensors that a call is given."""
    values = (operand.meta.get("example_value") for operand in node.all_input_nodes)
    return (value for value in values if isinstance(value, Tensor))


def _can_be_made(value: Tensor) -> bool:
    return value.layout is torch.strided and all(isinstance(size, int) for size in value.shape)


def _find_refusal(node: Node) -> str | None:
    """torch's error on these dtypes, if all of one being another helps: then it is about dtypes."""
    error = _try(node, {})
    if error is None:
        return None
    pairs = permutations({value.dtype for value in _values_of(node)}, 2)
    return error if any(_try(node, {old: new}) is None for old, new in pairs) else None


def _try(node: Node, instead: Mapping[torch.dtype, torch.dtype]) -> str | None:
    """The error of a call on zeros of the dtypes it has, or of others `instead`; None if it goes well."""
    given = node.args, dict(node.kwargs)
    args, kwargs = map_aggregate(given, lambda a: _zeros(a, instead))  # type: ignore
    call = node.target if callable(node.target) else getattr(Tensor, str(node.target))
    try:
        call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {_torch_compat.first_line(str(error))}"
    return None


def _zeros(argument: Any, instead: Mapping[torch.dtype, torch.dtype]) -> Any:
    value = argument.meta.get("example_value") if isinstance(argument, Node) else argument
    if not isinstance(argument, Node) or not isinstance(value, Tensor):
        return value
    return torch.zeros(value.shape, dtype=instead.get(value.dtype, value.dtype), device=value.device)
