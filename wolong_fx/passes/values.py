"""Facts about one node: what it computes, whether it draws, writes or only looks. Nothing here mutates."""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from wolong_fx.passes.loops.scan import SCAN, body_of, is_scan

aten = torch.ops.aten
OpOverload = type(aten.add.Tensor)

# Their schema does not say so, but they share, or may share, storage with their first operand.
_VIEWS_BY_NATURE = {aten._unsafe_view.default, aten.reshape.default, aten.contiguous.default}
_PLAIN_NAMESPACES = {"aten", "prims"}


def value_of(node: Any) -> Any:
    """The fake value (or tuple of them) that the node computes; None when nobody recorded it."""
    return node.meta.get("val")


def shape_of(node: Any) -> tuple[int, ...]:
    """Sizes of a node's one tensor."""
    return tuple(value_of(node).shape)


def is_tensor(argument: object) -> bool:
    """True of a node whose value is one tensor."""
    return isinstance(argument, Node) and isinstance(value_of(argument), torch.Tensor)


def is_number(argument: object) -> bool:
    """True of Python's numbers, bool included."""
    return isinstance(argument, int | float)


def is_call(node: object, target: object) -> bool:
    """True of a node that calls this operator."""
    return isinstance(node, Node) and node.op == "call_function" and node.target is target


def tensors_in(value: object) -> list[torch.Tensor]:
    """The tensors of a value that is a tensor, a tuple or list of them, or something else."""
    items = value if isinstance(value, tuple | list) else (value,)
    return [item for item in items if isinstance(item, torch.Tensor)]


def find_argument(node: Node, name: str, default: object = None) -> Any:
    """The argument called `name` in the operator's schema, wherever it stands in the call."""
    if name in node.kwargs:
        return node.kwargs[name]
    position = argument_names(node.target).index(name)
    return node.args[position] if position < len(node.args) else default


@cache
def argument_names(target: Any) -> tuple[str, ...]:
    """Names of an operator's arguments, in the order of its schema."""
    return tuple(argument.name for argument in target._schema.arguments)


@cache
def is_random(target: object) -> bool:
    """True of operators that draw from torch's generator."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


@cache
def written_arguments(target: Any) -> tuple[str, ...]:
    """Names of the arguments that the operator writes in place."""
    schema = getattr(target, "_schema", None)
    arguments = schema.arguments if schema else ()
    return tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)


@cache
def returns_something(target: Any) -> bool:
    """False of operators that only act: assertions, prints."""
    schema = getattr(target, "_schema", None)
    return schema is None or bool(schema.returns)


@cache
def effect_of(target: Any) -> str:
    """ "" for a pure function of its operands; else why the order of such calls must be kept.

    Operators of unknown namespaces (collectives, custom operators) and those that return nothing (assertions)
    count as effects: keeping one too many costs little, losing one changes the program.
    """
    if target is operator.getitem or target is SCAN:
        return ""
    if not isinstance(target, OpOverload):
        return "a call whose effects are unknown"
    if is_random(target):
        return "draws from torch's generator"
    if written_arguments(target):
        return "writes its operand in place"
    if not target._schema.returns or target.namespace not in _PLAIN_NAMESPACES:
        return "may have an effect"
    return ""


def find_effect(node: Node) -> str | None:
    """Why the order of this node among others must be kept; a loop has the effects of its body."""
    if node.op in ("call_method", "call_module"):
        return "a call whose effects are unknown"
    if is_scan(node):
        return next(filter(None, map(find_effect, body_of(node).graph.nodes)), None)
    return effect_of(node.target) or None if node.op == "call_function" else None


def is_effectful(node: Node) -> bool:
    """True of a node that does more than compute its value; see effect_of."""
    return find_effect(node) is not None


def is_update(node: Node) -> bool:
    """True of a call that writes an input's new values over the old ones."""
    target = node.args[0] if node.target is aten.copy_.default else None
    return isinstance(target, Node) and target.op == "placeholder"


def is_final_update(node: Node) -> bool:
    """True of an update after which nothing asks for its input by name."""
    if not is_update(node):
        return False
    later = node.next
    while later.op not in ("output", "root") and node.args[0] not in later.all_input_nodes:
        later = later.next
    return later.op in ("output", "root") and node.args[0] not in later.all_input_nodes


