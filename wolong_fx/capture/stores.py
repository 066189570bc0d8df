"""Reads the code that Dynamo made of a function: does it call one graph, and where does it store results?

Such code is straight: it fetches values, calls the graph, stores what the function assigned and returns. It
is followed here instruction by instruction, with the text of each value for the value. Python 3.11, 3.12.
"""

from __future__ import annotations

import dis
import re
import sys
from ast import literal_eval
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

GRAPH = "__compiled_fn_"  # how Dynamo names a graph
RESULT = "graph"

_SET_ATTRIBUTE = (".object_setattr_ignore_descriptor", ".object.__setattr__")  # torch 2.13's, 2.11's
_PROFILED = ("record_pregraph_bytecode_enter", "record_pregraph_bytecode_exit")
_NOTHING = frozenset("RESUME NOP CACHE EXTENDED_ARG COPY_FREE_VARS PRECALL DELETE_FAST".split())


@dataclass(frozen=True)
class Store:
    """`holder[key]`, or the attribute of that name, becomes this output of the graph.

    holder: text that says where it is, in terms of the function's variables
    """

    holder: str
    key: str
    output: int


def find_stores(code: CodeType) -> list[Store] | None:
    """What code of Dynamo stores; None where it does more than to call one graph and to store its outputs."""
    reader = _Reader()
    try:
        for step in dis.get_instructions(code):
            reader.follow(step)
    except (_Unknown, IndexError):
        return None
    return reader.stores if reader.graphs == 1 else None


class _Unknown(Exception):
    """An instruction or a call with an effect that is not known."""


@dataclass
class _Reader:
    """The values on the stack, and in local variables, as texts; a new dictionary as one of texts."""

    stack: list[Any] = field(default_factory=list)
    locals: dict[str, Any] = field(default_factory=dict)
    stores: list[Store] = field(default_factory=list)
    graphs: int = 0

    def follow(self, step: dis.Instruction) -> None:
        """Do what the instruction does."""
        if step.opname in _NOTHING:
            return
        rule = _RULES.get(step.opname)
        if rule is None:
            raise _Unknown(step.opname)
        rule(self, step)

    def pop(self, count: int) -> list[Any]:
        """The last values, taken off."""
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def call(self, step: dis.Instruction) -> None:
        """Of a function, below which a NULL lies, or of a method, above which its object lies."""
        arguments = self.pop(step.arg or 0)
        first, second = self.pop(2)
        name = str(second if first is None else first)
        self.stack.append(RESULT if name.startswith(GRAPH) else "nothing")
        if name.startswith(GRAPH):
            self.graphs += 1
        elif name.endswith(_SET_ATTRIBUTE) and len(arguments) == 3:
            self.store(arguments[0], arguments[1], arguments[2])
        elif name.endswith(".update") and len(arguments) == 1 and isinstance(arguments[0], dict):
            for key, value in arguments[0].items():
                self.store(second, key, value)
        elif not name.endswith(_PROFILED):
            raise _Unknown(name)

    def store(self, holder: Any, key: Any, value: Any) -> None:
        """Note it, if it is an output of the graph."""
        output = re.fullmatch(rf"{RESULT}\[(\d+)\]", str(value))
        if output is None:
            raise _Unknown("a store of something else")
        self.stores.append(Store(str(holder), str(literal_eval(key)), int(output[1])))


def _load_global(reader: _Reader, step: dis.Instruction) -> None:
    reader.stack += [None, step.argval] if (step.arg or 0) & 1 else [step.argval]


def _load_attribute(reader: _Reader, step: dis.Instruction) -> None:
    is_method = step.opname == "LOAD_METHOD" or (sys.version_info >= (3, 12) and (step.arg or 0) & 1)
    (base,) = reader.pop(1)
    reader.stack += [f"{base}.{step.argval}", base] if is_method else [f"{base}.{step.argval}"]


def _subscript(reader: _Reader, step: dis.Instruction) -> None:
    base, index = reader.pop(2)
    reader.stack.append(f"{base}[{index}]")


def _swap(reader: _Reader, step: dis.Instruction) -> None:
    stack, n = reader.stack, step.arg or 1
    stack[-1], stack[-n] = stack[-n], stack[-1]


def _unpack(reader: _Reader, step: dis.Instruction) -> None:
    (whole,) = reader.pop(1)
    reader.stack += [f"{whole}[{i}]" for i in reversed(range(step.arg or 0))]


def _build_map(reader: _Reader, step: dis.Instruction) -> None:
    values = reader.pop(2 * (step.arg or 0))
    reader.stack.append(dict(zip(map(str, values[::2]), values[1::2], strict=True)))


def _build_map_of_constants(reader: _Reader, step: dis.Instruction) -> None:
    *values, keys = reader.pop((step.arg or 0) + 1)
    reader.stack.append(dict(zip(map(repr, literal_eval(keys)), values, strict=True)))


def _store_local(reader: _Reader, step: dis.Instruction) -> None:
    (reader.locals[step.argval],) = reader.pop(1)


_RULES: dict[str, Callable[[_Reader, dis.Instruction], object]] = {
    "PUSH_NULL": lambda reader, step: reader.stack.append(None),
    "POP_TOP": lambda reader, step: reader.pop(1),
    "COPY": lambda reader, step: reader.stack.append(reader.stack[-(step.arg or 1)]),
    "SWAP": _swap,
    "LOAD_CONST": lambda reader, step: reader.stack.append(repr(step.argval)),
    "LOAD_FAST": lambda reader, step: reader.stack.append(reader.locals.get(step.argval, step.argval)),
    "LOAD_FAST_CHECK": lambda reader, step: reader.stack.append(reader.locals.get(step.argval, step.argval)),
    "LOAD_DEREF": lambda reader, step: reader.stack.append(step.argval),
    "LOAD_GLOBAL": _load_global,
    "LOAD_ATTR": _load_attribute,
    "LOAD_METHOD": _load_attribute,
    "BINARY_SUBSCR": _subscript,
    "STORE_FAST": _store_local,
    "UNPACK_SEQUENCE": _unpack,
    "KW_NAMES": lambda reader, step: None,
    "CALL": _Reader.call,
    "BUILD_TUPLE": lambda reader, step: reader.stack.append(f"({reader.pop(step.arg or 0)})"),
    "BUILD_LIST": lambda reader, step: reader.stack.append(f"{reader.pop(step.arg or 0)}"),
    "LIST_EXTEND": lambda reader, step: reader.pop(1),
    "BUILD_MAP": _build_map,
    "BUILD_CONST_KEY_MAP": _build_map_of_constants,
    "RETURN_VALUE": lambda reader, step: reader.pop(1),
    "RETURN_CONST": lambda reader, step: None,
}
