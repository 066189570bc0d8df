"""Where a kernel has very many tile functions, those that differ in numbers alone become one.

Operators that do the same to tensors of other sizes (towers whose embeddings are unequally wide, experts of
unequally many tokens, tables of unequally many rows) stand in one stage already, and need no padding there.
What is unequal is text: each has a function of its own, which runs best, since extents and strides are
constants and each loop's branches have one trip count to be predicted by. But g++ takes 7 to 15 ms for each.
So from some number on two texts that are equal but for numbers are made one, in which a number that differs
is read from the table of bindings, behind the pointers. With an operator's numbers put back the text is the
operator's own: it reads and writes what its own function did, and computes the same bits.
docs/decisions/0028 has the figures.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wolong_fx.codegen.cpp.tile_function import TileFunction

MANY = 400
"""Functions that are too many: g++ would take five seconds, and a call is dear anyway. 104 unequal towers
(some 250 functions) took 12 us by functions of their own and 17 us by shared ones, 3.6 s and 1.2 s to build.
"""

MOST_ARGUMENTS = 6
"""Numbers that a function is given at most: loops keep them in registers, beside pointers and counters."""

_NUMBER = re.compile(r"(?<![\w.\[)])(?<![/%] )(?<!e[+-])\d+(?![\w.])")
"""A number that may be an argument. Not those of names and constants, which have a suffix, a point, an
exponent or a cast in front; nor lengths of arrays; nor divisors, which are cheap while they are known.
"""

_FUNCTION = re.compile(r"(?s)NOINLINE void (\w+)\(([^)]*)\) \{\n(.*)")


@dataclass(frozen=True)
class Sharing:
    """What an operator calls: a function, by its position among those that are left, with these arguments."""

    function: int
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Scale:
    """A number as `argument * factor + rest`, for everyone who shares the function."""

    argument: int
    factor: int
    rest: int

    def __str__(self) -> str:
        product = f"c{self.argument}" + (f" * {self.factor}" if self.factor != 1 else "")
        text = product + (f" + {self.rest}" if self.rest else "").replace("+ -", "- ")
        return text if text == product == f"c{self.argument}" else f"({text})"


def share_functions(functions: Sequence[TileFunction]) -> tuple[list[TileFunction], list[Sharing]]:
    """The functions that are left, numbered anew, and for each one given, what is called in its place."""
    if len(functions) <= MANY:
        return list(functions), [Sharing(at) for at in range(len(functions))]
    alike: dict[object, list[int]] = defaultdict(list)
    for at, function in enumerate(functions):
        alike[function.lanes, function.pointers, _NUMBER.sub("#", _nameless(function))].append(at)
    left: list[TileFunction] = []
    calls: dict[int, Sharing] = {}
    for members in alike.values():
        for group in _share([functions[m] for m in members]):
            calls |= {members[at]: Sharing(len(left), arguments) for at, arguments in group.arguments.items()}
            left.append(_renamed(group.function, len(left)))
    return left, [calls[at] for at in range(len(functions))]


@dataclass(frozen=True)
class _Shared:
    """A function, and the arguments of those, by position, that call it."""

    function: TileFunction
    arguments: dict[int, tuple[int, ...]]


def _share(functions: Sequence[TileFunction]) -> list[_Shared]:
    """One for functions whose texts differ in numbers alone; each its own if it had too many arguments."""
    numbers = [map(int, _NUMBER.findall(_nameless(function))) for function in functions]
    columns = list(zip(*numbers, strict=True))
    scales, arguments = _choose_arguments(columns)
    if len(arguments) > MOST_ARGUMENTS:
        return [_Shared(function, {at: ()}) for at, function in enumerate(functions)]
    shared = _with_arguments(functions[0], [scales.get(column) for column in columns])
    rows = {at: tuple(column[at] for column in arguments) for at in range(len(functions))}
    return [_Shared(shared, rows)]


def _nameless(function: TileFunction) -> str:
    return re.sub(rf"\b{function.name}(?=[_(])", "tile", function.text)


def _renamed(function: TileFunction, number: int) -> TileFunction:
    name = f"tile{number}"
    return replace(function, name=name, text=re.sub(r"\btile(?=[_(])", name, _nameless(function)))


Column = tuple[int, ...]
"""One number of a text, as each member has it."""


def _choose_arguments(columns: Sequence[Column]) -> tuple[dict[Column, _Scale], list[Column]]:
    """How to say each column that differs in terms of few that are arguments, small ones first: a distance of
    three rows is three times that of one.
    """
    arguments: list[Column] = []
    scales: dict[Column, _Scale] = {}
    for column in sorted({c for c in columns if len(set(c)) > 1}):
        found = next((s for at, base in enumerate(arguments) if (s := _find_scale(column, base, at))), None)
        if found is None:
            found = _Scale(len(arguments), 1, 0)
            arguments.append(column)
        scales[column] = found
    return scales, arguments


def _find_scale(column: Column, base: Column, argument: int) -> _Scale | None:
    """`column` in terms of `base`, with whole numbers."""
    at = next(i for i, value in enumerate(base) if value != base[0])
    factor, left_over = divmod(column[at] - column[0], base[at] - base[0])
    rest = column[0] - factor * base[0]
    fits = not left_over and factor and all(b * factor + rest == c for b, c in zip(base, column, strict=True))
    return _Scale(argument, factor, rest) if fits else None


def _with_arguments(function: TileFunction, scales: Sequence[_Scale | None]) -> TileFunction:
    """The function with each number for which there is a scale said in terms of arguments."""
    of_numbers = iter(scales)

    def said(number: re.Match[str]) -> str:
        scale = next(of_numbers)
        return number.group() if scale is None else str(scale)

    named = replace(function, name="tile", text=_nameless(function))
    text = _NUMBER.sub(said, named.text)
    return replace(named, text=_with_table(text, function.pointers))


def _with_table(text: str, pointers: int) -> str:
    """The text of a function and its micro-kernels, each reading the arguments it uses from the table."""
    functions = [_FUNCTION.match(part) for part in re.split(r"(?m)^(?=NOINLINE)", text) if part]
    read, given = [], []
    for function in functions:
        assert function is not None, text
        name, parameters, body = function.groups()
        used = sorted(set(map(int, re.findall(r"\bc(\d+)\b", body))))
        if used and "bind" not in parameters:
            parameters += ", const i64* bind"
            given.append(name)
        lines = [f"  const i64 c{n} = bind[{2 * pointers + n}];\n" for n in used]
        read.append(f"NOINLINE void {name}({parameters}) {{\n{''.join(lines)}{body}")
    whole = "".join(read)
    for name in given:
        whole = re.sub(rf"(?m)^( *{name}\(.*)\);$", r"\1, bind);", whole)
    return whole
