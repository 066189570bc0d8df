"""Convolutions, pooling and resizing: layouts, what is left to torch and why."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from wolong_fx.codegen import build_programs, why_unsupported
from wolong_fx.codegen.lower import lower_graph
from wolong_fx.ir.expr import Load
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.graphs import trace_graph

from .conftest import lowered_graph, small_tiles

aten = torch.ops.aten


def reason(function, *inputs):
    gm = trace_graph(lambda *xs: (function(*xs),), *inputs)
    return next((r for n in gm.graph.nodes if n.op == "call_function" and (r := why_unsupported(n))), None)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize("groups", [1, 16])
def test_a_convolution_has_eagers_strides(check, layout, groups):
    x, w = torch.randn(2, 16, 5, 4), torch.randn(16, 16 // groups, 3, 3)
    check(lambda x, w: F.conv2d(layout(x), layout(w), padding=1, groups=groups), x, w)


def test_what_follows_a_convolution_stays_channels_last():
    def network(x, w):
        y = F.conv2d(x, w).relu()
        return torch.cat([F.max_pool2d(y, 2, 1), F.avg_pool2d(y, 2, 1)], 1).sum((2, 3))

    gm = lowered_graph(network, [torch.randn(1, 8, 5, 5), torch.randn(16, 8, 1, 1)])
    images = {b for op in lower_graph(gm).ops for b in op.writes() if len(b.shape) == 4 and b.shape[0] == 1}
    assert {b.strides[1] for b in images if b.shape[1] >= 16} == {1}


def test_borders_are_copied_once_so_that_no_product_asks_where_it_is():
    gm = lowered_graph(partial(F.conv2d, padding=1), [torch.randn(1, 8, 5, 5), torch.randn(8, 8, 3, 3)])
    program = build_programs(gm, Options.of(), Ledger(), small_tiles).run
    (sums,) = [
        op for op in program.ops() if any(load.access.buffer.shape[2:] == (7, 7) for load in op.loads())
    ]
    assert all(load.fill is None for load in sums.loads() if isinstance(load, Load))


def test_a_convolution_of_nothing_is_left_to_torch():
    assert "of nothing" in str(reason(F.conv2d, torch.randn(1, 0, 4, 4), torch.randn(3, 0, 1, 1)))
    assert reason(F.conv2d, torch.randn(0, 2, 4, 4), torch.randn(3, 2, 1, 1)) is None


def test_pooling_of_nothing_is_left_to_torch():
    assert "of nothing" in str(reason(partial(F.avg_pool2d, kernel_size=2), torch.randn(0, 2, 4, 4)))


def test_a_scale_that_is_no_whole_step_is_left_to_torch():
    assert "scale" in str(reason(lambda x: aten.upsample_nearest1d(x, [5], 1.7), torch.randn(1, 1, 3)))
    assert reason(lambda x: aten.upsample_nearest1d(x, [6], 2.0), torch.randn(1, 1, 3)) is None


@pytest.mark.parametrize(
    "function, shape",
    [
        (lambda x: aten.avg_pool1d(x, [3], [2], [1]), (2, 3, 7)),
        (lambda x: aten._adaptive_avg_pool3d(x, [2, 1, 2]), (1, 2, 3, 4, 5)),
        (lambda x: aten.upsample_nearest1d(x, [6]), (1, 2, 4)),
        (lambda x: aten.upsample_nearest3d(x, [2, 6, 3]), (1, 2, 1, 3, 3)),
        (lambda x: aten.max_pool3d_with_indices(x, [2], [1], [1], [1]), (1, 2, 3, 3, 3)),
    ],
)
def test_any_number_of_dimensions(check, function, shape):
    check(function, torch.randn(shape))


def test_gradients_in_three_dimensions(check):
    gradient, x = torch.randn(1, 2, 2, 2, 2), torch.randn(1, 2, 4, 4, 5)
    _, where = aten.max_pool3d_with_indices(x, [2])
    check(
        lambda g, x, i: aten.max_pool3d_with_indices_backward(g, x, [2], [2], [0], [1], False, i),
        gradient,
        x,
        where,
    )
    check(lambda g, x: aten.avg_pool3d_backward(g, x, [2], [2], [0], False, True, None), gradient, x)


def test_the_first_of_equal_maxima_is_where_eager_finds_it(check):
    check(lambda x: aten.max_pool2d_with_indices(x, [3], [1], [1]), torch.zeros(1, 2, 4, 4))
