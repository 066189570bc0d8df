"""Inline PTX as the first thread of a block runs it: as much of the language as the grid barrier is written
in."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

_STATEMENT = re.compile(
    r"\s*(?:(?P<label>\w+):|(?:@(?P<only_if>\w+)\s+)?(?P<op>[\w.]+)\s*(?P<args>[^;{}]*);)"
)
_COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_WORD = 1 << 32


class Words(Protocol):
    """Memory that threads of several blocks meet at."""

    def add(self, address: int, value: int, order: str, scope: str) -> int:
        """Add to a 32-bit word and return what it held before."""
        ...

    def load(self, address: int, order: str, scope: str) -> int:
        """What a 32-bit word holds."""
        ...


@dataclass
class Thread:
    """Thread 0 of a block. Registers hold numbers from 0 to 2^32 - 1, predicates bools.

    operands: what `$0`, `$1` ... stand for, results first
    """

    words: Words
    operands: Sequence[int]
    registers: dict[str, int] = field(default_factory=dict)

    def run(self, text: str) -> None:
        """Run the statements. Raises NotImplementedError for one that is not known here."""
        statements = [found for found in _STATEMENT.finditer(text) if found["op"] != ".reg"]
        labels = {found["label"]: i for i, found in enumerate(statements) if found["label"]}
        at = 0
        while at < len(statements):
            statement, at = statements[at], at + 1
            if statement["label"] or (statement["only_if"] and not self.registers[statement["only_if"]]):
                continue
            op, *kind = statement["op"].split(".")
            arguments = [a.strip() for a in statement["args"].split(",")]
            if op == "bra":
                at = labels[arguments[0]]
            else:
                self.registers[arguments[0]] = self._result(op, kind, arguments[1:])

    def _result(self, op: str, kind: list[str], sources: list[str]) -> int:
        values = [self._value(source) for source in sources]
        match op, kind:
            case "mov", _:
                return values[0]
            case "xor", _:
                return values[0] ^ values[1]
            case "setp", [comparison, of]:
                left, right = (_signed(v) if of == "s32" else v for v in values)
                return _COMPARISONS[comparison](left, right)
            case "atom", ["add", order, scope, "global", "u32"]:
                return self.words.add(values[0], values[1], order, scope)
            case "ld", [order, scope, "global", "u32"]:
                return self.words.load(values[0], order, scope)
        raise NotImplementedError(f"PTX {'.'.join([op, *kind])}")

    def _value(self, source: str) -> int:
        source = source.strip("[]")
        if source.startswith("$"):
            return self.operands[int(source[1:])]
        if source == "%tid.x":
            return 0
        return self.registers[source] if source in self.registers else int(source, 0)


def _signed(value: int) -> int:
    return value - _WORD if value >= _WORD // 2 else value
