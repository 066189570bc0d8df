"""canonicalise: one spelling for each meaning, so that later passes and lowerings know one form of each.

The form: views are permute, view, expand, slice, select; dimensions count from 0; arithmetic with a number is
the Tensor overload; tensors made of numbers are `full` with dtype and device; arguments at their default are
left out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch.fx import Node

from wolong_fx.passes.base import NodePass, Numerics
from wolong_fx.passes.edit import Call, Replacement, Rewrite
from wolong_fx.passes.values import OpOverload, aten, find_argument, is_number, is_tensor, shape_of, value_of

Spelling = Callable[[Node], Replacement | None]


@dataclass(frozen=True)
class Canonicalise(NodePass):
    """Rewrites every operator into its one spelling; see SPELLINGS."""

    name: ClassVar[str] = "canonicalise"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, node: Node) -> Rewrite | None:
        spell, meaning = SPELLINGS.get(node.target, (None, ""))
        if spell and (by := spell(node)) is not None:
            return Rewrite(node, by, meaning)
        if isinstance(node.target, OpOverload) and (plain := _plain_arguments(node)):
            return Rewrite(
                node, plain, "its arguments have one spelling: dimensions from 0, defaults left out"
            )
        return None


def _operand(node: Node) -> Node | None:
    first = node.args[0]
    return first if isinstance(first, Node) else None


def _permute_of_t(node: Node) -> Replacement | None:
    rank = len(shape_of(node))
    return Call(aten.permute.default, (node.args[0], [1, 0])) if rank == 2 else _operand(node)


def _permute_of_transpose(node: Node) -> Replacement | None:
    rank = len(shape_of(node))
    if rank == 0:
        return _operand(node)
    dims = list(range(rank))
    first, second = (find_argument(node, name) % rank for name in ("dim0", "dim1"))
    dims[first], dims[second] = second, first
    return Call(aten.permute.default, (node.args[0], dims))


def _view(node: Node) -> Replacement | None:
    return Call(aten.view.default, (node.args[0], list(shape_of(node))))


def _view_of_reshape(node: Node) -> Replacement | None:
    return _view(node) if is_tensor(node.args[0]) and value_of(node.args[0]).is_contiguous() else None


def _view_of_as_strided(node: Node) -> Replacement | None:
    """A reshape in disguise: torch writes one in the decomposition of group norm."""
    if not is_tensor(node.args[0]):
        return None
    old, new = value_of(node.args[0]), value_of(node)
    is_whole = old.is_contiguous() and new.is_contiguous() and old.numel() == new.numel()
    return _view(node) if is_whole and old.storage_offset() == new.storage_offset() else None


def _copy_of(view: Spelling) -> Spelling:
    """What torch writes in the bodies of loops, where no result may share memory: a view, copied."""

    def spell(node: Node) -> Replacement | None:
        looked_at = view(node)
        if looked_at is None:
            return None
        return Call(aten.clone.default, (looked_at,), {"memory_format": torch.contiguous_format})

    return spell


def _same_view(target: Callable[..., object]) -> Spelling:
    return lambda node: Call(target, node.args, node.kwargs)


def _full_sizes(node: Node) -> Replacement | None:
    sizes = list(shape_of(node))
    return None if list(node.args[1]) == sizes else Call(node.target, (node.args[0], sizes))  # type: ignore


def _full(node: Node, number: object) -> Replacement | None:
    value = value_of(node)
    return Call(
        aten.full.default, (list(value.shape), number), {"dtype": value.dtype, "device": value.device}
    )


def _full_of_zeros(node: Node) -> Replacement | None:
    return _full(node, _typed(0, node))


def _full_of_ones(node: Node) -> Replacement | None:
    return _full(node, _typed(1, node))


def _full_of_number(node: Node) -> Replacement | None:
    number = node.args[0] if node.target is aten.scalar_tensor.default else find_argument(node, "fill_value")
    return _full(node, _typed(number, node)) if is_number(number) else None


def _explicit_full(node: Node) -> Replacement | None:
    is_explicit = set(node.kwargs) == {"dtype", "device"} and type(node.args[1]) is type(_typed(0, node))
    return None if is_explicit else _full_of_number(node)


def _typed(number: Any, node: Node) -> bool | int | float:
    """The number as the node's dtype holds it: 1, 1.0 and True would spell one tensor three ways."""
    dtype = value_of(node).dtype
    if dtype.is_floating_point:
        return float(number)
    return bool(number) if str(dtype) == "torch.bool" else int(number)


