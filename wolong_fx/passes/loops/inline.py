"""A body placed in the graph around its loop, once, with operands of the caller's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from wolong_fx.passes.edit import Editor


def inline_body(body: GraphModule, operands: Sequence[Node], before: Node, editor: Editor) -> list[Any]:
    """Place a copy of the operators of `body` before a node of the editor's graph; returns its outputs.

    operands: one for each placeholder. What the operators compute is asked of torch again: a carry of the
    second step may have other strides than that of the first, which the body was traced with.
    """
    placed = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
    with editor.graph.inserting_before(before):
        for node in body.graph.nodes:
            if node.op == "get_attr":
                placed[node] = _copy_attribute(node, body, editor)
            elif node.op == "call_function":
                placed[node] = _copy_call(node, placed.__getitem__, editor)
    return list(map_arg(body.graph.output_node().args[0], placed.__getitem__))  # type: ignore[arg-type]


def share_attribute(value: object, name: str, owner: GraphModule) -> str:
    """Make `value` an attribute of `owner`, once; returns its name there, `name` if that is free."""
    while getattr(owner, name, value) is not value:
        name += "_"
    if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
        owner.register_buffer(name, value, persistent=False)
    else:
        setattr(owner, name, value)
    return name


def _copy_attribute(node: Node, body: GraphModule, editor: Editor) -> Node:
    path = str(node.target)
    name = share_attribute(attrgetter(path)(body), path.replace(".", "_"), editor.graph_module)
    copy = editor.graph.get_attr(name)
    copy.meta = dict(node.meta)
    return copy


def _copy_call(node: Node, operand: Callable[[Node], Node], editor: Editor) -> Node:
    copy = editor.graph.node_copy(node, operand)
    if all("val" in operand.meta for operand in copy.all_input_nodes):  # the body of a loop has no value
        copy.meta["val"] = editor.value_of_call(copy)
    return copy
