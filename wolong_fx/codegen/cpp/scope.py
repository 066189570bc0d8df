"""Nested scopes of C++ text: a value is defined once, in the outermost loop that has what it depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

from wolong_fx.ir.index import Index, Quotient, Remainder, Var
from wolong_fx.ir.types import DType

C_TYPES = {
    DType.F64: "f64",
    DType.F32: "f32",
    DType.BF16: "f32",
    DType.F16: "f32",
    DType.I64: "i64",
    DType.I32: "i32",
    DType.I16: "i16",
    DType.I8: "i8",
    DType.U8: "u8",
    DType.BOOL: "bool",
}
"""C++ type of a value in a register; of a bool vector it is `maskv`."""


@dataclass(frozen=True)
class Value:
    """A value as C++ text.

    is_vector: one for each lane, else the same for all
    needs: index variables that it depends on
    """

    text: str
    dtype: DType
    is_vector: bool
    needs: frozenset[Var]

    @property
    def c_type(self) -> str:
        return c_type(self.dtype, self.is_vector)

    @property
    def as_vector(self) -> str:
        return self.text if self.is_vector else f"broadcast({self.text})"


def c_type(dtype: DType, is_vector: bool) -> str:
    """The type of a variable that holds a value."""
    if not is_vector:
        return C_TYPES[dtype]
    return "maskv" if dtype is DType.BOOL else C_TYPES[dtype] + "v"


@dataclass
class Scope:
    """A block of statements inside a loop over `variables`; a plain block is run once."""

    variables: frozenset[Var]
    is_loop: bool = True
    lines: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scopes:
    """The scopes around a point of the text, outermost first, and the names given out so far."""

    chain: tuple[Scope, ...]
    counter: Iterator[int] = field(default_factory=count)

    @property
    def innermost(self) -> Scope:
        return self.chain[-1]

    def find(self, needs: Iterable[Var]) -> Scopes:
        """The outermost scopes where all of these variables have values."""
        missing = set(needs)
        for depth, scope in enumerate(self.chain):
            missing -= scope.variables
            if not missing:
                return replace(self, chain=self.chain[: depth + 1])
        raise AssertionError(f"no loop over {sorted(map(str, missing))}")

    def define(self, kind: str, text: str, needs: Iterable[Var]) -> str:
        """The name of a constant that equals `text`: a new one, or the one it already has.

        It is taken out of loops, but not out of plain blocks: it would only occupy a register for longer.
        """
        depth = len(self.find(needs).chain)
        while depth < len(self.chain) and not self.chain[depth].is_loop:
            depth += 1
        known = next((s.names[text] for s in self.chain[:depth] if text in s.names), None)
        if known is not None:
            return known
        scope = self.chain[depth - 1]
        scope.names[text] = self.new_name("v")
        scope.lines.append(f"const {kind} {scope.names[text]} = {text};")
        return scope.names[text]

    def new_name(self, prefix: str) -> str:
        return f"{prefix}{next(self.counter)}"

    def add(self, line: str) -> None:
        self.innermost.lines.append(line)

    @contextmanager
    def loop(self, header: str, variables: Iterable[Var]) -> Iterator[Scopes]:
        """Scopes inside a loop that is written out, whole, at the end of the innermost scope."""
        inner = Scope(frozenset(variables), bool(header))
        yield replace(self, chain=(*self.chain, inner))
        if inner.lines:
            self.innermost.lines += [f"{header} {{".lstrip(), *("  " + line for line in inner.lines), "}"]


def index_text(index: Index) -> str:
    """C++ for an index; its variables are C++ names."""
    parts = [_term(atom, factor) for atom, factor in index.terms]
    if index.constant or not parts:
        parts.append(str(index.constant))
    return " + ".join(parts).replace("+ -", "- ")


def _term(atom: Var | Quotient | Remainder, factor: int) -> str:
    text = atom.name if isinstance(atom, Var) else _division(atom)
    return text if factor == 1 else f"{text} * {factor}" if factor >= 0 else f"-{text} * {-factor}"


def _division(atom: Quotient | Remainder) -> str:
    of, is_quotient = index_text(atom.of), isinstance(atom, Quotient)
    if atom.of.bounds()[0] < 0:
        return f"{'floordiv' if is_quotient else 'floormod'}({of}, {atom.by})"
    of = f"({of})" if " " in of else of
    return f"({of} {'/' if is_quotient else '%'} {atom.by})"
