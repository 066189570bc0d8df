"""Dynamo's graph with its loops rolled goes through AOTAutograd, trained or not, with the same results."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from wolong_fx import _torch_compat, backend, pipeline
from wolong_fx.capture.decompositions import decomposition_table
from wolong_fx.capture.expand_rnn import expand_rnn_calls
from wolong_fx.capture.record import Record
from wolong_fx.capture.rnn import steps_rolled
from wolong_fx.capture.settings import settings_for_tracing
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.recurrences import CellChain, LiGRU, PeepholeLSTM, Scheduled, TwoStepsBack

SCAN = torch.ops.higher_order.scan


class Tracing(backend.Backend):
    """A backend of ours, for which Dynamo traces recurrent modules, that compiles in its own way."""

    def __init__(self, compile_):
        super().__init__(Options(), Record())
        self.compile = compile_

    def __call__(self, gm, example_inputs):
        return self.compile(gm, example_inputs)


def traced_by_aot(model, *, is_rolled):
    """The model compiled by torch's own operators, and the ATen graphs it became."""
    graphs = []

    def keep(graph_module, inputs):
        graphs.append(graph_module)
        run = graph_module.forward

        def boxed(values):
            return run(*values)

        boxed._boxed_call = True
        return boxed

    def compile_(gm, inputs):
        expand_rnn_calls(gm, Ledger())
        if is_rolled:
            gm = pipeline.roll_loops(gm, inputs, Options(), Ledger()) or gm
        compilers = {"fw_compiler": keep, "bw_compiler": keep, "inference_compiler": keep}
        with settings_for_tracing(), steps_rolled() if is_rolled else nullcontext():
            return _torch_compat.run_aot_autograd(
                gm, inputs, **compilers, decompositions=dict(decomposition_table())
            )

    torch._dynamo.reset()
    return torch.compile(model, backend=Tracing(compile_), dynamic=False), graphs


def results_and_gradients(model, x, *, is_rolled):
    compiled, graphs = traced_by_aot(model, is_rolled=is_rolled)
    model.zero_grad()
    x = x.clone().requires_grad_()
    results = compiled(x)
    results = results if isinstance(results, tuple) else (results,)
    weights = [torch.linspace(-1, 1, r.numel()).view(r.shape) for r in results]
    sum((r * w).sum() for r, w in zip(results, weights, strict=True)).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    return [*(r.detach() for r in results), *gradients, x.grad], graphs


MODELS = {
    "lstm cell": lambda: CellChain(nn.LSTMCell(3, 4)),
    "ligru": lambda: LiGRU(3, 4),
    "peephole lstm": lambda: PeepholeLSTM(3, 4),
    "two steps back": lambda: TwoStepsBack(3),
    "scheduled": lambda: Scheduled(3),
}


@pytest.mark.parametrize("name", ["lstm cell", "two steps back", "scheduled"])
def test_inference_through_aot_keeps_every_bit(name):
    model, x = MODELS[name](), torch.randn(6, 2, 3)
    with torch.no_grad():
        plain = traced_by_aot(model, is_rolled=False)[0](x)
        compiled, graphs = traced_by_aot(model, is_rolled=True)
        assert torch.equal(compiled(x), plain)
    assert [len(graph.graph.find_nodes(op="call_function", target=SCAN)) for graph in graphs] == [1]


