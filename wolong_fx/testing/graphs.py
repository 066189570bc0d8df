"""Random core-ATen graphs with fake values: what passes and partitions are tested on.

They are made of the awkward cases on purpose: several spellings of one meaning, operators that change
nothing, views of views, casts there and back, constants, random draws, outputs that are inputs, views, None
or twice the same, and inputs with NaN, infinities, -0.0 and strides.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from wolong_fx import _torch_compat
from wolong_fx.passes.values import is_view, same_strides

aten = torch.ops.aten

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.bool)
SHAPES = ((), (1,), (4,), (3, 4), (4, 1), (2, 3, 4), (1, 3, 1), (4, 4))
NUMBERS = (0, 1, -1, 2, 0.0, -0.0, 1.0, 0.5, 2.0)
SPECIAL = (0.0, -0.0, 1.0, float("nan"), float("inf"), -float("inf"), -2.5, 3e-39)


def random_graph(
    rng: random.Random, operators: int = 12, *, has_updates: bool = False
) -> tuple[GraphModule, list[Tensor]]:
    """A graph of about that many operators, and inputs for it.

    has_updates: it ends by writing some of them in place
    """
    builder = GraphBuilder(rng)
    for _ in range(rng.randint(1, 4)):
        builder.add_input(random_tensor(rng))
    placeholders = list(builder.nodes)
    for _ in range(operators):
        rng.choice(MAKERS)(builder)
    graph_module = builder.finish()
    for node in placeholders if has_updates else ():
        builder.update(node)
    graph_module.recompile()
    return graph_module, builder.inputs


def random_tensor(rng: random.Random) -> Tensor:
    """Any dtype and shape, special values among the others, sometimes not contiguous."""
    shape, dtype = rng.choice(SHAPES), rng.choice(DTYPES)
    generator = torch.Generator().manual_seed(rng.randint(0, 2**31))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if dtype.is_floating_point and values.numel() and rng.random() < 0.5:
        values.view(-1)[rng.randrange(values.numel())] = rng.choice(SPECIAL)
    tensor = (values * (3 if not dtype.is_floating_point else 1)).to(dtype)
    return tensor.t().contiguous().t() if tensor.dim() == 2 and rng.random() < 0.3 else tensor


def trace_graph(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    """What `function` calls on these inputs, as an ATen graph with fake values."""
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function, tracing_mode="fake")(*inputs)


def has_same_bits(a: object, b: object) -> bool:
    """Equal in dtype, shape, strides and every bit, all NaN equal. What is no tensor: the same object."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    return (a.dtype, a.shape) == (b.dtype, b.shape) and same_strides(a, b) and _bits(a) == _bits(b)


def _bits(tensor: Tensor) -> bytes:
    packed = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
    if tensor.dtype.is_floating_point:
        packed[packed.isnan()] = float("nan")
    return packed.view(torch.uint8).numpy().tobytes()


@dataclass
class GraphBuilder:
    """A graph being made; every node has its fake value."""

    rng: random.Random
    graph: Graph = field(default_factory=Graph)
    inputs: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    fake_mode: Any = field(default_factory=_torch_compat.fake_mode)

    def add_input(self, tensor: Tensor) -> Node:
        """A placeholder that will be fed this tensor."""
        node = self.graph.placeholder(f"x{len(self.inputs)}")
        node.meta["val"] = self.fake_mode.from_tensor(tensor)
        self.inputs.append(tensor)
        self.nodes.append(node)
        return node

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """An operator call; tensors that it returns may be operands of later ones."""
        node = self.graph.call_function(target, args, kwargs)
        values = map_arg((args, kwargs), lambda n: n.meta["val"])
        with self.fake_mode:
            node.meta["val"] = target(*values[0], **values[1])
        if isinstance(node.meta["val"], Tensor):
            self.nodes.append(node)
        return node

    def pick(self, accept: Callable[[Tensor], bool] = lambda _: True) -> Node | None:
        """A tensor so far that is acceptable, late ones more often."""
        fitting = [node for node in self.nodes if accept(node.meta["val"])]
        return fitting[-1 - min(int(self.rng.expovariate(0.3)), len(fitting) - 1)] if fitting else None

    def update(self, target: Node) -> None:
        """Behind all operators, write a value of the same shape over an input, if there is one."""
        shape, dtype = target.meta["val"].shape, target.meta["val"].dtype
        made = [n for n in self.nodes if n.op != "placeholder" and n.meta["val"].dtype == dtype]
        fitting = [n for n in made if n.meta["val"].shape == shape and not is_view(n)]
        if fitting:
            with self.graph.inserting_before(self.graph.output_node()):
                self.call(aten.copy_.default, target, self.rng.choice(fitting))

    def finish(self) -> GraphModule:
        """The module; it returns several values, some of them awkward."""
        outputs: list[Any] = [self.nodes[-1], *self.rng.sample(self.nodes, min(2, len(self.nodes)))]
        outputs += [outputs[0]] if self.rng.random() < 0.2 else []
        outputs += [None] if self.rng.random() < 0.2 else []
        self.graph.output(tuple(outputs))
        return GraphModule(torch.nn.Module(), self.graph)


