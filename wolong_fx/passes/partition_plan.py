"""The plan of cut-partitions: which operator goes where. It only looks; cut_partitions.py builds.

The graph is levelled by its two colours. An operator for a kernel (K) has the level of its highest operand;
an operator left to torch (E, eager) stands one above its K operands:

    level(n) = max over operands p of  level(p) + (1 if p is K and n is E else 0),   0 without operands

All K operators of level l form partition l. They run in this order: E of level 0, partition 0, E of level 1,
partition 1, and so on. Of a graph on several devices, partition l is one kernel for each device: an operator
that has operands on two of them is E, so no edge runs between the kernels of a level.

It is acyclic, and every partition is convex: along every edge the pair (level, colour), with E before K, does
not decrease, and it stays the same only between two K, or two E, of one level. A path that leaves partition l
has left for a greater pair and cannot return.

No fewer partitions are possible: a K operator of level l ends a path that goes l times from K to E and later
back to K. Two K operators on a path with an E between them cannot be in one convex partition, so that path
alone needs l + 1.

Random draws and writes in place are E. They keep their order by an extra edge from each to the next, and a
write comes after every earlier and before every later look at that memory.

Views, `full` and folded constants have no colour. They cost nothing, so every kernel that looks at one has
its own copy, and one for E operators runs as an ATen view: no kernel copies memory only to pass on a view.

Everything is linear in nodes and edges.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch.fx import Graph, Node

from wolong_fx.passes.edit import Note
from wolong_fx.passes.fold_constants import is_constant
from wolong_fx.passes.loops.scan import Scan, is_scan, is_scan_body
from wolong_fx.passes.storage import Storage, written_by
from wolong_fx.passes.values import (
    device_of,
    find_effect,
    is_dense,
    is_effectful,
    is_final_update,
    is_tensor,
    is_view,
    value_of,
)

WhyUnsupported = Callable[[Node], str | None]
N = TypeVar("N")

EAGER = -1  # where what runs outside of all partitions is, among numbers of partitions


def level_by_colour(
    nodes: Iterable[N], operands: Callable[[N], Iterable[N]], is_kernel: Callable[[N], bool]
) -> dict[N, int]:
    """Levels as this module defines them; `nodes` in topological order."""
    levels: dict[N, int] = {}
    for node in nodes:
        is_eager = not is_kernel(node)
        levels[node] = max((levels[p] + (is_eager and is_kernel(p)) for p in operands(node)), default=0)
    return levels


@dataclass(frozen=True)
class Plan:
    """Members of each partition and of the eager stretch before it, in topological order.

    An operator without colour may be a member of several.
    """

    partitions: Mapping[int, list[Node]]
    eager: Mapping[int, list[Node]]
    places: Mapping[Node, frozenset[int]]

    def steps(self) -> Iterator[tuple[int, list[Node]]]:
        """(EAGER or number of the partition, members) in the order of execution."""
        for level in sorted(self.partitions.keys() | self.eager.keys()):
            yield EAGER, self.eager.get(level, [])
            yield level, self.partitions.get(level, [])


def plan_partitions(graph: Graph, why_unsupported: WhyUnsupported, min_ops: int, note: Note) -> Plan:
    """Where each node of `graph` goes; `note` hears of every operator that is left to torch, and why."""
    colours = Colours(graph, why_unsupported)
    order = _order_edges(colours)

    def operands(node: Node) -> list[Node]:
        return colours.coloured_operands(node) + order[node]

    def find_levels() -> dict[Node, int]:
        levels = level_by_colour(colours.coloured, operands, colours.kernels.__contains__)
        return _by_device(levels, colours.kernels)

    levels = find_levels()
    if colours.demote_small(levels, min_ops):  # what was between two kernels is gone: they may be one
        levels = find_levels()
        colours.demote_small(levels, min_ops)  # what is too small now runs eagerly where it stands
    for node, reason in colours.reasons.items():
        if not is_final_update(node):  # absorb-updates has the last word on these
            note(node, "fell-back", reason)
    return _placed(colours, levels)


def _by_device(levels: dict[Node, int], kernels: Collection[Node]) -> dict[Node, int]:
    """The same order with a level for each device's kernel; operators left to torch stay before all."""
    devices = {node: str(device_of(value_of(node))) for node in kernels}
    numbers = {device: i for i, device in enumerate(sorted(set(devices.values())))}
    kinds = max(1, len(numbers))
    return {n: kinds * level + (numbers[devices[n]] if n in devices else 0) for n, level in levels.items()}


