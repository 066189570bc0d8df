"""simplify: an operator that changes nothing, undoes another or copies what is there already is taken out.

Every rule is exact: the same bits for every input, NaN, infinities and -0.0 included (but for the payload of
a NaN). So `x + 0` stays for floats, since -0.0 + 0 is 0, while `x - 0` goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch.fx import Node

from wolong_fx.passes.base import NodePass, Numerics
from wolong_fx.passes.edit import Call, Replacement, Rewrite
from wolong_fx.passes.values import aten, is_call, is_number, is_tensor, same_value, shape_of, value_of

Rule = Callable[[Node], Replacement | None]


@dataclass(frozen=True)
class Simplify(NodePass):
    """Applies the rules of its operator until none holds; see RULES."""

    name: ClassVar[str] = "simplify"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, node: Node) -> Rewrite | None:
        for rule, because in RULES.get(node.target, ()):
            if (by := rule(node)) is not None:
                return Rewrite(node, by, because)
        return None


def _kept(node: Node, operand: object) -> Node | None:
    """The operand, if it already is the value that the node computes."""
    is_same = isinstance(operand, Node) and same_value(value_of(operand), value_of(node))
    return operand if is_same else None  # type: ignore[return-value]


def _has_alpha(node: Node) -> bool:
    return "alpha" in node.kwargs


def _is_exactly(argument: object, number: float) -> bool:
    """That number with that sign: 0.0 is not -0.0. An int 0 counts as 0.0."""
    if not is_number(argument) or isinstance(argument, bool) or argument != number:
        return False
    return math.copysign(1.0, argument) == math.copysign(1.0, number)  # type: ignore[arg-type]


def _times_one(node: Node) -> Replacement | None:
    left, right = node.args
    if _is_exactly(right, 1):
        return _kept(node, left)
    return _kept(node, right) if _is_exactly(left, 1) else None


def _over_one(node: Node) -> Replacement | None:
    return _kept(node, node.args[0]) if _is_exactly(node.args[1], 1) and not node.kwargs else None


def _plus_nothing(node: Node) -> Replacement | None:
    left, right = node.args
    nothing = -0.0 if value_of(node).dtype.is_floating_point else 0
    if _has_alpha(node):
        return None
    if _is_exactly(right, nothing):
        return _kept(node, left)
    return _kept(node, right) if _is_exactly(left, nothing) else None


def _minus_nothing(node: Node) -> Replacement | None:
    return _kept(node, node.args[0]) if _is_exactly(node.args[1], 0) and not _has_alpha(node) else None


def _power_of_one(node: Node) -> Replacement | None:
    return _kept(node, node.args[0]) if _is_exactly(node.args[1], 1) else None


def _square(node: Node) -> Replacement | None:
    base, exponent = node.args
    if not _is_exactly(exponent, 2) or _kept(node, base) is None:
        return None
    return Call(aten.mul.Tensor, (base, base))


def _undone(node: Node) -> Replacement | None:
    inner = node.args[0]
    return _kept(node, inner.args[0]) if is_call(inner, node.target) else None  # type: ignore


def _already_done(node: Node) -> Replacement | None:
    inner = node.args[0]
    return inner if is_call(inner, node.target) else None  # type: ignore


def _same_cast(node: Node) -> Replacement | None:
    return _kept(node, node.args[0]) if node.kwargs.keys() <= {"dtype"} else None


# Every value of the key is a value of each dtype in its row.
_WIDER: Mapping[torch.dtype, frozenset[torch.dtype]] = {
    torch.bool: frozenset(
        {torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64}
    ),
    torch.float16: frozenset({torch.float32, torch.float64}),
    torch.bfloat16: frozenset({torch.float32, torch.float64}),
    torch.float32: frozenset({torch.float64}),
    torch.int32: frozenset({torch.int64, torch.float64}),
}


def _cast_there_and_back(node: Node) -> Replacement | None:
    inner = node.args[0]
    if not is_call(inner, aten._to_copy.default) or not _is_widening(inner):
        return None
    return _kept(node, inner.args[0])  # type: ignore[union-attr]


def _cast_in_two_steps(node: Node) -> Replacement | None:
    inner = node.args[0]
    if not is_call(inner, aten._to_copy.default) or not (_is_widening(inner) and _is_widening(node)):
        return None
    return Call(aten._to_copy.default, (inner.args[0],), {"dtype": value_of(node).dtype})  # type: ignore


def _is_widening(cast: Any) -> bool:
    source = cast.args[0]
    plain = cast.kwargs.keys() == {"dtype"} and is_tensor(source)
    return plain and value_of(cast).dtype in _WIDER.get(value_of(source).dtype, ())


def _identity_permute(node: Node) -> Replacement | None:
    return _kept(node, node.args[0]) if list(node.args[1]) == sorted(node.args[1]) else None  # type: ignore


def _double_permute(node: Node) -> Replacement | None:
    inner, outer_dims = node.args
    if not is_call(inner, aten.permute.default):
        return None
    operand, inner_dims = inner.args  # type: ignore[union-attr]
    return Call(aten.permute.default, (operand, [inner_dims[d] for d in outer_dims]))  # type: ignore


def _same_shape(node: Node) -> Replacement | None:
    return _kept(node, node.args[0])


def _view_of_view(node: Node) -> Replacement | None:
    inner = node.args[0]
    if not is_call(inner, aten.view.default) or not value_of(inner.args[0]).is_contiguous():  # type: ignore
        return None
    return Call(aten.view.default, (inner.args[0], node.args[1]))  # type: ignore[union-attr]


def _expand_of_expand(node: Node) -> Replacement | None:
    inner = node.args[0]
    return Call(node.target, (inner.args[0], node.args[1])) if is_call(inner, node.target) else None  # type: ignore


def _slice_of_everything(node: Node) -> Replacement | None:
    return _kept(node, node.args[0]) if len(node.args) == 4 else None


def _slice_of_slice(node: Node) -> Replacement | None:
    inner, dim, start, end, *step = node.args
    if step or not is_call(inner, aten.slice.Tensor) or len(inner.args) != 4 or inner.args[1] != dim:  # type: ignore
        return None
    operand, _, offset, _ = inner.args  # type: ignore[union-attr]
    return Call(aten.slice.Tensor, (operand, dim, offset + start, offset + end))  # type: ignore[operator]


def _select_of_slice(node: Node) -> Replacement | None:
    inner, dim, index = node.args
    if not is_call(inner, aten.slice.Tensor) or len(inner.args) != 4 or inner.args[1] != dim:  # type: ignore
        return None
    return Call(aten.select.int, (inner.args[0], dim, inner.args[2] + index))  # type: ignore


def _cat_parts(node: Node) -> tuple[list[Node], int]:
    return list(node.args[0]), node.args[1] if len(node.args) > 1 else 0  # type: ignore


def _cat_of_one(node: Node) -> Replacement | None:
    parts, _ = _cat_parts(node)
    return _kept(node, parts[0]) if len(parts) == 1 else None


def _cat_of_all_slices(node: Node) -> Replacement | None:
    """Consecutive slices of one tensor, from its first element to its last, put together again."""
    parts, dim = _cat_parts(node)
    if not all(is_call(p, aten.slice.Tensor) and len(p.args) == 4 and p.args[1] == dim for p in parts):
        return None
    whole = parts[0].args[0]
    bounds = [0, *(p.args[3] for p in parts)]
    is_whole = all(p.args[0] is whole and p.args[2] == start for p, start in zip(parts, bounds, strict=False))
    return _kept(node, whole) if is_whole and bounds[-1] == shape_of(whole)[dim] else None


def _cat_of_all_selects(node: Node) -> Replacement | None:
    """The rows of one tensor, each a view with its dimension put back, stacked again."""
    parts, dim = _cat_parts(node)
    rows = [p.args[0] for p in parts if is_call(p, aten.view.default) and shape_of(p)[dim] == 1]
    if len(rows) != len(parts) or not all(is_call(r, aten.select.int) for r in rows):
        return None
    whole = rows[0].args[0]  # type: ignore[union-attr]
    is_in_order = all(r.args == (whole, dim, i) for i, r in enumerate(rows))  # type: ignore[union-attr]
    is_put_back = all(_without(shape_of(p), dim) == shape_of(r) for p, r in zip(parts, rows, strict=True))
    return _kept(node, whole) if is_in_order and is_put_back else None


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return shape[:dim] + shape[dim + 1 :]


def _cat_of_cat(node: Node) -> Replacement | None:
    """A concat inside a concat along the same dimension, if nothing else needs the inner one."""
    parts, dim = _cat_parts(node)
    inner = [is_call(p, aten.cat.default) and len(p.users) == 1 and _cat_parts(p)[1] == dim for p in parts]
    if not any(inner) or len(set(parts)) != len(parts):
        return None
    flat = [[p] if not is_cat else _cat_parts(p)[0] for p, is_cat in zip(parts, inner, strict=True)]
    return Call(aten.cat.default, (list(chain.from_iterable(flat)), *node.args[1:]))


def _where_of_the_same(node: Node) -> Replacement | None:
    _, then, otherwise = node.args
    return _kept(node, then) if then is otherwise else None


RULES: Mapping[object, tuple[tuple[Rule, str], ...]] = {
    aten.mul.Tensor: ((_times_one, "times 1 changes nothing"),),
    aten.div.Tensor: ((_over_one, "divided by 1 changes nothing"),),
    aten.add.Tensor: ((_plus_nothing, "plus nothing changes nothing"),),
    aten.sub.Tensor: ((_minus_nothing, "minus 0 changes nothing"),),
    aten.pow.Tensor_Scalar: (
        (_power_of_one, "to the power of 1 changes nothing"),
        (_square, "to the power of 2 is a product"),
    ),
    aten.neg.default: ((_undone, "the second negation undoes the first"),),
    aten.relu.default: ((_already_done, "the operand is not negative already"),),
    aten.abs.default: ((_already_done, "the operand is not negative already"),),
    aten._to_copy.default: (
        (_same_cast, "the operand already has this dtype"),
        (_cast_there_and_back, "a wider dtype and back changes nothing"),
        (_cast_in_two_steps, "one cast to the widest dtype does"),
    ),
    aten.permute.default: (
        (_identity_permute, "the order of dimensions does not change"),
        (_double_permute, "two permutations are one"),
    ),
    aten.view.default: ((_same_shape, "the shape does not change"), (_view_of_view, "two views are one")),
    aten.expand.default: (
        (_same_shape, "the shape does not change"),
        (_expand_of_expand, "two expands are one"),
    ),
    aten.slice.Tensor: (
        (_slice_of_everything, "the slice is the whole tensor"),
        (_slice_of_slice, "two slices are one"),
    ),
    aten.select.int: ((_select_of_slice, "a row of a slice is a row of the tensor"),),
    aten.cat.default: (
        (_cat_of_one, "a concat of one tensor is the tensor"),
        (_cat_of_all_slices, "the slices put together are the tensor"),
        (_cat_of_all_selects, "the rows put together are the tensor"),
        (_cat_of_cat, "two concats are one"),
    ),
    aten.where.self: ((_where_of_the_same, "both choices are the same"),),
}
