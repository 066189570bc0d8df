"""Programs as text: `print_program` and `parse_program`, which undo each other exactly.

program mlp input x f32 [7, 5] output y f32 [7] temporary h f32 [7, 5] at 4096 arena 8192 loop t < 80 { stage
{ op hidden (i < 7, n < 5 in order) over (k < 5) tile (3, 5) { # from addmm, relu %0 = load x[i, 2*n + -1]
fill 0.0 %1 = tanh %0 %2 = reduce sum (k) %1 store h[i, (n + 3) % 5] = %2 store add y[gather %2 "index out of
range"] = %1 } } without barrier }

One expression node a line, operands first; `over` lists the variables of an operator's reductions. Indices
are written in their normal form, an atom in front of `*` being a whole `(...) // 4` or `(...) % 4`. Names
that are no plain words are quoted as in JSON, and so are messages; the bytes of a constant are hexadecimal,
or base64 when there are more than 32.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from wolong_fx.errors import BadProgramText
from wolong_fx.ir.expr import (
    ARITHMETIC,
    COMPARISON,
    REDUCTION,
    UNARY,
    Access,
    Binary,
    Cast,
    Const,
    Coordinate,
    Expr,
    Gather,
    IndexValue,
    Load,
    Reduce,
    Unary,
    Where,
)
from wolong_fx.ir.index import Atom, Index, Quotient, Remainder, Var, contiguous_strides
from wolong_fx.ir.program import ArenaPlan, Dim, Item, Loop, OpInst, Program, Stage, Store
from wolong_fx.ir.types import Buffer, BufferKind, DType

HEX_BYTES = 32
"""Constants up to this size are printed in hexadecimal."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_NO_NAMES = ("inf", "nan")
_KINDS = {k.value: k for k in BufferKind}
_DTYPES = {d.value: d for d in DType}

T = TypeVar("T")


# ---- printing


def print_program(program: Program) -> str:
    """The program as text; `parse_program` makes an equal program of it."""
    lines = [f"program {_name(program.name)}"]
    offsets = program.arena.offsets if program.arena else {}
    lines += [_print_buffer(b, offsets.get(b)) for b in program.buffers]
    if program.arena is not None:
        lines.append(f"arena {program.arena.size}")
    for item in program.body:
        lines += _print_item(item)
    return "\n".join(lines) + "\n"


def print_op(op: OpInst) -> str:
    """One operator as text, as it stands in its program's."""
    return "\n".join(_print_op(op))


def _print_buffer(buffer: Buffer, offset: int | None) -> str:
    text = f"{buffer.kind.value} {_name(buffer.name)} {buffer.dtype} {_numbers(buffer.shape)}"
    if buffer.strides != contiguous_strides(buffer.shape):
        text += f" strides {_numbers(buffer.strides)}"
    if offset is not None:
        text += f" at {offset}"
    if buffer.data is not None:
        is_long = len(buffer.data) > HEX_BYTES
        data = b64encode(buffer.data).decode() if is_long else buffer.data.hex()
        text += f' {"base64" if is_long else "hex"} "{data}"'
    return text


def _print_item(item: Item) -> list[str]:
    if isinstance(item, Loop):
        inner = [line for part in item.body for line in _print_item(part)]
        return [f"loop {_name(item.var.name)} < {item.var.extent} {{", *_indented(inner), "}"]
    inner = [line for op in item.ops for line in _print_op(op)]
    return ["stage {", *_indented(inner), "}" if item.barrier else "} without barrier"]


def _print_op(op: OpInst) -> list[str]:
    dims = ", ".join(_print_var(d.var) + (" in order" if d.sequential else "") for d in op.dims)
    tile = f" tile ({', '.join(map(str, op.tile))})" if op.tile else ""
    inner = dict.fromkeys(v for e in op.expressions() if isinstance(e, Reduce) for v in e.over)
    over = f" over ({', '.join(map(_print_var, inner))})" if inner else ""
    origin = [f"# from {', '.join(map(_name, op.made_from))}"] if op.made_from else []
    names: dict[int, str] = {}
    values = []
    for node in op.expressions():
        names[id(node)] = f"%{len(names)}"
        values.append(f"{names[id(node)]} = {_print_expr(node, names)}")
    stores = [_print_store(s, names) for s in op.stores]
    return [f"op {_name(op.name)} ({dims}){over}{tile} {{", *_indented([*origin, *values, *stores]), "}"]


