"""Faults planted into rolled graphs, one a copy: a state or a step that is off by one, and its like.

Whatever compares results must tell every mutant from the graph that it was made of, provided that every state
and everything that is walked along differs from step to step and from the others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from wolong_fx.passes.loops.scan import SCAN, Scan, scans_in
from wolong_fx.passes.reroll.graph_arrays import value_of
from wolong_fx.pipeline import copy_graph

aten = torch.ops.aten

Plant = Callable[[Scan], Iterable[Callable[[], object]]]
"""The places where a fault can be planted into a loop; calling one plants it there."""


def scan_mutants(graph_module: GraphModule) -> Iterator[tuple[str, GraphModule]]:
    """Every fault at every place of every loop of a graph, by name; the graph given is not changed."""
    for number, scan in enumerate(scans_in(graph_module)):
        for name, plant in PLANTS.items():
            for place in range(len(list(plant(scan)))):
                mutant = copy_graph(graph_module)
                copied = list(scans_in(mutant))[number]
                list(plant(copied))[place]()
                copied.body.recompile()
                mutant.recompile()
                yield f"loop {number}: {name}, place {place}", mutant


# ---- carried state


def start_elsewhere(scan: Scan) -> Iterator[Callable[[], object]]:
    """A state starts from another value."""
    for i, init in enumerate(scan.inits):
        yield lambda i=i, init=init: _set_operand(scan, 1, i, _call(scan.node, aten.add.Tensor, init, 1))


def keep_state(scan: Scan) -> Iterator[Callable[[], object]]:
    """A state stays what it was."""
    for i, carry in enumerate(scan.carries):
        yield lambda i=i, carry=carry: _return_from_body(scan, i, carry)


def hand_on_another_state(scan: Scan) -> Iterator[Callable[[], object]]:
    """The next step gets one state in place of another."""
    for i, j in _alike(scan):
        yield lambda i=i, j=j: _return_from_body(scan, i, scan.new_carries[j])


def read_another_state(scan: Scan) -> Iterator[Callable[[], object]]:
    """A step reads one state in place of another."""
    for i, j in _alike(scan):
        yield lambda i=i, j=j: scan.carries[i].replace_all_uses_with(scan.carries[j])


def end_in_another_state(scan: Scan) -> Iterator[Callable[[], object]]:
    """What reads a final state reads another."""
    for i, j in _alike(scan):
        for part in scan.results(i):
            yield lambda j=j, part=part: part.update_arg(1, j)


# ---- what is walked along


def read_the_next_step(scan: Scan) -> Iterator[Callable[[], object]]:
    """A step reads what is the next one's; the last one its own."""
    return _walk_otherwise(scan, lambda x: _join(scan, _steps(scan, x, 1, END), _steps(scan, x, -1, END)))


def read_the_step_before(scan: Scan) -> Iterator[Callable[[], object]]:
    """A step reads what was the last one's; the first one its own."""
    return _walk_otherwise(scan, lambda x: _join(scan, _steps(scan, x, 0, 1), _steps(scan, x, 0, -1)))


def walk_backwards(scan: Scan) -> Iterator[Callable[[], object]]:
    """The steps read from the end."""
    return _walk_otherwise(scan, lambda x: _call(scan.node, aten.flip.default, x, [0]))


# ---- what each step leaves


def stack_backwards(scan: Scan) -> Iterator[Callable[[], object]]:
    """Results of steps stand in the wrong order."""
    for part in _stacked(scan):
        yield lambda part=part: _replace_result(part, aten.flip.default, [0])


def stack_a_step_later(scan: Scan) -> Iterator[Callable[[], object]]:
    """Results of steps stand one place further on, the last one first."""
    for part in _stacked(scan):
        yield lambda part=part: _replace_result(part, aten.roll.default, [1], [0])


def cut_out_another_step(scan: Scan) -> Iterator[Callable[[], object]]:
    """What is cut out of the results is that of the step before."""
    for part in _stacked(scan):
        for cut in part.users:
            if cut.target is aten.select.int and cut.args[1] == 0:
                yield lambda cut=cut: cut.update_arg(2, cut.args[2] - 1)  # type: ignore[operator]


# ---- how many steps


def run_the_first_step_twice(scan: Scan) -> Iterator[Callable[[], object]]:
    """A step of the loop stands before its first."""
    yield lambda: _start_from(scan, _another_scan(scan, scan.node, scan.inits, 0, 1))


def run_the_first_step_like_the_others(scan: Scan) -> Iterator[Callable[[], object]]:
    """What was computed before the loop is computed by a step of it."""
    yield lambda: _start_from(scan, _another_scan(scan, scan.node, _zeros(scan), 0, 1))


