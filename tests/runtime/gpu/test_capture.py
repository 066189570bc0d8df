"""Launches that go into graphs of a fake device, and replays of them."""

from __future__ import annotations

import gc

import pytest
import torch

from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Program, Store
from wolong_fx.options import Options
from wolong_fx.runtime import Wiring
from wolong_fx.runtime.gpu.resident import CapturedResidentKernel
from wolong_fx.testing.fake_device import FakeDevice, Violation
from wolong_fx.testing.programs import ProgramBuilder, at, f32, inputs_of, mul, operator, recurrence
from wolong_fx.testing.programs import load as loaded

CHAIN = recurrence(steps=2, width=8, tile=(2,))
SIZE = 16


def refill(inputs, seed) -> None:
    for x, new in zip(inputs, inputs_of(CHAIN, seed), strict=True):
        x.copy_(new)


def test_a_captured_launch_runs_when_it_is_replayed_with_what_its_inputs_hold_then(load, is_right):
    device, inputs = FakeDevice(), inputs_of(CHAIN)
    kernel = load(CHAIN, device)
    with device.capturing() as graph:
        outputs = kernel.launch(inputs)
    for seed in (1, 2, 2):
        refill(inputs, seed)
        device.replay(graph)
        assert is_right(CHAIN, outputs, seed)


def test_no_two_captured_launches_share_a_word_nor_one_with_a_stream(load):
    device, inputs = FakeDevice(), inputs_of(CHAIN)
    kernels = [load(CHAIN, device) for _ in range(2)]
    kernels[0].launch(inputs)
    with device.capturing() as graph:
        for kernel in kernels * 3:
            kernel.launch(inputs)
    captured = [launch for launch in device.launches if launch.capture == graph.number]
    assert len(captured) == 6 and len({launch.word for launch in device.launches}) == 7
    assert all(device.memory.owner_of(launch.word) is graph for launch in captured)


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_graph_replays_right_between_launches_on_its_stream_and_others(load, is_right, is_alive):
    device, inputs = FakeDevice(is_lazy=True), inputs_of(CHAIN)
    kernel, other = load(CHAIN, device), load(CHAIN, device)
    with device.capturing() as graph:
        outputs = kernel.launch(inputs)
    if (
        not is_alive
    ):  # what the graph needs of it lives on: module and failure word for ever, the rest in its pool
        del kernel
        gc.collect()
    found = []
    for stream in (0, 1, 0):
        with device.on_stream(stream):
            device.replay(graph)
            found.append(other.launch(inputs))
            device.synchronize()
            assert is_right(CHAIN, outputs)
    assert all(is_right(CHAIN, y) for y in found)


def test_a_replay_zeroes_the_word_that_a_stopped_one_left(load, is_right):
    device, inputs = FakeDevice(), inputs_of(CHAIN)
    kernel = load(CHAIN, device)
    with device.capturing() as graph:
        outputs = kernel.launch(inputs)
    next(iter(kernel._words._captured.values()))[0].fill_(7)
    device.replay(graph)
    assert is_right(CHAIN, outputs)


def test_memory_of_a_capture_comes_from_its_pool_alone(load):
    device, inputs = FakeDevice(), inputs_of(CHAIN)
    kernel = load(CHAIN, device)
    before = len(device.memory.allocations)
    with device.capturing() as graph:
        kernel.launch(inputs)
    owners = {owner for owner, _ in device.memory.allocations[before:]}
    assert owners == {graph}


def test_words_of_a_finished_capture_are_not_held_on_to(load):
    device, inputs = FakeDevice(), inputs_of(CHAIN)
    kernel = load(CHAIN, device)
    with device.capturing():
        kernel.launch(inputs)
    word = device.launches[-1].word
    assert device.memory.is_lent(word)
    kernel.launch(inputs)
    assert not device.memory.is_lent(word)


def test_stages_are_captured_one_by_one(load, is_right):
    device, inputs = FakeDevice(can_cooperate=False), inputs_of(CHAIN)
    kernel = load(CHAIN, device)
    with device.capturing() as graph:
        outputs = kernel.launch(inputs)
    refill(inputs, 4)
    device.replay(graph)
    assert len(device.launches) == 3 and is_right(CHAIN, outputs, 4)


def scaled(name: str, by: float, inputs: int = 1) -> Program:
    """The product of its inputs and a number."""
    p, i = ProgramBuilder(name), Var("i", SIZE)
    given = [p.input(f"x{n}", SIZE) for n in range(inputs)]
    y, value = p.output("y", SIZE), f32(by)
    for x in given:
        value = mul(value, loaded(x, i))
    p.stage(operator("scale", (i,), Store(at(y, i), value), tile=(4,)))
    return p.build()


@pytest.mark.cpu
def test_a_replay_sees_weights_that_changed_since_the_capture(load):
    device = FakeDevice()
    prepare, run = load(scaled("prepare", 2.0), device), load(scaled("run", 3.0, inputs=2), device)
    kernel = CapturedResidentKernel(prepare, run, Wiring((0,), (1,), ()), Options())
    weight, x = torch.ones(SIZE), torch.randn(SIZE)
    kernel.launch([weight, x])
    with device.capturing() as graph:
        (y,) = kernel.launch([weight, x])
    weight.mul_(5)
    device.replay(graph)
    torch.testing.assert_close(y, 30 * x)


@pytest.mark.parametrize("what", ["synchronize", "upload", "shared_words", "mark"])
def test_the_fake_refuses_in_a_capture_what_cuda_refuses(what):
    device = FakeDevice()
    arguments = {"upload": (b"1",), "shared_words": (1,)}.get(what, ())
    with device.capturing(), pytest.raises(Violation, match="during a capture"):
        getattr(device, what)(*arguments)