def _print_store(store: Store, names: Mapping[int, str]) -> str:
    how = f"store {store.accumulate}" if store.accumulate else "store"
    return f"{how} {_print_access(store.access, names)} = {names[id(store.value)]}"


def _print_expr(node: Expr, names: Mapping[int, str]) -> str:
    args = " ".join(names[id(a)] for a in node.args)
    match node:
        case Load(access, fill):
            text = f"load {_print_access(access, names)}"
            return text if fill is None else f"{text} fill {_print_number(fill)}"
        case Const(value, kind):
            return f"const {kind} {_print_number(value)}"
        case IndexValue(index):
            return f"index {_print_index(index)}"
        case Cast(_, to):
            return f"cast {to} {args}"
        case Where():
            return f"where {args}"
        case Reduce(op, over):
            return f"reduce {op} ({', '.join(_name(v.name) for v in over)}) {args}"
        case Unary(op) | Binary(op):
            return f"{op} {args}"
    raise AssertionError(type(node))


def _print_access(access: Access, names: Mapping[int, str]) -> str:
    parts = [
        f"gather {names[id(i.value)]} {json.dumps(i.check)}" if isinstance(i, Gather) else _print_index(i)
        for i in access.index
    ]
    return f"{_name(access.buffer.name)}[{', '.join(parts)}]"


def _print_index(index: Index) -> str:
    parts = [_print_atom(a) if c == 1 else f"{c}*{_print_atom(a)}" for a, c in index.terms]
    if index.constant or not parts:
        parts.append(str(index.constant))
    return " + ".join(parts)


def _print_atom(atom: Atom) -> str:
    if isinstance(atom, Var):
        return _name(atom.name)
    return f"({_print_index(atom.of)}) {'//' if isinstance(atom, Quotient) else '%'} {atom.by}"


def _print_var(var: Var) -> str:
    return f"{_name(var.name)} < {var.extent}"


def _print_number(value: float | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _numbers(values: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, values))}]"


def _name(name: str) -> str:
    return name if _WORD.fullmatch(name) and name not in _NO_NAMES else json.dumps(name)


def _indented(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]


# ---- parsing


def parse_program(text: str) -> Program:
    """The program that a text of `print_program` describes; raises BadProgramText naming the line."""
    return _Parser(text).program()


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


_TOKENS = re.compile(
    r"""(?P<newline>\n) | (?P<space>[ \t\r]+) | (?P<origin>\#[ ]from\b) | (?P<comment>\#[^\n]*)
    | (?P<string>"(?:[^"\\\n]|\\.)*") | (?P<value>%\d+)
    | (?P<number>-?(?:(?:inf|nan)\b|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?))
    | (?P<word>[A-Za-z_][A-Za-z0-9_.]*) | (?P<sign>//|[][(){}<=,+*%]) | (?P<other>.)""",
    re.VERBOSE,
)


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKENS.finditer(text):
        kind = match.lastgroup or "other"
        if kind not in ("newline", "space", "comment"):
            yield _Token(kind, match.group(), line)
        line += kind == "newline"
    yield _Token("end", "end of text", line)


