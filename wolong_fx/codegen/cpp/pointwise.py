"""C++ text of operations that work value by value: on scalars and on vectors alike."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from wolong_fx.codegen.cpp.scope import C_TYPES, Value, c_type
from wolong_fx.ir.expr import COMPARISON, Const, Expr
from wolong_fx.ir.types import DType

Use = Callable[[str], None]
"""Called with the name of each piece of the prelude that a text needs."""

_SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "xor": "^",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
}
_SYMBOLS |= {"and": "&", "or": "|"}
_BOOL_SYMBOLS = {
    "add": "|",
    "max": "|",
    "mul": "&",
    "min": "&",
    "sub": "^",
    "and": "&",
    "or": "|",
    "xor": "^",
    "ne": "^",
}
_ROUNDED = {DType.BF16: "bf16", DType.F16: "f16"}
_ROUNDINGS = frozenset("floor ceil round trunc".split())
_LARGEST = {DType.I64: 63, DType.I32: 31, DType.I16: 15, DType.I8: 7}


def const_text(value: float | int | bool, dtype: DType) -> str:
    """A literal of a type; floats as the shortest decimals that read back as the same number."""
    if dtype is DType.BOOL:
        return "true" if value else "false"
    if not dtype.is_float:
        return _integer_text(int(value), dtype)
    number = float(value) if dtype is DType.F64 else _as_f32(float(value))
    suffix = "" if dtype is DType.F64 else "f"
    if math.isnan(number):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(number):
        return f"{'-' if number < 0 else ''}__builtin_inf{suffix}()"
    return repr(number) + suffix


def _integer_text(value: int, dtype: DType) -> str:
    if dtype is DType.I64:
        return "(-9223372036854775807l - 1)" if value == -(1 << 63) else f"{value}l"
    return f"({C_TYPES[dtype]}){value}"


def _as_f32(value: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def lowest(dtype: DType, is_lowest: bool) -> float | int | bool:
    """What max (or min) of nothing is."""
    if dtype.is_float:
        return -math.inf if is_lowest else math.inf
    if dtype is DType.BOOL:
        return not is_lowest
    if dtype is DType.U8:
        return 0 if is_lowest else 255
    bits = _LARGEST[dtype]
    return -(1 << bits) if is_lowest else (1 << bits) - 1


def rounded(text: str, dtype: DType, use: Use) -> str:
    """A float32 rounded to the half precision that it stands for."""
    if dtype not in _ROUNDED:
        return text
    use(_ROUNDED[dtype])
    return f"round_{_ROUNDED[dtype]}({text})"


def unary_text(op: str, x: Value, use: Use) -> str:
    """`op` of x; its type is the operand's, or bool for isnan, isinf and not."""
    kind, t = x.dtype, x.text
    if op in ("not", "bitnot") and kind is DType.BOOL:
        return f"~{t}" if x.is_vector else f"!{t}"
    if op == "not":
        return f"mask({t} == 0)"
    if op == "bitnot":
        return f"~{t}"
    if op in ("isnan", "isinf"):
        return _classified(op, x, use)
    if not kind.is_float:
        return _integer_unary(op, x)
    return rounded(_float_unary(op, x, use), kind, use)


def _classified(op: str, x: Value, use: Use) -> str:
    if not x.dtype.is_float:
        return "maskv{}" if x.is_vector else "false"
    if op == "isnan":
        return f"mask({x.text} != {x.text})"
    infinity = const_text(math.inf, x.dtype)
    return f"mask(({x.text} == {infinity}) | ({x.text} == -{infinity}))"


def _integer_unary(op: str, x: Value) -> str:
    t, zero = x.text, f"{c_type(x.dtype, x.is_vector)}{{}}"
    if op in _ROUNDINGS:
        return t
    if op == "neg":
        return f"-{t}"
    if op == "abs":
        return t if x.dtype is DType.U8 else f"select(mask({t} < 0), {_same_type(f'-{t}', x)}, {t})"
    if op == "sign":
        one = _splat("1", x)
        below = zero if x.dtype is DType.U8 else f"select(mask({t} < 0), {_same_type(f'-{one}', x)}, {zero})"
        return f"select(mask({t} > 0), {one}, {below})"
    raise AssertionError(f"{op} of {x.dtype}")


def _same_type(text: str, x: Value) -> str:
    return text if x.is_vector else f"({C_TYPES[x.dtype]})({text})"


def _splat(literal: str, x: Value) -> str:
    scalar = f"({C_TYPES[x.dtype]}){literal}"
    return f"broadcast({scalar})" if x.is_vector else scalar