def _tensor_overload(node: Node) -> Replacement | None:
    target = getattr(node.target.overloadpacket, "Tensor")  # type: ignore[union-attr]  # noqa: B009
    self, other, *alpha = node.args
    alpha += [node.kwargs["alpha"]] if "alpha" in node.kwargs else []
    return Call(target, (self, other), {"alpha": alpha[0]} if alpha else {})


def _sub_of_rsub(node: Node) -> Replacement | None:
    if find_argument(node, "alpha", 1) != 1:
        return None
    return Call(aten.sub.Tensor, (node.args[1], node.args[0]))


_OPPOSITE = {aten.add.Tensor: aten.sub.Tensor, aten.sub.Tensor: aten.add.Tensor}


def _without_alpha(node: Node) -> Replacement | None:
    """add and sub without alpha. For floats the product stays inside: eager fuses it, with one rounding."""
    alpha = node.kwargs.get("alpha", 1)
    if alpha == 1:
        return None
    if alpha == -1:
        return Call(_OPPOSITE[node.target], node.args)  # type: ignore[index]
    if value_of(node).dtype.is_floating_point or not is_tensor(node.args[1]):
        return None
    return Call(node.target, (node.args[0], Call(aten.mul.Tensor, (node.args[1], alpha))))  # type: ignore[arg-type]


def _cast(node: Node) -> Replacement | None:
    """_to_copy with the dtype alone, where nothing else is asked for."""
    dtype = value_of(node).dtype
    if not is_tensor(node.args[0]) or node.kwargs.keys() == {"dtype"}:
        return None
    is_plain = node.kwargs.get("device") in (None, value_of(node.args[0]).device)
    return Call(aten._to_copy.default, (node.args[0],), {"dtype": dtype}) if is_plain else None


def _bounded_slice(node: Node) -> Replacement | None:
    """slice with its dimension from 0 and bounds inside the tensor."""
    operand = node.args[0]
    dim, start, end, step = (find_argument(node, n, d) for n, d in _SLICE_DEFAULTS)
    size = shape_of(operand)[dim]
    start, end, step = slice(start, end, step).indices(size)
    args = (operand, dim % len(shape_of(operand)), start, max(start, end), step)
    args = args if step != 1 else args[:-1]
    return None if node.args == args and not node.kwargs else Call(aten.slice.Tensor, args)


_SLICE_DEFAULTS = (("dim", 0), ("start", None), ("end", None), ("step", 1))


def _counted_select(node: Node) -> Replacement | None:
    operand, dim, index = node.args[0], find_argument(node, "dim"), find_argument(node, "index")
    rank, size = len(shape_of(operand)), shape_of(operand)[dim]
    if dim >= 0 and index >= 0:
        return None
    return Call(aten.select.int, (operand, dim % rank, index % size))


def _part_of_split(node: Node) -> Replacement | None:
    """One part of split or unbind as the slice or select that it is."""
    whole, index = node.args
    if not isinstance(whole, Node) or whole.target not in _PARTED or not isinstance(index, int):
        return None
    operand, dim = whole.args[0], find_argument(whole, "dim", 0)
    dim %= len(shape_of(operand))
    index %= len(value_of(whole))
    if whole.target is aten.unbind.int:
        return Call(aten.select.int, (operand, dim, index))
    ends = list(accumulate(part.shape[dim] for part in value_of(whole)))
    return Call(aten.slice.Tensor, (operand, dim, ends[index] - shape_of(node)[dim], ends[index]))


_PARTED = {aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int}


def _cat_of_stack(node: Node) -> Replacement | None:
    tensors, rank = node.args[0], len(shape_of(node))
    dim = find_argument(node, "dim", 0) % rank
    row = list(shape_of(node))
    row[dim] = 1
    return Call(aten.cat.default, ([Call(aten.view.default, (t, row)) for t in tensors], dim))  # type: ignore


def _over_all_dimensions(node: Node) -> Replacement | None:
    target = getattr(node.target.overloadpacket, _REDUCTIONS[node.target])  # type: ignore
    dims = list(range(len(shape_of(node.args[0]))))
    return Call(target, (node.args[0], dims), node.kwargs)


_REDUCTIONS = {aten.sum.default: "dim_IntList", aten.mean.default: "dim"}


def _every_dimension(node: Node) -> Replacement | None:
    """A reduction over no dimension in particular is one over all of them."""
    if find_argument(node, "dim", []) not in ([], None):
        return None
    dims = list(range(len(shape_of(node.args[0]))))
    return Call(node.target, (node.args[0], dims, *node.args[2:]), node.kwargs) if dims else None  # type: ignore


