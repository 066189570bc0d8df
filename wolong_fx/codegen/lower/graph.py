"""What the rest of the compiler asks of lowering: may this node be lowered, and lower this partition."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from wolong_fx.codegen.loops import Element
from wolong_fx.codegen.lower import (  # noqa: F401  (imported for their registrations)
    convolution,
    creation,
    indexing,
    loops,
    matmul,
    pointwise,
    pooling,
    reductions,
    views,
)
from wolong_fx.codegen.lower.lowering import Lowering
from wolong_fx.codegen.lower.registry import DOUBTS, LOWERINGS
from wolong_fx.codegen.lower.value import DTYPES
from wolong_fx.ir.types import Buffer
from wolong_fx.passes.loops.scan import body_of, is_scan, is_scan_body
from wolong_fx.passes.values import KERNEL_DEVICES


@dataclass
class LoweredGraph:
    """Operators and loops in an order that respects their data, and the caller's buffers: inputs, then
    outputs.
    """

    ops: list[Element]
    io: list[Buffer]


def why_unsupported(node: Node) -> str | None:
    """None if a node can be lowered, else the reason why it falls back."""
    if node.target is operator.getitem:
        return None if _has_lowering(node.args[0]) else "its operand falls back"
    if node.op != "call_function" or node.target not in LOWERINGS:
        return f"no lowering for {node.target}"
    reason = _why_unsupported_value(node.meta.get("val"))
    for operand in node.all_input_nodes:
        reason = reason or (
            None if is_scan_body(operand) else _why_unsupported_value(operand.meta.get("val"))
        )
    if is_scan(node):
        return reason or _why_unsupported_body(body_of(node))
    doubt = DOUBTS.get(node.target)
    return reason or (doubt(node) if doubt else None)


def lower_graph(gm: GraphModule) -> LoweredGraph:
    """Lower a partition: placeholders -> supported operators -> a tuple of tensors.

    Raises UnsupportedOperator naming the node that `why_unsupported` would have refused.
    """
    lowering = Lowering(gm)
    for node in gm.graph.nodes:
        lowering.visit(node)
    return LoweredGraph(lowering.ops, [*lowering.inputs, *lowering.outputs])


def _why_unsupported_body(body: GraphModule) -> str | None:
    """Why a loop's body cannot be lowered: the first of its operators that cannot."""
    if not all(isinstance(result, Node) for result in body.graph.output_node().args[0]):  # type: ignore[union-attr]
        return "its body returns something else than tensors"
    calls = (node for node in body.graph.nodes if node.op not in ("placeholder", "get_attr", "output"))
    reasons = ((node, why_unsupported(node)) for node in calls)
    return next((f"{node} in its body: {reason}" for node, reason in reasons if reason), None)


def _has_lowering(node: object) -> bool:
    return isinstance(node, Node) and node.target in LOWERINGS and why_unsupported(node) is None


def _why_unsupported_value(value: object) -> str | None:
    """Why a fake value cannot live in one of our kernels."""
    if isinstance(value, list | tuple):
        return next((r for r in map(_why_unsupported_value, value) if r), None)
    if not isinstance(value, torch.Tensor):
        return (
            None
            if value is None or isinstance(value, int | float | bool)
            else f"a {type(value).__name__} value"
        )
    if value.dtype not in DTYPES:
        return f"dtype {value.dtype}"
    if value.device.type not in KERNEL_DEVICES:
        return f"device {value.device}"
    if value.layout is not torch.strided:
        return f"layout {value.layout}"
    if not all(isinstance(n, int) for n in (*value.shape, *value.stride())):
        return "a symbolic shape"
    return None