class Colours:
    """Which nodes are K (`kernels`), why others are not (`reasons`), and which have no colour (`free`)."""

    def __init__(self, graph: Graph, why_unsupported: WhyUnsupported) -> None:
        self.graph = graph
        self.storage = Storage(graph)
        self.kernels: set[Node] = set()
        self.reasons: dict[Node, str] = {}
        self.free: dict[Node, Node | None] = {}  # and the coloured node whose memory it looks at
        self._returned_roots = Counter(map(self.storage.root, self.storage.returned))
        for node in graph.nodes:
            if node.op != "output":
                self._colour(node, why_unsupported)
        self.coloured = [n for n in graph.nodes if n.op != "output" and n not in self.free]

    def coloured_operands(self, node: Node) -> list[Node]:
        """Operands, seen through those without colour."""
        bases = (self.free.get(operand, operand) for operand in node.all_input_nodes)
        return [base for base in bases if base is not None]

    def demote_small(self, levels: Mapping[Node, int], min_ops: int) -> bool:
        """Leave partitions of fewer than `min_ops` operators to torch; True if there were any."""
        sizes: Counter[int] = Counter()
        for node in self.kernels:
            sizes[levels[node]] += count_operations(node)
        small = [node for node in self.coloured if node in self.kernels and sizes[levels[node]] < min_ops]
        for node in small:
            self.kernels.remove(node)
            if is_operator(node):
                size = sizes[levels[node]]
                self.reasons[node] = f"alone with {size - 1} other operators; a kernel has min_ops={min_ops}"
        return bool(small)

    def _colour(self, node: Node, why_unsupported: WhyUnsupported) -> None:
        if is_scan_body(node) or self._is_free_constant(node, why_unsupported):
            self.free[node] = None
            return
        if node.op in ("placeholder", "get_attr"):
            return
        if node.target is operator.getitem:
            self.kernels.update([node] if node.args[0] in self.kernels else [])
            return
        reason = self._why_eager(node) or why_unsupported(node)
        if reason:
            self.reasons[node] = reason
        elif is_view(node) and not self._is_result(node):
            self.free[node] = self._base(node)
        else:
            self.kernels.add(node)

    def _is_free_constant(self, node: Node, why_unsupported: WhyUnsupported) -> bool:
        if not is_constant(node) or self.storage.touches_written(node):
            return False
        return node.op == "get_attr" or why_unsupported(node) is None

    def _why_eager(self, node: Node) -> str | None:
        if effect := find_effect(node):
            return effect
        if is_view(node) and self.storage.touches_written(node):
            return "it looks at memory that is written in place"
        if not is_tensor(node) and any(user.target is not operator.getitem for user in node.users):
            return "its results are used as one tuple"
        return None

    def _base(self, view: Node) -> Node | None:
        operand = view.all_input_nodes[0]
        return self.free.get(operand, operand)

    def _is_result(self, view: Node) -> bool:
        """A view that the graph returns is a kernel's output if nobody can tell that it was a view."""
        if view not in self.storage.returned or self._base(view) not in self.kernels:
            return False
        return self._returned_roots[self.storage.root(view)] == 1 and is_dense(value_of(view))


def count_operations(node: Node) -> int:
    """How many operators a call stands for: a loop for as many as its steps run."""
    if is_scan(node):
        scan = Scan.of(node)
        return scan.trip_count * sum(map(count_operations, scan.body.graph.nodes))
    return int(is_operator(node))


def is_operator(node: Node) -> bool:
    """True of calls that compute something."""
    return node.op == "call_function" and node.target is not operator.getitem and not is_view(node)


def _order_edges(colours: Colours) -> Mapping[Node, list[Node]]:
    """Operands that are not data: the effect before this one, and what must be done to memory first."""
    edges: defaultdict[Node, list[Node]] = defaultdict(list)
    effects: list[Node] = []
    writer: dict[Node, Node] = {}
    readers: defaultdict[Node, list[Node]] = defaultdict(list)
    for node in colours.coloured:
        if is_effectful(node):
            edges[node] += effects[-1:]
            effects.append(node)
        for root in _written_roots(node, colours.storage):
            edges[node] += [writer[root]] if root in writer else []
            if root in map(colours.storage.root, written_by(node)):
                edges[node] += readers.pop(root, [])
                writer[root] = node
            else:
                readers[root].append(node)
    return edges


def _written_roots(node: Node, storage: Storage) -> set[Node]:
    return (
        {storage.root(n) for n in (node, *node.all_input_nodes)} & storage.written
        if storage.written
        else set()
    )


def _placed(colours: Colours, levels: Mapping[Node, int]) -> Plan:
    places, first_eager = _places_of_free(colours, levels)
    partitions: defaultdict[int, list[Node]] = defaultdict(list)
    eager: defaultdict[int, list[Node]] = defaultdict(list)
    for node in colours.graph.nodes:
        for place in places.get(node, ()):
            (eager[first_eager[node]] if place == EAGER else partitions[place]).append(node)
        if node in levels:
            (partitions if node in colours.kernels else eager)[levels[node]].append(node)
            places[node] = frozenset([levels[node] if node in colours.kernels else EAGER])
    return Plan(partitions, eager, places)


def _places_of_free(
    colours: Colours, levels: Mapping[Node, int]
) -> tuple[dict[Node, frozenset[int]], dict[Node, int]]:
    """For each node without colour the partitions that look at it, and the eager stretch that first does."""
    places: dict[Node, frozenset[int]] = {}
    first_eager: dict[Node, int] = {}
    last = max(levels.values(), default=0) + 1
    for node in reversed(colours.graph.nodes):
        if node not in colours.free:
            continue
        wanted: set[int] = set()
        for user in node.users:
            wanted |= places.get(user, {levels[user] if user in colours.kernels else EAGER})
            if user not in colours.kernels and EAGER in places.get(user, {EAGER}):
                stretch = first_eager.get(user, levels.get(user, last))
                first_eager[node] = min(stretch, first_eager.get(node, last))
        places[node] = frozenset(wanted)
    return places, first_eager