@pytest.mark.scan_gradients
@pytest.mark.parametrize("name", MODELS)
def test_gradients_through_a_rolled_graph_are_those_of_the_unrolled(name):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(5, 2, 3)
    plain, _ = results_and_gradients(model, x, is_rolled=False)
    rolled, graphs = results_and_gradients(model, x, is_rolled=True)
    for theirs, ours in zip(plain, rolled, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert [len(graph.graph.find_nodes(op="call_function", target=SCAN)) for graph in graphs] == [1, 1]


@pytest.mark.scan_gradients
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_modules_become_one_scan_a_layer_and_direction(kind):
    torch.manual_seed(0)
    options = {"proj_size": 2} if kind == "LSTM" else {"bias": False}
    model = getattr(nn, kind)(3, 4, bidirectional=True, batch_first=True, **options)
    only_output = nn.Sequential(model, First())
    x = torch.randn(2, 5, 3)
    plain, _ = results_and_gradients(only_output, x, is_rolled=False)
    rolled, graphs = results_and_gradients(only_output, x, is_rolled=True)
    for theirs, ours in zip(plain, rolled, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert [len(graph.graph.find_nodes(op="call_function", target=SCAN)) for graph in graphs] == [2, 2]


class First(nn.Module):
    def forward(self, results):
        return results[0]


def compile_by_us(model, x, **options):
    record = Record()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend.Backend(Options.of(**options), record), dynamic=False)
    with torch.no_grad():
        return compiled(x), record


@pytest.mark.cpu
def test_numbers_of_the_steps_are_read_by_our_kernel():
    model, x = Scheduled(3), torch.randn(6, 2, 3)
    result, record = compile_by_us(model, x)
    with torch.no_grad():
        torch.testing.assert_close(result, model(x), atol=1e-6, rtol=1e-5)
    assert not any(ledger.fallbacks() for ledger in record.ledgers)
    assert [graph.kernels for graph in record.graphs] == [1]


@pytest.mark.cpu
def test_a_rolled_model_runs_in_our_kernel():
    model, x = PeepholeLSTM(3, 4), torch.randn(6, 2, 3)
    results, record = compile_by_us(model, x)
    with torch.no_grad():
        for ours, eager in zip(results, model(x), strict=True):
            torch.testing.assert_close(ours, eager, atol=1e-6, rtol=1e-5)
    assert [d.because for d in record.capture.decisions if d.step == "reroll"] == [
        "6 steps of 25 operators are one loop"
    ]


@pytest.mark.cpu
def test_what_is_made_of_weights_for_a_rolled_loop_is_kept_between_calls():
    model = LiGRU(8, 16)
    _, record = compile_by_us(model, torch.randn(20, 2, 8))
    assert record.graphs[-1].ledger.memory["kept"] >= 4 * model.u.weight.numel()


@pytest.mark.cpu
def test_reroll_can_be_disabled():
    _, record = compile_by_us(PeepholeLSTM(3, 4), torch.randn(6, 2, 3), disable=("reroll",))
    assert [d for d in record.capture.decisions if d.step == "reroll"] == []


@pytest.mark.cpu
def test_a_rolled_graph_that_fails_is_compiled_unrolled_and_the_ledger_says_why(monkeypatch, caplog):
    def break_it(gm, inputs, options, ledger):
        raise ValueError("no such loop")

    monkeypatch.setattr(pipeline, "roll_loops", break_it)
    model, x = PeepholeLSTM(3, 4), torch.randn(5, 2, 3)
    results, record = compile_by_us(model, x)
    with torch.no_grad():
        for ours, eager in zip(results, model(x), strict=True):
            torch.testing.assert_close(ours, eager, atol=1e-6, rtol=1e-5)
    said = [d.because for d in record.capture.decisions if d.step == "reroll"]
    assert said == ["rolled, it fails: ValueError: no such loop"]
    assert "compiled with its loops unrolled" in caplog.text


def train_by_us(model, x):
    """Results and gradients, and the record."""
    record = Record()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend.Backend(Options(), record), dynamic=False)
    return gradients_of(compiled, model, x), record


def gradients_of(function, model, x):
    model.zero_grad()
    result = function(x)
    result.square().sum().backward()
    return [result.detach(), *(p.grad.clone() for p in model.parameters())]


def said_of_loops(record):
    return [(d.action, d.because) for d in record.capture.decisions if d.step == "reroll"]


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["written out", "LSTM"])
def test_loops_are_trained_unrolled_where_torchs_gradients_of_them_are_wrong(kind, monkeypatch):
    monkeypatch.setattr(_torch_compat, "can_differentiate_scan", lambda: False)
    torch.manual_seed(0)
    model = LiGRU(3, 4) if kind == "written out" else nn.Sequential(nn.LSTM(3, 4), First())
    x = torch.randn(6, 2, 3)
    ours, record = train_by_us(model, x)
    torch.testing.assert_close(ours, gradients_of(model, model, x), atol=1e-5, rtol=1e-5)
    assert said_of_loops(record) == [("kept", "this torch differentiates rolled loops wrongly")]


@pytest.mark.cpu
def test_a_model_without_loops_is_not_told_that_they_stay_unrolled(monkeypatch):
    monkeypatch.setattr(_torch_compat, "can_differentiate_scan", lambda: False)
    _, record = train_by_us(nn.Linear(3, 4), torch.randn(2, 3))
    assert said_of_loops(record) == []


@pytest.mark.cpu
def test_loops_whose_gradients_would_be_wrong_are_rolled_for_inference(monkeypatch):
    monkeypatch.setattr(_torch_compat, "can_differentiate_scan", lambda: False)
    _, record = compile_by_us(LiGRU(3, 4), torch.randn(6, 2, 3))
    assert [action for action, _ in said_of_loops(record)] != ["kept"] and said_of_loops(record)