def _float_unary(op: str, x: Value, use: Use) -> str:
    t = x.text
    one = "1." if x.dtype is DType.F64 else "1.f"
    if op == "neg":
        return f"-{t}"
    if op == "reciprocal":
        return f"{one} / {t}"
    if op in ("rsqrt", "sqrt"):
        use("sqrt")
        return f"sqrt_({t})" if op == "sqrt" else f"{one} / sqrt_({t})"
    use("signs" if op in ("abs", "sign") else op)
    return f"{op}_({t})"


def binary_text(op: str, a: Value, b: Value, use: Use, exponent: Expr | None = None) -> str:
    """`a op b`; operands of one type, and both vectors or both scalars."""
    if a.dtype is DType.BOOL:
        return _bool_binary(op, a, b)
    if op in COMPARISON:
        return f"mask({a.text} {_SYMBOLS[op]} {b.text})"
    if op in _SYMBOLS:
        return rounded(f"{a.text} {_SYMBOLS[op]} {b.text}", a.dtype, use)
    if op in ("max", "min"):
        use("extremes")
    elif not a.dtype.is_float:
        return _integer_binary(op, a, b, use)
    elif op == "pow" and isinstance(exponent, Const):
        return rounded(_power(a, b, float(exponent.value), use), a.dtype, use)
    elif op == "truncdiv":
        use("trunc")
        return rounded(f"trunc_({a.text} / {b.text})", a.dtype, use)
    else:
        use(op)
    return rounded(f"{op}_({a.text}, {b.text})", a.dtype, use)


def _bool_binary(op: str, a: Value, b: Value) -> str:
    if op in _BOOL_SYMBOLS:
        return f"{a.text} {_BOOL_SYMBOLS[op]} {b.text}"
    complement = "~" if a.is_vector else "!"
    forms = {
        "eq": "{n}({a} ^ {b})",
        "lt": "{n}{a} & {b}",
        "le": "{n}{a} | {b}",
        "gt": "{a} & {n}{b}",
        "ge": "{a} | {n}{b}",
    }
    return forms[op].format(a=a.text, b=b.text, n=complement)


def _integer_binary(op: str, a: Value, b: Value, use: Use) -> str:
    if op == "pow":
        use("integer_power")
        return f"ipow_({a.text}, {b.text})"
    use("shifts" if op in ("shl", "shr") else "integer_division")
    return f"{op}_({a.text}, {b.text})"


def _power(a: Value, b: Value, exponent: float, use: Use) -> str:
    """Constant exponents as torch computes them."""
    one, t = ("1." if a.dtype is DType.F64 else "1.f"), a.text
    if exponent in (0.5, -0.5):
        use("sqrt")
    forms = {
        1.0: t,
        2.0: f"{t} * {t}",
        3.0: f"{t} * {t} * {t}",
        0.5: f"sqrt_({t})",
        -0.5: f"{one} / sqrt_({t})",
        -1.0: f"{one} / {t}",
        -2.0: f"{one} / ({t} * {t})",
    }
    if exponent in forms:
        return forms[exponent]
    use("pow")
    return f"pow_({t}, {b.text})"


def where_text(cond: Value, a: Value, b: Value) -> str:
    """`a` where the condition holds; three scalars or three vectors."""
    if a.dtype is DType.BOOL and a.is_vector:
        return f"({cond.text} & {a.text}) | (~{cond.text} & {b.text})"
    return f"select({cond.text}, {a.text}, {b.text})"


def cast_text(x: Value, to: DType, use: Use) -> str:
    """As torch's conversions on this kind of machine: small integers from floats by way of wider ones."""
    if x.dtype is DType.BOOL:
        return rounded(_from_bool(x, to), to, use) if to is not DType.BOOL else x.text
    if to is DType.BOOL:
        return f"mask({x.text} != 0)"
    if x.dtype.is_float and to in (DType.U8, DType.I8, DType.I16):
        wide = DType.I64 if to is DType.U8 else DType.I32
        x = Value(_converted(x, wide), wide, x.is_vector, x.needs)
    return rounded(_converted(x, to), to, use)


def _converted(x: Value, to: DType) -> str:
    if C_TYPES[x.dtype] == C_TYPES[to]:
        return x.text
    if x.is_vector:
        return f"__builtin_convertvector({x.text}, {c_type(to, True)})"
    return f"({C_TYPES[to]}){x.text}"


def _from_bool(x: Value, to: DType) -> str:
    if x.is_vector:
        return f"__builtin_convertvector({x.text} & 1, {c_type(to, True)})"
    return f"({C_TYPES[to]}){x.text}"


def as_vectors(values: Sequence[Value]) -> list[Value]:
    """All as vectors if any is one."""
    if not any(v.is_vector for v in values):
        return list(values)
    return [v if v.is_vector else Value(v.as_vector, v.dtype, True, v.needs) for v in values]
