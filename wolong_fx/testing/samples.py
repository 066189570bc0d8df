"""Operator samples: for every family of operators, functions of tensors and inputs that are awkward on
purpose.

A sample is a function and its inputs; all samples of a family and dtype can be traced into one graph. Inputs
come plain, ragged (no multiple of a vector), empty, strided, transposed, expanded, without dimensions,
broadcast, of mixed types, and with NaN, infinities, -0.0 and extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32)
NUMBERS = (*FLOATS, *INTEGERS)
ALL = (*NUMBERS, torch.bool)

SPECIAL = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.5,
    -2.5,
    88.5,
    -87.0,
    1e30,
    -1e30,
    1e-30,
)


@dataclass(frozen=True, eq=False)
class Sample:
    """A function of tensors that returns a tensor or a tuple of them, and its inputs.

    kind: what is awkward about the inputs
    """

    kind: str
    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Operator:
    """Samples of one operator.

    cancels: see testing.oracle.assert_results_close
    """

    family: str
    name: str
    dtypes: tuple[torch.dtype, ...]
    make: Callable[[Maker], Iterable[Sample]]
    cancels: bool = False

    def samples(self, dtype: torch.dtype) -> list[Sample]:
        """The same samples at every call."""
        return list(self.make(Maker(dtype)))


class Maker:
    """Makes inputs of one dtype, the same at every run."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(7)

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Floats around 0, integers from -4 to 4 without 0, bools."""
        dtype = dtype or self.dtype
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if dtype is torch.bool:
            return values > 0
        return values.to(dtype) if dtype.is_floating_point else _nonzero(values).to(dtype)

    def special(self) -> Tensor:
        """Values where functions turn, overflow or are undefined."""
        if self.dtype.is_floating_point:
            return torch.tensor(SPECIAL, dtype=torch.float64).to(self.dtype)
        if self.dtype is torch.bool:
            return torch.tensor([True, False])
        info = torch.iinfo(self.dtype)
        return torch.tensor([1, -1, 2, info.max // 2, info.min // 2 + 1], dtype=self.dtype)

    def index(self, below: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(0, below, shape, generator=self.generator, dtype=dtype)

    def mask(self, *shape: int) -> Tensor:
        return self.tensor(*shape, dtype=torch.bool)

    def layouts(self) -> Iterator[tuple[str, Tensor]]:
        """One tensor of each awkward layout."""
        yield "plain", self.tensor(4, 8)
        yield "ragged", self.tensor(3, 2, 19)
        yield "empty", self.tensor(0, 4)
        yield "scalar", self.tensor()
        yield "strided", self.tensor(5, 14)[:, ::2]
        yield "transposed", self.tensor(6, 5).t()
        yield "expanded", self.tensor(1, 7).expand(3, 7)
        yield "special", self.special()


def _nonzero(values: Tensor) -> Tensor:
    whole = (values * 2).round().clamp(-4, 4)
    return torch.where(whole == 0, 1.0, whole)


# ---- makers of samples


def unary(function: Callable[..., Any]) -> Callable[[Maker], Iterable[Sample]]:
    """The function of one tensor, in every layout."""
    return lambda m: [Sample(kind, function, (x,)) for kind, x in m.layouts()]


def binary(function: Callable[..., Any]) -> Callable[[Maker], Iterable[Sample]]:
    """The function of two tensors that broadcast."""

    def make(m: Maker) -> Iterator[Sample]:
        yield Sample("plain", function, (m.tensor(4, 8), m.tensor(4, 8)))
        yield Sample("ragged", function, (m.tensor(3, 2, 19), m.tensor(3, 2, 19)))
        yield Sample("broadcast", function, (m.tensor(5, 1), m.tensor(7)))
        yield Sample("broadcast scalar", function, (m.tensor(), m.tensor(2, 3)))
        yield Sample("empty", function, (m.tensor(0, 3), m.tensor(1, 3)))
        yield Sample("strided", function, (m.tensor(6, 5).t(), m.tensor(5, 12)[:, ::2]))
        yield Sample("expanded", function, (m.tensor(1, 4).expand(3, 4), m.tensor(3, 4)))
        yield Sample("special", function, _pairs(m.special()))

    return make


def _pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    if not values.is_floating_point() and values.dtype is not torch.bool:
        values = values.clamp(-2, 2)
    n = values.numel()
    return values[:, None].expand(n, n).contiguous(), values


def promoting(function: Callable[..., Any]) -> Callable[[Maker], Iterable[Sample]]:
    """The function of two tensors of different types, with and without dimensions."""

    def make(m: Maker) -> Iterator[Sample]:
        for other in ALL:
            if other is not m.dtype:
                name = str(other).removeprefix("torch.")
                yield Sample(f"with {name}", function, (m.tensor(3, 5), m.tensor(3, 5, dtype=other)))
                yield Sample(f"with scalar {name}", function, (m.tensor(3, 5), m.tensor(dtype=other)))

    return make


def reduction(function: Callable[..., Any], *dims: Any) -> Callable[[Maker], Iterable[Sample]]:
    """function(x, dim, keepdim) over several dimensions of several layouts."""

    def make(m: Maker) -> Iterator[Sample]:
        for dim, keep in product(dims, (False, True)):
            yield Sample(
                f"dim {dim} keep {keep}", lambda x, d=dim, k=keep: function(x, d, k), (m.tensor(3, 4, 19),)
            )
        first, last = dims[0], dims[-1]
        yield Sample("transposed", lambda x: function(x, first, False), (m.tensor(4, 33, 2).transpose(0, 2),))
        yield Sample("strided", lambda x: function(x, last, False), (m.tensor(3, 2, 30)[..., ::3],))
        yield Sample("long", lambda x: function(x, last, False), (m.tensor(2, 1, 300),))
        yield Sample("special", lambda x: function(x, last, False), (m.special().expand(2, 3, -1),))
        yield Sample("no rows", lambda x: function(x, -1, False), (m.tensor(0, 2, 3),))

    return make


def cases(*made: Callable[[Maker], Sample]) -> Callable[[Maker], Iterable[Sample]]:
    """Samples written out one by one."""
    return lambda m: [one(m) for one in made]


def case(
    function: Callable[..., Any], *shapes: Sequence[int], kind: str = "plain"
) -> Callable[[Maker], Sample]:
    """A sample of inputs with these shapes."""
    return lambda m: Sample(kind, function, tuple(m.tensor(*shape) for shape in shapes))


def case_of(
    kind: str, function: Callable[..., Any], inputs: Callable[[Maker], tuple[Tensor, ...]]
) -> Callable[[Maker], Sample]:
    """A sample with inputs of its own."""
    return lambda m: Sample(kind, function, inputs(m))


def gradient(function: Callable[..., Tensor], wanted: int = 1) -> Callable[..., Any]:
    """The gradients of the first `wanted` inputs for a weighted sum of the function's result."""

    def backward(*inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs[:wanted]]
        result = function(*leaves, *inputs[wanted:])
        weights = torch.linspace(-1, 1, max(result.numel(), 1), dtype=result.dtype)[: result.numel()]
        return torch.autograd.grad((result * weights.reshape(result.shape)).sum(), leaves)

    return backward


