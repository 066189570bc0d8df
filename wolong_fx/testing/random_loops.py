"""Random rolled loops with fake values: what passes on loops are tested on.

Bodies mix operators on slices, invariants and carries, in every order; carries are recurrent, summed,
unchanged or set anew each step; ys are made of anything, slices, carries and invariants included.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from wolong_fx import _torch_compat
from wolong_fx.passes.loops.scan import SCAN
from wolong_fx.passes.values import is_view
from wolong_fx.testing.graphs import GraphBuilder, aten

ROWS, COLUMNS = 3, 4
WIDE, SQUARE, ROW = (ROWS, COLUMNS), (COLUMNS, COLUMNS), (COLUMNS,)


def random_loop(
    rng: random.Random, operators: int = 10, trips: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[GraphModule, list[Tensor]]:
    """A graph of one loop that returns all of its results, and inputs for it."""
    carries = rng.choices((WIDE, WIDE, SQUARE, ROW), k=rng.randint(0, 3))
    slices = rng.choices((WIDE, WIDE, ROW, SQUARE, ()), k=rng.randint(1, 3))
    invariants = rng.choices((SQUARE, SQUARE, ROW, WIDE), k=rng.randint(0, 3))
    body = _Body(rng, [*carries, *slices, *invariants], dtype)
    for _ in range(operators):
        rng.choice(MAKERS)(body)
    outputs: list[Node] = []
    for place, shape in enumerate(carries):
        outputs.append(body.new_carry(place, shape, outputs))
    outputs += rng.choices(body.nodes, k=rng.randint(1, 3))
    body.graph.output(tuple(outputs))
    shapes = [*carries, *((trips, *shape) for shape in slices), *invariants]
    return loop_graph(body, [_random(rng, shape, dtype) for shape in shapes], len(carries), len(slices))


def loop_graph(
    body: GraphBuilder, inputs: Sequence[Tensor], carries: int, slices: int
) -> tuple[GraphModule, list[Tensor]]:
    """A graph that runs the finished graph of `body` in a loop over these inputs and returns all results."""
    outer = GraphBuilder(body.rng)
    outer.fake_mode = body.fake_mode
    nodes = [outer.add_input(tensor) for tensor in inputs]
    module = torch.nn.Module()
    module.body = GraphModule(torch.nn.Module(), body.graph)
    attribute = outer.graph.get_attr("body")
    groups = nodes[:carries], nodes[carries : carries + slices], nodes[carries + slices :]
    scan = outer.graph.call_function(SCAN, (attribute, *map(list, groups)))
    scan.meta["val"] = _results(body, carries, inputs[carries].shape[0])
    outer.graph.output(tuple(_result(outer, scan, index) for index in range(len(scan.meta["val"]))))
    return GraphModule(module, outer.graph), outer.inputs


def _results(body: GraphBuilder, carries: int, trips: int) -> tuple[Tensor, ...]:
    values = [node.meta["val"] for node in body.graph.output_node().args[0]]  # type: ignore[union-attr]
    return (*values[:carries], *(value.new_empty((trips, *value.shape)) for value in values[carries:]))


def _result(outer: GraphBuilder, scan: Node, index: int) -> Node:
    node = outer.graph.call_function(operator.getitem, (scan, index))
    node.meta["val"] = scan.meta["val"][index]
    return node


def _random(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randint(0, 2**31))
    values = torch.randn(shape, generator=generator, dtype=dtype) / 2
    turned = values.transpose(0, 1).contiguous().transpose(0, 1) if values.dim() > 2 else values
    return turned if rng.random() < 0.3 else values


class _Body(GraphBuilder):
    """The body of a loop being made."""

    def __init__(self, rng: random.Random, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        super().__init__(rng, fake_mode=_torch_compat.fake_mode())
        for shape in shapes:
            self.add_input(torch.empty(shape, dtype=dtype))
        self.placeholders = list(self.nodes)

    def shaped(self, shape: tuple[int, ...]) -> Node | None:
        """A value of that shape so far."""
        return self.pick(lambda value: tuple(value.shape) == shape)

    def new_carry(self, place: int, shape: tuple[int, ...], others: Sequence[Node]) -> Node:
        """What the next step gets: a value of this one, added to the old carry, or a copy of the carry."""
        old, new = self.placeholders[place], self.shaped(shape) or self.placeholders[place]
        if shape == SQUARE and self.rng.random() < 0.6:
            left, right = self.shaped(WIDE), self.shaped(WIDE)
            if left is not None and right is not None:
                new = self.call(aten.mm.default, self.call(aten.permute.default, left, [1, 0]), right)
        new = self.call(aten.add.Tensor, old, new) if self.rng.random() < 0.5 else new
        # torch lets no carry share memory with another, or with what the step sees: a copy, of the strides
        # it has by itself.
        is_own = new.op == "call_function" and not is_view(new) and new not in others
        return new if is_own else self.call(aten.clone.default, new, memory_format=torch.contiguous_format)


def _mm(b: _Body) -> None:
    left, right = b.shaped(WIDE), b.shaped(SQUARE)
    if left is not None and right is not None:
        target = b.rng.choice((aten.mm.default, aten.addmm.default))
        bias = b.shaped(b.rng.choice((ROW, WIDE)))
        operands = (left, right) if target is aten.mm.default or bias is None else (bias, left, right)
        b.call(aten.mm.default if len(operands) == 2 else target, *operands)


def _sum_of_products(b: _Body) -> None:
    """As most recurrent cells begin: often one product is of a slice, the other one of a carry."""
    terms = [(b.shaped(WIDE), b.shaped(SQUARE)) for _ in range(2)]
    if all(left is not None and right is not None for left, right in terms):
        b.call(aten.add.Tensor, *(b.call(aten.mm.default, left, right) for left, right in terms))


def _bmm(b: _Body) -> None:
    left, right = b.shaped(WIDE), b.shaped(SQUARE)
    if left is not None and right is not None:
        batches = [b.call(aten.view.default, x, [1, *x.meta["val"].shape]) for x in (left, right)]
        b.call(aten.view.default, b.call(aten.bmm.default, *batches), list(WIDE))


def _binary(b: _Body) -> None:
    left, right = b.pick(), b.pick()
    if left is not None and right is not None and _meet(left, right):
        b.call(b.rng.choice((aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor)), left, right)


def _meet(left: Node, right: Node) -> bool:
    try:
        shape = torch.broadcast_shapes(left.meta["val"].shape, right.meta["val"].shape)
    except RuntimeError:
        return False
    return tuple(shape) in (WIDE, SQUARE, ROW, ())


def _unary(b: _Body) -> None:
    if (x := b.pick()) is not None:
        b.call(b.rng.choice((aten.tanh.default, aten.sigmoid.default, aten.neg.default)), x)


def _reduce(b: _Body) -> None:
    if (x := b.shaped(WIDE)) is not None:
        match b.rng.randrange(4):
            case 0:
                b.call(aten.sum.dim_IntList, x, [0])
            case 1:
                b.call(aten.mul.Tensor, x, b.call(aten.sum.dim_IntList, x, [1], True))
            case 2:
                b.call(aten._softmax.default, x, 1, False)
            case 3:
                b.call(aten.amax.default, x, [0])


def _move(b: _Body) -> None:
    if (x := b.shaped(WIDE)) is not None:
        match b.rng.randrange(3):
            case 0:
                halves = [b.call(aten.slice.Tensor, x, 1, 0, 2), b.call(aten.slice.Tensor, x, 1, 2, 4)]
                b.call(aten.cat.default, halves[::-1], 1)
            case 1:
                b.call(aten.select.int, x, 0, 1)
            case 2:
                turned = b.call(aten.permute.default, x, [1, 0])
                b.call(aten.mm.default, turned, x)


def _spread(b: _Body) -> None:
    if (x := b.shaped(ROW)) is not None:
        b.call(aten.expand.default, x, list(b.rng.choice((WIDE, SQUARE))))


def _outer_sum(b: _Body) -> None:
    """Three products that are larger than what they are made of, added; nobody reads but the sum."""
    known = len(b.nodes)
    rows = [row for row in (b.shaped(ROW) for _ in range(6)) if row is not None]
    columns = [b.call(aten.view.default, row, [COLUMNS, 1]) for row in rows[:3]]
    flat = [b.call(aten.view.default, row, [1, COLUMNS]) for row in rows[3:]]
    products = [b.call(aten.mm.default, *pair) for pair in zip(columns, flat, strict=True)]
    if products:
        b.call(aten.add.Tensor, b.call(aten.add.Tensor, *products[:2]), products[2])
    del b.nodes[known:-1]


def _rare(b: _Body) -> None:
    """What codegen knows only by its parts."""
    if (x := b.shaped(WIDE)) is not None:
        b.call(b.rng.choice((aten.softplus.default, aten.mish.default)), x)


MAKERS: tuple[Callable[[_Body], object], ...] = (
    *(_mm, _mm, _sum_of_products, _bmm, _binary, _binary, _outer_sum, _rare),
    *(_unary, _reduce, _move, _spread),
)
