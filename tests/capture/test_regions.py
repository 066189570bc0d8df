"""Functions marked by torch.compiler.nested_compile_region are compiled as if they were not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wolong_fx
from wolong_fx import backend
from wolong_fx.capture.inline_regions import INVOKE, _Memory, inline_regions
from wolong_fx.capture.record import Record
from wolong_fx.options import Options
from wolong_fx.testing.graphs import has_same_bits
from wolong_fx.testing.tracing import dynamo_graph


class Marked(nn.Module):
    """A recurrence whose step is a region, with a region in it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 6) * 0.5)

    @torch.compiler.nested_compile_region
    def gate(self, z):
        first, second = z.chunk(2, 1)  # views of what the region is given
        return first.sigmoid() * second.tanh()

    @torch.compiler.nested_compile_region
    def step(self, x, h):
        return torch.tanh(self.gate((x + h) @ self.w) + h.t().t() * 2) - x

    def forward(self, x):
        h, states = x.new_zeros(2, 3), []
        for row in x.unbind():
            h = self.step(row, h)
            states.append(h)
        return torch.stack(states)


def test_a_region_written_out_computes_the_same_bits():
    graph, given = dynamo_graph(Marked(), torch.randn(6, 2, 3))
    assert graph.graph.find_nodes(op="call_function", target=INVOKE)
    with torch.no_grad():
        before = graph(*given)
        inline_regions(graph)
        graph.graph.lint()
        assert not graph.graph.find_nodes(op="call_function", target=INVOKE)
        assert all(map(has_same_bits, before, graph(*given)))


def test_values_of_a_region_written_out_share_memory_as_they_do_when_it_runs():
    graph, _ = dynamo_graph(Marked(), torch.randn(6, 2, 3))
    inline_regions(graph)
    storage = {n: n.meta["example_value"] for n in graph.graph.nodes if n.op.startswith("call")}
    storage = {
        n: value.untyped_storage()._cdata for n, value in storage.items() if isinstance(value, torch.Tensor)
    }
    made = [storage[n] for n in storage if n.target is torch.tanh]
    assert len(set(made)) == len(made) == 6
    views = [n for n in storage if n.target == "t"]
    assert len(views) == 12
    assert all(storage[view] == storage[view.args[0]] for view in views if view.args[0] in storage)


@pytest.mark.cpu
@pytest.mark.parametrize("is_training", [False, pytest.param(True, marks=pytest.mark.scan_gradients)])
def test_steps_that_are_regions_become_a_loop(is_training):
    torch.manual_seed(0)
    model, x, record = Marked(), torch.randn(8, 2, 3), Record()
    compiled = torch.compile(model, backend=backend.Backend(Options(), record), dynamic=False)
    found = []
    for run in (model, compiled):
        with torch.set_grad_enabled(is_training):
            y = run(x)
            if is_training:
                (gradient,) = torch.autograd.grad(y.square().sum(), model.w)
                found.append((y.detach(), gradient))
            else:
                found.append((y,))
    for ours, eager in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-5)
    assert not any(ledger.fallbacks() for ledger in record.ledgers)
    assert [d.action for d in record.capture.decisions if d.step == "reroll"] == ["replaced"]


class Twice(nn.Module):
    @torch.compiler.nested_compile_region
    def step(self, x):
        return (x * 2).exp().tanh()

    def forward(self, x):
        return self.step(self.step(x))


def test_a_region_that_cannot_be_written_out_costs_the_speed_alone(monkeypatch, caplog):
    twin, calls = _Memory.twin, []

    def fail_in_the_second_call(memory, value):
        calls.append(value)
        if len(calls) == 5:
            raise ValueError("in the middle")
        return twin(memory, value)

    monkeypatch.setattr(_Memory, "twin", fail_in_the_second_call)
    model, x = Twice(), torch.randn(3)
    compiled = wolong_fx.optimize(model)
    with torch.no_grad():
        assert has_same_bits(compiled(x), model(x))
    fallen = [d for d in wolong_fx.stats(compiled).ledgers[0].decisions if d.step == "inline-regions"]
    assert [d.because for d in fallen] == ["ValueError: in the middle"]
    assert caplog.text.count("its marked regions could not be written out") == 1


def test_a_region_that_cannot_be_written_out_leaves_the_graph_as_it_was(monkeypatch):
    graph_module, _ = dynamo_graph(Twice(), torch.randn(3))
    before = [node.name for node in graph_module.graph.nodes]
    twin, calls = _Memory.twin, []

    def fail_late(memory, value):
        calls.append(value)
        return twin(memory, value) if len(calls) < 3 else 1 / 0

    monkeypatch.setattr(_Memory, "twin", fail_late)
    with pytest.raises(ZeroDivisionError):
        inline_regions(graph_module)
    assert [node.name for node in graph_module.graph.nodes] == before
