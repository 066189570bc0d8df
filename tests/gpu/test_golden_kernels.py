"""Kernels on a real GPU: what simulator and compiler promised ahead of time is asked of the device."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from wolong_fx.bench.gpu.device import CudaDevice
from wolong_fx.bench.gpu.golden import (
    build_golden,
    count_differences,
    golden_kernel,
    golden_programs,
    occupancy_of,
)
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.codegen.triton import choose_tile
from wolong_fx.runtime.gpu.forms import build_stages
from wolong_fx.runtime.gpu.kernel import GpuKernel
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import inputs_of, random_program

pytestmark = pytest.mark.gpu

GOLDEN = golden_programs()
LOOSE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def load(program) -> GpuKernel:
    return golden_kernel(program, CudaDevice())


def on_gpu(program, seed=0):
    return [x.cuda() for x in inputs_of(program, seed)]


def check(program) -> None:
    found = load(program).launch(on_gpu(program))
    for ours, exact in zip(found, run_program(program, inputs_of(program), precise=True), strict=True):
        tolerance = LOOSE.get(ours.dtype, 2e-5)
        ours = ours.cpu().to(exact.dtype)
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_kernel_agrees_with_the_reference_machine(name):
    check(GOLDEN[name])


@pytest.mark.parametrize("seed", range(12))
def test_a_random_program_agrees_with_the_reference_machine(seed):
    check(map_ops(random_program(seed), lambda op: replace(op, tile=choose_tile(op))))


@pytest.mark.parametrize("name", GOLDEN)
def test_stage_by_stage_a_program_gives_the_same_bits(name):
    together, one_by_one = load(GOLDEN[name]), load(GOLDEN[name])
    one_by_one._form = build_stages(one_by_one.image, one_by_one.device, one_by_one._build)
    inputs = on_gpu(GOLDEN[name])
    for a, b in zip(together.launch(inputs), one_by_one.launch(inputs), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    assert one_by_one.report().form == "staged"


@pytest.mark.parametrize("name", GOLDEN)
def test_the_formula_for_occupancy_gives_the_drivers_answer(name):
    binary = build_golden(GOLDEN[name], 4, CudaDevice())
    for found in occupancy_of(name, binary, (1 << 15, 100_000), CudaDevice()):
        assert found.formula == found.driver, found


@pytest.mark.parametrize("name", GOLDEN)
def test_a_thousand_launches_give_the_same_bits(name):
    kernel, inputs = load(GOLDEN[name]), on_gpu(GOLDEN[name])
    assert count_differences(lambda: kernel.launch(inputs), 1000) == 0


# ---- streams, threads, graphs


def test_a_captured_launch_replays_with_what_its_inputs_hold_then():
    program = GOLDEN["recurrence"]
    kernel, inputs = load(program), on_gpu(program)
    kernel.launch(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernel.launch(inputs)
    for seed in (1, 2, 3):
        for x, new in zip(inputs, inputs_of(program, seed), strict=True):
            x.copy_(new)
        graph.replay()
        for a, b in zip(captured, kernel.launch(inputs), strict=True):
            assert torch.equal(a, b)


def test_kernels_on_two_streams_at_once_do_not_meet_at_one_barrier():
    program = GOLDEN["recurrence"]
    kernel, inputs = load(program), on_gpu(program)
    expected = [y.clone() for y in kernel.launch(inputs)]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in range(2)], []
    for _ in range(200):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(kernel.launch(inputs))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for run in found for a, b in zip(run, expected, strict=True))


def test_threads_that_share_a_kernel_get_their_own_results():
    program = GOLDEN["recurrence"]
    kernel = load(program)
    failures = []

    def work(seed) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            inputs = on_gpu(program, seed)
            expected = [y.clone() for y in kernel.launch(inputs)]
            for _ in range(100):
                pairs = zip(kernel.launch(inputs), expected, strict=True)
                if not all(torch.equal(a, b) for a, b in pairs):
                    failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