# ---- the table

_UNARY_FLOAT = """exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sigmoid tanh erf erfc sin cos tan
    asin acos atan sinh cosh asinh acosh atanh floor ceil round trunc frac sign isnan isinf isfinite
    lgamma""".split()

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "elu": F.elu,
    "elu scaled": lambda x: F.elu(x, 0.5),
    "selu": F.selu,
    "celu": F.celu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.25, -1.0),
}

_ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "add scaled": lambda a, b: torch.add(a, b, alpha=2),
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}

_DIVISION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "div": torch.div,
    "floor_divide": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "trunc_divide": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "remainder": torch.remainder,
    "fmod": torch.fmod,
}

_COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    name: getattr(torch, name) for name in "eq ne lt le gt ge logical_and logical_or logical_xor".split()
}

_SCALAR: dict[str, Callable[[Tensor], Tensor]] = {
    "add 2": lambda x: x + 2,
    "add 0.5": lambda x: x + 0.5,
    "1 -": lambda x: 1 - x,
    "mul 3": lambda x: x * 3,
    "div 3": lambda x: x / 3,
    "pow 2": lambda x: x**2,
    "pow 3": lambda x: x**3,
    "clamp": lambda x: x.clamp(-1, 2),
    "clamp min": lambda x: x.clamp(min=0),
    "gt 0": lambda x: x > 0,
    "abs": torch.abs,
    "neg": torch.neg,
}


def _family(
    family: str, table: dict[str, Any], dtypes: tuple[torch.dtype, ...], make: Callable[[Any], Any]
) -> list[Operator]:
    return [Operator(family, name, dtypes, make(function)) for name, function in table.items()]


def _cast_samples(m: Maker) -> Iterator[Sample]:
    for to in ALL:
        x = m.tensor(3, 11) * 3 if m.dtype is not torch.bool else m.tensor(3, 11)
        yield Sample(f"to {to}".replace("torch.", ""), lambda y, t=to: y.to(t), (x,))


