"""A graph as flat arrays: what the search walks many times, read from FX once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, GraphModule, Node

from wolong_fx.passes.reroll.purity import is_draw, is_repeatable
from wolong_fx.passes.reroll.readings import DIVISIONS, STEP_NUMBERS, index_numbers, is_step_part, value_of
from wolong_fx.passes.reroll.step_numbers import is_number_tensor, number_tensor
from wolong_fx.passes.values import structural_key


class Use(NamedTuple):
    """One use of a value: the number of the node that reads it, and the position among its operands."""

    user: int
    position: int


@dataclass(frozen=True)
class GraphArrays:
    """Nodes by number, in the order of the graph; every tuple below has an entry a node.

    operands: numbers of the nodes it reads, in the order of its call
    numbers: integers of a reading that may differ from step to step (x[t], x[:, a:b]); () for all others
    kinds: equal for equal target, arguments but for nodes and `numbers`, and layout of the result
    firsts: the first node of each kind; has no entry a node
    is_leaf: an input, a parameter or a constant
    is_fixed: may not become part of a body: leaves, random draws, numbers, what is no tensor
    live: numbers of the calls that the outputs need
    next_draw: from each random draw to the one after it: their order is kept
    returned: numbers of the nodes that the graph returns
    """

    nodes: list[Node]
    operands: list[tuple[int, ...]]
    numbers: list[tuple[int, ...]]
    kinds: list[int]
    firsts: list[Node]
    is_leaf: bytearray
    is_fixed: bytearray
    live: list[int]
    next_draw: dict[int, int]
    returned: frozenset[int]

    @property
    def size(self) -> int:
        return len(self.nodes)

    @cached_property
    def users(self) -> list[list[Use]]:
        """Who reads each node, of those that the outputs need."""
        users: list[list[Use]] = [[] for _ in self.nodes]
        for number in self.live:
            for position, operand in enumerate(self.operands[number]):
                users[operand].append(Use(number, position))
        return users

    @cached_property
    def _last_draw(self) -> dict[int, int]:
        return {later: earlier for earlier, later in self.next_draw.items()}

    def needed_by(self, number: int) -> Sequence[int]:
        """Nodes that must come before this one: its operands, and the last draw before a draw."""
        if number in self._last_draw:
            return (*self.operands[number], self._last_draw[number])
        return self.operands[number]

    def followers(self, number: int) -> Iterable[int]:
        """Nodes that must come after this one: its users, and the next draw after a draw."""
        yield from (use.user for use in self.users[number])
        if number in self.next_draw:
            yield self.next_draw[number]


def number_graph(graph_module: GraphModule) -> GraphArrays:
    """The arrays of a graph."""
    graph = graph_module.graph
    nodes = [node for node in graph.nodes if node.op != "output"]
    number_of = {node: number for number, node in enumerate(nodes)}
    calls = list(map(_read_call, nodes))
    operands = [tuple([number_of[node] for node in call.operands]) for call in calls]
    kinds = _Kinds.of(nodes, calls, operands)
    returned = [number_of[node] for node in graph.output_node().all_input_nodes]
    leaf = bytearray(kinds.all(_is_leaf))
    draws = [number for number, draws in enumerate(kinds.all(_is_drawing)) if draws]
    live = _find_live(operands, [*returned, *draws, *map(number_of.__getitem__, find_parts(graph))])
    return GraphArrays(
        nodes=nodes,
        operands=operands,
        numbers=[call.numbers for call in calls],
        kinds=kinds.numbers,
        firsts=kinds.firsts,
        is_leaf=leaf,
        is_fixed=bytearray(kinds.all(_is_fixed)),
        live=[number for number in range(len(nodes)) if live[number] and not leaf[number]],
        next_draw=dict(pairwise(draws)),
        returned=frozenset(returned),
    )


class _Kinds(NamedTuple):
    """Kinds by number; a graph of 20,000 nodes has some dozens, and what is a fact of a kind is found once.

    numbers: the kind of each node
    firsts: the first node of each kind
    """

    numbers: list[int]
    firsts: list[Node]

    @classmethod
    def of(cls, nodes: Sequence[Node], calls: Sequence[_Call], operands: Sequence[tuple[int, ...]]) -> _Kinds:
        known: dict[object, int] = {}
        layouts = _find_layouts(nodes, calls, operands)
        keys = zip([call.template for call in calls], layouts, strict=True)
        numbers = [known.setdefault(key, len(known)) for key in keys]
        first_of = dict(zip(reversed(numbers), reversed(nodes), strict=True))
        return cls(numbers, [first_of[kind] for kind in range(len(known))])

    def all(self, is_so: Callable[[Node], bool]) -> list[bool]:
        """A fact of kinds, of every node."""
        facts = list(map(is_so, self.firsts))
        return [facts[kind] for kind in self.numbers]


def _find_layouts(
    nodes: Sequence[Node], calls: Sequence[_Call], operands: Sequence[tuple[int, ...]]
) -> list[int]:
    """An integer a node, equal for results of one layout.

    One call on operands of one layout has results of one layout; it is looked at where such a call is first
    met, and of leaves and readings at each: to ask a fake tensor costs most of reading a graph.
    """
    known: dict[object, int] = {}
    met: dict[object, int] = {}
    layouts: list[int] = []
    for node, call, read in zip(nodes, calls, operands, strict=True):
        key = (call.template, *[layouts[operand] for operand in read]) if read and not call.numbers else node
        layout = met.get(key)
        if layout is None:
            layout = met[key] = known.setdefault(_layout(value_of(node)), len(known))
        layouts.append(layout)
    return layouts


class _Call(NamedTuple):
    """A call taken apart: equal templates differ in operands and numbers only."""

    template: tuple[object, ...]
    operands: list[Node]
    numbers: tuple[int, ...]


_HOLE = "%"


# What may read at a number that moves with the step, or is a number.
_READING = {*STEP_NUMBERS, operator.getitem, number_tensor}


def _read_call(node: Node) -> _Call:
    if node.target in _READING or _is_leaf(node):
        return _read_reading(node)
    operands: list[Node] = []
    template = [node.op, node.target]
    for argument in node.args:  # nearly all arguments are nodes, and nearly all nodes come by here
        if isinstance(argument, Node):
            operands.append(argument)
            template.append(_HOLE)
        else:
            template.append(_template(argument, operands))
    if node.kwargs:
        template += ["named", _template(dict(node.kwargs), operands)]
    return _Call(tuple(template), operands, ())


def _read_reading(node: Node) -> _Call:
    if _is_leaf(node):
        return _Call((node.op,), [], ())
    operands: list[Node] = []
    if is_number_tensor(node):  # like all others, so that they tell no two steps apart; and fixed
        return _Call((node.target, "number"), [], ())
    if is_step_part(node):  # part i of unbind, split or chunk
        return _Call((node.target, "part"), [node.args[0]], (int(node.args[1]),))  # type: ignore[list-item, arg-type]
    if (indexed := index_numbers(node)) is not None:
        return _Call((node.target, "index", indexed.template), [node.args[0]], indexed.numbers)  # type: ignore[list-item]
    args, numbers = _without_step_numbers(node)
    template = (_template(args, operands), _template(dict(node.kwargs), operands))
    return _Call((node.op, node.target, template), operands, numbers)


def _without_step_numbers(node: Node) -> tuple[Sequence[Any], tuple[int, ...]]:
    """The arguments with holes for the integers that select, slice and narrow read at."""
    positions = STEP_NUMBERS.get(node.target, ())
    positions = [p for p in positions if p < len(node.args) and type(node.args[p]) is int]
    if not positions:
        return node.args, ()
    args = [_HOLE if p in positions else a for p, a in enumerate(node.args)]
    return args, tuple(node.args[p] for p in positions)  # type: ignore[misc]


def _template(argument: Any, operands: list[Node]) -> object:
    """The argument as a hashable key, its nodes collected in order."""
    if isinstance(argument, Node):
        operands.append(argument)
        return _HOLE
    if isinstance(argument, tuple | list):
        return tuple([_template(item, operands) for item in argument])
    if isinstance(argument, dict):
        return tuple([(name, _template(value, operands)) for name, value in argument.items()])
    if isinstance(argument, slice):
        bounds = [_template(bound, operands) for bound in (argument.start, argument.stop, argument.step)]
        return ("slice", *bounds)
    return structural_key(argument)


def _layout(value: Any) -> object:
    """Shape, strides (but of dimensions of size 1), type and device; of a tuple, of all its parts."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            return value.shape, value.layout
        strides = _strides_that_count(value.shape, value.stride())
        return value.shape, strides, value.dtype, value.device
    if isinstance(value, tuple | list):
        return tuple(map(_layout, value))
    return type(value)


