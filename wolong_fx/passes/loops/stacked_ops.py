"""How an operator of a body is computed for all steps at once: a rule for each family of operators.

A value of every step is stacked: one tensor with the steps as dimension 0. A value that is the same in every
step is whole. Given operands of both kinds, a rule says which calls compute the stacked result; None where
there is no way without a loop. Rows of all steps are rows of one MatMul if they can be seen so in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from wolong_fx.passes.edit import Call, Editor
from wolong_fx.passes.values import OpOverload, aten, is_pointwise_operator, shape_of, value_of

Placed = Node | Call


@dataclass(frozen=True)
class Lifted:
    """What stands for a value of the body in the graph outside: `node`, stacked over the steps or whole."""

    node: Node
    is_stacked: bool


@dataclass(frozen=True)
class Step:
    """An operator of a body, and where its operands are outside of the loop."""

    node: Node
    lifted: Mapping[Node, Lifted]
    trips: int
    place: Callable[[Call], Node]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the operator's result in one step."""
        return shape_of(self.node)

    def is_stacked(self, operand: object) -> bool:
        """True of an operand that differs from step to step."""
        return isinstance(operand, Node) and self.lifted[operand].is_stacked

    def outside(self, operand: Any) -> Any:
        """The argument with what stands outside for its nodes."""
        return map_arg(operand, lambda node: self.lifted[node].node)

    def stacked(self, operand: Node) -> Node:
        """The operand with the steps as dimension 0, by a view if it is the same in every step."""
        lifted = self.lifted[operand]
        if lifted.is_stacked:
            return lifted.node
        return self.place(Call(aten.expand.default, (lifted.node, [self.trips, *shape_of(operand)])))

    def merged(self, tensor: Node, first: int, second: int) -> Node:
        """Dimension `first` joined into the one behind it, `second` = first + 1: a view if memory allows."""
        sizes = list(shape_of(tensor))
        sizes[first : second + 1] = [sizes[first] * sizes[second]]
        return self.viewed(tensor, sizes)

    def viewed(self, tensor: Node, sizes: Sequence[int]) -> Node:
        """The tensor in another shape: a view if its memory allows it, else of a copy."""
        if list(shape_of(tensor)) == list(sizes):
            return tensor
        if not _has_view(value_of(tensor), sizes):
            tensor = self.place(
                Call(aten.clone.default, (tensor,), {"memory_format": torch.contiguous_format})
            )
        return self.place(Call(aten.view.default, (tensor, list(sizes))))

    def permuted(self, tensor: Node, dims: Sequence[int]) -> Node:
        """The tensor with its dimensions in another order."""
        if list(dims) == list(range(len(dims))):
            return tensor
        return self.place(Call(aten.permute.default, (tensor, list(dims))))


Rule = Callable[[Step], Placed | None]


def lift(
    node: Node, lifted: Mapping[Node, Lifted], trips: int, editor: Editor, before: Node
) -> Lifted | None:
    """Place what computes the operator `node` of a body outside of the loop, for all steps, before a node.

    Its operands are lifted. None if there is no rule; operators placed on the way are dead then.
    """
    step = Step(node, lifted, trips, lambda call: editor.place(call, before, origin=node))
    if not isinstance(node.target, OpOverload) or not isinstance(value_of(node), torch.Tensor):
        return None
    if not any(map(step.is_stacked, node.all_input_nodes)):
        call = Call(node.target, step.outside(node.args), step.outside(dict(node.kwargs)))
        return Lifted(step.place(call), is_stacked=False)
    result = find_rule(node.target)(step)
    if result is None:
        return None
    placed = result if isinstance(result, Node) else step.place(result)
    is_good = shape_of(placed) == (trips, *step.shape) and value_of(placed).dtype == value_of(node).dtype
    return Lifted(placed, is_stacked=True) if is_good else None


def sum_over_steps(node: Node, step: Step) -> Placed:
    """What the values of `node` add up to over all steps: if they are not lifted, by a rule of SUMS."""
    if node in step.lifted:
        return Call(aten.sum.dim_IntList, (step.stacked(node), [0]))
    return SUMS[node.target](step)


