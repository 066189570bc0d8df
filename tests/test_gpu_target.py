"""Models by way of optimize() and torch.compile to a fake device, and graphs on several devices."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import wolong_fx
from wolong_fx import _torch_compat, pipeline
from wolong_fx.codegen.targets import compile_for, find_target
from wolong_fx.errors import NoGpu, NoTarget
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.cut_partitions import is_partition
from wolong_fx.runtime.gpu.cuda_device import find_cuda_device
from wolong_fx.testing.fake_device import FakeDevice, FakeTarget
from wolong_fx.testing.versus_eager import check_inference, check_training

CUDA = torch.device("cuda", 0)


def small_model() -> nn.Module:
    """Two products with a softmax between: some stages, one barrier or more."""
    return nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 2)).eval()


@pytest.mark.cpu
@pytest.mark.parametrize("device", [FakeDevice(), FakeDevice(can_cooperate=False)], ids=["grid", "stages"])
def test_a_model_computes_what_eager_does(device):
    with compile_for(FakeTarget.on(device)):
        stats = wolong_fx.stats(check_inference(small_model(), (torch.randn(3, 4),)))
    assert not stats.fallbacks and device.launches
    (report,) = stats.gpu_kernels
    assert report.form == ("persistent" if device.can_cooperate else "staged")
    assert f"{report.launches} launch" in str(stats)


@pytest.mark.cpu
def test_a_training_step_computes_what_eager_does():
    with compile_for(FakeTarget.on(FakeDevice())):
        stats = wolong_fx.stats(check_training(small_model(), (torch.randn(3, 4),)))
    assert stats.launches["forward"] >= 1 and stats.launches["backward"] >= 1 and not stats.fallbacks


@pytest.mark.cpu
def test_torch_compile_takes_the_same_way():
    device, model, x = FakeDevice(), small_model(), torch.randn(3, 4)
    with compile_for(FakeTarget.on(device)), torch.no_grad():
        compiled = torch.compile(model, backend="wolong")
        torch.testing.assert_close(compiled(x), model(x))
    assert device.launches


@pytest.mark.cpu
def test_a_model_that_was_called_once_can_be_captured_and_sees_its_weights_change():
    device, model, x = FakeDevice(), small_model(), torch.randn(3, 4)
    with compile_for(FakeTarget.on(device)), torch.no_grad():
        fast = wolong_fx.optimize(model)
        for _ in range(4):
            fast(x)
        with device.capturing() as graph:
            y = fast(x)
        model[0].weight.mul_(2)
        x.copy_(torch.randn(3, 4))
        device.replay(graph)
        wolong_fx.deoptimize(fast)
        torch.testing.assert_close(y, model(x))


@pytest.mark.cpu
def test_a_kernel_that_cannot_be_compiled_leaves_its_part_to_torch_and_the_ledger_says_why():
    device, model, x = FakeDevice(failing={"build": 0}), small_model(), torch.randn(3, 4)
    with compile_for(FakeTarget.on(device)), torch.no_grad():
        fast = wolong_fx.optimize(model)
        found, expected = fast(x), model(x)
    torch.testing.assert_close(found, expected)
    assert not device.launches
    assert any("the test says so" in reason for reason in wolong_fx.stats(fast).fallbacks)


@pytest.mark.cpu
def test_a_stage_that_cannot_be_compiled_does_the_same():
    device = FakeDevice(failing={"build": 1}, blocks_of_multiprocessor=0)
    model, x = small_model(), torch.randn(3, 4)
    with compile_for(FakeTarget.on(device)), torch.no_grad():
        fast = wolong_fx.optimize(model)
        torch.testing.assert_close(fast(x), model(x))
    assert wolong_fx.stats(fast).fallbacks


# ---- which target


def test_the_device_chooses_the_target_unless_the_options_do():
    assert type(find_target(Options())).__name__ == "CppTarget"
    assert type(find_target(Options(target="reference"))).__name__ == "ReferenceTarget"


@pytest.mark.parametrize(
    ("target", "device"), [("cpu", CUDA), ("reference", CUDA), ("triton", torch.device("cpu"))]
)
def test_a_target_that_is_asked_for_leaves_other_devices_to_torch(target, device):
    with pytest.raises(NoTarget, match=f"target='{target}' has no kernels for {device}"):
        find_target(Options(target=target), device)


def test_without_a_gpu_its_target_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    find_cuda_device.cache_clear()
    with pytest.raises(NoGpu, match="this torch sees no CUDA device"):
        find_target(Options(), CUDA)


# ---- graphs on several devices


def traced(function, *inputs):
    """A graph of fake tensors on these devices."""
    with _torch_compat.fake_mode() as mode:
        fakes = [
            mode.from_tensor(torch.empty(shape)) if device == "cpu" else torch.empty(shape, device=device)
            for shape, device in inputs
        ]
        return make_fx(function)(*fakes)


def cut(gm):
    """The passes' result, and the calls of its partitions."""
    from wolong_fx.passes.manager import PassManager

    ledger = Ledger()
    found = PassManager(pipeline.pass_table(Options(min_ops=1)), Options(min_ops=1), ledger, "t")(
        gm
    ).graph_module
    return found, [n for n in found.graph.nodes if is_partition(n)], ledger


def devices_in(gm, call) -> set[str]:
    nodes = gm.get_submodule(call.target).graph.nodes
    return {str(n.meta["val"].device) for n in nodes if isinstance(n.meta.get("val"), torch.Tensor)}


def test_a_graph_on_two_devices_becomes_a_kernel_for_each_and_transfers_stay_torchs():
    def model(x, y):
        a, b = torch.tanh(x * 2), torch.tanh(y * 3)
        moved = torch.ops.aten._to_copy.default(a, device=CUDA)
        return (b + moved).exp(), a.exp()

    gm, calls, ledger = cut(traced(model, ((8,), "cpu"), ((8,), "cuda")))
    assert all(len(devices_in(gm, call)) == 1 for call in calls)
    assert {next(iter(devices_in(gm, call))) for call in calls} == {"cpu", "cuda:0"}
    eager = [n for n in gm.graph.nodes if n.op == "call_function" and n.target is not operator.getitem]
    assert [str(n.target) for n in eager] == ["aten._to_copy.default"]
    assert any("moves between cpu and cuda:0" in reason for reason in ledger.fallbacks())


def test_two_devices_that_never_meet_are_two_kernels_of_one_level():
    def model(x, y):
        return torch.tanh(x).exp(), torch.tanh(y).exp()

    gm, calls, _ = cut(traced(model, ((8,), "cpu"), ((8,), "cuda")))
    assert sorted(map(len, (devices_in(gm, c) for c in calls))) == [1, 1]


def test_a_number_on_the_cpu_moves_nothing():
    def model(x):
        return (x * torch.full((), 2.0)).exp()

    _, calls, _ = cut(traced(model, ((8,), "cuda")))
    assert len(calls) == 1


def test_a_graph_on_one_gpu_is_one_kernel():
    def model(x, y):
        return torch.softmax(x @ y, -1).sum()

    _, calls, ledger = cut(traced(model, ((8, 8), "cuda"), ((8, 8), "cuda")))
    assert len(calls) == 1 and not ledger.fallbacks()