def _draw_of_shape(node: Node) -> Replacement | None:
    """A draw like x needs x's shape, not its values: kernels before and after it may then be one."""
    value = value_of(node)
    if not value.is_contiguous():  # the generator fills memory in its order
        return None
    sizes, kwargs = list(value.shape), {"dtype": value.dtype, "device": value.device}
    return Call(_DRAWS[node.target], (sizes,), kwargs)  # type: ignore[index]


_DRAWS = {aten.rand_like.default: aten.rand.default, aten.randn_like.default: aten.randn.default}


def _draw_of_probability(node: Node) -> Replacement | None:
    operand = _operand(node)
    if operand is None or operand.target is aten.full.default or not value_of(node).is_contiguous():
        return None
    return Call(aten.bernoulli.p, (_full(node, _typed(0, node)), *node.args[1:]), node.kwargs)


SPELLINGS: Mapping[object, tuple[Spelling, str]] = {
    aten.t.default: (_permute_of_t, "t is a permute"),
    aten.transpose.int: (_permute_of_transpose, "transpose is a permute"),
    aten.squeeze.default: (_view, "squeeze is a view"),
    aten.squeeze.dim: (_view, "squeeze is a view"),
    aten.squeeze.dims: (_view, "squeeze is a view"),
    aten.unsqueeze.default: (_view, "unsqueeze is a view"),
    aten._unsafe_view.default: (_view, "_unsafe_view is a view"),
    aten.reshape.default: (_view_of_reshape, "reshape of contiguous memory is a view"),
    aten.as_strided.default: (_view_of_as_strided, "as_strided of the same memory is a view"),
    aten.expand.default: (_full_sizes, "expand names every size"),
    aten.view.default: (_full_sizes, "view names every size"),
    aten.detach.default: (_operand, "nothing here tracks gradients"),
    aten.alias.default: (_operand, "an alias is the tensor itself"),
    aten.detach_copy.default: (_copy_of(_operand), "it is the tensor, copied"),
    aten.alias_copy.default: (_copy_of(_operand), "it is the tensor, copied"),
    aten.t_copy.default: (_copy_of(_permute_of_t), "it is a permute, copied"),
    aten.transpose_copy.int: (_copy_of(_permute_of_transpose), "it is a permute, copied"),
    aten.permute_copy.default: (_copy_of(_same_view(aten.permute.default)), "it is a permute, copied"),
    aten.view_copy.default: (_copy_of(_view), "it is a view, copied"),
    aten.unsqueeze_copy.default: (_copy_of(_view), "it is a view, copied"),
    aten.squeeze_copy.default: (_copy_of(_view), "it is a view, copied"),
    aten.squeeze_copy.dim: (_copy_of(_view), "it is a view, copied"),
    aten.squeeze_copy.dims: (_copy_of(_view), "it is a view, copied"),
    aten.expand_copy.default: (_copy_of(_same_view(aten.expand.default)), "it is an expand, copied"),
    aten.slice_copy.Tensor: (_copy_of(_same_view(aten.slice.Tensor)), "it is a slice, copied"),
    aten.select_copy.int: (_copy_of(_same_view(aten.select.int)), "it is a select, copied"),
    aten.lift_fresh.default: (_operand, "the constant is lifted already"),
    aten.contiguous.default: (_operand, "its memory is contiguous already"),
    aten.clone.default: (_operand, "nobody writes to the copy or to the original"),
    aten.zeros.default: (_full_of_zeros, "zeros is a full"),
    aten.zeros_like.default: (_full_of_zeros, "zeros_like is a full"),
    aten.new_zeros.default: (_full_of_zeros, "new_zeros is a full"),
    aten.ones.default: (_full_of_ones, "ones is a full"),
    aten.ones_like.default: (_full_of_ones, "ones_like is a full"),
    aten.new_ones.default: (_full_of_ones, "new_ones is a full"),
    aten.full_like.default: (_full_of_number, "full_like is a full"),
    aten.new_full.default: (_full_of_number, "new_full is a full"),
    aten.scalar_tensor.default: (_full_of_number, "scalar_tensor is a full"),
    aten.full.default: (_explicit_full, "full names its dtype and device"),
    aten.add.Scalar: (_tensor_overload, "arithmetic with a number is the Tensor overload"),
    aten.sub.Scalar: (_tensor_overload, "arithmetic with a number is the Tensor overload"),
    aten.mul.Scalar: (_tensor_overload, "arithmetic with a number is the Tensor overload"),
    aten.div.Scalar: (_tensor_overload, "arithmetic with a number is the Tensor overload"),
    aten.rsub.Scalar: (_sub_of_rsub, "rsub is a sub"),
    aten.rsub.Tensor: (_sub_of_rsub, "rsub is a sub"),
    aten.add.Tensor: (_without_alpha, "alpha is a product"),
    aten.sub.Tensor: (_without_alpha, "alpha is a product"),
    aten._to_copy.default: (_cast, "a cast names its dtype alone"),
    aten.slice.Tensor: (_bounded_slice, "slice has its bounds inside the tensor"),
    aten.select.int: (_counted_select, "select counts from 0"),
    operator.getitem: (_part_of_split, "a part of split or unbind is a slice or select"),
    aten.stack.default: (_cat_of_stack, "stack is a concat of views"),
    aten.sum.default: (_over_all_dimensions, "a sum names its dimensions"),
    aten.mean.default: (_over_all_dimensions, "a mean names its dimensions"),
    aten.sum.dim_IntList: (_every_dimension, "a sum names its dimensions"),
    aten.mean.dim: (_every_dimension, "a mean names its dimensions"),
    aten.amax.default: (_every_dimension, "amax names its dimensions"),
    aten.amin.default: (_every_dimension, "amin names its dimensions"),
    aten.rand_like.default: (_draw_of_shape, "a draw needs a shape, not values"),
    aten.randn_like.default: (_draw_of_shape, "a draw needs a shape, not values"),
    aten.bernoulli.p: (_draw_of_probability, "a draw needs a shape, not values"),
}


