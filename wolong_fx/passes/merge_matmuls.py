"""merge-matmuls: a sum of MatMuls is one MatMul over all of their inner dimensions.

    a1 b1 + a2 b2 + ...  =  [a1 a2 ...] [b1; b2; ...]

The gradient of a weight that many operators read is such a sum, one term a time step, and every term would
read and write the whole of it again. In exchange the operands have to stand side by side: producers in the
same kernel write them there, others are copied. It is done where that moves fewer elements than it saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Node

from wolong_fx.passes.base import EditPass, Numerics
from wolong_fx.passes.edit import Call, Editor, Rewrite
from wolong_fx.passes.values import aten, byte_size, is_call, is_tensor, same_value, shape_of, value_of


@dataclass(frozen=True)
class MergeMatmuls(EditPass):
    """Sums of at least `least_terms` MatMuls."""

    least_terms: int = 2
    name: ClassVar[str] = "merge-matmuls"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATING

    def edit(self, editor: Editor) -> None:
        inner: set[Node] = set()
        for node in reversed(list(editor.graph.nodes)):
            if node in inner or not _is_addition(node):
                continue
            terms, additions = _terms_of(node)
            inner.update(additions)
            if all(map(editor.may_change, (node, *additions))):
                self._merge(node, terms, editor)

    def _merge(self, root: Node, terms: Sequence[Node], editor: Editor) -> None:
        merged = [term for term in terms if _is_own_matmul(term, root) and editor.may_change(term)]
        if len(merged) < self.least_terms or not _is_worth_it(merged):
            return
        total: Any = Call(aten.mm.default, (_left_of_all(merged), _right_of_all(merged)))
        for term in terms:
            if term not in merged:
                total = Call(aten.add.Tensor, (term, total))
        because = f"a sum of {len(merged)} MatMuls is one over {_inner_size(merged)} columns and rows"
        size = sum(byte_size(operand) for term in merged for operand in _operands(term))
        editor.apply(Rewrite(root, total, f"{because}; {size} bytes stand side by side for it"))


def _is_addition(node: Node) -> bool:
    """An addition of two tensors of one type and shape."""
    if not is_call(node, aten.add.Tensor) or node.kwargs or not all(map(is_tensor, node.args)):
        return False
    is_even = all(same_value(value_of(operand), value_of(node)) for operand in node.args)
    return is_even and value_of(node).dtype.is_floating_point


def _terms_of(root: Node) -> tuple[list[Node], list[Node]]:
    """What the tree of additions under `root` adds up, and its inner additions: nothing else reads those."""
    terms: list[Node] = []
    additions: list[Node] = []
    pending = list(reversed(root.all_input_nodes)) if len(set(root.args)) == 2 else []
    while pending:
        node = pending.pop()
        if _is_addition(node) and len(node.users) == 1 and len(set(node.args)) == 2:
            additions.append(node)
            pending.extend(reversed(node.all_input_nodes))
        else:
            terms.append(node)
    return terms, additions


def _is_own_matmul(term: Node, root: Node) -> bool:
    return is_call(term, aten.mm.default) and len(term.users) == 1 and shape_of(term) == shape_of(root)


def _is_worth_it(terms: Sequence[Node]) -> bool:
    """Reading and writing the sum once a further term, against a copy of every operand."""
    rows, columns = shape_of(terms[0])
    return _inner_size(terms) * (rows + columns) < (len(terms) - 1) * rows * columns


def _inner_size(terms: Iterable[Node]) -> int:
    return sum(shape_of(_operands(term)[1])[0] for term in terms)


def _operands(term: Node) -> tuple[Node, Node]:
    left, right = term.args
    assert isinstance(left, Node) and isinstance(right, Node)
    return left, right


def _left_of_all(terms: Sequence[Node]) -> Call:
    """All left operands beside each other; those that are transposed below each other, then transposed."""
    lefts = [_operands(term)[0] for term in terms]
    if all(is_call(left, aten.permute.default) for left in lefts):
        return Call(aten.permute.default, (Call(aten.cat.default, ([x.args[0] for x in lefts], 0)), [1, 0]))
    return Call(aten.cat.default, (lefts, 1))


def _right_of_all(terms: Sequence[Node]) -> Call:
    return Call(aten.cat.default, ([_operands(term)[1] for term in terms], 0))
