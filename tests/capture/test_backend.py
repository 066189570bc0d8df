"""From a model to its graphs: numbers and gradients as in eager, and a reason for what stays eager."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import wolong_fx
from wolong_fx import backend

pytestmark = pytest.mark.cpu


class CustomLstm(nn.Module):
    """A cell written by hand, and a loop over it."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(3, 16)
        self.h = nn.Linear(4, 16, bias=False)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], 4)
        for x_t in x:
            i, f, g, o = (self.x(x_t) + self.h(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h, c


class Recurrent(nn.Module):
    """A recurrent module between other layers, as in a language model."""

    def __init__(self, recurrence) -> None:
        super().__init__()
        self.embed, self.recurrence, self.head = nn.Embedding(7, 3), recurrence, nn.LazyLinear(7)

    def forward(self, tokens):
        y, _ = self.recurrence(self.embed(tokens))
        return nn.functional.cross_entropy(self.head(y).flatten(0, 1), tokens.flatten())


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(3, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 4)

    def forward(self, x):
        state, h, r = None, None, None
        for x_t in x:
            state = self.lstm(x_t, state)
            h = self.gru(state[0], h)
            r = self.rnn(h, r)
        return r


def sequence():
    return torch.randn(3, 2, 3)


def tokens():
    return torch.randint(0, 7, (3, 2))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)), sequence),
    "custom-lstm": (CustomLstm, sequence),
    "nn.LSTM": (lambda: nn.LSTM(3, 4, 2, bidirectional=True, dropout=0.5, batch_first=True), sequence),
    "lstm-lm": (lambda: Recurrent(nn.LSTM(3, 4, proj_size=2)), tokens),
    "gru-lm": (lambda: Recurrent(nn.GRU(3, 4, 2, dropout=0.5)), tokens),
    "rnn-lm": (lambda: Recurrent(nn.RNN(3, 4, nonlinearity="relu")), tokens),
    "cells": (Cells, sequence),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8), lambda: torch.randn(3, 2, 4)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2)),
        lambda: torch.randn(3, 2, 5),
    ),
}


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


def train_step(model, x):
    x = x.clone().requires_grad_() if x.is_floating_point() else x
    torch.manual_seed(3)
    outputs = flat(model(x))
    torch.stack([y.square().mean() for y in outputs]).sum().backward()
    grads = [p.grad for p in model.parameters()] + [x.grad]
    return outputs, [g for g in grads if g is not None], list(model.buffers())


@pytest.mark.parametrize("name", MODELS)
def test_models_train_and_infer_as_in_eager(name):
    torch.manual_seed(0)
    make, make_input = MODELS[name]
    model, x = make(), make_input()
    model(x)  # lazy parameters
    twin = wolong_fx.optimize(copy.deepcopy(model))
    torch.testing.assert_close(train_step(twin, x), train_step(model, x), rtol=1e-5, atol=1e-6)
    assert [g.role for g in graphs_of(twin)] == ["forward", "backward"]
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-6)
    assert [g.role for g in graphs_of(twin)] == ["forward", "backward", "inference"]


def graphs_of(model):
    return vars(model)["_wolong_fx"].compilation.record.graphs


def test_recurrent_modules_are_traced_only_for_this_backend():
    torch._dynamo.reset()  # Dynamo remembers, for all backends, what it once skipped
    model, x, others = nn.Sequential(nn.LSTM(3, 4)), sequence(), []
    before = wolong_fx.stats().graphs
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="wolong")(x), model(x))
        assert wolong_fx.stats().graphs == before + 1
        torch.compile(model, backend=lambda gm, _: others.append(gm) or gm)(x)
    assert not others
    assert not torch._dynamo.config.allow_rnn


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.gru = nn.Linear(3, 3), nn.GRU(3, 4)

    def forward(self, x, lengths):
        return self.gru(pack_padded_sequence(torch.relu(self.before(x)), lengths))[1].tanh()


def test_packed_sequences_run_eagerly_with_a_reason():
    model, x, lengths = Packed(), sequence(), torch.tensor([3, 2])
    expected = model(x, lengths)
    torch.testing.assert_close(wolong_fx.optimize(model)(x, lengths), expected)
    ledger = wolong_fx.stats(model).ledgers[0]
    assert any("packed sequence" in reason for reason in ledger.fallbacks())
    assert {d.where for d in ledger.decisions} == {f"{__file__}:{Packed.forward.__code__.co_firstlineno + 1}"}
    assert wolong_fx.stats(model).graphs == 2


def test_a_recurrent_module_given_a_packed_sequence_is_warned_about(caplog):
    model, x = nn.GRU(3, 4), pack_padded_sequence(sequence(), torch.tensor([3, 2]))
    with caplog.at_level(logging.WARNING, "wolong_fx"):
        torch.testing.assert_close(wolong_fx.optimize(model)(x), model._call_impl(x), rtol=0, atol=0)
    assert "packed sequence" in [r.getMessage() for r in caplog.records if r.name == "wolong_fx"][-1]


def test_a_recurrence_under_autocast_runs_eagerly_with_a_reason():
    model, x = nn.GRU(3, 4), sequence()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(wolong_fx.optimize(model)(x), expected, rtol=0, atol=0)
    assert any("autocast" in reason for reason in wolong_fx.stats(model).fallbacks)


def test_a_checkpointed_recurrence_is_expanded():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(3, 4)

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.gru, x, use_reentrant=False)[0].sin()

    model, x = Checkpointed(), sequence()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    torch.testing.assert_close(train_step(twin, x), train_step(model, x), rtol=1e-5, atol=1e-6)
    assert wolong_fx.stats(twin).ledgers[0].count("replaced") == 1