@lru_cache(maxsize=1024)
def _strides_that_count(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([stride for stride, size in zip(strides, shape, strict=True) if size != 1])


def _is_leaf(node: Node) -> bool:
    return node.op in ("placeholder", "get_attr")


def _is_drawing(node: Node) -> bool:
    return node.op.startswith("call") and is_draw(node)


def _is_fixed(node: Node) -> bool:
    return is_number_tensor(node) or not (is_repeatable(node) and _is_of_tensors(value_of(node)))


def _is_of_tensors(value: Any) -> bool:
    items = value if isinstance(value, tuple | list) else (value,)
    return bool(items) and all(
        isinstance(item, torch.Tensor) and item.layout is torch.strided for item in items
    )


def find_parts(graph: Graph) -> list[Node]:
    """The results, taken one by one, of calls that have several and differ: lstm_cell, var_mean."""
    return [n for n in _find_getitems(graph) if _has_parts(n.args[0]) and not is_step_part(n)]


def _find_getitems(graph: Graph) -> list[Node]:
    return list(graph.find_nodes(op="call_function", target=operator.getitem, sort=False))


def name_all_parts(graph: Graph) -> None:
    """Take every result of such calls, needed or not.

    The last step of a recurrence uses fewer than the others, and would not be a step of the loop.
    """
    for node in list(graph.nodes):
        for index in _unnamed_parts(node):
            with graph.inserting_after(node):
                part = graph.call_function(operator.getitem, (node, index))
                part.meta = {k: v for k, v in node.meta.items() if k not in ("val", "example_value")}
                part.meta["val" if "val" in node.meta else "example_value"] = value_of(node)[index]


def has_unnamed_parts(graph: Graph) -> bool:
    """Whether a call has results of which some are taken, and others not."""
    taken = {node.args[0]: None for node in _find_getitems(graph)}
    return any(_unnamed_parts(node) for node in taken if isinstance(node, Node))


def _unnamed_parts(node: Node) -> set[int]:
    """Which results of a call are not taken, of a call whose results are taken one by one."""
    if node.op not in ("call_function", "call_method") or not _has_parts(node):
        return set()
    taken: set[Any] = {user.args[1] for user in node.users if user.target is operator.getitem}  # type: ignore[misc]
    if not taken or not all(user.target is operator.getitem for user in node.users):
        return set()
    return set(range(len(value_of(node)))) - taken


def _has_parts(node: Any) -> bool:
    if not isinstance(node, Node) or not isinstance(value_of(node), tuple | list) or node.target in DIVISIONS:
        return False
    return all(isinstance(item, torch.Tensor) for item in value_of(node))


def _find_live(operands: Sequence[Sequence[int]], returned: Iterable[int]) -> bytearray:
    live, waiting = bytearray(len(operands)), list(returned)
    while waiting:
        number = waiting.pop()
        if not live[number]:
            live[number] = 1
            waiting += operands[number]
    return live