def run_the_last_step_twice(scan: Scan) -> Iterator[Callable[[], object]]:
    """There is a step after the last."""
    if _final(scan):
        yield lambda: _end_in(_final(scan), _another_scan(scan, scan.node.next, _parts(scan), -1, END))


def leave_out_the_last_step(scan: Scan) -> Iterator[Callable[[], object]]:
    """The final states are those before the last step."""
    if _final(scan):
        yield lambda: _end_in(_final(scan), _another_scan(scan, scan.node.next, scan.inits, 0, -1))


PLANTS: dict[str, Plant] = {
    f.__name__: f
    for f in (
        start_elsewhere,
        keep_state,
        hand_on_another_state,
        read_another_state,
        end_in_another_state,
        read_the_next_step,
        read_the_step_before,
        walk_backwards,
        stack_backwards,
        stack_a_step_later,
        cut_out_another_step,
        run_the_first_step_twice,
        run_the_first_step_like_the_others,
        run_the_last_step_twice,
        leave_out_the_last_step,
    )
}
"""Every fault by name."""

END = 2**63 - 1


def _call(before: Node, target: Callable[..., Any], *args: Any) -> Node:
    with before.graph.inserting_before(before):
        return before.graph.call_function(target, args)


def _alike(scan: Scan) -> list[tuple[int, int]]:
    """Pairs of states of one shape and dtype."""
    values = [value_of(init) for init in scan.inits]
    kinds = [(v.shape, v.dtype) if isinstance(v, Tensor) else None for v in values]
    return [(i, j) for i, j in permutations(range(len(kinds)), 2) if kinds[i] == kinds[j]]


def _set_operand(scan: Scan, group: int, at: int, to: Node) -> None:
    """Of inits (group 1) or xs (2)."""
    nodes = list(scan.node.args[group])  # type: ignore[arg-type]
    nodes[at] = to
    scan.node.update_arg(group, nodes)


def _return_from_body(scan: Scan, at: int, value: Node) -> None:
    """A copy: what a step returns shares no memory."""
    output = scan.body.graph.output_node()
    returned = scan.outputs
    returned[at] = _call(output, aten.clone.default, value)
    output.update_arg(0, returned)


def _walk_otherwise(scan: Scan, change: Callable[[Node], Node]) -> Iterator[Callable[[], object]]:
    for i, (x, inner) in enumerate(zip(scan.xs, scan.slices, strict=True)):
        if inner.users:
            yield lambda i=i, x=x: _set_operand(scan, 2, i, change(x))


def _steps(scan: Scan, x: Node, start: int, end: int, before: Node | None = None) -> Node:
    return _call(before or scan.node, aten.slice.Tensor, x, 0, start, end)


def _join(scan: Scan, *parts: Node) -> Node:
    return _call(scan.node, aten.cat.default, list(parts))


def _stacked(scan: Scan) -> list[Node]:
    """What reads the results of all steps."""
    first = len(scan.inits)
    return [part for i in range(first, first + len(scan.ys)) for part in scan.results(i)]


def _final(scan: Scan) -> list[Node]:
    """What reads the final states."""
    return [part for i in range(len(scan.inits)) for part in scan.results(i)]


def _replace_result(part: Node, target: Callable[..., Any], *args: Any) -> None:
    new = _call(part.next, target, part, *args)
    part.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def _zeros(scan: Scan) -> list[Node]:
    return [_call(scan.node, aten.zeros_like.default, init) for init in scan.inits]


def _parts(scan: Scan) -> list[Node]:
    """The final states, read anew."""
    after = scan.node.next
    return [_call(after, operator.getitem, scan.node, i) for i in range(len(scan.inits))]


def _another_scan(scan: Scan, before: Node, inits: Sequence[Node], start: int, end: int) -> list[Node]:
    """The final states of the same steps from `start` to `end`, started from `inits`."""
    xs = [_steps(scan, x, start, end, before) for x in scan.xs]
    node = _call(before, SCAN, scan.node.args[0], list(inits), xs, list(scan.invariants))
    return [_call(before, operator.getitem, node, i) for i in range(len(inits))]


def _start_from(scan: Scan, states: Sequence[Node]) -> None:
    """Also elsewhere the states stand for what the loop started from."""
    for init, state in zip(scan.inits, states, strict=True):
        after = _nodes_from(scan.node)
        init.replace_all_uses_with(state, delete_user_cb=lambda user, after=after: user in after)


def _end_in(parts: Sequence[Node], states: Sequence[Node]) -> None:
    for part in parts:
        part.replace_all_uses_with(states[part.args[1]])  # type: ignore[index]


def _nodes_from(node: Node) -> set[Node]:
    """The node and those after it."""
    nodes = list(node.graph.nodes)
    return set(nodes[nodes.index(node) :])
