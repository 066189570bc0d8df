"""Everyone who is measured computes what the model computes, or says why it is not there."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from time import thread_time

import pytest
import torch

from wolong_fx.bench.contenders import (
    EAGER,
    HAND,
    NN_GRU,
    NN_LSTM,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    OURS_BY_TORCH,
    makers,
)
from wolong_fx.bench.hand import build
from wolong_fx.bench.job import ContenderMissing, Job, count_product_flops
from wolong_fx.testing.models import GateGRUStack, GateLSTM, LiGRU

SOURCES = Path(__file__).parents[2] / "benchmarks" / "hand"
MAKERS = makers(SOURCES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@torch.no_grad()
def error_of(name: str, job: Job) -> float:
    error = job.error(MAKERS[name](job), job.exact_results())
    assert error is not None
    return error


@pytest.mark.parametrize(
    "name",
    [
        EAGER,
        NN_LSTM,
        pytest.param(OURS, marks=pytest.mark.cpu),
        pytest.param(OURS_BY_TORCH, marks=pytest.mark.cpu),
        pytest.param(ONNX_RUNTIME, marks=pytest.mark.bench_peers),
        pytest.param(OPENVINO, marks=pytest.mark.bench_peers),
    ],
)
def test_who_runs_an_lstm_gets_its_states(name):
    assert error_of(name, Job.of(GateLSTM(32, steps=5), batch=3)) < 1e-6


@pytest.mark.cpu
@pytest.mark.avx512
@pytest.mark.parametrize(("hidden", "batch", "steps"), [(32, 1, 5), (48, 2, 3), (16, 13, 4)])
def test_the_lstm_by_hand_gets_the_states_for_every_number_of_rows(hidden, batch, steps):
    job = Job.of(GateLSTM(hidden, steps), batch)
    assert error_of(HAND, job) < 1e-6
    twice = MAKERS[HAND](job)
    twice.call()
    assert job.error(twice, job.exact_results()) < 1e-6


def test_nn_gru_gets_the_states_of_the_stack():
    assert error_of(NN_GRU, Job.of(GateGRUStack(8, 4), batch=2)) < 1e-6


def test_training_gives_gradients_in_the_order_of_the_parameters():
    job = Job.of(GateLSTM(8, 3), batch=2, is_training=True)
    exact = job.exact_results()
    assert [g.shape for g in exact] == [p.shape for p in job.model.parameters()]
    assert 0 < job.error(MAKERS[EAGER](job), exact) < 1e-5
    assert job.error(MAKERS[NN_LSTM](job), exact) is None


def test_an_error_is_the_largest_distance_from_float64():
    job = Job(torch.nn.Identity(), (torch.ones(3),))
    off = job.contender(job.model, lambda x: x + torch.tensor([0.0, 0.25, -0.5]))
    assert job.error(off, job.exact_results()) == 0.5


@pytest.mark.parametrize("name", [ONNX_RUNTIME, OPENVINO, HAND])
def test_a_library_that_does_not_train_says_so(name):
    with pytest.raises(ContenderMissing, match="does not train"):
        MAKERS[name](Job.of(GateLSTM(16, 3), is_training=True))


@pytest.mark.parametrize("name", [NN_LSTM, ONNX_RUNTIME, OPENVINO, HAND, NN_GRU])
def test_a_library_that_does_not_know_the_model_says_so(name):
    with pytest.raises(ContenderMissing, match="LiGRU"):
        MAKERS[name](Job.of(LiGRU(16, 3)))


@pytest.mark.parametrize(("name", "module"), [(ONNX_RUNTIME, "onnxruntime"), (OPENVINO, "openvino")])
def test_a_library_that_is_not_installed_says_how_to_get_it(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ContenderMissing, match=r"pip install 'wolong-fx\[bench\]'"):
        MAKERS[name](Job.of(GateLSTM(16, 3)))


def test_a_program_that_does_not_build_is_missing(tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("#error not this one\n")
    with pytest.raises(ContenderMissing):
        build(source, ())


@pytest.mark.cpu
def test_the_floor_takes_twice_as_long_for_twice_the_operations():
    library = build(SOURCES / "floor.cpp", ())

    def least_s(flops: float) -> float:  # of processor time, which other work on the machine does not add to
        return min(processor_time(lambda: library.floor_spend(ctypes.c_double(flops), 1)) for _ in range(10))

    assert 1.6 < least_s(4e8) / least_s(2e8) < 2.5


def processor_time(call) -> float:
    start = thread_time()
    call()
    return thread_time() - start


def test_flops_are_two_for_each_product_and_three_times_as_many_in_training():
    model = GateLSTM(8, 5, inputs=8)
    expected = 2 * 5 * 3 * 8 * (4 * 8) * 2  # multiply and add; steps, batch, inputs, gates, W and U
    assert count_product_flops(model, model.example_inputs(3)) == expected
    assert Job.of(model, 3, is_training=True, count_flops=True).flops == 3 * expected
