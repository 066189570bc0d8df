"""Scalar expressions of a tile program: what one point of an operator's domain computes.

An expression is a DAG of immutable nodes, closed and in SSA: sharing a node means computing it once. It says
    nothing of tiles, vectors or masks; targets derive those from the domain. Types are explicit: operands of
    one operation have one dtype, `Cast` changes it. Half precisions are loaded and stored, arithmetic on them
    is done in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from wolong_fx.ir.index import Index, Var, combine
from wolong_fx.ir.types import Buffer, DType

UNARY = frozenset(
    """neg abs sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sigmoid tanh erf erfc sin cos
    tan asin acos atan sinh cosh asinh acosh atanh floor ceil round trunc not bitnot isnan isinf
    lgamma""".split()
)
ARITHMETIC = frozenset(
    "add sub mul div floordiv truncdiv mod fmod pow max min atan2 hypot and or xor shl shr".split()
)
COMPARISON = frozenset("eq ne lt le gt ge".split())
REDUCTION = frozenset("sum prod max min any all argmax argmin".split())


@dataclass(frozen=True, eq=False)
class Gather:
    """A coordinate read from memory: `value` is an integer expression that must lie in [0, extent of that
    dimension).

    check: the message of the IndexError that the caller sees when it does not (nothing is read or written
        then)
    """

    value: Expr
    check: str


Coordinate = Index | Gather


@dataclass(frozen=True, eq=False)
class Access:
    """An element of a buffer: one coordinate a dimension."""

    buffer: Buffer
    index: tuple[Coordinate, ...]

    @property
    def gathers(self) -> tuple[Gather, ...]:
        return tuple(i for i in self.index if isinstance(i, Gather))

    @property
    def affine(self) -> tuple[Index, ...]:
        return tuple(i for i in self.index if isinstance(i, Index))

    def offset(self) -> Index:
        """Element offset of the part that is not gathered."""
        return self._offset

    @cached_property
    def _offset(self) -> Index:
        pairs = zip(self.index, self.buffer.strides, strict=True)
        return combine((i, stride) for i, stride in pairs if isinstance(i, Index))

    def same_element(self, other: Access) -> bool:
        """Whether both name the same element at every point, for certain."""
        return (
            self.buffer is other.buffer
            and not self.gathers
            and not other.gathers
            and self.index == other.index
        )


@dataclass(frozen=True, eq=False)
class Expr:
    """Base of all expressions."""

    @property
    def dtype(self) -> DType:
        raise NotImplementedError

    @property
    def args(self) -> tuple[Expr, ...]:
        """Operands in the same domain point (and, of a Reduce, at each of its variables)."""
        return ()


@dataclass(frozen=True, eq=False)
class Load(Expr):
    """The element of a buffer. With `fill`, coordinates outside the buffer's shape give `fill` instead
    (padding); without it they must be inside, which the verifier proves."""

    access: Access
    fill: float | int | bool | None = None

    @property
    def dtype(self) -> DType:
        return self.access.buffer.dtype

    @property
    def args(self) -> tuple[Expr, ...]:
        return tuple(g.value for g in self.access.gathers)


@dataclass(frozen=True, eq=False)
class Const(Expr):
    """A number."""

    value: float | int | bool
    kind: DType

    @property
    def dtype(self) -> DType:
        return self.kind


@dataclass(frozen=True, eq=False)
class IndexValue(Expr):
    """An index as an int64 value (arange, argmax bases)."""

    index: Index

    @property
    def dtype(self) -> DType:
        return DType.I64


@dataclass(frozen=True, eq=False)
class Cast(Expr):
    """Conversion as torch's `.to(dtype)`: float to int truncates, anything to bool is `!= 0`, round to
    nearest even.
    """

    x: Expr
    to: DType

    @property
    def dtype(self) -> DType:
        return self.to

    @property
    def args(self) -> tuple[Expr, ...]:
        return (self.x,)


@dataclass(frozen=True, eq=False)
class Unary(Expr):
    """`isnan isinf not` give bool, the others the operand's dtype. `round` is to nearest even."""

    op: str
    x: Expr

    @property
    def dtype(self) -> DType:
        return DType.BOOL if self.op in ("isnan", "isinf", "not") else self.x.dtype

    @property
    def args(self) -> tuple[Expr, ...]:
        return (self.x,)


@dataclass(frozen=True, eq=False)
class Binary(Expr):
    """Comparisons give bool. `max` and `min` give NaN if either is; `mod` has the divisor's sign, `fmod` the
    dividend's; `div` is true division (floats only), `floordiv` and `truncdiv` round down and towards zero.
    `and or xor` are bitwise on integers, logical on bools."""

    op: str
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        return DType.BOOL if self.op in COMPARISON else self.a.dtype

    @property
    def args(self) -> tuple[Expr, ...]:
        return (self.a, self.b)


