"""Triton text of operations that work value by value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wolong_fx.ir.expr import COMPARISON, Const, Expr
from wolong_fx.ir.index import Var
from wolong_fx.ir.types import DType

STORAGE_TYPES = {
    DType.F64: "tl.float64",
    DType.F32: "tl.float32",
    DType.BF16: "tl.bfloat16",
    DType.F16: "tl.float16",
    DType.I64: "tl.int64",
    DType.I32: "tl.int32",
    DType.I16: "tl.int16",
    DType.I8: "tl.int8",
    DType.U8: "tl.uint8",
    DType.BOOL: "tl.uint8",
}
"""Types of elements in memory."""

REGISTER_TYPES = STORAGE_TYPES | {
    DType.BF16: "tl.float32",
    DType.F16: "tl.float32",
    DType.BOOL: "tl.int1",
}
"""Types of values: half precisions are float32 values that were rounded."""

_SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "and": "&",
    "or": "|",
    "xor": "^",
    "shl": "<<",
    "shr": ">>",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
}
_BOOL_SYMBOLS = {"add": "|", "max": "|", "mul": "&", "min": "&", "sub": "^", "ne": "^"} | {
    op: _SYMBOLS[op] for op in ("and", "or", "xor")
}
_FLOAT_FUNCTIONS = {
    "div": "divide",
    "mod": "remainder",
    "fmod": "libdevice.fmod",
    "pow": "libdevice.pow",
    "floordiv": "floor_divide",
    "atan2": "libdevice.atan2",
    "hypot": "libdevice.hypot",
    "max": "maximum",
    "min": "minimum",
}
_INTEGER_FUNCTIONS = {"mod": "floor_mod", "floordiv": "floor_div", "pow": "integer_power"} | {
    op: f"tl.{op}imum" for op in ("max", "min")
}
_TOWARDS_ZERO = {"truncdiv": "//", "fmod": "%"}
"""Triton divides integers as C does."""

_OWN_UNARY = {
    "reciprocal": "reciprocal",
    "sqrt": "square_root",
    "sigmoid": "sigmoid",
    "sign": "sign",
    "abs": "tl.abs",
}
_RENAMED = {"round": "rint"}
_ROUNDINGS = frozenset("floor ceil round trunc".split())


@dataclass(frozen=True)
class Value:
    """A value of a tile program as text.

    axes: position variables of the tile's axes that it varies along
    rank: dimensions of the tensor that holds it, 0 for a scalar; axes that it does not vary along have size 1
    literal: what to write instead, next to another value of its type
    """

    text: str
    dtype: DType
    axes: frozenset[Var]
    rank: int
    literal: str | None = None


def const_value(value: float | int | bool, dtype: DType) -> Value:
    """A typed number; beside a value of the same type, its literal will do."""
    literal = _literal(value, dtype)
    return Value(f"tl.full((), {literal}, {REGISTER_TYPES[dtype]})", dtype, frozenset(), 0, literal)


def _literal(value: float | int | bool, dtype: DType) -> str:
    if dtype is DType.BOOL:
        return str(bool(value))
    if not dtype.is_float:
        return str(int(value))
    number = float(value)
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def rounded(text: str, dtype: DType) -> str:
    """A float32 rounded to the half precision that it stands for."""
    if dtype not in (DType.BF16, DType.F16):
        return text
    return f"({text}).to({STORAGE_TYPES[dtype]}).to(tl.float32)"


def unary_text(op: str, x: Value) -> str:
    """`op` of x; its type is the operand's, or bool for isnan, isinf and not."""
    t = x.text
    if op == "not" or (op == "bitnot" and x.dtype is DType.BOOL):
        return f"{t} == 0"
    if op == "bitnot":
        return f"~{t}"
    if op == "isnan":
        return f"{t} != {t}"
    if op == "isinf":
        return f'tl.abs({t}) == float("inf")' if x.dtype.is_float else f"{t} != {t}"
    if not x.dtype.is_float:
        return _integer_unary(op, t)
    return rounded(_float_unary(op, t), x.dtype)


def _integer_unary(op: str, t: str) -> str:
    if op in _ROUNDINGS:
        return t
    forms = {"neg": f"-{t}", "abs": f"tl.abs({t})", "sign": f"sign_of_integer({t})"}
    return forms[op]


def _float_unary(op: str, t: str) -> str:
    if op == "neg":
        return f"{t} * -1.0"  # Triton negates by subtracting from 0, which makes 0 of 0
    if op == "rsqrt":
        return f"reciprocal(square_root({t}))"
    return f"{_OWN_UNARY.get(op) or 'libdevice.' + _RENAMED.get(op, op)}({t})"


def binary_text(op: str, a: Value, b: Value, exponent: Expr) -> str:
    """`a op b`, operands of one type; `exponent` is b's expression, for powers."""
    if a.dtype is DType.BOOL and op in _BOOL_SYMBOLS:
        return f"{a.text} {_BOOL_SYMBOLS[op]} {b.text}"
    if a.dtype is DType.BOOL:
        return f"{a.text}.to(tl.int8) {_SYMBOLS[op]} {b.text}.to(tl.int8)"
    if op in _SYMBOLS:
        left, right = _side_by_side(a, b)
        text = f"{left} {_SYMBOLS[op]} {right}"
        return text if op in COMPARISON else rounded(text, a.dtype)
    if not a.dtype.is_float:
        return _integer_binary(op, a.text, b.text)
    if op == "truncdiv":
        return rounded(f"libdevice.trunc(divide({a.text}, {b.text}))", a.dtype)
    if op == "pow" and isinstance(exponent, Const):
        return rounded(_power(a, b, float(exponent.value)), a.dtype)
    return rounded(f"{_FLOAT_FUNCTIONS[op]}({a.text}, {b.text})", a.dtype)


def _integer_binary(op: str, a: str, b: str) -> str:
    if op in _TOWARDS_ZERO:
        return f"{a} {_TOWARDS_ZERO[op]} {b}"
    return f"{_INTEGER_FUNCTIONS[op]}({a}, {b})"


def _side_by_side(a: Value, b: Value) -> tuple[str, str]:
    """Both texts; a literal stands next to a value that gives it its type."""
    if a.literal and b.literal:
        return a.text, b.text
    return a.literal or a.text, b.literal or b.text


def _power(a: Value, b: Value, exponent: float) -> str:
    """Constant exponents as torch computes them."""
    t = a.text
    forms = {
        1.0: t,
        2.0: f"{t} * {t}",
        3.0: f"{t} * {t} * {t}",
        0.5: f"square_root({t})",
        -0.5: f"reciprocal(square_root({t}))",
        -1.0: f"reciprocal({t})",
        -2.0: f"reciprocal({t} * {t})",
    }
    return forms.get(exponent) or f"libdevice.pow({t}, {b.text})"


def where_text(cond: Value, a: Value, b: Value) -> str:
    """`a` where the condition holds."""
    left, right = _side_by_side(a, b)
    return f"tl.where({cond.text}, {left}, {right})"


def cast_text(x: Value, to: DType) -> str:
    """As torch's conversions: small integers from floats by way of wider ones."""
    if to is DType.BOOL:
        return x.text if x.dtype is DType.BOOL else f"{x.text} != 0"
    text = x.text
    if x.dtype.is_float and to in (DType.U8, DType.I8, DType.I16):
        text = f"{text}.to(tl.int{64 if to is DType.U8 else 32})"
    if REGISTER_TYPES[x.dtype] != REGISTER_TYPES[to]:
        text = f"{text}.to({REGISTER_TYPES[to]})"
    return rounded(text, to)
