"""Joins: a stack or concat of steps, and which of its parts a scan gives in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from wolong_fx.passes.reroll.graph_arrays import GraphArrays, value_of
from wolong_fx.passes.reroll.loop import Loop

aten = torch.ops.aten

_STACKS = {aten.stack.default, torch.stack}
_CONCATS = {aten.cat.default, torch.cat, torch.concat, torch.concatenate}


class Join(NamedTuple):
    """A stack (each part gets a dimension of its own) or a concat of `parts` along `dim` of the result."""

    parts: list[Node]
    dim: int
    is_stack: bool


class Run(NamedTuple):
    """Steps first, first + distance, ... of one row of a loop; distance is 1 or -1 (backwards)."""

    loop: Loop
    row: int
    first: int
    steps: int
    distance: int


Piece = Run | tuple[int, ...]  # what no run holds: the nodes themselves


class Places:
    """Where the nodes of loops stand: node -> (loop, row, step)."""

    def __init__(self, loops: Sequence[Loop]) -> None:
        self._places = {
            node: (loop, row, step)
            for loop in loops
            for row, steps in enumerate(loop.rows)
            for step, node in enumerate(steps)
        }

    def __contains__(self, node: int) -> bool:
        return node in self._places

    def __getitem__(self, node: int) -> tuple[Loop, int, int]:
        return self._places[node]

    def find_pieces(self, nodes: Sequence[int]) -> list[Piece]:
        """The nodes as runs of rows, as long as they go, and what lies between them."""
        pieces: list[Piece] = []
        start = 0
        while start < len(nodes):
            run = self._find_run(nodes, start)
            if run is not None:
                pieces.append(run)
            elif pieces and isinstance(pieces[-1], tuple) and not isinstance(pieces[-1], Run):
                pieces[-1] = (*pieces[-1], nodes[start])
            else:
                pieces.append((nodes[start],))
            start += run.steps if run else 1
        return pieces

    def _find_run(self, nodes: Sequence[int], start: int) -> Run | None:
        if nodes[start] not in self._places or start + 1 == len(nodes):
            return None
        loop, row, first = self._places[nodes[start]]
        following = [self._places.get(node) for node in nodes[start + 1 : start + 2]]
        for distance in (1, -1):
            if following == [(loop, row, first + distance)]:
                count = 2
                while start + count < len(nodes) and self._is_at(
                    nodes[start + count], loop, row, first + count * distance
                ):
                    count += 1
                return Run(loop, row, first, count, distance)
        return None

    def _is_at(self, node: int, loop: Loop, row: int, step: int) -> bool:
        return self._places.get(node) == (loop, row, step)


def find_join(node: Node) -> Join | None:
    """The join that a node is; None for all others, and for concats that convert their parts."""
    is_stack = node.target in _STACKS
    if node.op != "call_function" or not (is_stack or node.target in _CONCATS) or "out" in node.kwargs:
        return None
    parts: Any = node.args[0] if node.args else None
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if (
        not isinstance(parts, list | tuple)
        or not all(isinstance(p, Node) for p in parts)
        or type(dim) is not int
    ):
        return None
    result = value_of(node)
    alike = all(
        value_of(p).dtype == result.dtype and value_of(p).dim() == result.dim() - is_stack for p in parts
    )
    return Join(list(parts), dim % result.dim(), is_stack) if alike else None


def needed_in_one_piece(arrays: GraphArrays, places: Places, user: int) -> bool:
    """True when the user is a join that takes runs of rows, so that no single step is cut out for it."""
    join = find_join(arrays.nodes[user])
    if join is None:
        return False
    return any(isinstance(piece, Run) for piece in places.find_pieces(arrays.operands[user]))