def test_the_same_seed_draws_the_same_numbers_as_eager():
    class Noisy(nn.Module):
        def forward(self, x):
            y = nn.functional.dropout(x, 0.3, training=True) + torch.rand_like(x) + torch.randn(3)
            return y * torch.bernoulli(torch.full_like(x, 0.5)) + nn.functional.rrelu(x, training=True)

    model, x = Noisy(), sequence()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for seed in (1, 2):
        found, expected = (torch.manual_seed(seed) and m(x) for m in (twin, model))
        torch.testing.assert_close(found, expected)
    assert twin(x).ne(twin(x)).any()


def test_a_graph_break_costs_a_graph_and_is_listed_with_its_line():
    def broken(x):
        y = torch.sin(x) * 2
        torch._dynamo.graph_break()
        return torch.cos(y) + 1

    optimised = wolong_fx.optimize(broken)
    x = sequence()
    torch.testing.assert_close(optimised(x), broken(x))
    stats = wolong_fx.stats(optimised)
    (found,) = stats.ledgers[0].decisions
    assert stats.graphs == 2
    assert (found.step, found.action) == ("graph-break", "fell-back")
    assert found.where == f"{__file__}:{broken.__code__.co_firstlineno + 2}"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_are_seen(mode):
    model, x = nn.Linear(3, 2), sequence()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    with mode():
        y, expected = twin(x), model(x)
    torch.testing.assert_close(y, expected)
    assert y.requires_grad == expected.requires_grad
    assert twin(x).requires_grad


def test_new_shapes_are_compiled_and_old_ones_kept():
    model = wolong_fx.optimize(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    with torch.no_grad():
        for rows in (1, 2, 5, 2, 1):
            x = torch.randn(rows, 3)
            torch.testing.assert_close(model(x), model._call_impl(x))
    assert wolong_fx.stats(model).graphs == 3
    assert wolong_fx.stats(model).kernels_per_call == 1


def test_shapes_that_torch_compile_holds_dynamic_get_a_kernel_each():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.GRU(2, 2))
    compiled = torch.compile(model, backend="wolong")
    before = wolong_fx.stats()
    for rows in (2, 3, 5, 3):
        x = torch.randn(rows, 1, 3, requires_grad=True)
        y, _ = compiled(x)
        torch.testing.assert_close(y, model(x)[0])
        grads = [torch.autograd.grad(m(x)[0].square().sum(), x) for m in (compiled, model)]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)
    assert wolong_fx.stats().graphs == before.graphs + 6
    assert wolong_fx.stats().kernels_per_call > before.kernels_per_call


def test_two_models_of_one_class_keep_apart():
    one, two = (wolong_fx.optimize(nn.Linear(3, 2)) for _ in range(2))
    x = sequence()
    for model in (one, two, one):
        torch.testing.assert_close(model(x), model._call_impl(x))
    assert not one(x).equal(two(x))


def test_a_backward_can_run_twice_over_a_retained_graph():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), sequence()
    wolong_fx.optimize(model)
    loss = model(x).square().sum()
    loss.backward(retain_graph=True)
    once = model[0].weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(model[0].weight.grad, 2 * once)


def test_a_graph_can_be_retained_after_a_backward_that_retained_none():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), sequence()
    compiled = torch.compile(model, backend="wolong")
    compiled(x).square().sum().backward()
    once = model[0].weight.grad.clone()
    loss = compiled(x).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(model[0].weight.grad, 3 * once)


def test_an_output_is_not_overwritten_by_the_next_call():
    model = wolong_fx.optimize(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    with torch.no_grad():
        first = model(torch.ones(1, 3))
        kept = first.clone()
        model(torch.zeros(1, 3))
    assert first.equal(kept)


def test_inputs_that_the_model_changes_are_changed():
    class InPlace(nn.Module):
        def forward(self, x):
            x.mul_(2)
            return x.t() + 1, x[0]

    x, twin = sequence()[0], sequence()[0]
    twin.copy_(x)
    found, expected = wolong_fx.optimize(InPlace())(x), InPlace()(twin)
    torch.testing.assert_close((x, found), (twin, expected))
    assert found[1].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_a_graph_that_cannot_be_traced_runs_eagerly_and_says_so(monkeypatch, caplog):
    def fail(*_, **__):
        raise NotImplementedError("no such thing\nand a long story")

    monkeypatch.setattr(backend._torch_compat, "run_aot_autograd", fail)
    model, x = nn.GRU(3, 4), sequence()
    with caplog.at_level(logging.WARNING, "wolong_fx"), torch.no_grad():
        torch.testing.assert_close(wolong_fx.optimize(model)(x), model._call_impl(x), rtol=0, atol=0)
    assert any("NotImplementedError: no such thing" in r.getMessage() for r in caplog.records)
    assert wolong_fx.stats(model).ledgers[0].count("fell-back") == 1


def test_tracing_leaves_global_settings_as_they_were():
    def settings():
        dynamo = torch._dynamo.config
        guards = dynamo.skip_tensor_guards_with_matching_dict_tags
        return (
            torch.backends.mkldnn.enabled,
            torch.backends.cuda.flash_sdp_enabled(),
            guards,
            dynamo.allow_rnn,
        )

    was = settings()
    wolong_fx.optimize(nn.GRU(3, 2))(sequence())
    assert settings() == was