POINTWISE = [
    *_family("unary", {n: getattr(torch, n) for n in _UNARY_FLOAT}, FLOATS, unary),
    *_family("unary", {n: getattr(torch, n) for n in ("exp", "sigmoid", "sqrt", "sign")}, INTEGERS, unary),
    *(
        Operator("activation", name, FLOATS, unary(f), cancels=name == "tanhshrink")
        for name, f in _ACTIVATIONS.items()
    ),
    *_family("scalar", _SCALAR, NUMBERS, unary),
    *_family("arithmetic", _ARITHMETIC, NUMBERS, binary),
    *_family("arithmetic", _DIVISION, NUMBERS, binary),
    *_family("arithmetic", {"pow": torch.pow, "atan2": torch.atan2, "hypot": torch.hypot}, FLOATS, binary),
    *_family("compare", _COMPARISONS, ALL, binary),
    *_family(
        "bitwise",
        {n: getattr(torch, f"bitwise_{n}") for n in ("and", "or", "xor")},
        (*INTEGERS, torch.bool),
        binary,
    ),
    *_family(
        "bitwise",
        {"not": torch.bitwise_not, "logical_not": torch.logical_not},
        (*INTEGERS, torch.bool),
        unary,
    ),
    *_family("promotion", {"add": torch.add, "mul": torch.mul, "lt": torch.lt}, ALL, promoting),
    *_family("promotion", {"div": torch.div}, NUMBERS, promoting),
    Operator("promotion", "to", ALL, _cast_samples),
    Operator(
        "promotion",
        "where",
        ALL,
        cases(
            case_of("plain", torch.where, lambda m: (m.mask(3, 5), m.tensor(3, 5), m.tensor(3, 5))),
            case_of("broadcast", torch.where, lambda m: (m.mask(3, 1), m.tensor(5), m.tensor())),
            case_of("masked_fill", lambda x, k: x.masked_fill(k, 0), lambda m: (m.tensor(3, 5), m.mask(5))),
        ),
    ),
]

_DIMS = (0, 1, -1, (0, 2), (0, 1, 2))

REDUCTIONS = [
    Operator("reduction", "sum", ALL, reduction(lambda x, d, k: x.sum(d, k), *_DIMS), cancels=True),
    Operator("reduction", "mean", FLOATS, reduction(lambda x, d, k: x.mean(d, k), *_DIMS), cancels=True),
    Operator("reduction", "amax", ALL, reduction(torch.amax, *_DIMS)),
    Operator("reduction", "amin", ALL, reduction(torch.amin, *_DIMS)),
    Operator("reduction", "prod", NUMBERS, reduction(lambda x, d, k: x.prod(d, k), 0, 1, -1)),
    Operator(
        "reduction", "var", FLOATS, reduction(lambda x, d, k: x.var(d, keepdim=k), *_DIMS), cancels=True
    ),
    Operator(
        "reduction",
        "var biased",
        FLOATS,
        reduction(lambda x, d, k: torch.var_mean(x, d, correction=0, keepdim=k), -1),
        cancels=True,
    ),
    Operator("reduction", "std", FLOATS, reduction(lambda x, d, k: x.std(d, keepdim=k), 1, -1), cancels=True),
    Operator("reduction", "argmax", NUMBERS, reduction(torch.argmax, 0, 1, -1)),
    Operator("reduction", "argmin", NUMBERS, reduction(torch.argmin, 0, 1, -1)),
    Operator("reduction", "max", NUMBERS, reduction(lambda x, d, k: tuple(torch.max(x, d, k)), 0, -1)),
    Operator("reduction", "min", NUMBERS, reduction(lambda x, d, k: tuple(torch.min(x, d, k)), 0, -1)),
    Operator("reduction", "any", ALL, reduction(torch.any, 0, 1, -1)),
    Operator("reduction", "all", ALL, reduction(torch.all, 0, 1, -1)),
    Operator("reduction", "logsumexp", FLOATS, reduction(torch.logsumexp, 0, -1), cancels=True),
    Operator(
        "reduction",
        "norm",
        FLOATS,
        reduction(lambda x, d, k: torch.linalg.vector_norm(x, dim=d, keepdim=k), 0, -1),
    ),
    Operator(
        "reduction",
        "norm of order",
        FLOATS,
        lambda m: [
            Sample(f"{order}", lambda x, o=order: torch.linalg.vector_norm(x, o, 1), (m.tensor(5, 37),))
            for order in (0, 0.5, 1, 3, torch.inf, -torch.inf)
        ],
    ),
    Operator(
        "reduction",
        "whole",
        NUMBERS,
        lambda m: [
            Sample(k, lambda x: (x.sum(), x.amax(), x.argmax()), (m.tensor(*s),))
            for k, s in (("plain", (5, 7)), ("long", (1000,)))
        ],
        cancels=True,
    ),
]


