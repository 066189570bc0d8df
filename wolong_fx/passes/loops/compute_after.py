"""The second half of loop fission: operators that no carry needs are computed after the loop.

A carry that only adds up what the steps contribute is needed by no step either: it is a sum over the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch.fx import Node

from wolong_fx.passes.edit import Call, Editor
from wolong_fx.passes.loops.compute_before import lifted_operands
from wolong_fx.passes.loops.edit_scan import add_result, ancestors, drop_unused, replace_result
from wolong_fx.passes.loops.scan import Scan
from wolong_fx.passes.loops.stacked_ops import (
    HEAVY,
    MATMULS,
    SUMS,
    VIEWS,
    Lifted,
    Step,
    find_rule,
    lift,
    sum_over_steps,
)
from wolong_fx.passes.values import aten, byte_size, is_call, is_tensor, shape_of


@dataclass(frozen=True)
class SummedCarry:
    """A carry that every step adds `terms` to, and that nothing reads before the loop's end."""

    index: int
    terms: tuple[Node, ...]
    additions: frozenset[Node]


def compute_after(scan: Scan, editor: Editor, most_bytes: int) -> None:
    """Have the loop keep what MatMuls and sums after it need, instead of running them step by step.

    most_bytes: the size that a value of all steps may have
    """
    if not scan.trip_count:
        return
    after = _After(scan, editor, most_bytes)
    for carry in after.sums_of_matmuls_first():
        after.sum_outside(carry)
    for index, value in enumerate(scan.ys, len(scan.inits)):
        after.give_result(index, value)
    drop_unused(scan)


def find_summed_carry(scan: Scan, index: int) -> SummedCarry | None:
    """The carry of that number, if all that happens to it is that something is added."""
    node, end = scan.carries[index], scan.new_carries[index]
    terms: list[Node] = []
    additions: list[Node] = []
    while node is not end:
        addition = next(iter(node.users), None)
        if len(node.users) != 1 or not _is_plain_addition(addition, node):
            return None
        assert addition is not None
        terms += [operand for operand in addition.all_input_nodes if operand is not node]
        additions.append(addition)
        node = addition
    is_seen = scan.outputs.count(end) > 1 or len(end.users) > 1
    return None if is_seen or not terms else SummedCarry(index, tuple(terms), frozenset(additions))


def _is_plain_addition(addition: Node | None, carry: Node) -> bool:
    """carry + something, once, without a factor, of the carry's shape."""
    if not is_call(addition, aten.add.Tensor) or addition.kwargs or not all(map(is_tensor, addition.args)):  # type: ignore
        return False
    return addition.args.count(carry) == 1 and shape_of(addition) == shape_of(carry)  # type: ignore[union-attr]


