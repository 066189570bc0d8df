"""Which calls are pure: torch's functions and methods in Dynamo's graphs, operators in ATen's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.fx import Node

from wolong_fx.passes.values import OpOverload, effect_of, is_random

# Where the functions of a Dynamo graph live that compute and do nothing else; our own write a recurrent
# operator out in plain ones, or make a tensor of a number.
_MODULES = ("torch", "torch._C", "torch.functional", "torch.nn.functional", "_operator", "math")
_MODULES_BELOW = (
    *("torch._C._nn", "torch._C._linalg", "torch._C._special"),
    *("wolong_fx.capture.rnn", "wolong_fx.passes.reroll.step_numbers"),
)

# Names of functions and methods that draw from torch's generator (or may, by an argument).
_DRAWS = {
    *("bernoulli", "multinomial", "normal", "poisson", "binomial", "gumbel_softmax", "rrelu", "lstm", "gru"),
    *("scaled_dot_product_attention", "multi_head_attention_forward", "fractional_max_pool2d", "rnn_tanh"),
    *("fractional_max_pool3d", "rnn_relu", "run_recurrence"),
}
_DRAWS_STARTING = (
    "rand",
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
    "native_dropout",
)

# Tensors of whatever was in memory: two calls are not one.
_UNSET = ("empty", "new_empty", "resize")

# Python's operators that write their left operand, and those that act.
_WRITES = {
    *("setitem", "delitem", "iadd", "iand", "iconcat", "ifloordiv", "ilshift", "imatmul", "imod", "imul"),
    *("ior", "ipow", "irshift", "isub", "itruediv", "ixor"),
}


def find_effect(nodes: Iterable[Node]) -> str | None:
    """Why these calls may not be reordered at all; None when only random draws keep an order.

    Of a graph, one call of each kind will do: those that differ in operands alone.
    """
    for node in nodes:
        if node.op == "call_module":
            return f"{node.target} is a module called whole"
        if node.op in ("call_function", "call_method") and (because := _find_effect(node)):
            return f"{node.name} {because}"
    return None


def is_repeatable(node: Node) -> bool:
    """False of calls that draw, or give whatever was in memory: those stay where they are."""
    return (
        node.op not in ("placeholder", "get_attr") and not _draws(node.target) and not _is_unset(node.target)
    )


def is_draw(node: Node) -> bool:
    """True of calls that draw from torch's generator, or may: their order is kept."""
    return _draws(node.target)


def call_name(node: Node) -> str:
    """The name of the function or method that the node calls."""
    return _name_of(node.target)


# A graph of 20,000 calls has a dozen targets: what is a fact of the target alone is found once.
@cache
def _draws(target: Any) -> bool:
    if isinstance(target, OpOverload):
        return is_random(target)
    return _name_of(target) in _DRAWS or _name_of(target).startswith(_DRAWS_STARTING)


@cache
def _name_of(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


@cache
def _is_unset(target: Any) -> bool:
    is_operator = isinstance(target, OpOverload)
    name = target._schema.name.split("::")[1] if is_operator else _name_of(target)
    return name.startswith(_UNSET)


def _find_effect(node: Node) -> str | None:
    if isinstance(node.target, OpOverload):
        return None if is_random(node.target) else effect_of(node.target) or None
    name = call_name(node)
    if _is_write_by_name(node.target) or _writes_by_argument(node):
        return "writes its operand in place"
    if node.op == "call_method":
        return None if name not in _ACTING_METHODS else "leaves the graph"
    return None if _is_known(node.target) else f"calls {name}, whose effects are unknown"


_ACTING_METHODS = {"backward", "register_hook", "item", "tolist", "numpy", "share_memory_", "retain_grad"}


@cache
def _is_write_by_name(target: Any) -> bool:
    name = _name_of(target)
    if name.endswith("_") and not name.endswith("__"):
        return True
    return getattr(target, "__module__", "") == "_operator" and name in _WRITES


def _writes_by_argument(node: Node) -> bool:
    return node.kwargs.get("out") is not None or _is_inplace(node)


def _is_inplace(node: Node) -> bool:
    """An `inplace` argument that is set, wherever it stands: F.relu(x, True)."""
    if node.op != "call_function" or getattr(node.target, "__module__", "") != "torch.nn.functional":
        return bool(node.kwargs.get("inplace"))
    position = _inplace_position(node.target)
    return bool(node.kwargs.get("inplace")) or (position < len(node.args) and bool(node.args[position]))


@cache
def _inplace_position(target: Callable[..., Any]) -> int:
    names = list(inspect.signature(target).parameters) if callable(target) else []
    return names.index("inplace") if "inplace" in names else len(names) + 99


@cache
def _is_known(target: Any) -> bool:
    if target is torch.ops.higher_order.scan:
        return True
    module = getattr(target, "__module__", None) or _owner(target)
    if module.startswith("torch") and target.__name__.startswith("_"):
        return False  # torch's switches: _set_grad_enabled, _enter_autocast, _assert
    return module in _MODULES or any(module == m or module.startswith(m + ".") for m in _MODULES_BELOW)


def _owner(target: Any) -> str:
    """Methods of torch._C's classes have no module: torch.Tensor.add, torch.addmm."""
    owner = getattr(target, "__self__", None) or getattr(target, "__objclass__", None)
    return "torch" if getattr(owner, "__module__", "").startswith("torch") else ""