def _softmax_like(function: Callable[..., Tensor]) -> Callable[[Maker], Iterable[Sample]]:
    def make(m: Maker) -> Iterator[Sample]:
        for dim in (0, 1, -1):
            yield Sample(f"dim {dim}", lambda x, d=dim: function(x, d), (m.tensor(3, 5, 11),))
        yield Sample("empty", lambda x: function(x, 1), (m.tensor(0, 3),))
        yield Sample("strided", lambda x: function(x, 1), (m.tensor(9, 4).t(),))
        yield Sample("large", lambda x: function(x, -1), (m.tensor(2, 40) * 50,))
        yield Sample("-inf", lambda x: function(x, -1), (torch.tensor([[1.0, -torch.inf, 2.0]]).to(m.dtype),))
        yield Sample("gradient", gradient(lambda x: function(x, 1)), (m.tensor(3, 9),))

    return make


NORMALISATION = [
    Operator("normalisation", "softmax", FLOATS, _softmax_like(lambda x, d: x.softmax(d)), cancels=True),
    Operator(
        "normalisation", "log_softmax", FLOATS, _softmax_like(lambda x, d: x.log_softmax(d)), cancels=True
    ),
    Operator(
        "normalisation",
        "layer_norm",
        FLOATS,
        cases(
            case(lambda x, w, b: F.layer_norm(x, (19,), w, b), (3, 5, 19), (19,), (19,)),
            case(lambda x: F.layer_norm(x, (5, 7)), (3, 5, 7), kind="two dimensions"),
            case(
                gradient(lambda x, w, b: F.layer_norm(x, (11,), w, b), 3),
                (4, 11),
                (11,),
                (11,),
                kind="gradient",
            ),
        ),
        cancels=True,
    ),
    Operator(
        "normalisation",
        "group_norm",
        FLOATS,
        cases(
            case(lambda x, w, b: F.group_norm(x, 2, w, b), (2, 6, 5), (6,), (6,)),
            case(
                gradient(lambda x, w, b: F.group_norm(x, 3, w, b), 3), (2, 6, 3), (6,), (6,), kind="gradient"
            ),
        ),
        cancels=True,
    ),
    Operator(
        "normalisation",
        "batch_norm",
        FLOATS,
        cases(
            case(
                lambda x, a, v, w, b: F.batch_norm(x, a, v.abs() + 1, w, b), (4, 6, 3), (6,), (6,), (6,), (6,)
            ),
            case(
                gradient(lambda x, w, b, a, v: F.batch_norm(x, a, v.abs() + 1, w, b), 3),
                (4, 6),
                (6,),
                (6,),
                (6,),
                (6,),
                kind="gradient",
            ),
        ),
        cancels=True,
    ),
    Operator(
        "normalisation",
        "rms_norm",
        FLOATS,
        cases(
            case(lambda x, w: F.rms_norm(x, (9,), w, 1e-5), (4, 9), (9,)),
            case(F.normalize, (4, 9), kind="normalize"),
        ),
        cancels=True,
    ),
]

MATMUL = [
    Operator(
        "matmul",
        "mm",
        FLOATS,
        cases(
            case(torch.mm, (4, 8), (8, 16)),
            case(torch.mm, (7, 33), (33, 19), kind="ragged"),
            case(torch.mm, (1, 40), (40, 70), kind="one row"),
            case(torch.mm, (9, 5), (5, 1), kind="one column"),
            case(torch.mm, (3, 1), (1, 5), kind="outer"),
            case(torch.mm, (0, 4), (4, 3), kind="no rows"),
            case(torch.mm, (3, 0), (0, 4), kind="nothing to sum"),
            case(lambda a, b: a.t() @ b.t(), (6, 5), (7, 6), kind="transposed"),
            case(lambda a, b: a @ b[:, ::2], (5, 6), (6, 10), kind="strided"),
            case(lambda a, b: torch.relu(a @ b * 0.5 + a.sum()), (6, 9), (9, 17), kind="epilogue"),
        ),
        cancels=True,
    ),
    Operator(
        "matmul",
        "addmm",
        FLOATS,
        cases(
            case(torch.addmm, (6,), (4, 8), (8, 6)),
            case(
                lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), (5, 3), (5, 7), (7, 3), kind="scaled"
            ),
            case(lambda x, w, b: F.linear(x, w, b).tanh(), (2, 3, 5), (7, 5), (7,), kind="linear"),
            case(
                gradient(lambda x, w, b: F.linear(x, w, b).sigmoid(), 3),
                (6, 5),
                (7, 5),
                (7,),
                kind="gradient",
            ),
        ),
        cancels=True,
    ),
    Operator(
        "matmul",
        "bmm",
        FLOATS,
        cases(
            case(torch.bmm, (3, 4, 5), (3, 5, 6)),
            case(lambda a, b: torch.bmm(a, b.transpose(1, 2)), (2, 7, 9), (2, 3, 9), kind="transposed"),
            case(torch.baddbmm, (2, 4, 3), (2, 4, 5), (2, 5, 3), kind="baddbmm"),
            case(
                lambda c, a, b: torch.baddbmm(c, a, b, beta=2, alpha=0.5),
                (1, 3),
                (2, 4, 5),
                (2, 5, 3),
                kind="scaled",
            ),
            case(torch.matmul, (2, 1, 4, 5), (3, 5, 2), kind="broadcast"),
            case(
                lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1) @ v,
                (2, 2, 5, 4),
                (2, 2, 5, 4),
                (2, 2, 5, 4),
                kind="attention",
            ),
            case(gradient(torch.bmm, 2), (2, 3, 4), (2, 4, 5), kind="gradient"),
        ),
        cancels=True,
    ),
    Operator(
        "matmul",
        "mv",
        FLOATS,
        cases(case(torch.mv, (5, 9), (9,)), case(torch.dot, (33,), (33,), kind="dot")),
        cancels=True,
    ),
]