@dataclass(frozen=True, eq=False)
class Where(Expr):
    """`a` where the bool `cond` holds, else `b`; both are computed."""

    cond: Expr
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        return self.a.dtype

    @property
    def args(self) -> tuple[Expr, ...]:
        return (self.cond, self.a, self.b)


@dataclass(frozen=True, eq=False)
class Reduce(Expr):
    """`op` over `body` at every value of `over`, which are variables of this node alone, the last one
    fastest.

    sum and prod start from 0 and 1 and may be reassociated; max and min give NaN if any is; argmax and argmin
    give the int64 row-major position over `over` of the first extreme (a NaN is extreme). Over nothing, max
    and min are -inf, inf.
    """

    op: str
    over: tuple[Var, ...]
    body: Expr

    @property
    def dtype(self) -> DType:
        return DType.I64 if self.op in ("argmax", "argmin") else self.body.dtype

    @property
    def args(self) -> tuple[Expr, ...]:
        return (self.body,)


def walk(roots: Iterable[Expr]) -> Iterator[Expr]:
    """Every node once, operands before users; iterative, since fused graphs grow deep."""
    seen: set[int] = set()
    for root in roots:
        stack: list[tuple[Expr, Iterator[Expr]]] = []
        if id(root) not in seen:
            seen.add(id(root))
            stack.append((root, iter(root.args)))
        while stack:
            node, pending = stack[-1]
            child = next((a for a in pending if id(a) not in seen), None)
            if child is None:
                yield node
                stack.pop()
            else:
                seen.add(id(child))
                stack.append((child, iter(child.args)))


def rebuild(
    roots: Iterable[Expr],
    change: Callable[[Expr], Expr | None] = lambda node: None,
    index: Callable[[Index], Index] = lambda i: i,
    access: Callable[[Access], Access] = lambda a: a,
) -> list[Expr]:
    """Copies of `roots`, sharing kept: `change(node)` may replace a node outright, with all below it; `index`
    maps every index (and renames a reduction's variables, where it maps them to others) and `access` every
    load's access, after its indices and gathered values were mapped."""
    new: dict[int, Expr] = {}
    roots = list(roots)
    for node in walk(roots):
        replacement = change(node)
        new[id(node)] = replacement if replacement is not None else _copy(node, new, index, access)
    return [new[id(r)] for r in roots]


def map_access(access: Access, new: Callable[[Expr], Expr], index: Callable[[Index], Index]) -> Access:
    """An access with its gathered values and indices mapped; the same object if nothing changed."""
    mapped = tuple(
        Gather(new(i.value), i.check)
        if isinstance(i, Gather) and new(i.value) is not i.value
        else index(i)
        if isinstance(i, Index)
        else i
        for i in access.index
    )
    return (
        access
        if all(a is b or a == b for a, b in zip(mapped, access.index, strict=True))
        else Access(access.buffer, mapped)
    )


def _copy(
    node: Expr,
    new: dict[int, Expr],
    index: Callable[[Index], Index],
    change_access: Callable[[Access], Access],
) -> Expr:
    match node:
        case Load(access, fill):
            mapped = change_access(map_access(access, lambda e: new[id(e)], index))
            return node if mapped is access else Load(mapped, fill)
        case IndexValue(i):
            return node if index(i) == i else IndexValue(index(i))
        case Reduce(op, over, body):
            renamed = tuple(_renamed(v, index) for v in over)
            is_same = renamed == over and new[id(body)] is body
            return node if is_same else Reduce(op, renamed, new[id(body)])
    return with_args(node, [new[id(a)] for a in node.args])


def _renamed(var: Var, index: Callable[[Index], Index]) -> Var:
    terms = index(Index.of(var)).terms
    return terms[0][0] if terms and isinstance(terms[0][0], Var) else var


def with_args(node: Expr, args: Sequence[Expr]) -> Expr:
    """A node that is no load on other operands; the node itself if they are the ones it has."""
    if all(a is b for a, b in zip(node.args, args, strict=True)):
        return node
    match node:
        case Cast():
            return Cast(args[0], node.to)
        case Unary():
            return Unary(node.op, args[0])
        case Binary():
            return Binary(node.op, args[0], args[1])
        case Where():
            return Where(*args)
        case Reduce():
            return Reduce(node.op, node.over, args[0])
    raise AssertionError(type(node))
