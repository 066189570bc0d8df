"""The Editor: the one place that changes a graph, and refuses every change that somebody could notice.

A rewrite must keep dtype, shape and device of the value (otherwise the pass is wrong, and is named), and is
quietly left undone where it would change the strides, where two tensors that leave the graph as separate ones
would come to share memory, or where an operator writes that memory in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from wolong_fx.errors import BrokenRule
from wolong_fx.passes.storage import Storage
from wolong_fx.passes.values import (
    describe,
    has_symbolic_size,
    same_strides,
    same_value,
    structural_key,
    tensors_in,
    value_of,
    values_in,
)

Note = Callable[[object, str, str], None]


def silent(node: object, action: str, because: str) -> None:
    """A Note that nobody reads."""


@dataclass(frozen=True, eq=False)
class Call:
    """An operator call still to be placed in the graph; arguments may be nodes, numbers and other calls."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Parts:
    """Calls that together replace an operator of several results; a call named twice is placed once."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, eq=False)
class Fragment:
    """A graph still to be placed; its placeholders stand for `inputs`, it returns what the operator did."""

    graph: Graph
    inputs: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor known now, that no call may change."""

    value: torch.Tensor


Replacement = Node | Call | Parts | Fragment | Constant
Placed = Node | tuple[Node, ...]


@dataclass(frozen=True)
class Rewrite:
    """`node` is to be computed `by` something else (None: it is dead), and why.

    is_folded: `by` was computed now, even if it is not a Constant
    """

    node: Node
    by: Replacement | None
    because: str
    is_folded: bool = False

    @property
    def action(self) -> str:
        """The ledger's word for it."""
        if self.is_folded:
            return "folded"
        return "removed" if self.by is None or isinstance(self.by, Node) else "replaced"


