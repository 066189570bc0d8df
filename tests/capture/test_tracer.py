"""The plain torch.fx way: one core-ATen graph of a model, with its lines, modules and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import wolong_fx
from wolong_fx import pipeline
from wolong_fx.capture.tracer import capture_fx
from wolong_fx.errors import CannotCapture
from wolong_fx.ledger import Ledger, user_line
from wolong_fx.options import Options


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(5, 3), nn.LSTM(3, 4, 2), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.ones(2))

    def forward(self, tokens, state=None):
        y, (h, _) = self.lstm(self.embed(tokens)) if state is None else self.lstm(self.embed(tokens), state)
        return {"tags": torch.softmax(self.head(y) * self.scale + self.shift, -1), "last": h}


HEAD_LINE = Tagger.forward.__code__.co_firstlineno + 2


def tokens():
    return torch.randint(0, 5, (3, 2))


def operators(graph_module):
    return [n for n in graph_module.graph.nodes if n.op == "call_function"]


def test_a_captured_graph_computes_what_the_model_does():
    model, x = Tagger().eval(), tokens()
    captured = capture_fx(model, [x])
    torch.testing.assert_close(captured(model, x), model(x))
    with torch.no_grad():
        model.scale.mul_(3)
    torch.testing.assert_close(captured(model, x), model(x))


def test_nested_inputs_keep_their_places():
    model, x, state = Tagger().eval(), tokens(), (torch.ones(2, 2, 4), torch.zeros(2, 2, 4))

    class WithState(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, 2)

        def forward(self, x, state):
            return self.lstm(x, state)

    model, x = WithState(), torch.randn(3, 2, 3)
    captured = capture_fx(model, [x, state])
    other = (torch.randn(2, 2, 4), torch.randn(2, 2, 4))
    torch.testing.assert_close(captured(model, x, other), model(x, other))


def test_a_captured_graph_is_functional_core_aten_with_fake_values_and_no_recurrent_operator():
    nodes = operators(capture_fx(Tagger().eval(), [tokens()]).graph_module)
    for node in nodes:
        name = str(node.target)
        assert name.startswith("aten.") or name == "<built-in function getitem>"
        assert not any(word in name for word in ("lstm", "_softmax", "linear", "_copy"))
        assert node.meta["val"] is not None
    assert sum(node.target is torch.ops.aten.tanh.default for node in nodes) == 2 * 2 * 3


def test_operators_know_their_module_and_the_users_line():
    nodes = operators(capture_fx(Tagger().eval(), [tokens()]).graph_module)
    (exponential,) = [n for n in nodes if n.target is torch.ops.aten.exp.default]
    assert user_line(exponential) == f"{__file__}:{HEAD_LINE}"
    matmuls = [n for n in nodes if n.target is torch.ops.aten.addmm.default]
    assert [list(n.meta["nn_module_stack"])[-1] for n in matmuls] == ["lstm"] * 8 + ["head"]


def test_optimised_models_and_submodules_are_captured_like_plain_ones():
    model, x = Tagger().eval(), tokens()
    wolong_fx.optimize(model)
    wolong_fx.optimize(model.head)
    wolong_fx.optimize(model.lstm)
    torch.testing.assert_close(capture_fx(model, [x])(model, x), model._call_impl(x))


def test_a_model_that_branches_on_its_input_is_refused():
    class Branches(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(CannotCapture, match="'Branches'"):
        capture_fx(Branches(), [torch.ones(2)])


def test_a_model_that_changes_a_buffer_is_refused_while_it_does():
    model, x = nn.BatchNorm1d(3), torch.randn(2, 3)
    with pytest.raises(CannotCapture, match="in place"):
        capture_fx(model, [x])
    torch.testing.assert_close(capture_fx(model.eval(), [x])(model, x), model(x))


@pytest.mark.cpu
def test_a_captured_graph_compiles():
    model, x = Tagger().eval(), tokens()
    captured = capture_fx(model, [x])
    arguments = captured.arguments(model, x)
    placeholders = [n.meta["val"] for n in captured.graph_module.graph.nodes if n.op == "placeholder"]
    assert all(isinstance(v, torch.Tensor) for v in placeholders)
    graph_module = fx.GraphModule(captured.graph_module, captured.graph_module.graph)
    run = pipeline.compile_graph(graph_module, arguments, Options(), role="inference", ledger=Ledger())
    with torch.no_grad():
        torch.testing.assert_close(captured.unflatten(run(list(arguments))), model(x))
