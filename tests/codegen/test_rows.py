"""What a row's reader computes by itself: norms and softmaxes are one operator, and right for every row."""

import math
from math import prod

import pytest
import torch
import torch.nn.functional as F

import wolong_fx
from wolong_fx.codegen import build_programs
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.served_dims import served_dims, serves_equally
from wolong_fx.ir.expr import Reduce
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.fenced import fenced
from wolong_fx.testing.oracle import assert_results_close, widened
from wolong_fx.testing.tracing import trace_core


def odd_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 5) for d in op.dims)


def operators_of(function, *inputs):
    """The operators of a function, which on the reference machine compute what eager does."""
    program = build_programs(trace_core(function, *inputs), Options(), Ledger(), odd_tiles).run
    got = run_program(program, list(inputs), seed=0)
    expected = function(*inputs)
    for a, b in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    return list(program.ops())


def rms_norm(x, w):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * w


ROW_FUNCTIONS = {
    "softmax": lambda x, w: torch.softmax(x, -1),
    "softmax of scaled, masked": lambda x, w: torch.softmax((x * 0.5).masked_fill(x > 0.5, -math.inf), -1),
    "log softmax": lambda x, w: torch.log_softmax(x, -1),
    "softmax by hand": lambda x, w: (x - x.amax(1, True)).exp() / (x - x.amax(1, True)).exp().sum(1, True),
    "softmax over columns": lambda x, w: torch.softmax(x, 0),
    "layer norm": lambda x, w: F.layer_norm(x, x.shape[-1:], w, w),
    "rms norm": rms_norm,
    "normalised": lambda x, w: x / (x * x).sum(1, True).sqrt().clamp_min(1e-12),
    "standardised": lambda x, w: (x - x.mean(1, True)) / x.std(1, keepdim=True),
}


@pytest.mark.parametrize("name", ROW_FUNCTIONS)
def test_rows_are_owned_by_one_operator(name):
    (op,) = operators_of(ROW_FUNCTIONS[name], torch.randn(12, 7), torch.rand(7))
    assert op.domain == (12, 7) or name == "softmax over columns"
    assert served_dims(op)


def test_rows_may_have_two_dimensions():
    def norm_of_maps(x, w):
        return (x - x.mean((1, 2), True)) * torch.rsqrt(x.var((1, 2), keepdim=True) + 1e-5) * w[:, None]

    (op,) = operators_of(norm_of_maps, torch.randn(9, 4, 5), torch.rand(4))
    assert prod(d.extent for d in op.dims if d.var in served_dims(op)) == 20


def test_a_few_long_rows_are_cut_along_their_elements():
    ops = operators_of(lambda x: torch.softmax(x, -1), torch.randn(2, 3000))
    assert max(op.domain for op in ops) == (2, 3000)
    assert len(ops) > 1


def test_numbers_of_a_row_that_others_need_are_stored_once_and_computed_again():
    ops = operators_of(lambda x: (x / x.sum(1, True), x.sum(1)), torch.randn(12, 7))
    assert sorted(op.domain for op in ops) == [(12,), (12, 7)]
    assert all(any(isinstance(e, Reduce) for e in op.expressions()) for op in ops)


def test_what_else_a_row_feeds_is_still_stored():
    def function(x, y):
        e = (x + y).exp()
        return e / e.sum(1, True), e

    (op,) = operators_of(function, torch.randn(12, 7), torch.randn(12, 7))
    assert len(op.stores) == 2


def test_a_matmul_does_not_reduce_the_rows_it_reads():
    """Each block of its columns would do it again."""
    ops = operators_of(lambda x, w: (x @ w) / x.sum(1, True), torch.randn(12, 7), torch.randn(7, 9))
    assert all(map(serves_equally, ops))
    assert len(ops) == 2


@pytest.fixture(scope="module", params=[torch.float32, torch.float64, torch.bfloat16], ids=str)
def compiled_rows(request):
    """All of them in one kernel, with the same over other memory, and the dtype."""

    def function(x, w):
        return [*(f(x, w) for f in ROW_FUNCTIONS.values()), F.normalize(x, dim=-1)]

    return wolong_fx.optimize(function, min_ops=1), function, request.param


def close_to_float64(compiled, function, *inputs):
    """Rows far from zero: standardising them in bfloat16 is wrong by the rounding of a mean, in eager too."""
    exact = function(*map(widened, inputs))
    names = (*ROW_FUNCTIONS, "normalize")
    for name, a, b, c in zip(names, compiled(*map(fenced, inputs)), function(*inputs), exact, strict=True):
        if a.dtype == torch.float64:
            torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)
        else:
            assert_results_close(a, b, c, cancels=True, what=name)


@pytest.mark.parametrize("shape", [(12, 70), (1, 33), (9, 16)])
def test_kernels_compute_rows_of_any_length(compiled_rows, shape):
    compiled, function, dtype = compiled_rows
    x, w = (torch.randn(shape) + torch.arange(shape[0])[:, None]).to(dtype), torch.rand(shape[1]).to(dtype)
    close_to_float64(compiled, function, x, w)


def test_kernels_keep_nan_and_infinities_to_their_rows(compiled_rows):
    compiled, function, dtype = compiled_rows
    x, w = torch.randn(12, 70).to(dtype), torch.rand(70).to(dtype)
    x[1, 3], x[4, 69], x[7] = math.nan, math.inf, -math.inf
    close_to_float64(compiled, function, x, w)


def test_kernels_read_rows_that_are_columns_in_memory(compiled_rows):
    compiled, function, dtype = compiled_rows
    x, w = torch.randn(70, 12).to(dtype).t(), torch.rand(140).to(dtype)[::2]
    close_to_float64(compiled, function, x, w)


@pytest.mark.parametrize("shape", [(4, 5000), (3, 40), (20, 9000)])
def test_means_and_variances_of_rows_far_apart(shape):
    """One reduction inside another's loop, rows along the lanes: each row has the mean of its own."""
    x = torch.randn(shape) + 10 * torch.arange(shape[0])[:, None]

    def function(x):
        return x.var(1), x.mean(1), torch.log_softmax(x, 1)

    compiled = wolong_fx.optimize(function, min_ops=1)
    for a, b in zip(compiled(x), function(x.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
