"""The first half of loop fission: operators that see no carry are computed before the loop."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch.fx import Node

from wolong_fx.passes.edit import Editor
from wolong_fx.passes.loops.edit_scan import add_invariant, add_slice, drop_unused, remove_dead_code
from wolong_fx.passes.loops.find_staying import IsWorthSteps, find_staying
from wolong_fx.passes.loops.scan import Scan
from wolong_fx.passes.loops.stacked_ops import HEAVY, VIEWS, Lifted, lift
from wolong_fx.passes.values import byte_size, is_pointwise_operator


def compute_before(scan: Scan, editor: Editor, most_bytes: int, is_worth_steps: IsWorthSteps) -> None:
    """Have the loop read what its slices and invariants decide, where that saves work.

    most_bytes: the size that a value of all steps may have
    """
    before = scan.node.prev
    lifted = _lift_all(scan, editor)
    staying = find_staying(scan, lifted, is_worth_steps)
    chosen = [*_computed_once(scan, lifted), *_computed_at_once(scan, lifted, most_bytes, staying)]
    for node in staying:
        size = scan.trip_count * byte_size(node)
        editor.tell(
            node, "kept", f"its rows hide the reading of its weights, and {size} bytes are not written"
        )
    inner = {node: _read(scan, lifted[node]) for node in chosen}
    for node, placeholder in inner.items():
        node.replace_all_uses_with(placeholder)
    for node in [node for node in chosen if inner[node].users]:
        editor.tell(node, "replaced", _reason(scan, node, lifted[node]))
    if inner:
        drop_unused(scan)
    remove_dead_code(_between(before, scan.node))


def _lift_all(scan: Scan, editor: Editor) -> dict[Node, Lifted]:
    """Whatever sees no carry, placed before the loop; it is dead there until it is chosen."""
    lifted = lifted_operands(scan)
    for node in scan.body.graph.nodes:
        if node.op == "call_function" and all(operand in lifted for operand in node.all_input_nodes):
            result = lift(node, lifted, scan.trip_count, editor, before=scan.node)
            lifted |= {node: result} if result else {}
    return lifted


def lifted_operands(scan: Scan) -> dict[Node, Lifted]:
    """What stands outside for the slices and invariants of a loop."""
    slices = {inner: Lifted(xs, True) for inner, xs in zip(scan.slices, scan.xs, strict=True)}
    pairs = zip(scan.inner_invariants, scan.invariants, strict=True)
    return slices | {inner: Lifted(outer, False) for inner, outer in pairs if isinstance(outer, Node)}


def _computed_once(scan: Scan, lifted: dict[Node, Lifted]) -> list[Node]:
    """Invariant operators, but for creations and views, which cost the steps nothing."""
    return [n for n in _calls(scan) if n in lifted and not lifted[n].is_stacked and _is_worth_keeping(n)]


def _is_worth_keeping(node: Node) -> bool:
    if not node.all_input_nodes or node.target in VIEWS:
        return False
    return node.target in HEAVY or byte_size(node) <= 4 * max(map(byte_size, node.all_input_nodes))


def _computed_at_once(
    scan: Scan, lifted: dict[Node, Lifted], most_bytes: int, staying: Collection[Node]
) -> list[Node]:
    """MatMuls and reductions that see slices alone, and pointwise operators on their results."""
    leaving: dict[Node, None] = {}
    carried = scan.new_carries  # read as a slice, the last one would have other strides than before
    for node in _calls(scan):
        if node not in lifted or not lifted[node].is_stacked or node in carried or node in staying:
            continue
        is_small = scan.trip_count * byte_size(node) <= most_bytes
        if is_small and (node.target in HEAVY or _goes_along(node, leaving)):
            leaving[node] = None
    return list(leaving)


def _goes_along(node: Node, leaving: Iterable[Node]) -> bool:
    """A pointwise operator on a leaving result that nothing else needs, not larger than it."""
    sources = [n for n in node.all_input_nodes if n in leaving and len(n.users) == 1]
    return is_pointwise_operator(node.target) and any(byte_size(node) <= byte_size(s) for s in sources)


def _read(scan: Scan, result: Lifted) -> Node:
    return (add_slice if result.is_stacked else add_invariant)(scan, result.node)


def _reason(scan: Scan, node: Node, result: Lifted) -> str:
    if not result.is_stacked:
        return f"the same in each of {scan.trip_count} steps: computed once, {byte_size(node)} bytes"
    size = scan.trip_count * byte_size(node)
    return f"no carry decides it: one operator before the loop for {scan.trip_count} steps, {size} bytes"


def _calls(scan: Scan) -> list[Node]:
    return [node for node in scan.body.graph.nodes if node.op == "call_function"]


def _between(first: Node, last: Node) -> list[Node]:
    nodes: list[Node] = []
    node = first.next
    while node is not last:
        nodes.append(node)
        node = node.next
    return nodes