CONVOLUTION = [
    Operator(
        "convolution",
        "convolution",
        FLOATS,
        cases(
            case(partial(F.conv2d, padding=1), (2, 3, 7, 6), (20, 3, 3, 3), (20,)),
            case(
                partial(F.conv2d, stride=2, padding=2, dilation=2), (2, 16, 9, 8), (5, 16, 3, 3), kind="steps"
            ),
            case(lambda x, w: F.conv2d(x.relu(), w), (1, 16, 8, 8), (19, 16, 1, 1), kind="one tap"),
            case(partial(F.conv2d), (3, 16, 1, 1), (9, 16, 1, 1), kind="few points"),
            case(
                partial(F.conv2d, groups=19, padding=2, dilation=2),
                (1, 19, 8, 8),
                (19, 1, 3, 3),
                kind="depthwise",
            ),
            case(
                partial(F.conv2d, groups=8, padding=1), (1, 8, 5, 5), (16, 1, 3, 3), kind="multiplied depth"
            ),
            case(partial(F.conv2d, groups=2, padding=1), (1, 8, 5, 5), (6, 4, 3, 3), kind="groups"),
            case(partial(F.conv1d, stride=2, padding=2), (2, 5, 11), (9, 5, 4), (9,), kind="1d"),
            case(partial(F.conv3d, padding=1), (1, 8, 3, 4, 5), (8, 8, 3, 1, 3), kind="3d"),
            case(partial(F.conv2d, padding="same"), (1, 8, 5, 6), (8, 8, 5, 3), kind="same"),
            case(partial(F.conv2d, padding=1), (0, 4, 6, 6), (4, 4, 3, 3), kind="no images"),
            case(partial(F.conv2d, padding=1), (8, 5, 6), (9, 8, 3, 3), kind="one image"),
            case(lambda x, w: F.conv2d(x[:, ::2, 1:], w), (2, 32, 6, 6), (16, 16, 3, 3), kind="strided"),
            case(
                lambda x, w: F.conv2d(_channels_last(x), _channels_last(w), padding=1),
                (2, 16, 6, 6),
                (16, 16, 3, 3),
                kind="channels last",
            ),
            case_of(
                "special",
                lambda x, w: F.conv2d(x, w),
                lambda m: (m.special()[:4].reshape(1, 1, 2, 2).expand(1, 9, 2, 2), m.tensor(8, 9, 1, 1)),
            ),
            case_of(
                "not a number",
                partial(F.conv2d, padding=1, groups=9),
                lambda m: (m.special()[:5].reshape(1, 1, 1, 5).repeat(1, 9, 1, 1), m.tensor(9, 1, 1, 3)),
            ),
        ),
        cancels=True,
    ),
    Operator(
        "convolution",
        "transposed",
        FLOATS,
        cases(
            case(
                partial(F.conv_transpose2d, stride=2, padding=1, output_padding=1),
                (2, 8, 4, 5),
                (8, 12, 3, 3),
                (12,),
            ),
            case(
                partial(F.conv_transpose2d, stride=(2, 1), padding=1, groups=2, dilation=2),
                (2, 8, 4, 5),
                (8, 3, 3, 3),
                kind="groups",
            ),
            case(partial(F.conv_transpose1d, padding=3), (2, 8, 9), (8, 3, 2), kind="cropped"),
        ),
        cancels=True,
    ),
    Operator(
        "convolution",
        "gradients",
        FLOATS,
        cases(
            case(gradient(partial(F.conv2d, stride=2, padding=1), 3), (2, 3, 7, 6), (20, 3, 3, 3), (20,)),
            case(
                gradient(partial(F.conv2d, groups=19, padding=2, dilation=2), 2),
                (2, 19, 8, 8),
                (19, 1, 3, 3),
                kind="depthwise",
            ),
            case(gradient(partial(F.conv2d, groups=2), 2), (1, 8, 5, 5), (6, 4, 3, 3), kind="groups"),
            case(gradient(partial(F.conv1d, padding=2), 1), (2, 5, 11), (9, 5, 4), kind="of the input alone"),
            case(
                gradient(partial(F.conv_transpose2d, stride=2, padding=1, output_padding=1), 3),
                (2, 8, 4, 5),
                (8, 12, 3, 3),
                (12,),
                kind="transposed",
            ),
        ),
        cancels=True,
    ),
]

