"""absorb-updates: a kernel writes the new values of an input itself, where they are to be.

A cache or counter that a model changes in place reaches us as a functional graph that ends in `copy_` calls.
Left to torch, each is an output that is allocated, written, read and written again; what changed only in one
row is copied as a whole twice.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from wolong_fx.passes.base import Numerics, Pass
from wolong_fx.passes.cut_partitions import is_partition
from wolong_fx.passes.edit import Note
from wolong_fx.passes.values import is_dense, is_effectful, is_final_update, is_update, value_of


@dataclass(frozen=True)
class AbsorbUpdates(Pass):
    """A `copy_` of a kernel's result over an input that nobody reads afterwards moves into the kernel."""

    name: ClassVar[str] = "absorb-updates"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, graph_module: GraphModule, note: Note) -> PassResult:
        updates = [node for node in graph_module.graph.nodes if is_final_update(node)]
        for update in updates:
            because = _why_it_stays(update)
            if because:
                note(update, "fell-back", because)
            else:
                _move(update, graph_module)
                note(update, "fused", "its kernel writes in place")
        return PassResult(graph_module, bool(updates))


def _why_it_stays(update: Node) -> str | None:
    """None if the kernel that computes the new values may write them over the old ones."""
    target, result = update.args[:2]
    assert isinstance(target, Node)
    kernel = result.args[0] if isinstance(result, Node) and result.target is operator.getitem else None
    if not isinstance(result, Node) or not isinstance(kernel, Node) or not is_partition(kernel):
        return "what it writes comes from no kernel"
    if len(update.args) > 2 or update.users or set(result.users) != {update}:
        return "its result is used again"
    if any(user not in (update, kernel) for user in target.users):
        return "more than one kernel looks at what it writes"
    if not is_dense(value_of(target)):
        return "the memory it writes has gaps or overlaps"
    return None if _only_updates_between(kernel, update) else "another effect comes before it"


def _only_updates_between(kernel: Node, update: Node) -> bool:
    """Whether no other effect stands between a kernel and an update of what it computed."""
    node = update.prev
    while node is not kernel:
        if is_effectful(node) and not is_update(node):
            return False
        node = node.prev
    return True


def _move(update: Node, graph_module: GraphModule) -> None:
    target, result = update.args[:2]
    assert isinstance(target, Node) and isinstance(result, Node)
    kernel, position = result.args
    assert isinstance(kernel, Node) and isinstance(position, int)
    part = graph_module.get_submodule(str(kernel.target))
    assert isinstance(part, GraphModule)
    _write_inside(part, _input_of(part, kernel, target), position, update)
    graph_module.graph.erase_node(update)
    graph_module.graph.erase_node(result)
    _drop_result(kernel, position)


def _write_inside(part: GraphModule, target: Node, position: int, update: Node) -> None:
    """The partition writes over its input what was its result at `position`."""
    output = part.graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    with part.graph.inserting_before(output):
        moved = part.graph.call_function(update.target, (target, results.pop(position)))  # type: ignore[arg-type]
    moved.meta = dict(update.meta)
    output.args = (tuple(results),)
    part.recompile()


def _drop_result(kernel: Node, position: int) -> None:
    """Those behind a result that is gone move up."""
    kernel.meta["val"] = tuple(v for i, v in enumerate(kernel.meta["val"]) if i != position)
    for other in list(kernel.users):
        index = other.args[1]
        assert isinstance(index, int)
        other.update_arg(1, index - (index > position))


def _input_of(part: GraphModule, kernel: Node, target: Node) -> Node:
    """What stands for an input of the graph in a partition; a new one if the partition did not need it."""
    inputs = part.graph.find_nodes(op="placeholder")
    if target in kernel.args:
        return inputs[kernel.args.index(target)]
    with part.graph.inserting_before(next(n for n in part.graph.nodes if n.op != "placeholder")):
        new = part.graph.placeholder(target.name)
    new.meta = dict(target.meta)
    kernel.args = (*kernel.args, target)
    return new