def _sum_of_sum(step: Step) -> Placed:
    """One sum, over the steps too."""
    operand, dims, *rest = step.node.args
    moved = [dim % len(shape_of(operand)) + 1 for dim in dims]  # type: ignore
    return Call(aten.sum.dim_IntList, (step.stacked(operand), [0, *moved], *rest), step.node.kwargs)  # type: ignore


def _sum_of_mm(step: Step) -> Placed:
    """Sum over t of a_t b_t: one MatMul over the columns of all a and the rows of all b."""
    a, b = (step.stacked(operand) for operand in step.node.args)  # type: ignore[arg-type]
    columns = step.permuted(step.merged(step.permuted(a, [0, 2, 1]), 0, 1), [1, 0])
    return Call(aten.mm.default, (columns, step.merged(b, 0, 1)))


SUMS: Mapping[object, Callable[[Step], Placed]] = {
    aten.mm.default: _sum_of_mm,
    aten.sum.dim_IntList: _sum_of_sum,
}


def find_rule(target: Any) -> Rule:
    """The rule for an operator; one that always declines if there is none."""
    if target in RULES:
        return RULES[target]
    return _pointwise if is_pointwise_operator(target) else _declined


def _declined(step: Step) -> None:
    return None


def _pointwise(step: Step) -> Placed | None:
    rank = len(step.shape)

    def aligned(operand: Node) -> Node:
        """Dimensions are matched from the last: those that a stacked operand lacks stand behind the steps."""
        node, lacking = step.lifted[operand].node, rank - len(shape_of(operand))
        if not step.is_stacked(operand) or not lacking:
            return node
        return step.viewed(node, [step.trips, *[1] * lacking, *shape_of(operand)])

    return Call(step.node.target, *map_arg((step.node.args, dict(step.node.kwargs)), aligned))  # type: ignore


def _clone(step: Step) -> Placed | None:
    is_plain = step.node.kwargs.get("memory_format") in (None, torch.preserve_format, torch.contiguous_format)
    return _same_with(step) if is_plain else None


def _same_with(step: Step, *arguments: Any) -> Call:
    """The same operator on the stacked first operand, with other arguments behind it."""
    operand = step.stacked(step.node.args[0])  # type: ignore[arg-type]
    return Call(step.node.target, (operand, *arguments), step.node.kwargs)  # type: ignore[arg-type]


def _permute(step: Step) -> Placed:
    return _same_with(step, [0, *(dim + 1 for dim in step.node.args[1])])  # type: ignore


def _view(step: Step) -> Placed:
    return step.viewed(step.stacked(step.node.args[0]), [step.trips, *step.shape])  # type: ignore[arg-type]


def _expand(step: Step) -> Placed:
    operand = step.node.args[0]
    lacking = len(step.shape) - len(shape_of(operand))
    tensor = step.viewed(step.stacked(operand), [step.trips, *[1] * lacking, *shape_of(operand)])  # type: ignore
    return Call(aten.expand.default, (tensor, [step.trips, *step.shape]))


def _dim_is_second(step: Step) -> Placed | None:
    """The operator's dimension, or dimensions, count one more."""
    rank = len(shape_of(step.node.args[0]))
    dims = step.node.args[1] if len(step.node.args) > 1 else None
    if rank == 0 or dims in (None, []):
        return None
    moved = [dim % rank + 1 for dim in dims] if isinstance(dims, tuple | list) else dims % rank + 1  # type: ignore
    return _same_with(step, moved, *step.node.args[2:])


def _cat(step: Step) -> Placed:
    parts = [step.stacked(part) for part in step.node.args[0]]  # type: ignore
    dim = (step.node.args[1:] or (0,))[0]
    return Call(aten.cat.default, (parts, dim % len(step.shape) + 1))  # type: ignore[operator]


def _mm(step: Step) -> Placed:
    a, b = step.node.args
    if step.is_stacked(b):
        return Call(aten.bmm.default, (step.stacked(a), step.stacked(b)))  # type: ignore[arg-type]
    return _rows_of_all_steps(step, aten.mm.default, (), a, b)  # type: ignore[arg-type]