class _Parser:
    """Recursive descent, one method a construct."""

    def __init__(self, text: str) -> None:
        self.tokens = list(_tokens(text))
        self.position = 0
        self.buffers: dict[str, Buffer] = {}
        self.offsets: dict[Buffer, int] = {}
        self.variables: dict[str, Var] = {}
        self.values: dict[str, Expr] = {}

    # -- the grammar

    def program(self) -> Program:
        self._take("program")
        name = self._name()
        while self._next.text in _KINDS:
            self._buffer()
        arena = ArenaPlan(self.offsets, self._integer()) if self._skip("arena") else None
        body: list[Item] = []
        while self._next.kind != "end":
            body.append(self._item())
        return Program(name, tuple(self.buffers.values()), tuple(body), arena)

    def _buffer(self) -> None:
        kind = _KINDS[self._word()]
        name, dtype, shape = self._name(), self._dtype(), self._integers()
        strides = self._integers() if self._skip("strides") else contiguous_strides(shape)
        offset = self._integer() if self._skip("at") else None
        buffer = Buffer(name, dtype, shape, kind, strides, self._data())
        self.buffers[name] = buffer
        if offset is not None:
            self.offsets[buffer] = offset

    def _data(self) -> bytes | None:
        if self._skip("hex"):
            return self._decoded("bytes in hexadecimal", bytes.fromhex)
        if self._skip("base64"):
            return self._decoded("bytes in base64", lambda text: b64decode(text, validate=True))
        return None

    def _item(self) -> Item:
        if self._skip("loop"):
            var = self._variable()
            return Loop(var, tuple(self._block(self._item)))
        self._take("stage", "a stage or a loop")
        ops = tuple(self._block(self._op))
        is_last = self._skip("without")
        if is_last:
            self._take("barrier")
        return Stage(ops, not is_last)

    def _op(self) -> OpInst:
        self._take("op", "an operator")
        self.values, outer = {}, dict(self.variables)
        name, dims = self._name(), tuple(self._listed("(", ")", self._dim))
        if self._skip("over"):
            self._listed("(", ")", self._variable)
        tile = tuple(self._listed("(", ")", self._integer)) if self._skip("tile") else ()
        self._take("{")
        made_from = self._origin()
        while self._next.kind == "value":
            self._assignment()
        stores: list[Store] = []
        while not self._skip("}"):
            stores.append(self._store())
        self.variables = outer
        return OpInst(name, dims, tuple(stores), tile, made_from)

    def _dim(self) -> Dim:
        var = self._variable()
        in_order = self._skip("in")
        if in_order:
            self._take("order")
        return Dim(var, in_order)

    def _origin(self) -> tuple[str, ...]:
        if self._next.kind != "origin":
            return ()
        self.position += 1
        names = [self._name()]
        while self._skip(","):
            names.append(self._name())
        return tuple(names)

    def _assignment(self) -> None:
        target = self._token("value", "a value").text
        self._take("=")
        self.values[target] = self._expr()

    def _expr(self) -> Expr:
        token = self._token("word", "an operation")
        op = token.text
        if op in _FORMS:
            return _FORMS[op](self)
        if op in UNARY:
            return Unary(op, self._value())
        if op in ARITHMETIC or op in COMPARISON:
            return Binary(op, self._value(), self._value())
        raise self._wrong("an operation", token)

    def _load(self) -> Expr:
        access = self._access()
        return Load(access, self._number() if self._skip("fill") else None)

    def _reduce(self) -> Expr:
        token = self._token("word", "a reduction")
        if token.text not in REDUCTION:
            raise self._wrong("a reduction", token)
        return Reduce(token.text, tuple(self._listed("(", ")", self._known_variable)), self._value())

    def _store(self) -> Store:
        self._take("store", "a value or a store")
        how = (
            self._word()
            if self._next.text in ("add", "mul", "max", "min") and not self._is_access()
            else None
        )
        access = self._access()
        self._take("=")
        return Store(access, self._value(), how)

    def _is_access(self) -> bool:
        return self.tokens[self.position + 1].text == "["

    def _access(self) -> Access:
        buffer = self._known(self._token_of_name(), self.buffers, "a buffer")
        return Access(buffer, tuple(self._listed("[", "]", self._coordinate)))

    def _coordinate(self) -> Coordinate:
        if self._next.text == "gather" and self.tokens[self.position + 1].kind == "value":
            self.position += 1
            return Gather(self._value(), self._quoted())
        return self._index()

    def _index(self) -> Index:
        constant, terms = 0, []
        while True:
            factor = self._integer() if self._next.kind == "number" else None
            if factor is not None and not self._skip("*"):
                constant = factor
            else:
                terms.append((self._atom(), 1 if factor is None else factor))
            if not self._skip("+"):
                return Index(constant, tuple(terms))

    def _atom(self) -> Atom:
        if not self._skip("("):
            return self._known_variable()
        of = self._index()
        self._take(")")
        if self._skip("//"):
            return Quotient(of, self._integer())
        self._take("%", "'//' or '%'")
        return Remainder(of, self._integer())

    def _known_variable(self) -> Var:
        return self._known(self._token_of_name(), self.variables, "a variable")

    def _variable(self) -> Var:
        """A variable is known from here to the end of its operator or loop body."""
        name = self._name()
        self._take("<")
        self.variables[name] = Var(name, self._integer())
        return self.variables[name]

    # -- the words

    @property
    def _next(self) -> _Token:
        return self.tokens[self.position]

    def _wrong(self, expected: str, token: _Token) -> BadProgramText:
        return BadProgramText(line=token.line, expected=expected, found=token.text)

    def _token(self, kind: str, expected: str) -> _Token:
        token = self._next
        if token.kind != kind:
            raise self._wrong(expected, token)
        self.position += 1
        return token

    def _skip(self, text: str) -> bool:
        found = self._next.text == text and self._next.kind in ("word", "sign")
        self.position += found
        return found

    def _take(self, text: str, expected: str = "") -> None:
        if not self._skip(text):
            raise self._wrong(expected or repr(text), self._next)

    def _word(self) -> str:
        return self._token("word", "a word").text

    def _token_of_name(self) -> _Token:
        token = self._next
        if token.kind == "string":
            self.position += 1
            return token._replace(text=self._unquoted(token))
        return self._token("word", "a name")

    def _name(self) -> str:
        return self._token_of_name().text

    def _quoted(self) -> str:
        return self._unquoted(self._token("string", "a message in quotes"))

    def _unquoted(self, token: _Token) -> str:
        try:
            return json.loads(token.text)
        except ValueError:
            raise self._wrong("text quoted as in JSON", token) from None

    def _decoded(self, expected: str, decode: Callable[[str], bytes]) -> bytes:
        token = self._token("string", expected)
        try:
            return decode(token.text[1:-1])
        except ValueError:
            raise self._wrong(expected, token) from None

    def _known(self, token: _Token, table: Mapping[str, T], expected: str) -> T:
        if token.text not in table:
            raise self._wrong(f"the name of {expected}", token)
        return table[token.text]

    def _value(self) -> Expr:
        token = self._token("value", "a value")
        if token.text not in self.values:
            raise self._wrong("a value defined above", token)
        return self.values[token.text]

    def _dtype(self) -> DType:
        return self._known(self._token("word", "an element type"), _DTYPES, "an element type")

    def _integer(self) -> int:
        token = self._token("number", "a whole number")
        try:
            return int(token.text)
        except ValueError:
            raise self._wrong("a whole number", token) from None

    def _number(self) -> float | int | bool:
        for word in ("true", "false"):
            if self._skip(word):
                return word == "true"
        token = self._token("number", "a number")
        return int(token.text) if re.fullmatch(r"-?\d+", token.text) else float(token.text)

    def _integers(self) -> tuple[int, ...]:
        return tuple(self._listed("[", "]", self._integer))

    def _listed(self, start: str, end: str, part: Callable[[], T]) -> list[T]:
        """Parts between commas."""
        self._take(start)
        found: list[T] = []
        while not self._skip(end):
            if found:
                self._take(",")
            found.append(part())
        return found

    def _block(self, part: Callable[[], T]) -> list[T]:
        self._take("{")
        found: list[T] = []
        while not self._skip("}"):
            found.append(part())
        return found


_FORMS: dict[str, Callable[[_Parser], Expr]] = {
    "load": _Parser._load,
    "const": lambda p: _constant(p._dtype(), p._number()),
    "index": lambda p: IndexValue(p._index()),
    "cast": lambda p: _cast(p._dtype(), p._value()),
    "where": lambda p: Where(p._value(), p._value(), p._value()),
    "reduce": _Parser._reduce,
}
"""How an operation that is more than a word and its operands is read."""


def _constant(kind: DType, value: float | int | bool) -> Const:
    return Const(value, kind)


def _cast(to: DType, x: Expr) -> Cast:
    return Cast(x, to)