def _plain_arguments(node: Node) -> Call | None:
    """The same call, dimensions counted from 0, without arguments at their default; None if it is that."""
    args = [_plain(node, a, value) for a, value in zip(_arguments(node.target), node.args, strict=False)]
    while args and len(args) > _required(node.target) and _is_default(node.target, len(args) - 1, args[-1]):
        args.pop()
    kwargs = {
        name: value for name, value in node.kwargs.items() if not _is_default_keyword(node, name, value)
    }
    if list(node.args) == args and node.kwargs == kwargs:
        return None
    return Call(node.target, tuple(args), kwargs)  # type: ignore[arg-type]


@cache
def _arguments(target: Any) -> tuple[tuple[str, bool, object], ...]:
    """(name, has a default, default) of every argument."""
    arguments = target._schema.arguments
    return tuple((a.name, a.has_default_value(), a.default_value) for a in arguments)


@cache
def _required(target: Any) -> int:
    return sum(not has_default for _, has_default, _ in _arguments(target))


def _is_default(target: Any, position: int, value: object) -> bool:
    _, has_default, default = _arguments(target)[position]
    return has_default and type(value) is type(default) and value == default


def _is_default_keyword(node: Node, name: str, value: object) -> bool:
    names = [argument[0] for argument in _arguments(node.target)]
    return _is_default(node.target, names.index(name), value)


def _plain(node: Node, argument: tuple[str, bool, object], value: Any) -> Any:
    if argument[0] not in ("dim", "dims") or not _is_negative(value):
        return value
    rank = _rank_counted(node)
    if rank is None:
        return value
    return [d % rank for d in value] if isinstance(value, tuple | list) else value % rank


def _is_negative(dim: object) -> bool:
    if isinstance(dim, tuple | list):
        return any(map(_is_negative, dim))
    return isinstance(dim, int) and dim < 0


def _rank_counted(node: Node) -> int | None:
    """The rank that a negative dimension counts back from: the first tensor's (a scalar counts as rank 1)."""
    first = node.args[0]
    tensor = first[0] if isinstance(first, tuple | list) and first else first
    if node.target not in _DIM_OF_FIRST_TENSOR or not is_tensor(tensor):
        return None
    return max(1, len(shape_of(tensor)))


# Operators whose `dim` counts the dimensions of their first tensor. Listed: unsqueeze counts one more.
_DIM_OF_FIRST_TENSOR = {
    getattr(getattr(aten, packet), overload)
    for packet, overload in (
        pair.split(".")
        for pair in """
        permute.default cat.default sum.dim_IntList mean.dim amax.default amin.default
        argmax.default argmin.default
        any.dim all.dim prod.dim_int var.correction var.dim var_mean.correction cumsum.default cumprod.default
        _softmax.default _log_softmax.default softmax.int log_softmax.int max.dim min.dim gather.default
        index_select.default scatter.src scatter.value scatter_add.default flip.default topk.default
        sort.default
        split.Tensor split_with_sizes.default unbind.int slice_scatter.default select_scatter.default
        logsumexp.default glu.default any.dims all.dims
        """.split()
    )
}
