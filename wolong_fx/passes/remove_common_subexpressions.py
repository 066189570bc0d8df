"""remove-common-subexpressions: what was computed once is not computed again.

Ours and not torch's CSEPass, which takes 1 for 1.0 (`x + 1` for `x + 1.0`, another dtype when x is int) and
knows only a fixed list of random operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.edit import Editor, Rewrite
from wolong_fx.passes.values import is_effectful, structural_key


@dataclass(frozen=True)
class RemoveCommonSubexpressions(EditPass):
    """Calls of one operator with the same operands are one; never random ones, nor near written memory."""

    name: ClassVar[str] = "remove-common-subexpressions"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def edit(self, editor: Editor) -> None:
        first: dict[object, Node] = {}
        for node in list(editor.graph.nodes):
            if not _is_pure(node) or editor.storage.touches_written(node):
                continue
            earlier = first.setdefault(_expression(node), node)
            if earlier is not node:
                editor.apply(Rewrite(node, earlier, f"{earlier} computes the same"))


def _is_pure(node: Node) -> bool:
    return node.op == "get_attr" or (node.op == "call_function" and not is_effectful(node))


def _expression(node: Node) -> object:
    return node.op, node.target, structural_key(node.args), structural_key(dict(node.kwargs))