_POOLS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "avg": (
        partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False),
        (2, 16, 5, 6),
    ),
    "avg beyond the edge": (
        partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1, ceil_mode=True),
        (2, 5, 8, 7),
    ),
    "avg divisor": (partial(F.avg_pool2d, kernel_size=(2, 3), divisor_override=5), (5, 8, 7)),
    "avg 1d": (partial(F.avg_pool1d, kernel_size=3, stride=2), (2, 5, 8)),
    "max": (partial(F.max_pool2d, kernel_size=3, stride=1, padding=1, return_indices=True), (2, 16, 5, 6)),
    "max dilated": (
        partial(
            F.max_pool2d, kernel_size=3, stride=2, padding=1, dilation=2, ceil_mode=True, return_indices=True
        ),
        (2, 5, 9, 8),
    ),
    "max 1d": (partial(F.max_pool1d, kernel_size=2), (2, 5, 9)),
    "max 3d": (partial(F.max_pool3d, kernel_size=2, return_indices=True), (1, 3, 4, 4, 5)),
    "max of -inf": (
        lambda x: F.max_pool2d(x.float() * 0 - float("inf"), 3, 1, 1, return_indices=True),
        (1, 2, 4, 4),
    ),
    "max of channels last": (lambda x: F.max_pool2d(_channels_last(x), 2), (2, 16, 4, 4)),
    "adaptive avg": (partial(F.adaptive_avg_pool2d, output_size=(3, 2)), (2, 5, 8, 7)),
    "adaptive avg to one": (partial(F.adaptive_avg_pool2d, output_size=1), (2, 5, 8, 7)),
    "nearest": (partial(F.interpolate, scale_factor=2), (2, 5, 4, 3)),
    "nearest to a size": (partial(F.interpolate, size=(7, 5)), (2, 5, 4, 3)),
    "avg gradient": (
        gradient(partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1, count_include_pad=False)),
        (2, 5, 8, 7),
    ),
    "max gradient": (gradient(partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)), (2, 9, 6, 5)),
    "max dilated gradient": (
        gradient(partial(F.max_pool2d, kernel_size=3, stride=2, padding=1, dilation=2)),
        (2, 5, 9, 8),
    ),
}

_POOLS_WITHOUT_HALVES: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "avg 3d": (partial(F.avg_pool3d, kernel_size=2), (1, 3, 4, 4, 6)),
}

POOLING = [
    *(
        Operator("pooling", name, FLOATS, cases(case(f, shape)), cancels="avg" in name or "gradient" in name)
        for name, (f, shape) in _POOLS.items()
    ),
    *(
        Operator("pooling", name, (torch.float32, torch.float64), cases(case(f, shape)), cancels=True)
        for name, (f, shape) in _POOLS_WITHOUT_HALVES.items()
    ),
    Operator(
        "pooling",
        "max of special values",
        FLOATS,
        cases(
            case_of(
                "special",
                lambda x: F.max_pool2d(x, 2, return_indices=True),
                lambda m: (m.special()[:8].reshape(1, 1, 2, 4).expand(1, 9, 2, 4),),
            )
        ),
    ),
]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


_INDEX_DTYPES = (torch.int64, torch.int32)

