"""compile_graph: kernels where it can, torch where it must, never an exception for a model's sake."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from wolong_fx import codegen, pipeline
from wolong_fx.errors import UnknownPass, UnsupportedOperator
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.runtime import Executor
from wolong_fx.testing.graphs import has_same_bits, random_graph, trace_graph
from wolong_fx.toolchain import notices

aten = torch.ops.aten


class EagerKernel:
    """Stands where a compiled kernel does: the partition's own operators, called the kernel's way."""

    def __init__(self, graph_module):
        self.graph_module = graph_module

    def launch(self, inputs):
        return list(self.graph_module(*inputs))


def why_unsupported(node):
    return "no lowering in this test" if node.target is aten.cumsum.default else None


@pytest.fixture
def fake_codegen(monkeypatch):
    """Partitions go through the whole pipeline, but no compiler is needed."""
    built = SimpleNamespace(partitions=[], error=None)

    def compile_partition(partition, options, ledger):
        if built.error:
            raise built.error
        built.partitions.append(partition)
        return EagerKernel(partition)

    monkeypatch.setattr(codegen, "compile_partition", compile_partition)
    monkeypatch.setattr(codegen, "why_unsupported", why_unsupported)
    monkeypatch.setattr(notices, "_said", set())
    return built


def compile_(graph_module, inputs, **options):
    ledger = Ledger()
    return pipeline.compile_graph(
        graph_module, inputs, Options(**options), role="inference", ledger=ledger
    ), ledger


x = torch.randn(3, 4)


def network(v):
    hidden = torch.tanh(v * 2).cumsum(0)
    return hidden.sigmoid() * v, hidden.t(), v


def test_a_graph_becomes_kernels_and_what_is_between_them(fake_codegen):
    compiled, ledger = compile_(trace_graph(network, x), [x])
    assert isinstance(compiled, Executor) and compiled.launches == len(fake_codegen.partitions) == 2
    assert all(map(torch.equal, compiled([x]), network(x)))
    assert ledger.fallbacks() == {"no lowering in this test": 1}


def test_the_callable_is_boxed_and_empties_the_list(fake_codegen):
    for function in (network, lambda v: v.cumsum(0)):
        compiled, _ = compile_(trace_graph(function, x), [x])
        inputs = [x]
        compiled(inputs)
        assert inputs == [] and compiled._boxed_call


def test_the_graph_that_came_is_not_changed(fake_codegen):
    graph_module = trace_graph(network, x)
    before = str(graph_module.graph)
    compile_(graph_module, [x])
    assert str(graph_module.graph) == before


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_any_graph_computes_what_it_did(seed):
    graph_module, inputs = random_graph(random.Random(seed), 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codegen, "compile_partition", lambda gm, options, ledger: EagerKernel(gm))
        patch.setattr(codegen, "why_unsupported", why_unsupported)
        compiled, _ = compile_(graph_module, inputs)
    torch.manual_seed(0)
    expected = graph_module(*inputs)
    torch.manual_seed(0)
    assert all(map(has_same_bits, compiled(list(inputs)), expected))


def test_outputs_that_need_no_kernel_come_back_right(fake_codegen):
    def function(v):
        made = v.sin().cos()
        return v, None, made, v.t(), made, torch.arange(3) * 2

    value = x.clone()
    compiled, _ = compile_(trace_graph(function, value), [value])
    same, nothing, made, turned, again, numbers = compiled([value])
    assert same is value and nothing is None and made is again and turned.data_ptr() == value.data_ptr()
    assert torch.equal(made, value.sin().cos()) and numbers.tolist() == [0, 2, 4]


def test_constants_reach_kernels_and_operators(fake_codegen):
    def function(v):
        table = torch.arange(4) * 2
        return (v.sin() + table).cumsum(0) * table, table.cumsum(0)

    compiled, _ = compile_(trace_graph(function, x), [x])
    assert all(map(torch.equal, compiled([x]), function(x)))


# ---- errors of ours


def test_a_partition_that_does_not_compile_runs_eagerly_and_says_so_once(fake_codegen, caplog):
    fake_codegen.error = UnsupportedOperator(operator="aten.tanh", because="of a test")
    with caplog.at_level(logging.WARNING, "wolong_fx"):
        results = [compile_(trace_graph(network, x), [x]) for _ in range(2)]
    assert len(caplog.records) == 1 and "cannot lower 'aten.tanh': of a test" in caplog.text
    for compiled, ledger in results:
        assert all(map(torch.equal, compiled([x]), network(x)))
        assert any("of a test" in because for because in ledger.fallbacks())


def test_one_partition_that_does_not_compile_leaves_the_others_compiled(fake_codegen, monkeypatch):
    def compile_first(partition, options, ledger):
        if any(n.target is aten.sigmoid.default for n in partition.graph.nodes):
            raise ValueError("second partition")
        return EagerKernel(partition)

    monkeypatch.setattr(codegen, "compile_partition", compile_first)
    compiled, _ = compile_(trace_graph(network, x), [x])
    assert compiled.launches == 1
    assert all(map(torch.equal, compiled([x]), network(x)))


@pytest.mark.parametrize(
    "error", [RuntimeError("boom\nsecond line"), AssertionError(), RecursionError("deep")]
)
def test_any_defect_of_ours_leaves_the_model_running(fake_codegen, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(pipeline, "copy_graph", fail)
    with caplog.at_level(logging.WARNING, "wolong_fx"):
        compiled, ledger = compile_(trace_graph(network, x), [x])
    assert len(caplog.records) == 1 and "second line" not in caplog.text
    assert all(map(torch.equal, compiled([x]), network(x)))
    assert ledger.count("fell-back") == 1


def test_an_unknown_name_to_disable_is_the_users_to_mend():
    with pytest.raises(UnknownPass, match="did you mean 'cut-partitions'"):
        compile_(trace_graph(network, x), [x], disable=("cut-partition",))


def test_torch_compile_hands_on_an_unknown_name_to_disable():
    """A wrong setting must not end as one more graph that runs eagerly."""
    compiled = torch.compile(lambda v: v.sin().cos(), backend="wolong", options={"disable": "simplfy"})
    with pytest.raises(Exception, match="unknown pass 'simplfy' in disable; did you mean 'simplify'"):
        compiled(x)


@pytest.mark.parametrize("name", pipeline.step_names())
def test_any_one_step_can_be_disabled(fake_codegen, name):
    compiled, ledger = compile_(trace_graph(network, x), [x], disable=(name,))
    assert all(map(torch.equal, compiled([x]), network(x)))
    assert name not in ledger.timings


# ---- what no kernel can take


def reasons(graph_module, inputs):
    compiled, ledger = compile_(graph_module, inputs)
    return compiled, " ".join(ledger.fallbacks())


def test_dynamic_shapes_fall_back_whole(fake_codegen):
    graph_module = make_fx(network, tracing_mode="symbolic")(x)
    compiled, why = reasons(graph_module, [x])
    assert "known only at run time" in why and all(map(torch.equal, compiled([x]), network(x)))


def test_a_size_known_only_at_run_time_falls_back_where_it_is(fake_codegen):
    graph_module = make_fx(lambda v: (v.sin().cos(), v.nonzero() * 2), tracing_mode="real")(x)
    expected = graph_module(x)
    compiled, _ = compile_(graph_module, [x])
    assert all(map(torch.equal, compiled([x]), expected))


def test_complex_numbers_fall_back_where_they_are(fake_codegen):
    def function(v):
        return torch.fft.rfft(v.sin().cos()).abs().sin().cos()

    compiled, why = reasons(trace_graph(function, x), [x])
    assert "no kernel computes in torch.complex64" in why and compiled.launches == 2
    assert torch.allclose(compiled([x])[0], function(x))


def test_other_devices_fall_back(fake_codegen):
    graph_module = trace_graph(lambda v: v.sin().cos(), torch.empty(3, device="meta"))
    compiled, why = reasons(graph_module, [torch.empty(3, device="meta")])
    assert "lives on 'meta'" in why and compiled([torch.empty(3, device="meta")]).shape == (3,)


def test_subclasses_fall_back(fake_codegen):
    class Own(torch.Tensor):
        pass

    graph_module = trace_graph(lambda v: v.sin().cos(), x)
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = x.as_subclass(Own)
    assert "Own is a subclass of Tensor" in reasons(graph_module, [x])[1]


def test_a_graph_that_is_not_aten_falls_back_whole(fake_codegen):
    graph_module = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(4, 2)))
    compiled, why = reasons(graph_module, [x])
    assert "call_module 0 is not an ATen operator" in why and compiled([x]).shape == (3, 2)


def test_dumps_of_two_graphs_do_not_mix(fake_codegen, tmp_path):
    for _ in range(2):
        compile_(trace_graph(network, x), [x], dump=("graph",), dump_dir=str(tmp_path))
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 2
    assert [len(list(folder.iterdir())) for folder in folders] == [len(pipeline.pass_table(Options()))] * 2


# ---- work


def calls_made_by(function):
    """How many Python functions are entered: a measure of work that no busy machine disturbs."""
    import sys

    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def recurrence(steps):
    def function(h, w):
        for step in range(steps):
            h = torch.tanh(h @ w.t() * 1 + step).detach()
            h = torch.cat([h[:, :2], h[:, 2:]], 1).unsqueeze(0).squeeze(0)
        return h

    return trace_graph(function, torch.zeros(1, 4), torch.zeros(4, 4))


def test_the_work_of_the_passes_grows_with_the_graph_and_no_faster(fake_codegen):
    inputs = [torch.zeros(1, 4), torch.zeros(4, 4)]
    small, large = recurrence(20), recurrence(80)
    compile_(recurrence(2), inputs)  # fills the caches of torch and ours
    work = [calls_made_by(lambda g=g: compile_(g, inputs)) for g in (small, large)]
    nodes = [len(g.graph.nodes) for g in (small, large)]
    assert work[1] / work[0] < 1.15 * nodes[1] / nodes[0]
