"""Recurrent operators written out step by step: the same numbers and gradients as torch's own kernels."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import fx, nn

from wolong_fx.capture.expand_rnn import expand_rnn_calls, expansions, is_packed, why_rnn_stays_whole
from wolong_fx.ledger import Ledger

T, B, I, H = 4, 2, 3, 5  # noqa: E741


class ExpandedRnn(torch.overrides.TorchFunctionMode):
    """Runs torch's recurrent functions as our expansions, without any tracing; must meet one."""

    expanded = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        by_name = {f.__name__: expansion for f, expansion in expansions().items()}
        self.expanded += func.__name__ in by_name
        return by_name.get(func.__name__, func)(*args, **(kwargs or {}))

    def __exit__(self, *failure):
        assert self.expanded
        return super().__exit__(*failure)


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


def run(module, inputs, *, expanded):
    """Outputs, and gradients of inputs and parameters, of a copy of `module`."""
    module = copy.deepcopy(module)
    leaves = [t.clone().requires_grad_() for t in flat(inputs)]
    arguments = leaves if len(leaves) < 2 else [leaves[0], rebuild(inputs[1], leaves[1:])]
    torch.manual_seed(1)
    with ExpandedRnn() if expanded else torch.enable_grad():
        outputs = flat(module(*arguments))
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) for y in outputs]
    torch.autograd.backward(outputs, weights)
    return outputs, [t.grad for t in (*leaves, *module.parameters())]


def rebuild(state, leaves):
    return leaves[0] if isinstance(state, torch.Tensor) else tuple(leaves)


def assert_same_as_eager(module, *inputs):
    found = run(module, inputs, expanded=True)
    expected = run(module, inputs, expanded=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def initial_state(module, rows):
    directions = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(directions, *rows, module.proj_size or H)
    return (h, torch.randn(directions, *rows, H)) if isinstance(module, nn.LSTM) else h


KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}
SHAPES = list(itertools.product((1, 2), (False, True), (False, True), (False, True)))


@pytest.mark.parametrize(("layers", "bidirectional", "batch_first", "bias"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_expanded_modules_equal_eager(kind, layers, bidirectional, batch_first, bias):
    torch.manual_seed(0)
    shape = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    module = KINDS[kind](I, H, layers, **shape)
    x = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I)
    assert_same_as_eager(module, x)
    assert_same_as_eager(module, x, initial_state(module, (B,)))


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_modules_take_a_sequence_without_batch(kind):
    module = KINDS[kind](I, H, 2, bidirectional=True)
    assert_same_as_eager(module, torch.randn(T, I))
    assert_same_as_eager(module, torch.randn(T, I), initial_state(module, ()))


@pytest.mark.parametrize(("bidirectional", "bias"), [(False, True), (True, False)])
def test_expanded_lstm_projects_its_state(bidirectional, bias):
    module = nn.LSTM(I, H, 2, bidirectional=bidirectional, bias=bias, proj_size=2)
    assert_same_as_eager(module, torch.randn(T, B, I), initial_state(module, (B,)))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_draws_the_numbers_that_eager_draws(kind):
    module = KINDS[kind](I, H, 3, dropout=0.5)
    assert_same_as_eager(module, torch.randn(T, B, I))
    assert_same_as_eager(module.eval(), torch.randn(T, B, I))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_expanded_cells_equal_eager(cell, bias):
    module = cell(I, H, bias=bias)
    h = torch.randn(B, H)
    assert_same_as_eager(module, torch.randn(B, I), (h, torch.randn(B, H)) if cell is nn.LSTMCell else h)
    assert_same_as_eager(module, torch.randn(B, I))
    assert_same_as_eager(module, torch.randn(I))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_expanded_modules_keep_the_dtype(dtype):
    module, x = nn.GRU(I, H, dtype=dtype), torch.randn(T, B, I, dtype=dtype)
    with ExpandedRnn():
        y, h = module(x)
    torch.testing.assert_close((y, h), module(x))


def graph_with(call, *arguments):
    graph = fx.Graph()
    node = graph.call_function(
        call, tuple(graph.placeholder(a) if isinstance(a, str) else a for a in arguments)
    )
    graph.output(node)
    return fx.GraphModule(nn.Module(), graph), node


def test_every_recurrent_call_of_a_graph_is_expanded_and_can_be_put_back():
    gm, node = graph_with(torch.gru_cell, "x", "h", "w", "u")
    ledger = Ledger()
    restore = expand_rnn_calls(gm, ledger)
    inputs = [torch.randn(s) for s in ((B, I), (B, H), (3 * H, I), (3 * H, H))]
    assert node.target is expansions()[torch.gru_cell]
    torch.testing.assert_close(gm(*inputs), torch.gru_cell(*inputs))
    assert ledger.count("replaced") == 1
    restore()
    assert node.target == torch.gru_cell


def test_a_packed_sequence_is_told_from_a_plain_one():
    packed, node = graph_with(torch.gru, "data", "sizes", "h", ["w"], True, 1, 0.0, False, False)
    assert is_packed(node.args)
    assert "packed" in (why_rnn_stays_whole(packed) or "")
    plain, node = graph_with(torch.lstm, "x", ["h", "c"], ["w"], True, 1, 0.0, False, False, False)
    assert not is_packed(node.args)
    assert why_rnn_stays_whole(plain) is None


def test_a_recurrence_under_autocast_stays_whole():
    gm, _ = graph_with(torch.gru_cell, "x", "h", "w", "u")
    with torch.autocast("cpu"):
        assert "autocast" in (why_rnn_stays_whole(gm) or "")
