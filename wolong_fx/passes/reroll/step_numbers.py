"""Python numbers that change with the step: `x * (t / T)`, `lengths > t`.

In the graph they are constants of calls that are otherwise the same. Each becomes a tensor of no dimensions,
an operand like any other; a loop walks along one vector of them. That is exact for the operators below: torch
converts a number to the dtype of the tensor beside it before it computes, as we do here.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from wolong_fx.passes.reroll.builder import Builder, find_fake_mode
from wolong_fx.passes.reroll.readings import value_of
from wolong_fx.passes.values import structural_key

FEWEST_VALUES = 4  # as many steps as the shortest loop has

# Operator -> where its number may stand. Not `1 / x`, which torch computes as a reciprocal, nor powers, of
# which some are special.
_SIDES: dict[Any, tuple[int, ...]] = {
    **dict.fromkeys((operator.add, torch.add, "add", operator.mul, torch.mul, "mul"), (0, 1)),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), (0, 1)),
    **dict.fromkeys((operator.truediv, torch.div, torch.true_divide, "div"), (1,)),
    **dict.fromkeys((operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne), (0, 1)),
    **dict.fromkeys((torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne), (1,)),
}
_CALLS = ("call_function", "call_method")
_DTYPES = (torch.float32, torch.float64, torch.int64)  # in narrower ones torch computes with the wide number


class _Use(NamedTuple):
    """The number at `position` of a call's two arguments."""

    node: Node
    position: int

    @property
    def number(self) -> Any:
        return self.node.args[self.position]

    @property
    def beside(self) -> torch.Tensor:
        """The value of the other argument."""
        return value_of(self.node.args[1 - self.position])  # type: ignore[arg-type]


def has_step_numbers(graph: Graph) -> bool:
    """Whether calls differ in such a number alone."""
    return bool(_find_uses(graph))


def name_step_numbers(graph: Graph) -> None:
    """Make them operands, in place: every value is one node."""
    uses = _find_uses(graph)
    if not uses:
        return
    key = "val" if any("val" in node.meta for node in graph.nodes) else "example_value"
    builder = Builder(graph, key, find_fake_mode(graph))
    first = next(node for node in graph.nodes if node.op != "placeholder")
    known: dict[object, Node] = {}
    for use in uses:
        like = {"dtype": use.beside.dtype, "device": use.beside.device}
        named = structural_key(use.number), *like.values()
        if named not in known:
            with graph.inserting_before(first):
                known[named] = builder.call(number_tensor, use.number, **like)
        use.node.update_arg(use.position, known[named])


def number_tensor(number: float, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The number as a tensor of no dimensions. A function of ours: its calls are told from the user's."""
    return torch.full((), number, dtype=dtype, device=device)


def is_number_tensor(node: Node) -> bool:
    """True of what `name_step_numbers` made of a number."""
    return node.target is number_tensor


def emit_number(builder: Builder, node: Node) -> Node:
    """The number tensor, in torch's words."""
    return builder.call(torch.full, (), node.args[0], **node.kwargs)


def emit_numbers(builder: Builder, nodes: Sequence[Node]) -> Node:
    """The vector of what these number tensors hold."""
    return builder.call(torch.tensor, [node.args[0] for node in nodes], **nodes[0].kwargs)


def _find_uses(graph: Graph) -> list[_Use]:
    """Those of groups of equal calls but for the number, of which there are enough."""
    if not _may_have_uses(graph):
        return []
    groups: dict[object, list[_Use]] = defaultdict(list)
    for node in graph.nodes:
        if (use := _find_use(node)) is not None:
            like = use.beside
            groups[node.target, use.position, like.dtype, like.device, like.shape].append(use)
    many = (uses for uses in groups.values() if _count_values(uses) >= FEWEST_VALUES)
    return [use for uses in many for use in uses]


def _may_have_uses(graph: Graph) -> bool:
    """Whether any of the operators has an argument that is no node; asks nothing of all the others."""
    found = (graph.find_nodes(op=op, target=target, sort=False) for target in _SIDES for op in _CALLS)
    return any(not isinstance(a, Node) for nodes in found for node in nodes for a in node.args[:2])


def _count_values(uses: Sequence[_Use]) -> int:
    return len({structural_key(use.number) for use in uses})


def _find_use(node: Node) -> _Use | None:
    positions = _SIDES.get(node.target, ()) if node.op in _CALLS else ()
    if not positions or len(node.args) != 2 or node.kwargs:
        return None
    for position in positions:
        number, other = node.args[position], node.args[1 - position]
        if isinstance(other, Node) and _is_exact(number, value_of(other)):
            return _Use(node, position)
    return None


def _is_exact(number: object, beside: Any) -> bool:
    """Whether the number as a tensor of that dtype computes the same."""
    if not isinstance(beside, torch.Tensor) or beside.dtype not in _DTYPES:
        return False
    return type(number) is int or (type(number) is float and beside.is_floating_point())
