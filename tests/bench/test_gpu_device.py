"""What a profile of a GPU says, and contenders that replay graphs, on the CPU in its place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from wolong_fx.bench.gpu import device as module
from wolong_fx.bench.gpu.contenders import EAGER_GRAPH, gpu_makers
from wolong_fx.bench.gpu.device import CpuDevice, CudaDevice, Launches, find_device
from wolong_fx.bench.gpu.golden import (
    build_golden,
    count_differences,
    golden_call,
    golden_programs,
    occupancy_of,
)
from wolong_fx.bench.job import ContenderMissing, Job
from wolong_fx.errors import NoGpuHere
from wolong_fx.testing.models import GateLSTM


def event(name, kind="CPU", us=1.0):
    time_range = SimpleNamespace(elapsed_us=lambda: us)
    return SimpleNamespace(name=name, device_type=SimpleNamespace(name=kind), time_range=time_range)


def test_launches_are_the_processors_and_kernels_the_devices(monkeypatch):
    events = [
        event("aten::mm"),
        event("cudaLaunchKernel"),
        event("cuLaunchKernelEx"),
        event("cudaGraphLaunch"),
        event("cudaMemcpyAsync"),
        event("cudaDeviceSynchronize"),
        event("gemm", "CUDA", 5.0),
        event("wolong", "CUDA", 7.0),
        event("Memcpy HtoD", "CUDA", 2.0),
    ]
    monkeypatch.setattr(module, "_events", lambda *_: events)
    assert CudaDevice().profile(lambda: None) == Launches(launches=3, kernels=2, copies=1, busy_us=14.0)


def test_without_a_gpu_only_a_dry_run_finds_a_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert find_device(dry=True) == CpuDevice()
    with pytest.raises(NoGpuHere):
        find_device(dry=False)


@pytest.mark.parametrize("is_training", [False, True])
def test_a_recorded_call_gives_eagers_results(is_training):
    job = Job.of(GateLSTM(8, 3), batch=2, is_training=is_training)
    recorded = gpu_makers(CpuDevice())[EAGER_GRAPH](job)
    error = job.error(recorded, job.exact_results())
    assert error is not None and error < 1e-5


def test_a_job_is_of_its_dtype_and_its_library_twin_too():
    job = Job.of(GateLSTM(8, 3), dtype=torch.bfloat16)
    assert {p.dtype for p in job.model.parameters()} == {x.dtype for x in job.inputs} == {torch.bfloat16}
    for name in ("eager", "nn.LSTM"):
        results = gpu_makers(CpuDevice())[name](job).results
        assert {y.dtype for y in results()} == {torch.bfloat16}


def test_who_is_left_out_is_missing():
    with pytest.raises(ContenderMissing, match="left out"):
        gpu_makers(CpuDevice(), ["eager"])["eager"](Job.of(GateLSTM(8, 3)))


def test_launches_that_give_other_bits_than_the_first_are_counted():
    nan = float("nan")
    found = iter([[torch.tensor([1.0, nan])], [torch.tensor([1.0, nan])], [torch.tensor([-0.0, nan])]])
    assert count_differences(lambda: next(found), 3) == 1


def test_golden_kernels_are_launched_on_the_fake_device_and_give_the_same_bits():
    call = golden_call(golden_programs()["embedding"], CpuDevice())
    assert count_differences(call, 3) == 0


def test_the_formula_is_asked_about_more_shared_memory_than_a_kernel_takes():
    binary = build_golden(golden_programs()["mlp"], 4, CpuDevice())
    found = occupancy_of("mlp", binary, (1, 200_000), CpuDevice())
    assert [one.shared_bytes for one in found][1:] == [200_000]
    assert found[0].formula > found[1].formula == 132