Maker = Callable[[GraphBuilder], object]


def is_float(value: Tensor) -> bool:
    """True of floating-point tensors."""
    return value.dtype.is_floating_point


def is_arithmetic(value: Tensor) -> bool:
    """True of tensors that can be subtracted and negated."""
    return value.dtype is not torch.bool


def has_dims(value: Tensor) -> bool:
    """True of tensors that are not scalars."""
    return value.dim() > 0


def one_of(accept: Callable[[Tensor], bool], *makers: Callable[[GraphBuilder, Node], object]) -> Maker:
    """Applies one of `makers` to a tensor that `accept` takes, if there is one."""

    def make(b: GraphBuilder) -> None:
        if (x := b.pick(accept)) is not None:
            b.rng.choice(makers)(b, x)

    return make


def _number(b: GraphBuilder, x: Node) -> int | float:
    return b.rng.choice([n for n in NUMBERS if is_float(x.meta["val"]) or isinstance(n, int)])


def _with_number(b: GraphBuilder, x: Node) -> None:
    target = b.rng.choice(
        [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.add.Scalar, aten.mul.Scalar]
    )
    b.call(target, x, _number(b, x))


def _number_first(b: GraphBuilder, x: Node) -> None:
    b.call(b.rng.choice([aten.rsub.Scalar, aten.add.Tensor, aten.mul.Tensor]), x, b.rng.choice((1, 2)))


def _with_alpha(b: GraphBuilder, x: Node) -> None:
    shape = x.meta["val"].shape
    other = b.pick(lambda v: v.shape == shape and v.dtype == x.meta["val"].dtype)
    b.call(b.rng.choice([aten.add.Tensor, aten.sub.Tensor]), x, other, alpha=b.rng.choice((1, -1, 2)))


def _binary(b: GraphBuilder, x: Node) -> None:
    shape = x.meta["val"].shape
    other = b.pick(lambda v: is_arithmetic(v) and (v.shape == shape or v.numel() == 1))
    target = b.rng.choice([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.maximum.default])
    b.call(target, x, other if other is not None else x)


def _where(b: GraphBuilder, x: Node) -> None:
    condition = b.call(aten.gt.Scalar, x, 0)
    b.call(aten.where.self, condition, x, b.rng.choice((x, b.call(aten.neg.default, x))))


def _cast(b: GraphBuilder, x: Node) -> None:
    b.call(aten._to_copy.default, x, dtype=b.rng.choice(DTYPES if is_float(x.meta["val"]) else DTYPES[:6]))


def _cast_and_back(b: GraphBuilder, x: Node) -> None:
    wide = b.call(aten._to_copy.default, x, dtype=b.rng.choice(FLOATS))
    b.call(aten._to_copy.default, wide, dtype=x.meta["val"].dtype)


def _copy(b: GraphBuilder, x: Node) -> None:
    target = b.rng.choice(
        [aten.clone.default, aten.detach.default, aten.alias.default, aten.contiguous.default]
    )
    b.call(target, x)


def _dim(b: GraphBuilder, x: Node, extra: int = 0) -> int:
    rank = x.meta["val"].dim() + extra
    return b.rng.randrange(-rank, rank)


def _turn(b: GraphBuilder, x: Node) -> None:
    rank = x.meta["val"].dim()
    if rank == 2 and b.rng.random() < 0.4:
        b.call(aten.t.default, x)
    elif b.rng.random() < 0.5:
        b.call(aten.transpose.int, x, _dim(b, x), _dim(b, x))
    else:
        b.call(
            aten.permute.default, x, b.rng.sample([d - b.rng.choice((0, rank)) for d in range(rank)], rank)
        )


def _unsqueeze(b: GraphBuilder, x: Node) -> None:
    b.call(aten.squeeze.dim, b.call(aten.unsqueeze.default, x, _dim(b, x, 1)), _dim(b, x, 1))


def _reshape(b: GraphBuilder, x: Node) -> None:
    value = x.meta["val"]
    b.call(
        aten.view.default if value.is_contiguous() else aten.reshape.default, x, b.rng.choice(([-1], [1, -1]))
    )


def _expand(b: GraphBuilder, x: Node) -> None:
    sizes = [b.rng.choice((size, -1)) if size != 1 else 3 for size in x.meta["val"].shape]
    b.call(
        aten.expand.default,
        x,
        [2, *[s if s != -1 else n for s, n in zip(sizes, x.meta["val"].shape, strict=True)]],
    )


def _slice(b: GraphBuilder, x: Node) -> None:
    start, end = b.rng.choice(((0, 2**63 - 1), (None, None), (1, -1), (0, 2), (-2, 100)))
    b.call(aten.slice.Tensor, x, _dim(b, x), start, end, b.rng.choice((1, 1, 2)))


