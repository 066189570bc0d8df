"""fold-constants: what only numbers decide is computed now.

Never anything trainable, mutable or fed in: a constant is a tensor made of numbers (full, arange ...) or a
literal of the user's source (`lift_fresh_copy`), and what pure operators make of those. Parameters and
buffers are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.edit import CONSTANT_PREFIX, Call, Constant, Editor, Replacement, Rewrite
from wolong_fx.passes.values import aten, is_call, is_creation, is_effectful, is_tensor, value_of

LITERAL_PREFIX = "_tensor_constant"  # how torch's tracers name the literals of the user's source

# Tensors made of numbers that a kernel computes where it needs them; all others are tables worth keeping.
MADE_BY_KERNELS = {
    *(aten.full.default, aten.zeros.default, aten.ones.default, aten.scalar_tensor.default),
    *(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.eye.default, aten.eye.m),
    torch.ops.prims.iota.default,
}


@dataclass(frozen=True)
class FoldConstants(EditPass):
    """Folds operators over constants of at most `max_bytes`; a uniform result becomes `full`."""

    max_bytes: int = 65536
    name: ClassVar[str] = "fold-constants"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def edit(self, editor: Editor) -> None:
        for node in list(editor.graph.nodes):
            if editor.may_change(node) and self._is_foldable(node):
                editor.apply(Rewrite(node, _folded(node, editor), "only numbers decide it", is_folded=True))

    def _is_foldable(self, node: Node) -> bool:
        inputs = node.all_input_nodes
        if not is_tensor(node) or is_effectful(node) or not all(map(is_tensor, inputs)):
            return False
        if not inputs:
            return is_creation(node) and self._is_small(node) and node.target not in MADE_BY_KERNELS
        return all(map(self._is_small, (node, *inputs))) and (
            is_literal(node) or all(map(is_constant, inputs))
        )

    def _is_small(self, node: Node) -> bool:
        value = value_of(node)
        return 0 < value.numel() * value.element_size() <= self.max_bytes and value.device.type == "cpu"


def is_literal(node: Node) -> bool:
    """A tensor that the user's source spells out; tracers record it as a copy of a lifted constant."""
    if not is_call(node, aten.lift_fresh_copy.default):
        return False
    source = node.args[0]
    return (
        isinstance(source, Node) and source.op == "get_attr" and str(source.target).startswith(LITERAL_PREFIX)
    )


def is_constant(node: Node) -> bool:
    """Made of numbers alone, or folded before."""
    return is_creation(node) or (node.op == "get_attr" and str(node.target).startswith(CONSTANT_PREFIX))


def _folded(node: Node, editor: Editor) -> Replacement:
    value = _compute(node, editor)
    if _is_uniform(value):
        number = value.flatten()[0].item()
        return Call(
            aten.full.default, (list(value.shape), number), {"dtype": value.dtype, "device": value.device}
        )
    return Constant(value)


def _compute(node: Node, editor: Editor) -> torch.Tensor:
    """The operator's value, now; its operands are attributes or made of numbers."""

    def known(argument: Any) -> Any:
        if not isinstance(argument, Node):
            return argument
        if argument.op == "get_attr":
            return getattr(editor.graph_module, str(argument.target))
        return argument.target(*argument.args, **argument.kwargs)  # type: ignore[operator]

    args, kwargs = map_aggregate(node.args, known), map_aggregate(dict(node.kwargs), known)
    with torch.no_grad():
        return node.target(*args, **kwargs).clone(memory_format=torch.preserve_format)  # type: ignore


def _is_uniform(value: torch.Tensor) -> bool:
    """All elements equal, bit by bit: 0.0 is not -0.0, and a NaN equals itself."""
    if value.is_complex() or value.is_quantized:
        return False
    packed = torch.empty(value.numel(), dtype=value.dtype).copy_(value.reshape(-1))
    raw = packed.view(torch.uint8).numpy().tobytes()
    return raw == raw[: value.element_size()] * value.numel()
