"""Who takes part: a name, and how to make it for a job. What cannot be made here says why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import wolong_fx
from wolong_fx.bench import hand, onnx_lstm
from wolong_fx.bench.job import Contender, ContenderMissing, Job
from wolong_fx.testing.models import GateGRUStack, GateLSTM, same_as_nn_gru, same_as_nn_lstm

EAGER, INDUCTOR = "eager", "inductor"
OURS, OURS_BY_TORCH = "optimize()", "torch.compile(wolong)"
NN_LSTM, NN_GRU = "nn.LSTM", "nn.GRU"
ONNX_RUNTIME, OPENVINO = "onnxruntime", "openvino"
HAND, FLOOR = "hand", "flop floor"

Maker = Callable[[Job], Contender]


def makers(sources: Path) -> Mapping[str, Maker]:
    """Every contender by name.

    sources: the folder of the programs written by hand, `benchmarks/hand`
    """
    return {
        EAGER: make_eager,
        INDUCTOR: make_inductor,
        NN_LSTM: make_nn_lstm,
        NN_GRU: make_nn_gru,
        ONNX_RUNTIME: lambda job: onnx_lstm.make_onnx_runtime(_inference_lstm_of(job), *job.inputs),
        OPENVINO: lambda job: onnx_lstm.make_openvino(_inference_lstm_of(job), *job.inputs),
        HAND: lambda job: hand.make_lstm(sources / "lstm.cpp", _inference_lstm_of(job), *job.inputs),
        FLOOR: lambda job: hand.make_floor(sources / "floor.cpp", job.flops),
        OURS: make_ours,
        OURS_BY_TORCH: make_ours_by_torch,
    }


def make_eager(job: Job) -> Contender:
    """The model as it is."""
    return job.contender(copy.deepcopy(job.model))


def make_inductor(job: Job) -> Contender:
    """torch.compile as it comes."""
    return compile_by_torch(job, "inductor")


def make_ours(job: Job, **options: object) -> Contender:
    """wolong_fx.optimize(), by default with the options that every user has."""
    return job.contender(wolong_fx.optimize(copy.deepcopy(job.model), **options))


def make_ours_by_torch(job: Job) -> Contender:
    """torch.compile with our backend."""
    return compile_by_torch(job, "wolong")


def compile_by_torch(job: Job, backend: str, mode: str | None = None) -> Contender:
    """A copy of the model, called through torch.compile; for one set of shapes, as ours is."""
    model = copy.deepcopy(job.model)
    return job.contender(model, torch.compile(model, backend=backend, mode=mode, dynamic=False))


def make_nn_lstm(job: Job) -> Contender:
    """The library's LSTM with the model's weights: oneDNN's, on a GPU cuDNN's."""
    return _library_twin(job, same_as_nn_lstm(_lstm_of(job)))


def make_nn_gru(job: Job) -> Contender:
    """Torch's GRU with the model's weights."""
    if not isinstance(job.model, GateGRUStack):
        raise ContenderMissing(f"it is no {type(job.model).__name__}")
    return _library_twin(job, same_as_nn_gru(job.model))


def _library_twin(job: Job, twin: nn.Module) -> Contender:
    twin = twin.to(job.inputs[0].device, job.inputs[0].dtype)
    contender = job.contender(twin.train(job.is_training))
    if job.is_training:  # its parameters are the model's side by side: no gradient is comparable
        return Contender(contender.call)

    def results() -> list[Tensor]:
        out_TBH, states = twin(*job.inputs)
        if isinstance(states, Tensor):
            return [out_TBH, states]
        return [out_TBH, *(state_1BH[0] for state_1BH in states)]

    return Contender(contender.call, results)


def _lstm_of(job: Job) -> GateLSTM:
    if not isinstance(job.model, GateLSTM) or job.model.inputs != job.model.hidden:
        raise ContenderMissing(f"it knows LSTMs alone, not {type(job.model).__name__}")
    return job.model


def _inference_lstm_of(job: Job) -> GateLSTM:
    if job.is_training:
        raise ContenderMissing("it does not train")
    return _lstm_of(job)