INDEXING = [
    Operator(
        "indexing",
        "embedding",
        FLOATS,
        lambda m: (
            [
                Sample(
                    f"by {i}".replace("torch.", ""),
                    lambda w, n: F.embedding(n, w),
                    (m.tensor(5, 7), m.index(5, 3, 4, dtype=i)),
                )
                for i in _INDEX_DTYPES
            ]
            + [
                Sample(
                    "gradient",
                    lambda n, w: gradient(lambda v, k: F.embedding(k, v))(w, n),
                    (m.index(5, 9), m.tensor(5, 3)),
                )
            ]
        ),
        cancels=True,
    ),
    Operator(
        "indexing",
        "gather",
        ALL,
        cases(
            case_of("plain", lambda x, i: x.gather(1, i), lambda m: (m.tensor(4, 6), m.index(6, 4, 3))),
            case_of("rows", lambda x, i: x.gather(0, i), lambda m: (m.tensor(5, 3), m.index(5, 2, 3))),
            case_of(
                "index_select",
                lambda x, i: x.index_select(1, i),
                lambda m: (m.tensor(3, 5, 2), m.index(5, 7)),
            ),
            case_of("index", lambda x, i: x[i], lambda m: (m.tensor(5, 3), m.index(5, 2, 2))),
            case_of(
                "index from the end", lambda x, i: x[:, i - 5], lambda m: (m.tensor(2, 5), m.index(5, 3))
            ),
            case_of(
                "two indices",
                lambda x, i, j: x[i, j],
                lambda m: (m.tensor(4, 5), m.index(4, 3), m.index(5, 3)),
            ),
            case_of(
                "take_along_dim",
                lambda x, i: x.take_along_dim(i, 1),
                lambda m: (m.tensor(3, 4), m.index(4, 3, 2)),
            ),
        ),
    ),
    Operator(
        "indexing",
        "scatter",
        NUMBERS,
        cases(
            case_of(
                "add",
                lambda x, i, v: x.scatter_add(1, i, v),
                lambda m: (m.tensor(3, 4), m.index(4, 3, 6), m.tensor(3, 6)),
            ),
            case_of(
                "set",
                lambda x, v: x.scatter(1, torch.tensor([[2, 0, 3]]).expand(3, 3), v),
                lambda m: (m.tensor(3, 4), m.tensor(3, 3)),
            ),
            case_of("number", lambda x, i: x.scatter(1, i, 2), lambda m: (m.tensor(3, 4), m.index(4, 3, 2))),
            case_of(
                "index_add",
                lambda x, i, v: x.index_add(0, i, v),
                lambda m: (m.tensor(4, 3), m.index(4, 6), m.tensor(6, 3)),
            ),
            case_of(
                "index_put",
                lambda x, i, v: x.index_put((i,), v, accumulate=True),
                lambda m: (m.tensor(4, 3), m.index(4, 6), m.tensor(6, 3)),
            ),
        ),
        cancels=True,
    ),
    Operator(
        "indexing",
        "gradients",
        FLOATS,
        cases(
            case_of(
                "gather",
                lambda x, i: gradient(lambda y: y.gather(1, i))(x),
                lambda m: (m.tensor(3, 4), m.index(4, 3, 5)),
            ),
            case_of(
                "index", lambda x, i: gradient(lambda y: y[i])(x), lambda m: (m.tensor(4, 3), m.index(4, 6))
            ),
            case_of(
                "index_select",
                lambda x, i: gradient(lambda y: y.index_select(0, i))(x),
                lambda m: (m.tensor(4, 3), m.index(4, 6)),
            ),
        ),
        cancels=True,
    ),
]

_VIEWS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "cat": (lambda a, b: torch.cat([a, b], 1), ((3, 2), (3, 5))),
    "cat rows": (lambda a, b, c: torch.cat([a, b, c]), ((2, 3), (1, 3), (4, 3))),
    "cat empty": (lambda a, b: torch.cat([a, b]), ((0, 3), (2, 3))),
    "stack": (lambda a, b: torch.stack([a, b], 1), ((3, 4), (3, 4))),
    "split": (lambda a: [p.clone() for p in a.split(2, 1)], ((3, 5),)),
    "chunk": (lambda a: [p.clone() for p in a.chunk(3, 1)], ((3, 7),)),
    "slice": (lambda a: a[1:, 1:-1:2].clone(), ((4, 9),)),
    "select": (lambda a: a[:, -2].clone(), ((4, 5),)),
    "expand": (lambda a: a.expand(4, 3, 5).contiguous(), ((3, 5),)),
    "permute": (lambda a: a.permute(2, 0, 1).contiguous(), ((3, 4, 5),)),
    "reshape": (lambda a: a.t().reshape(2, -1), ((6, 5),)),
    "flatten": (lambda a: a.transpose(0, 1).flatten(1), ((3, 4, 5),)),
    "unsqueeze": (lambda a: a.unsqueeze(1) == a.unsqueeze(0), ((4, 3),)),
    "squeeze": (lambda a: a.squeeze(1).clone(), ((3, 1, 4),)),
    "pad": (lambda a: F.pad(a, (1, 2, 0, 3)), ((3, 4),)),
    "pad negative": (lambda a: F.pad(a, (-1, 2)), ((3, 4),)),
    "flip": (lambda a: a.flip(0, 1), ((3, 5),)),
    "roll": (lambda a: a.roll(2, 1), ((3, 5),)),
    "repeat": (lambda a: a.repeat(2, 3), ((3, 2),)),
    "diagonal": (lambda a: a.diagonal(1).clone(), ((4, 5),)),
    "tril": (torch.tril, ((4, 5),)),
    "triu": (lambda a: a.triu(1), ((4, 5),)),
    "unbind": (lambda a: [p.clone() for p in a.unbind(1)], ((3, 2),)),
    "movedim": (lambda a: a.movedim(0, -1).contiguous(), ((3, 4, 2),)),
    "select_scatter": (lambda a, b: a.select_scatter(b, 1, 2), ((3, 5), (3,))),
    "slice_scatter": (lambda a, b: a.slice_scatter(b, 1, 1, 4), ((3, 5), (3, 3))),
    "copy": (lambda a, b: torch.ops.aten.copy.default(a.t(), b), ((5, 3), (5,))),
    "view of a view": (lambda a: a.reshape(6, 4).t()[1:].reshape(-1).clone(), ((2, 3, 4),)),
}