class _After:
    """What stands outside for values of the body, as it is found worth it."""

    def __init__(self, scan: Scan, editor: Editor, most_bytes: int) -> None:
        self.scan = scan
        self._editor = editor
        self._most_bytes = most_bytes
        for result in [r for index in range(len(scan.outputs)) for r in scan.results(index)]:
            scan.node.append(result)  # what is computed from results stands before all other users
        self._anchor = scan.node.next
        while self._anchor.args[:1] == (scan.node,):
            self._anchor = self._anchor.next
        carries = (find_summed_carry(scan, index) for index in range(len(scan.inits)))
        self.sums = [carry for carry in carries if carry is not None]
        self._additions = {node for carry in self.sums for node in carry.additions}
        self._leaving = self._find_leaving()
        kept = [value for value in scan.ys if value not in self._leaving]
        self._lifted = {value: Lifted(add_result(scan, value), True) for value in kept}
        self._lifted |= lifted_operands(scan)

    def sums_of_matmuls_first(self) -> list[SummedCarry]:
        """What they have the loop keep, other sums may read."""
        return sorted(self.sums, key=lambda carry: not self._leaving.issuperset(carry.terms))

    def sum_outside(self, carry: SummedCarry) -> None:
        """Replace the carry's last value, if every term is worth keeping for all steps."""
        if not all(map(self._is_worth_it, carry.terms)):
            return
        sums = [self._find_sum(term) for term in carry.terms if not _is_zero(_source(term))]
        if None in sums:
            return
        by = self._total(carry, [s for s in sums if s is not None])
        size = byte_size(self.scan.inits[carry.index])
        because = f"a sum over {self.scan.trip_count} steps: one operator after the loop, {size} bytes a step"
        self._replace(carry.index, by, because)

    def give_result(self, index: int, value: Node) -> None:
        """Replace a stacked result that a leaving operator computes."""
        if value not in self._leaving or not self._is_worth_it(value):
            return
        if lifted := self._lift(value):
            because = f"no carry needs it: one operator after the loop for {self.scan.trip_count} steps"
            self._replace(index, lifted.node, because)

    def _replace(self, index: int, by: Node, because: str) -> None:
        for result in self.scan.results(index):
            self._anchor.prepend(result)  # behind what takes its place
            replace_result(result, by, because, self._editor)

    def _find_leaving(self) -> set[Node]:
        """MatMuls that no carry needs, and all that is made of them, if there is a rule for it."""
        summed = {carry.index for carry in self.sums}
        needed = ancestors(n for i, n in enumerate(self.scan.new_carries) if i not in summed)
        leaving: set[Node] = set()
        for node in reversed(self.scan.body.graph.nodes):
            if node.op != "call_function" or node in needed or node in self._additions:
                continue
            users = {user for user in node.users if user.op != "output"} - self._additions
            if users <= leaving and _has_rule(node):
                leaving.add(node)
        matmuls = {node for node in leaving if node.target in MATMULS}
        return {node for node in leaving if ancestors([node]) & matmuls}

    def _is_worth_it(self, value: Node) -> bool:
        """Made of what is outside already, or of MatMuls whose operands may be kept for all steps."""
        missing = self._missing(value)
        is_small = all(self.scan.trip_count * byte_size(node) <= self._most_bytes for node in missing)
        return is_small if value in self._leaving else not missing

    def _missing(self, value: Node) -> set[Node]:
        """What would have to be kept for this to be computed outside."""
        if value in self._lifted:
            return set()
        missing: set[Node] = {value} if value.op != "call_function" else set()
        for operand in value.all_input_nodes:
            missing |= self._missing(operand) if self._passes(operand) else {operand} - self._lifted.keys()
        return missing

    def _passes(self, node: Node) -> bool:
        """Computed outside, rather than kept: what leaves, views, numbers, reductions of what is outside."""
        if node.op != "call_function" or node in self._leaving or node.target in VIEWS:
            return node.op == "call_function"
        if node.target in HEAVY - MATMULS:
            return len(node.users) == 1 and not self._missing(node)
        return not node.all_input_nodes

    def _lift(self, value: Node) -> Lifted | None:
        if value not in self._lifted:
            if not self._lift_operands(value):
                return None
            result = lift(value, self._lifted, self.scan.trip_count, self._editor, self._anchor)
            if result is None:
                return None
            self._lifted[value] = result
        return self._lifted[value]

    def _lift_operands(self, value: Node) -> bool:
        return all(self._lift_or_keep(operand) for operand in value.all_input_nodes)

    def _lift_or_keep(self, operand: Node) -> bool:
        if operand not in self._lifted and (not self._passes(operand) or self._lift(operand) is None):
            self._lifted[operand] = Lifted(add_result(self.scan, operand), is_stacked=True)
        return True

    def _find_sum(self, term: Node) -> Node | None:
        """Over all steps; the terms of a sum of MatMuls, or of sums, are never computed."""
        place = partial(self._editor.place, before=self._anchor, origin=term)
        is_needed_no_further = term not in self._lifted and self._is_only_summed(term)
        if is_needed_no_further and _is_restated(term):
            inner = self._find_sum(term.all_input_nodes[0])
            if inner is None or term.target is aten.clone.default:
                return inner
            return place(Call(aten.permute.default, (inner, *term.args[1:])))
        if is_needed_no_further and _has_own_sum(term):
            self._lift_operands(term)
        elif self._lift(term) is None:
            return None
        step = Step(term, self._lifted, self.scan.trip_count, place)
        made = sum_over_steps(term, step)
        return made if isinstance(made, Node) else place(made)

    def _is_only_summed(self, term: Node) -> bool:
        """Whether it goes nowhere but into sums over the steps, perhaps in another layout."""
        return all(
            user in self._additions or (_is_restated(user) and self._is_only_summed(user))
            for user in term.users
        )

    def _total(self, carry: SummedCarry, sums: list[Node]) -> Node:
        init = self.scan.inits[carry.index]
        is_first = sums and _is_zero(init) and shape_of(sums[0]) == shape_of(init)
        total = None if is_first else init
        for each in sums:
            total = (
                each
                if total is None
                else self._editor.place(Call(aten.add.Tensor, (total, each)), self._anchor, origin=each)
            )
        assert total is not None
        return total


def _has_rule(node: Node) -> bool:
    return is_tensor(node) and find_rule(node.target) is not find_rule(None)


def _has_own_sum(term: Node) -> bool:
    """True of operators whose sum over the steps needs their operands alone; a sum must not keep its dims."""
    return term.target in SUMS and len(term.args) == 2 and bool(term.args[1])


def _is_zero(value: Node) -> bool:
    if value.target in (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default):
        return True
    return value.target in (aten.full.default, aten.full_like.default) and bool(value.args[1] == 0)


def _is_restated(node: Node) -> bool:
    """True of what only puts its operand into another order or place: the sum of such is such a sum."""
    return node.target in (aten.permute.default, aten.clone.default)


def _source(term: Node) -> Node:
    return _source(term.all_input_nodes[0]) if _is_restated(term) else term
