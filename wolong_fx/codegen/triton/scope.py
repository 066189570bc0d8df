"""Where a value of a tile program is computed: in the tile of its block, or in a step of a reduction over
it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from wolong_fx.codegen.triton.names import Names
from wolong_fx.codegen.triton.pointwise import Value
from wolong_fx.ir.index import Index, Quotient, Remainder, Var

ASSIGNED_ONCE = re.compile(r"[rvw]\d+")
"""Names of results, values and what is kept and stays: they need no other one."""


@dataclass(frozen=True)
class Axis:
    """An axis of a tile.

    at: the position variable
    size: lanes, a power of two
    name: of the tensor of positions, in the text
    mask: of the tensor that says which lanes are there; None if all are
    """

    at: Var
    size: int
    name: str
    mask: str | None

    def lifted(self, lift: str) -> Axis:
        """This axis in a scope with more of them."""
        return replace(self, name=self.name + lift, mask=self.mask + lift if self.mask else None)


@dataclass(eq=False)
class Scope:
    """Statements of one loop level.

    axes: of the tile, in the order of its tensor's dimensions
    env: indices of the variables of the program, in position variables
    bound: variables of reductions that have a value here
    lift: what turns a tensor of the parent into one of this scope
    is_wide: whether indices may need more than 32 bits
    head: statements that define its positions, behind those of the block; None where they change step by step
    named: the name of each expression that stands in a line of its own
    """

    axes: tuple[Axis, ...]
    env: dict[Var, Index]
    bound: frozenset[Var] = frozenset()
    parent: Scope | None = None
    lift: str = ""
    is_wide: bool = False
    head: tuple[str, ...] | None = ()
    lines: list[str] = field(default_factory=list)
    values: dict[int, Value] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)

    def home(self, needs: frozenset[Var]) -> Scope:
        """The outermost scope where these reduction variables have values."""
        scope = self
        while scope.parent is not None and needs <= scope.parent.bound:
            scope = scope.parent
        return scope

    def find(self, node: int) -> Value | None:
        """The value of a node that was computed here or further out."""
        if node not in self.values and self.parent is not None:
            value = self.parent.find(node)
            if value is None:
                return None
            lifted = value.text + self.lift if value.rank else value.text
            self.values[node] = replace(value, text=lifted, rank=len(self.axes) if value.rank else 0)
        return self.values.get(node)

    def name_of(self, text: str, names: Names) -> str:
        """The name of an expression. One of equal text is there already: nothing is stored before all is
        read."""
        if ASSIGNED_ONCE.fullmatch(text):
            return text
        if text not in self.named:
            self.named[text] = names.fresh("v")
            self.lines.append(f"{self.named[text]} = {text}")
        return self.named[text]

    def axes_of(self, index: Index) -> frozenset[Var]:
        """The tile's axes along which an index (in position variables) varies."""
        return index.variables() & {axis.at for axis in self.axes}

    def axes_below(self, variables: frozenset[Var]) -> frozenset[Var]:
        """The tile's axes along which these variables of the program vary."""
        return frozenset[Var]().union(*(self.axes_of(self.env[v]) for v in variables if v in self.env))

    def mask(self, axes: Iterable[Var]) -> list[str]:
        """The masks of those axes that have lanes which are not there."""
        wanted = frozenset(axes)
        return [axis.mask for axis in self.axes if axis.mask and axis.at in wanted]

    def index_text(self, index: Index) -> str:
        """Integer text of an index in position variables."""
        parts = [self._term(atom, factor) for atom, factor in index.terms]
        if index.constant or not parts:
            parts.append(str(index.constant))
        return " + ".join(parts)

    def _term(self, atom: Var | Quotient | Remainder, factor: int) -> str:
        if isinstance(atom, Var):
            text = next((axis.name for axis in self.axes if axis.at == atom), atom.name)
            text = f"(wide + {text})" if self.is_wide else text
        else:
            low, _ = atom.of.bounds()
            of, is_quotient = self.index_text(atom.of), isinstance(atom, Quotient)
            if low < 0:
                text = f"floor_{'div' if is_quotient else 'mod'}({of}, {atom.by})"
            else:
                text = f"(({of}) {'//' if is_quotient else '%'} {atom.by})"
        return text if factor == 1 else f"{text} * {factor}"

    def shape(self, axes: frozenset[Var]) -> str:
        """The shape of a tensor that varies along these axes."""
        sizes = [axis.size if axis.at in axes else 1 for axis in self.axes]
        return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"


def subscript(axis: int, rank: int) -> str:
    """What puts a one-dimensional tensor along an axis of a tile."""
    if rank == 1:
        return ""
    return f"[{', '.join(':' if i == axis else 'None' for i in range(rank))}]"