_CREATION: dict[str, Callable[[Tensor], Any]] = {
    "zeros_like": lambda x: torch.zeros_like(x),
    "ones_like": lambda x: torch.ones_like(x),
    "full_like": lambda x: torch.full_like(x, 1),
    "new_full": lambda x: x.new_full((2, 3), 1),
    "arange": lambda x: torch.arange(x.shape[0], dtype=torch.int64),
    "arange floats": lambda x: torch.arange(0, 2, 0.25),
    "eye": lambda x: torch.eye(3, 4, dtype=x.dtype),
    "clone": lambda x: x.clone(),
    "full": lambda x: torch.full((2, 3), 1, dtype=x.dtype),
}

SHAPES = [
    *(Operator("views", name, ALL, cases(case(f, *shapes))) for name, (f, shapes) in _VIEWS.items()),
    *(Operator("creation", name, ALL, cases(case(f, (3, 4)))) for name, f in _CREATION.items()),
]

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "bce_with_logits": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
    "bce": lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
    "kl_div": lambda x, y: F.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean"),
}

LOSSES = [
    *(
        Operator(
            "loss",
            name,
            FLOATS,
            cases(case(f, (5, 7), (5, 7)), case(gradient(f), (5, 7), (5, 7), kind="gradient")),
            cancels=True,
        )
        for name, f in _LOSSES.items()
    ),
    Operator(
        "loss",
        "cross_entropy",
        FLOATS,
        cases(
            case_of("plain", F.cross_entropy, lambda m: (m.tensor(6, 5), m.index(5, 6))),
            case_of(
                "no reduction",
                lambda x, y: F.cross_entropy(x, y, reduction="none"),
                lambda m: (m.tensor(6, 5), m.index(5, 6)),
            ),
            case_of(
                "smoothed",
                lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1),
                lambda m: (m.tensor(6, 5), m.index(5, 6)),
            ),
            case_of(
                "ignored",
                lambda x, y: F.cross_entropy(x, y, ignore_index=2),
                lambda m: (m.tensor(6, 5), m.index(5, 6)),
            ),
            case_of(
                "gradient",
                lambda x, y: gradient(lambda z: F.cross_entropy(z, y))(x),
                lambda m: (m.tensor(6, 5), m.index(5, 6)),
            ),
            case_of(
                "nll", lambda x, y: F.nll_loss(x.log_softmax(1), y), lambda m: (m.tensor(6, 5), m.index(5, 6))
            ),
        ),
        cancels=True,
    ),
    *(
        Operator("activation gradient", name, FLOATS, cases(case(gradient(f), (4, 9))), cancels=True)
        for name, f in _ACTIVATIONS.items()
        if name != "hardsigmoid"
    ),
    # Eager multiplies by a float32 sixth even in float64, so float64 is no oracle there.
    Operator(
        "activation gradient",
        "hardsigmoid",
        (torch.float32, torch.bfloat16, torch.float16),
        cases(case(gradient(F.hardsigmoid), (4, 9))),
    ),
]

OPERATORS: tuple[Operator, ...] = (
    *POINTWISE,
    *REDUCTIONS,
    *NORMALISATION,
    *MATMUL,
    *CONVOLUTION,
    *POOLING,
    *INDEXING,
    *SHAPES,
    *LOSSES,
)
"""Every operator with samples."""


def families() -> dict[str, list[Operator]]:
    """Operators by family."""
    found: dict[str, list[Operator]] = {}
    for operator in OPERATORS:
        found.setdefault(operator.family, []).append(operator)
    return found