def _select(b: GraphBuilder, x: Node) -> None:
    dim = _dim(b, x)
    size = x.meta["val"].shape[dim]
    if size:
        b.call(aten.select.int, x, dim, b.rng.randrange(-size, size))


def _split_and_join(b: GraphBuilder, x: Node) -> None:
    dim = _dim(b, x)
    if b.rng.random() < 0.5:
        whole = b.call(aten.split.Tensor, x, 2, dim)
        parts = [b.call(operator.getitem, whole, i) for i in range(len(whole.meta["val"]))]
    else:
        whole = b.call(aten.unbind.int, x, dim)
        rows = [b.call(operator.getitem, whole, i) for i in range(len(whole.meta["val"]))]
        parts = [b.call(aten.unsqueeze.default, row, dim) for row in rows]
    if parts:
        b.call(aten.cat.default, parts if b.rng.random() < 0.7 else parts[::-1], dim)


def _join(b: GraphBuilder, x: Node) -> None:
    other = b.pick(lambda v: v.shape == x.meta["val"].shape)
    parts = b.rng.choice(([x], [x, other], [x, x, other]))
    b.call(b.rng.choice([aten.cat.default, aten.stack.default]), parts, _dim(b, x))


def _reduce(b: GraphBuilder, x: Node) -> None:
    target = b.rng.choice([aten.sum.dim_IntList, aten.mean.dim, aten.amax.default])
    if x.meta["val"].numel():
        b.call(target, x, [_dim(b, x)], b.rng.choice((True, False)))


def _reduce_all(b: GraphBuilder, x: Node) -> None:
    b.call(b.rng.choice([aten.sum.default, aten.mean.default]), x)


def _variance_and_mean(b: GraphBuilder, x: Node) -> None:
    both = b.call(aten.var_mean.correction, x, [_dim(b, x)], correction=0, keepdim=True)
    for index in b.rng.choice(((0,), (1,), (0, 1))):
        b.call(operator.getitem, both, index)


def _constant(b: GraphBuilder) -> None:
    dtype = b.rng.choice(DTYPES)
    made = b.rng.choice(
        (
            lambda: b.call(aten.full.default, [3, 4], b.rng.choice((0, 1)), dtype=dtype),
            lambda: b.call(aten.zeros.default, [4], dtype=dtype),
            lambda: b.call(aten.ones.default, [2, 3, 4], dtype=dtype),
            lambda: b.call(aten.arange.default, 4),
            lambda: b.call(aten.scalar_tensor.default, 2.0, dtype=torch.float32),
        )
    )()
    if is_arithmetic(made.meta["val"]) and b.rng.random() < 0.5:
        b.call(aten.mul.Tensor, made, 2)


def _like(b: GraphBuilder, x: Node) -> None:
    target = b.rng.choice([aten.zeros_like.default, aten.ones_like.default])
    b.call(target, x)


def _draw(b: GraphBuilder, x: Node) -> None:
    target, args = b.rng.choice(
        ((aten.rand_like.default, ()), (aten.bernoulli.p, (0.5,)), (aten.randn_like.default, ()))
    )
    b.call(target, x, *args)


def _dropout(b: GraphBuilder, x: Node) -> None:
    both = b.call(aten.native_dropout.default, x, b.rng.choice((0.5, 0.1)), True)
    for index in b.rng.choice(((0,), (0, 1))):
        b.call(operator.getitem, both, index)


def _matmul(b: GraphBuilder, x: Node) -> None:
    other = b.pick(
        lambda v: v.dim() == 2 and v.dtype == x.meta["val"].dtype and v.shape[0] == x.meta["val"].shape[1]
    )
    if other is not None:
        b.call(aten.mm.default, x, other)


def _functions(*targets: Any) -> Sequence[Callable[[GraphBuilder, Node], object]]:
    return [lambda b, x, target=target: b.call(target, x) for target in targets]


MAKERS: tuple[Maker, ...] = (
    one_of(is_float, *_functions(aten.sigmoid.default, aten.tanh.default, aten.relu.default)),
    one_of(is_arithmetic, *_functions(aten.neg.default, aten.abs.default)),
    one_of(is_arithmetic, _with_number, _number_first, _with_alpha, _binary, _where),
    one_of(is_arithmetic, _with_number, _binary, _binary),
    one_of(is_float, lambda b, x: b.call(aten.pow.Tensor_Scalar, x, b.rng.choice((1, 2, 2.0, 3)))),
    one_of(is_float, lambda b, x: b.call(aten.div.Tensor, x, b.rng.choice((1, 2.0, x)))),
    one_of(is_arithmetic, _cast, _cast_and_back, _copy),
    one_of(has_dims, _turn, _turn, _reshape, _slice, _select),
    one_of(has_dims, _unsqueeze, _expand, _split_and_join, _join),
    one_of(lambda v: is_float(v) and has_dims(v), _reduce, _variance_and_mean, _draw, _dropout),
    one_of(is_float, _reduce_all, _like),
    one_of(lambda v: is_float(v) and v.dim() == 2, _matmul),
    _constant,
)
