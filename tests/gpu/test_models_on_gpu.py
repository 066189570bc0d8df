"""Models on a real GPU through optimize(): eager's numbers, one kernel, and CUDA graphs around them."""

from __future__ import annotations

import copy

import pytest
import torch

import wolong_fx
from wolong_fx._torch_compat import tree_leaves
from wolong_fx.testing.models import (
    CellStack,
    DecodeStep,
    GateGRUStack,
    GateLSTM,
    LiGRU,
    PeepholeLSTM,
    TowerRecommender,
    TreeLSTM,
)
from wolong_fx.testing.versus_eager import check_inference, check_training

pytestmark = pytest.mark.gpu

MODELS = {
    "lstm": lambda: GateLSTM(64, 20),
    "ligru": lambda: LiGRU(64, 20),
    "peephole": lambda: PeepholeLSTM(64, 20),
    "gru stack": lambda: GateGRUStack(32, 10),
    "recommender": TowerRecommender,
    "cells": CellStack,
    "tree": TreeLSTM,
    "decode": DecodeStep,
}


def on_gpu(model, batch=1):
    return model.eval().cuda(), [x.cuda() for x in model.example_inputs(batch)]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_eager_does(name):
    model, inputs = on_gpu(MODELS[name]())
    stats = wolong_fx.stats(check_inference(model, inputs))
    assert stats.launches["inference"] >= 1, stats


@pytest.mark.parametrize("name", ["lstm", "ligru", "gru stack"])
def test_a_training_step_computes_what_eager_does(name):
    model, inputs = on_gpu(MODELS[name](), batch=4)
    stats = wolong_fx.stats(check_training(model.train(), inputs))
    assert stats.launches["forward"] >= 1 and stats.launches["backward"] >= 1, stats


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 16])
def test_a_whole_lstm_is_one_persistent_launch(batch, dtype):
    model = GateLSTM(256).eval().to("cuda", dtype)
    inputs = [x.to("cuda", dtype) for x in model.example_inputs(batch)]
    stats = wolong_fx.stats(check_inference(model, inputs))
    (kernel,) = [kernel for ledger in stats.ledgers for kernel in ledger.gpu_kernels]
    assert (kernel.form, kernel.launches) == ("persistent", 1)
    assert kernel.grid <= kernel.resident_blocks


def test_weights_written_between_calls_are_seen():
    model, (x,) = on_gpu(GateLSTM(32, 5))
    twin = wolong_fx.optimize(copy.deepcopy(model))
    with torch.no_grad():
        twin(x)
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.copy_(mine.mul_(1.5))
        pairs = zip(tree_leaves(twin(x)), tree_leaves(model(x)), strict=True)
        for ours, eagers in pairs:
            torch.testing.assert_close(ours, eagers, rtol=1e-4, atol=1e-5)


def test_an_optimised_call_is_captured_and_replayed():
    model, (x,) = on_gpu(GateLSTM(32, 5))
    twin = wolong_fx.optimize(copy.deepcopy(model))
    with torch.no_grad():
        for _ in range(3):
            twin(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = tree_leaves(twin(x))
        x.copy_(torch.randn_like(x))
        graph.replay()
        for ours, eagers in zip(captured, tree_leaves(model(x)), strict=True):
            torch.testing.assert_close(ours, eagers, rtol=1e-4, atol=1e-5)