@cache
def is_view_operator(target: Any) -> bool:
    """True when the result shares, or may share, storage with the first operand."""
    if target in _VIEWS_BY_NATURE:
        return True
    schema = getattr(target, "_schema", None)
    return bool(schema) and not written_arguments(target) and any(r.alias_info for r in schema.returns)


def is_view(node: Node) -> bool:
    """True of a node whose result shares, or may share, storage with its first operand."""
    return node.op == "call_function" and is_view_operator(node.target)


@cache
def is_pointwise_operator(target: Any) -> bool:
    """True when every element of the result needs only the elements at its place, after broadcasting."""
    return torch.Tag.pointwise in getattr(target, "tags", ())


def byte_size(node: Node) -> int:
    """Bytes of what the node computes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value_of(node)))


def is_creation(node: Node) -> bool:
    """True of a call that makes a tensor out of numbers alone, always the same one."""
    return (
        node.op == "call_function"
        and is_tensor(node)
        and not node.all_input_nodes
        and not is_effectful(node)
        and not str(node.target).startswith("aten.empty")
    )


def same_value(a: object, b: object) -> bool:
    """Equal in dtype, shape and device, tensor by tensor."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
    return type(a) is type(b) and a == b


def same_strides(a: object, b: object) -> bool:
    """Equal in layout, tensor by tensor; strides of dimensions of size 1 mean nothing."""
    return [_strides(t) for t in tensors_in(a)] == [_strides(t) for t in tensors_in(b)]


def is_dense(tensor: torch.Tensor) -> bool:
    """True when the elements fill one block of memory without gaps or overlap, in some order."""
    expected = 1
    for stride, size in sorted(_strides(tensor)):
        if stride != expected:
            return False
        expected *= size
    return True


def describe(value: object) -> str:
    """A value for people: `float32[2, 3]`, `(int64[], bool[4])`."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(describe, value))})"
    return repr(value)


def structural_key(argument: object) -> object:
    """A hashable stand-in for an argument that tells 1 from 1.0 from True and 0.0 from -0.0."""
    if isinstance(argument, tuple | list):
        return tuple(map(structural_key, argument))
    if isinstance(argument, dict):
        return tuple((name, structural_key(value)) for name, value in sorted(argument.items()))
    if isinstance(argument, slice):
        return ("slice", *map(structural_key, (argument.start, argument.stop, argument.step)))
    return (type(argument), argument.hex() if isinstance(argument, float) else argument)


def values_in(arguments: Any) -> Any:
    """The same arguments with every node replaced by its value."""
    return map_aggregate(arguments, lambda a: value_of(a) if isinstance(a, Node) else a)


def has_symbolic_size(value: object) -> bool:
    """True of a size that is known only at run time, and of tensors with one."""
    if isinstance(value, torch.SymInt):
        return True
    return any(not isinstance(size, int) for tensor in tensors_in(value) for size in tensor.shape)


KERNEL_DEVICES = ("cpu", "cuda")
"""Types of the devices that there are kernels for."""


def device_of(value: object) -> torch.device | None:
    """The device of the first tensor in a value."""
    return next((tensor.device for tensor in tensors_in(value)), None)


def is_number_like(value: object) -> bool:
    """True of a tensor that torch takes for a number: on the CPU and without dimensions."""
    return isinstance(value, torch.Tensor) and not value.dim() and value.device.type == "cpu"


def find_value_problem(value: object) -> str | None:
    """Why no kernel can take or make this value; None for plain dense tensors and for numbers."""
    if has_symbolic_size(value):
        return "a size is known only at run time"
    return next((because for tensor in tensors_in(value) if (because := _find_tensor_problem(tensor))), None)


def _find_tensor_problem(tensor: torch.Tensor) -> str | None:
    is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) or hasattr(tensor, "fake_mode")
    if not is_plain:
        return f"{type(tensor).__name__} is a subclass of Tensor"
    if tensor.device.type not in KERNEL_DEVICES:
        return f"it lives on {tensor.device.type!r}, kernels are made for 'cpu' and 'cuda'"
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}"
    if tensor.is_complex() or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return f"no kernel computes in {tensor.dtype}"
    return None


def _strides(tensor: torch.Tensor) -> list[tuple[int, int]]:
    if tensor.numel() == 0:
        return []
    return [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]
