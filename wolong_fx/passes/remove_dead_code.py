"""remove-dead-code: what nobody uses is not computed; random draws and writes stay, as in eager."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.edit import Editor, Rewrite
from wolong_fx.passes.values import is_effectful


@dataclass(frozen=True)
class RemoveDeadCode(EditPass):
    """Users first, so that one walk removes whole chains."""

    name: ClassVar[str] = "remove-dead-code"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def edit(self, editor: Editor) -> None:
        for node in reversed(editor.graph.nodes):
            if _is_dead(node):
                editor.apply(Rewrite(node, None, "nothing uses its result"))


def _is_dead(node: Node) -> bool:
    return node.op in ("call_function", "get_attr") and not node.users and not is_effectful(node)
