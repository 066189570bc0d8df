"""Who takes part on a GPU: those of the CPU's table that run there, and CUDA graphs, the baseline to beat."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wolong_fx._torch_compat import tree_leaves
from wolong_fx.bench.contenders import (
    EAGER,
    INDUCTOR,
    NN_GRU,
    NN_LSTM,
    OURS,
    Maker,
    compile_by_torch,
    make_eager,
    make_inductor,
    make_nn_gru,
    make_nn_lstm,
    make_ours,
)
from wolong_fx.bench.gpu.device import Device
from wolong_fx.bench.job import Contender, ContenderMissing, Job

INDUCTOR_GRAPHS, EAGER_GRAPH = "inductor, CUDA graphs", "eager, CUDA graph"


def gpu_makers(device: Device, without: Sequence[str] = ()) -> Mapping[str, Maker]:
    """Every contender by name; those in `without` say that they were left out."""
    makers: dict[str, Maker] = {
        EAGER: make_eager,
        EAGER_GRAPH: lambda job: make_eager_graph(job, device),
        INDUCTOR: make_inductor,
        INDUCTOR_GRAPHS: make_inductor_graphs,
        NN_LSTM: make_nn_lstm,
        NN_GRU: make_nn_gru,
        OURS: make_ours,
    }
    return {name: _left_out if name in without else maker for name, maker in makers.items()}


def make_inductor_graphs(job: Job) -> Contender:
    """Inductor's kernels, replayed as CUDA graphs."""
    made = compile_by_torch(job, "inductor", "reduce-overhead")

    def call() -> object:
        torch.compiler.cudagraph_mark_step_begin()  # results of the call before are done with
        return made.call()

    def results() -> Sequence[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        assert made.results is not None
        return [result.clone() for result in made.results()]

    return Contender(call, results, made.model)


def make_eager_graph(job: Job, device: Device) -> Contender:
    """The model's own calls, recorded once and replayed together."""
    model = copy.deepcopy(job.model)
    if job.is_training:
        replay = device.capture(job.contender(model).call)
        return Contender(replay, lambda: _after(replay, [p.grad for p in model.parameters()]), model)
    held: list[Tensor] = []

    def call() -> None:
        held[:] = tree_leaves(model(*job.inputs))

    replay = device.capture(call)
    return Contender(replay, lambda: _after(replay, held), model)


def _after(replay: object, held: Sequence[Tensor | None]) -> list[Tensor]:
    assert callable(replay)
    replay()
    return [tensor.clone() for tensor in held if tensor is not None]


def _left_out(job: Job) -> Contender:
    raise ContenderMissing("left out")
