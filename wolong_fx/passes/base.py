"""What a pass is: a frozen value with a name, options and a numerics class, that proposes rewrites."""

from __future__ import annotations

import enum
from abc import abstractmethod
from typing import ClassVar

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from wolong_fx.passes.edit import Call, Editor, Note, Rewrite, silent
from wolong_fx.passes.loops.scan import bodies_in


class Numerics(enum.Enum):
    """What a pass may do to the numbers. APPROXIMATE needs the user's consent."""

    EXACT = "exact"  # bitwise the same, but for the payload of a NaN
    REASSOCIATING = "reassociating"  # the same sum in another order
    APPROXIMATE = "approximate"


class Pass(PassBase):
    """A graph goes in, an equivalent graph comes out, and every change has a reason.

    Subclasses are frozen dataclasses; their fields are their options. They know nothing of verification,
    timing, dumps or the ledger.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics]

    @abstractmethod
    def apply(self, graph_module: GraphModule, note: Note) -> PassResult:
        """Run on a graph, in place where possible; `note(node, action, because)` hears every decision."""

    def call(self, graph_module: GraphModule) -> PassResult:
        result = self.apply(graph_module, silent)
        result.graph_module.recompile()
        return result


class EditPass(Pass):
    """A pass that changes the graph in place, through the Editor; the bodies of its loops before it."""

    @abstractmethod
    def edit(self, editor: Editor) -> None:
        """Propose every change to `editor`."""

    def apply(self, graph_module: GraphModule, note: Note) -> PassResult:
        bodies = bodies_in(graph_module).values()
        changed = [self.apply(body, note).modified for body in bodies]
        editor = Editor(graph_module, self.name, note)
        self.edit(editor)
        return PassResult(graph_module, editor.is_changed or any(changed))


class NodePass(EditPass):
    """A pass that looks at one operator at a time, operands before users."""

    # A rule whose result matches another rule is settled at once; this bounds rules that chase each other.
    most_rewrites_of_one_node: ClassVar[int] = 16

    @abstractmethod
    def rewrite(self, node: Node) -> Rewrite | None:
        """The change to make at this call_function node, if any."""

    def edit(self, editor: Editor) -> None:
        for node in list(editor.graph.nodes):
            self._settle(node, editor)

    def _settle(self, node: Node, editor: Editor) -> None:
        for _ in range(self.most_rewrites_of_one_node):
            rewrite = self.rewrite(node) if editor.may_change(node) else None
            replacement = editor.apply(rewrite) if rewrite else None
            if not isinstance(replacement, Node) or not isinstance(rewrite.by, Call):  # type: ignore[union-attr]
                return
            node = replacement