def _addmm(step: Step) -> Placed | None:
    bias, a, b = step.node.args
    is_row = len(shape_of(bias)) == 1 and not step.is_stacked(bias)
    if step.is_stacked(a) and not step.is_stacked(b) and is_row:
        return _rows_of_all_steps(step, aten.addmm.default, (step.outside(bias),), a, b)  # type: ignore[arg-type]
    if step.node.kwargs:
        return None
    product = _product(step, a, b)  # type: ignore[arg-type]
    rank = len(shape_of(bias))
    if step.is_stacked(bias):
        row = step.viewed(step.stacked(bias), [step.trips, *[1] * (2 - rank), *shape_of(bias)])  # type: ignore
    else:
        row = step.outside(bias)
    return Call(aten.add.Tensor, (product, row))


def _product(step: Step, a: Node, b: Node) -> Placed:
    if step.is_stacked(b) or not step.is_stacked(a):
        return Call(aten.bmm.default, (step.stacked(a), step.stacked(b)))
    return _rows_of_all_steps(step, aten.mm.default, (), a, b)


def _rows_of_all_steps(step: Step, target: Any, first: tuple[Any, ...], a: Node, b: Node) -> Placed:
    """a differs from step to step, b does not: one MatMul whose rows are those of every step.

    Where memory holds the steps of one row together, rows come first and steps second.
    """
    tensor, kwargs = step.stacked(a), dict(step.node.kwargs)
    trips, rows, inner = shape_of(tensor)
    steps_first = _has_view(value_of(tensor), [trips * rows, inner])
    rows_first = not steps_first and _has_view(value_of(tensor).transpose(0, 1), [trips * rows, inner])
    if rows_first:
        tensor = step.permuted(tensor, [1, 0, 2])
    product = step.place(Call(target, (*first, step.merged(tensor, 0, 1), step.outside(b)), kwargs))
    sizes = [rows, trips] if rows_first else [trips, rows]
    whole = step.viewed(product, [*sizes, step.shape[-1]])
    return step.permuted(whole, [1, 0, 2]) if rows_first else whole


def _bmm(step: Step) -> Placed:
    a, b = (step.merged(step.stacked(operand), 0, 1) for operand in step.node.args)  # type: ignore[arg-type]
    product = step.place(Call(aten.bmm.default, (a, b)))
    return step.viewed(product, [step.trips, *step.shape])


def _embedding(step: Step) -> Placed | None:
    weight, *rest = step.node.args
    if step.is_stacked(weight):
        return None
    return Call(aten.embedding.default, (step.outside(weight), *step.outside(rest)), step.node.kwargs)  # type: ignore


RULES: Mapping[object, Rule] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.embedding.default: _embedding,
    aten.permute.default: _permute,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten._unsafe_view.default: _view,
    aten.unsqueeze.default: _view,
    aten.squeeze.dim: _view,
    aten.squeeze.dims: _view,
    aten.expand.default: _expand,
    aten.slice.Tensor: _dim_is_second,
    aten.select.int: _dim_is_second,
    aten.cat.default: _cat,
    aten.clone.default: _clone,
    aten._to_copy.default: _same_with,
    aten.sum.dim_IntList: _dim_is_second,
    aten.mean.dim: _dim_is_second,
    aten.amax.default: _dim_is_second,
    aten.amin.default: _dim_is_second,
    aten.var.correction: _dim_is_second,
    aten._softmax.default: _dim_is_second,
    aten._log_softmax.default: _dim_is_second,
}

MATMULS = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default})
HEAVY = MATMULS | {
    *(aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default),
    *(aten.var.correction, aten._softmax.default, aten._log_softmax.default),
}
VIEWS = frozenset(
    {
        *(aten.permute.default, aten.view.default, aten.slice.Tensor, aten.select.int),
        *(aten.expand.default, aten.unsqueeze.default, aten.reshape.default, aten._unsafe_view.default),
        *(aten.squeeze.dim, aten.squeeze.dims),
    }
)


def _has_view(value: torch.Tensor, sizes: Sequence[int]) -> bool:
    try:
        value.view(list(sizes))
    except (RuntimeError, ValueError):
        return False
    return True
