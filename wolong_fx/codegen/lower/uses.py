"""How often a value would be computed if nobody kept it: seen through views, broadcasts counted twice."""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from wolong_fx.passes.loops.scan import is_scan

aten = torch.ops.aten

VIEWS = frozenset(
    (
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.expand.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.alias.default,
        aten.detach.default,
        aten.t.default,
        aten.transpose.int,
        aten.split_with_sizes.default,
        aten.split.Tensor,
        aten.unbind.int,
        operator.getitem,
    )
)
"""Operators whose result is an index map over their first operand."""


def count_uses(graph: Graph) -> dict[Node, int]:
    """Uses of every node's value, counting a view's uses as its operand's."""
    uses: dict[Node, int] = {}
    for node in reversed(graph.nodes):
        uses[node] = sum(_weight(node, user, uses) for user in node.users)
    return uses


def _weight(node: Node, user: Node, uses: dict[Node, int]) -> int:
    if user.target in VIEWS:
        return uses[user] * (2 if _repeats(node, user) else 1)
    return 2 if _repeats(node, user) else sum(a is node for a in _flat_inputs(user))


def _repeats(node: Node, user: Node) -> bool:
    """Whether `user` reads elements of `node` more than once, by broadcasting it."""
    mine, theirs = node.meta.get("val"), user.meta.get("val")
    if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return False
    return theirs.numel() > mine.numel() and user.target is not aten.cat.default


def _flat_inputs(user: Node) -> list[Node]:
    found: list[Node] = []
    map_arg((user.args, user.kwargs), found.append)
    return found


HEAVY = frozenset(
    getattr(aten, name)
    for name in (
        *(
            "mm",
            "bmm",
            "addmm",
            "baddbmm",
            "mv",
            "dot",
            "sum",
            "mean",
            "prod",
            "var",
            "var_mean",
            "amax",
            "amin",
        ),
        *("max", "min", "argmax", "argmin", "any", "all", "_softmax", "_log_softmax"),
        *("convolution", "convolution_backward", "avg_pool2d", "max_pool2d_with_indices"),
    )
)
"""Operators (packets) that take more than constant work an element."""


def count_heavy_depth(graph: Graph) -> dict[Node, int]:
    """For each node, how many heavy operators stand one after another before its value is there."""
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        before = max((depth[n] for n in node.all_input_nodes), default=0)
        is_heavy = is_scan(node) or getattr(node.target, "overloadpacket", None) in HEAVY
        depth[node] = before + is_heavy
    return depth


def find_results_of_weights(graph: Graph) -> set[Node]:
    """Nodes computed from weights (placeholders with meta["static"]) alone that something else reads."""
    known = {node for node in graph.nodes if node.op == "placeholder" and node.meta.get("static")}
    found = set[Node]()
    for node in graph.nodes:
        operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if node.op == "call_function" and operands and all(n in known for n in operands):
            known.add(node)
            found.add(node)
    return {node for node in found if any(user not in known for user in node.users)}
