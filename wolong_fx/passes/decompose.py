"""decompose: an operator that codegen cannot lower is taken apart, if it can lower all of the parts.

AOTAutograd has decomposed most of a graph before it comes here. What is left is ours (dropout, whose draw is
cut loose from the values it masks) or in torch's own tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from wolong_fx import _torch_compat
from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.edit import Call, Editor, Fragment, Parts, Rewrite
from wolong_fx.passes.partition_plan import WhyUnsupported
from wolong_fx.passes.values import (
    OpOverload,
    aten,
    find_argument,
    is_effectful,
    is_tensor,
    is_view,
    structural_key,
    tensors_in,
    value_of,
    values_in,
)


def nothing_is_supported(node: Node) -> str:
    """The WhyUnsupported of a pipeline without a code generator."""
    return "there is no code generator"


@dataclass(frozen=True)
class Decompose(EditPass):
    """`why_unsupported`: None for a node that codegen lowers, else the reason it does not."""

    why_unsupported: WhyUnsupported = field(default=nothing_is_supported, repr=False, compare=False)
    name: ClassVar[str] = "decompose"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATING

    def edit(self, editor: Editor) -> None:
        fragments: dict[object, GraphModule | None] = {}
        for node in list(editor.graph.nodes):
            if not editor.may_change(node) or not isinstance(node.target, OpOverload):
                continue
            if node.target is aten.native_dropout.default:
                _decompose_dropout(node, editor)
            elif self._may_come_apart(node):
                self._decompose(node, editor, fragments)

    def _may_come_apart(self, node: Node) -> bool:
        return (
            not is_effectful(node)
            and not is_view(node)
            and self.why_unsupported(node) is not None
            and bool(_decompositions(node.target))
            and all(map(is_tensor, node.all_input_nodes))
        )

    def _decompose(self, node: Node, editor: Editor, fragments: dict[object, GraphModule | None]) -> None:
        inputs = node.all_input_nodes
        described = map_arg((node.args, dict(node.kwargs)), lambda n: (inputs.index(n), *_metadata(n)))
        key = node.target, structural_key(described)
        if key not in fragments:
            fragments[key] = self._find_fragment(node)
        if fragment := fragments[key]:
            by = Fragment(fragment.graph, tuple(inputs))
            editor.apply(Rewrite(node, by, "codegen lowers its parts"))

    def _find_fragment(self, node: Node) -> GraphModule | None:
        """What the operator is made of; None where codegen cannot lower every part of it."""
        try:
            fragment = _trace(node)
        except (
            Exception
        ):  # torch's tables hold functions of many authors; without a fragment the operator stays
            return None
        Canonicalise()(fragment)
        is_plain = all(not is_effectful(n) and n.op != "get_attr" for n in fragment.graph.nodes)
        is_good = is_plain and _largest(_calls(fragment)) <= _largest([node, *node.all_input_nodes])
        return fragment if is_good and not any(map(self.why_unsupported, _calls(fragment))) else None


def _largest(nodes: Iterable[Node]) -> int:
    """Elements of the largest value. Torch's table makes cumsum a sum over a square: right, and too dear."""
    return max((tensor.numel() for node in nodes for tensor in tensors_in(value_of(node))), default=0)


def _calls(fragment: GraphModule) -> Sequence[Node]:
    return [node for node in fragment.graph.nodes if node.op == "call_function"]


def _metadata(node: Node) -> Any:
    value = value_of(node)
    return (value.dtype, tuple(value.shape), value.stride())


def _trace(node: Node) -> GraphModule:
    """The decomposition of one call as a graph whose placeholders are `node.all_input_nodes`."""
    inputs = node.all_input_nodes

    def compute(*values: Any) -> Any:
        known = dict(zip(inputs, values, strict=True))
        args, kwargs = map_arg((node.args, dict(node.kwargs)), known.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    return _torch_compat.trace_to_aten(compute, values_in(tuple(inputs)), _decompositions(node.target))


@cache
def _decompositions(target: Any) -> Mapping[Any, Callable[..., Any]]:
    """torch's table for one operator; empty if it has none."""
    return _torch_compat.get_decompositions([target])


def _decompose_dropout(node: Node, editor: Editor) -> None:
    """x * mask * scale, as torch computes it on a CPU, the mask drawn from its generator in the same order.

    The scale is rounded to x's dtype first. The draw needs the shape of x alone: dropout no longer separates
    the kernel before it from the one after.
    """
    x, rate = node.args[0], find_argument(node, "p")
    value = value_of(node)
    is_plain = is_tensor(x) and value[0].is_contiguous() and value[0].numel() > 0
    if not is_plain or find_argument(node, "train") is False or not isinstance(rate, float | int):
        return
    kwargs = {"dtype": value[1].dtype, "device": value[1].device}
    mask = Call(
        aten.bernoulli.p, (Call(aten.full.default, (list(value[1].shape), False), kwargs), 1.0 - rate)
    )
    scale = torch.tensor(0.0 if rate == 1 else 1.0 / (1.0 - rate), dtype=value[0].dtype).item()
    kept = Call(aten.mul.Tensor, (Call(aten.mul.Tensor, (x, mask)), scale))
    editor.apply(Rewrite(node, Parts((kept, mask)), "its random draw needs a shape, not values"))
