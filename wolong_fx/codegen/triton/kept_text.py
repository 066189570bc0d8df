"""What a block keeps over the trips of a loop, as text: names instead of loads, and what fills them."""

from __future__ import annotations

from wolong_fx.codegen.triton.keep import Kept
from wolong_fx.codegen.triton.scope import Scope
from wolong_fx.ir.expr import Load
from wolong_fx.ir.program import OpInst, Store

LEAVES = "leaves"
"""Name of the parameter that says whether this trip is the last."""


class KeptText:
    """Collects what a tile function wants to be kept.

    head, fills: statements that fill the names before the loop: positions, then loads
    invariants: names of values that stay, by the text of their loads
    states: names of values that change, by the number of their store
    """

    def __init__(self, op: OpInst, kept: Kept) -> None:
        loads = op.loads()
        self.wanted = {id(loads[i]) for i in kept.invariants}
        self.state_of = {id(loads[i]): number for number, readers in kept.states for i in readers}
        self.number_of = {id(op.stores[number]): number for number, _ in kept.states}
        self.states = {number: f"s{i}" for i, (number, _) in enumerate(kept.states)}
        self.head: dict[str, None] = {}
        self.fills: dict[str, str] = {}
        self.invariants: dict[str, str] = {}

    def loaded(self, node: Load, text: str, scope: Scope) -> str:
        """What stands for a load: its own text, or the name of what is kept."""
        if id(node) in self.state_of:
            assert scope.parent is None, "a state is read at the points where it is written"
            return self._filled(self.states[self.state_of[id(node)]], text, scope)
        if id(node) not in self.wanted or scope.head is None:
            return text
        name = self.invariants.setdefault(text, f"w{len(self.invariants)}")
        return self._filled(name, text, scope)

    def _filled(self, name: str, text: str, scope: Scope) -> str:
        self.head |= dict.fromkeys(scope.head or ())
        self.fills[name] = text
        return name

    def find_state(self, store: Store) -> str | None:
        """The name of the state that a store changes, if it is kept."""
        number = self.number_of.get(id(store))
        return None if number is None else self.states[number]

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that is kept: what stays, then what changes."""
        return (*self.invariants.values(), *self.states.values())

    def lines(self) -> list[str]:
        """Statements that fill the names."""
        return [*self.head, *(f"{name} = {self.fills[name]}" for name in self.names)]