class Editor:
    """Applies the rewrites of one pass to one graph."""

    def __init__(self, graph_module: GraphModule, step: str = "edit", note: Note = silent) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self.storage = Storage(self.graph)
        self.is_changed = False
        self._step = step
        self._note = note
        self._known_values: dict[object, Any] = {}
        self._has_symbols = any(has_symbolic_size(value_of(node)) for node in self.graph.nodes)
        self._fake_mode = _find_fake_mode(self.graph)
        self._constant_names = _free_names(graph_module)

    def may_change(self, node: Node) -> bool:
        """False of nodes that are not operators, near memory that is written in place, or of unknown size."""
        if node.op != "call_function" or self.storage.touches_written(node):
            return False
        return not self._has_symbols or not _is_of_unknown_size(node)

    def apply(self, rewrite: Rewrite) -> Placed | None:
        """Make the change; returns what now stands for `rewrite.node`, None if there is none.

        Raises BrokenRule when the replacement is not the same value: the pass is wrong.
        """
        if rewrite.by is None:
            return self._remove(rewrite)
        fresh: dict[object, Node] = {}
        by = self._place(rewrite, fresh)
        self._check_same_value(rewrite, by)
        if self._is_noticed(rewrite.node, by):
            self._take_back(fresh)
            return None
        self._substitute(rewrite.node, by)
        self._tell(rewrite)
        return by

    def place(self, call: Call, before: Node, origin: Node | None = None) -> Node:
        """The call, and those it is made of, before a node of the graph; it replaces nothing yet.

        origin: the node whose provenance they take, if it is not that node
        """
        with self.graph.inserting_before(before):
            return self._place_call(call, origin or before, {})

    def tell(self, node: Node, action: str, because: str) -> None:
        """Say that the pass changed the graph in a way that no Rewrite describes."""
        self.is_changed = True
        self._note(node, action, because)

    def _remove(self, rewrite: Rewrite) -> None:
        self.graph.erase_node(rewrite.node)
        self._tell(rewrite)

    def _is_noticed(self, node: Node, by: Placed) -> bool:
        """Would somebody see other strides, two tensors in one memory, or one tensor object in two places?"""
        if not same_strides(value_of(node), values_in(by)):
            return True
        return isinstance(by, Node) and (self._is_other_object(node, by) or self._is_other_memory(node, by))

    def _is_other_object(self, node: Node, by: Node) -> bool:
        is_taken = by.op != "call_function" or by in self.storage.returned
        return node in self.storage.returned and is_taken

    def _is_other_memory(self, node: Node, by: Node) -> bool:
        old, new = self.storage.root(node), self.storage.root(by)
        if old is new:
            return False
        is_shared = old is not node or new.op != "call_function" or new in self.storage.leaving
        return new in self.storage.written or (old in self.storage.leaving and is_shared)

    def _place(self, rewrite: Rewrite, fresh: dict[object, Node]) -> Placed:
        origin = rewrite.node
        with self.graph.inserting_before(origin):
            match rewrite.by:
                case Call() as call:
                    return self._place_call(call, origin, fresh)
                case Parts(calls):
                    return tuple(self._place_call(call, origin, fresh) for call in calls)
                case Fragment() as fragment:
                    return self._place_fragment(fragment, origin, fresh)
                case Constant(value):
                    return self._place_constant(value, fresh)
                case Node() as existing:
                    return existing
        raise TypeError(rewrite.by)

    def _place_call(self, call: Call, origin: Node, fresh: dict[object, Node]) -> Node:
        if call in fresh:
            return fresh[call]

        def place(argument: Any) -> Any:
            return self._place_call(argument, origin, fresh) if isinstance(argument, Call) else argument

        args, kwargs = map_aggregate(tuple(call.args), place), map_aggregate(dict(call.kwargs), place)
        node = fresh[call] = self.graph.call_function(call.target, args, kwargs)
        node.meta = self._provenance(origin)
        node.meta["val"] = self.value_of_call(node)
        return node

    def _place_fragment(self, fragment: Fragment, origin: Node, fresh: dict[object, Node]) -> Placed:
        inputs = iter(fragment.inputs)
        stand_in: dict[Node, Node] = {}
        for inner in fragment.graph.nodes:
            if inner.op == "placeholder":
                stand_in[inner] = next(inputs)
            elif inner.op == "call_function":
                node = stand_in[inner] = fresh[inner] = self.graph.node_copy(inner, stand_in.__getitem__)
                node.meta = self._provenance(origin) | {"val": value_of(inner)}
        returned = map_arg(fragment.graph.output_node().args[0], stand_in.__getitem__)
        return tuple(returned) if isinstance(returned, tuple | list) else returned  # type: ignore[return-value]

    def _place_constant(self, value: torch.Tensor, fresh: dict[object, Node]) -> Node:
        name = next(self._constant_names)
        self.graph_module.register_buffer(name, value, persistent=False)
        node = fresh[name] = self.graph.get_attr(name)
        # Static: Dynamo's own mode would take the sizes of a new tensor for unknown ones.
        mode = self._fake_mode
        node.meta["val"] = mode.from_tensor(value, static_shapes=True) if mode else value
        return node

    def _provenance(self, origin: Node) -> dict[str, Any]:
        """The user's line stays with what replaces an operator; so does the name of the pass that did it."""
        return {key: value for key, value in origin.meta.items() if key != "val"} | {"made_by": self._step}

    def value_of_call(self, node: Node) -> Any:
        """What the operator makes of its operands' values, asked of torch once for operands of one kind."""
        args, kwargs = values_in((node.args, node.kwargs))
        key = (node.target, structural_key(map_aggregate((args, kwargs), _layout)))
        if key not in self._known_values:
            try:
                with self._fake_mode or nullcontext(), torch.no_grad():
                    self._known_values[key] = node.target(*args, **kwargs)  # type: ignore[operator]
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                culprit = f"{node.format_node()}: {error}"
                raise self._broken("a replacement can be computed", culprit) from error
        return self._known_values[key]

    def _check_same_value(self, rewrite: Rewrite, by: Placed) -> None:
        old, new = value_of(rewrite.node), values_in(by)
        if not same_value(old, new):
            what = f"{rewrite.node} ({describe(old)}) replaced by {by} ({describe(new)})"
            raise self._broken("a replacement has the dtype and shape of what it replaces", what)

    def _broken(self, rule: str, culprit: str) -> BrokenRule:
        return BrokenRule(step=self._step, rule=rule, culprit=culprit)

    def _take_back(self, fresh: Mapping[object, Node]) -> None:
        for node in reversed(list(fresh.values())):
            self.graph.erase_node(node)

    def _substitute(self, node: Node, by: Placed) -> None:
        pairs = [(node, by)] if isinstance(by, Node) else [(user, by[user.args[1]]) for user in node.users]  # type: ignore
        for old, new in pairs:
            self.storage.replaced(old, new)
            old.replace_all_uses_with(new)
            self.graph.erase_node(old)
        if not isinstance(by, Node):
            self.graph.erase_node(node)

    def _tell(self, rewrite: Rewrite) -> None:
        self.tell(rewrite.node, rewrite.action, rewrite.because)


CONSTANT_PREFIX = "_wolong_constant"


def _free_names(graph_module: GraphModule) -> Iterator[str]:
    names = (f"{CONSTANT_PREFIX}{i}" for i in count())
    return (name for name in names if not hasattr(graph_module, name))


def _is_of_unknown_size(node: Node) -> bool:
    return any(map(has_symbolic_size, map(value_of, (node, *node.all_input_nodes))))


def _layout(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.stride(), value.device)
    return value


def _find_fake_mode(graph: Graph) -> Any:
    values = (tensor for node in graph.nodes for tensor in tensors_in(value_of(node)))
    return next((mode for value in values if (mode := getattr(value, "fake_mode", None))), None)
