"""Many streams and threads on a fake device that does its work late and in any order."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Program, Store
from wolong_fx.options import Options
from wolong_fx.runtime import Wiring
from wolong_fx.runtime.gpu.resident import CapturedResidentKernel
from wolong_fx.runtime.gpu.words import LINE_BYTES, PER_THREAD_STREAM
from wolong_fx.testing.fake_device import FakeDevice
from wolong_fx.testing.programs import ProgramBuilder, at, f32, inputs_of, mul, operator, recurrence
from wolong_fx.testing.programs import load as loaded

CHAIN = recurrence(steps=2, width=8, tile=(2,))
SIZE = 16


def scaled(name: str, by: float, inputs: int = 1) -> Program:
    """The product of its inputs and a number."""
    p, i = ProgramBuilder(name), Var("i", SIZE)
    given = [p.input(f"x{n}", SIZE) for n in range(inputs)]
    y = p.output("y", SIZE)
    value = f32(by)
    for x in given:
        value = mul(value, loaded(x, i))
    p.stage(operator("scale", (i,), Store(at(y, i), value), tile=(4,)))
    return p.build()


@pytest.mark.parametrize("seed", range(3))
def test_launches_on_many_streams_at_once_all_compute_right(load, is_right, seed):
    device = FakeDevice(is_lazy=True, seed=seed)
    kernel, given = load(CHAIN, device), {s: inputs_of(CHAIN, s) for s in range(3)}
    found = []
    for stream in (0, 1, 2, 1, 0, 2):
        with device.on_stream(stream):
            found.append((stream, kernel.launch(given[stream])))
    device.synchronize()
    assert all(is_right(CHAIN, outputs, stream) for stream, outputs in found)


def test_every_stream_has_a_word_and_every_kernel_has_its_own(load):
    device = FakeDevice()
    kernels = [load(CHAIN, device) for _ in range(2)]
    for _ in range(2):
        for kernel in kernels:
            for stream in (0, 1):
                with device.on_stream(stream):
                    kernel.launch(inputs_of(CHAIN))
    words = [launch.word for launch in device.launches]
    assert words[:4] == words[4:] and len(set(words)) == 4
    assert all(word % LINE_BYTES == 0 for word in words)


def test_a_word_belongs_to_the_stream_that_uses_it(load):
    device = FakeDevice()
    kernel = load(CHAIN, device)
    with device.on_stream(5):
        kernel.launch(inputs_of(CHAIN))
    assert device.memory.owner_of(device.launches[0].word) == 5


def test_the_handle_that_means_another_stream_in_each_thread_has_a_word_for_each(load, is_right):
    device = FakeDevice()
    kernel = load(CHAIN, device)

    def work(_: int) -> bool:
        with device.on_stream(PER_THREAD_STREAM):
            return is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))

    for _ in range(2):  # a thread each: in one pool one thread might do both
        with ThreadPoolExecutor(max_workers=1) as pool:
            assert pool.submit(work, 0).result()
    assert work(0)
    assert len({launch.word for launch in device.launches}) >= 2


def test_threads_that_share_a_kernel_and_a_stream_get_their_own_results(load, is_right):
    device = FakeDevice()
    kernel = load(CHAIN, device)

    def work(seed: int) -> bool:
        return is_right(CHAIN, kernel.launch(inputs_of(CHAIN, seed)), seed)

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert all(pool.map(work, range(8)))


def test_arena_and_outputs_are_lent_again_only_behind_the_launch_that_uses_them(load, is_right):
    device = FakeDevice(is_lazy=True)
    kernel, given = load(CHAIN, device), [inputs_of(CHAIN, seed) for seed in range(4)]
    kept = []
    for seed in range(4):
        kept.append(kernel.launch(given[seed])[:1])
        kernel.launch(given[0])  # its outputs are dropped while it waits
    device.synchronize()
    assert all(is_right(CHAIN, outputs, seed) for seed, outputs in enumerate(kept))
    sizes = [size for owner, size in device.memory.allocations if owner == 0]
    assert len(sizes) > 8


def test_memory_of_a_kernel_that_is_gone_is_not_used_anew_while_it_runs(load, is_right):
    device, given = FakeDevice(is_lazy=True), inputs_of(CHAIN)
    outputs = load(CHAIN, device).launch(given)
    gc.collect()
    load(CHAIN, device)
    device.synchronize()
    assert is_right(CHAIN, outputs)


def resident(load, device) -> CapturedResidentKernel:
    """y = 2 w * x * 3, the first product kept."""
    prepare, run = load(scaled("prepare", 2.0), device), load(scaled("run", 3.0, inputs=2), device)
    return CapturedResidentKernel(prepare, run, Wiring((0,), (1,), ()), Options())


@pytest.mark.cpu
@pytest.mark.parametrize("seed", range(4))
def test_what_one_stream_prepared_is_ready_before_another_reads_it(load, seed):
    device = FakeDevice(is_lazy=True, seed=seed)
    kernel, weight = resident(load, device), torch.randn(SIZE)
    given, found = [torch.randn(SIZE) for _ in range(4)], []
    for number, x in enumerate(given):
        with device.on_stream(number % 2):
            found += kernel.launch([weight, x])
    device.synchronize()
    for x, y in zip(given, found, strict=True):
        torch.testing.assert_close(y, 6 * weight * x)
    assert [launch.kernel for launch in device.launches].count("wolong") == 5  # prepared once


@pytest.mark.cpu
@pytest.mark.parametrize("seed", range(4))
def test_what_was_prepared_before_a_weight_changed_lives_until_its_last_reader_is_done(load, seed):
    device = FakeDevice(is_lazy=True, seed=seed)
    kernel, weight, x = resident(load, device), torch.ones(SIZE), torch.randn(SIZE)
    kernel.launch([weight, x])
    device.synchronize()
    with device.on_stream(1):
        (before,) = kernel.launch([weight, x])
    weight = weight * 5  # another tensor: what is kept of the first is dropped while stream 1 waits
    (after,) = kernel.launch([weight, x])
    device.synchronize()
    torch.testing.assert_close(before, 6 * x)
    torch.testing.assert_close(after, 30 * x)
