"""Compiled models among threads and processes, errors, garbage collection and many shapes."""

from __future__ import annotations

import copy
import gc
import logging
import multiprocessing
import threading
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wolong_fx
from wolong_fx.testing.models import GateLSTM

pytestmark = pytest.mark.cpu


def mlp(width=5, hidden=8):
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.LayerNorm(hidden), nn.Linear(hidden, 3))


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(7, 4), nn.GRUCell(4, 4)

    def forward(self, tokens):
        h = None
        for token in tokens:
            h = self.cell(self.table(token), h)
        return h


# ---- threads


def test_threads_may_call_one_model_at_once():
    torch.manual_seed(1)
    model = mlp()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    inputs = [torch.randn(4, 5) for _ in range(8)]

    def work(x):
        results = []
        for _ in range(20):
            with torch.no_grad():
                results.append(twin(x))
        return results

    work(inputs[0])
    with ThreadPoolExecutor(4) as pool:
        for x, results in zip(inputs, pool.map(work, inputs), strict=True):
            for y in results:
                torch.testing.assert_close(y, model(x).detach())


def test_threads_may_train_two_models_at_once_from_their_first_call():
    torch.manual_seed(1)
    models = [mlp(), mlp(hidden=6)]
    twins = [wolong_fx.optimize(copy.deepcopy(m)) for m in models]
    x, together = torch.randn(4, 5), threading.Barrier(2)

    def work(model):
        together.wait()
        for _ in range(5):
            model(x).square().sum().backward()
        return [p.grad for p in model.parameters()]

    expected = [
        [5 * g for g in torch.autograd.grad(m(x).square().sum(), tuple(m.parameters()))] for m in models
    ]
    with ThreadPoolExecutor(2) as pool:
        torch.testing.assert_close(list(pool.map(work, twins)), expected, rtol=1e-4, atol=1e-5)


# ---- processes


def infer(model, x):
    with torch.no_grad():
        return model(x)


def infer_in_child(model, x, results):
    results.send(infer(model, x).tolist())


def test_a_forked_process_goes_on_with_the_kernels_of_its_parent():
    torch.manual_seed(1)
    twin, x = wolong_fx.optimize(Reader()), torch.randint(0, 7, (3, 2))
    expected, context = infer(twin, x), multiprocessing.get_context("fork")
    results, results_of_child = context.Pipe(duplex=False)
    child = context.Process(target=infer_in_child, args=(twin, x, results_of_child))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    torch.testing.assert_close(torch.tensor(results.recv()), expected)
    torch.testing.assert_close(infer(twin, x), expected)  # the parent is as it was


def test_a_spawned_process_gets_the_model_as_a_plain_one():
    model = GateLSTM(4, 2).requires_grad_(False)
    x = model.example_input(2)
    expected = infer(wolong_fx.optimize(model), x)[0]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        torch.testing.assert_close(pool.submit(model, x).result(60)[0], expected)


class Rows(torch.utils.data.Dataset):
    """Items made by a compiled function, as in a collating or augmenting worker."""

    def __init__(self) -> None:
        self.scale = wolong_fx.optimize(normalise)

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return self.scale(torch.arange(4.0) + i)


def normalise(x):
    return (x - x.mean()) / (x.std() + 1e-5)


def test_workers_of_a_data_loader_may_call_compiled_functions():
    rows = Rows()
    rows[0]  # compiled before the fork
    loader = torch.utils.data.DataLoader(rows, batch_size=2, num_workers=2)
    expected = torch.stack([normalise(torch.arange(4.0) + i) for i in range(6)])
    torch.testing.assert_close(torch.cat(list(loader)), expected)


# ---- errors


def test_an_index_out_of_range_is_the_error_that_eager_raises():
    model = Reader()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    with torch.no_grad():
        twin(torch.zeros(3, 2, dtype=torch.int64))
        for bad in (7, -1):
            tokens = torch.full((3, 2), bad)
            with pytest.raises(IndexError) as eager:
                model(tokens)
            with pytest.raises(IndexError) as ours:
                twin(tokens)
            assert str(eager.value) in str(ours.value)
        torch.testing.assert_close(
            twin(torch.ones(3, 2, dtype=torch.int64)), model(torch.ones(3, 2, dtype=torch.int64))
        )


def test_a_label_out_of_range_and_a_gather_out_of_range_raise():
    @wolong_fx.optimize
    def loss(x, labels):
        return F.cross_entropy(x, labels) + x.gather(1, labels.abs().unsqueeze(1)).sum()

    x = torch.randn(3, 4)
    torch.testing.assert_close(
        loss(x, torch.tensor([0, 3, -100]).clamp(min=0)), loss.__wrapped__(x, torch.tensor([0, 3, 0]))
    )
    for labels in ([0, 4, 1], [0, -4, 1]):
        with pytest.raises((IndexError, RuntimeError)):
            loss.__wrapped__(x, torch.tensor(labels))
        with pytest.raises((IndexError, RuntimeError), match=r"(?i)index|target|bounds|range"):
            loss(x, torch.tensor(labels))


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        if x.shape[0] == 3:
            raise ValueError("three is not a good size")
        return self.net(x)


def test_exceptions_of_the_model_reach_the_caller_and_leave_it_usable():
    model = Picky()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for _ in range(2):
        with pytest.raises(ValueError, match="three is not a good size"):
            twin(torch.randn(3, 5))
        with pytest.raises(RuntimeError, match="shapes"):
            twin(torch.randn(4, 6))
        x = torch.randn(4, 5)
        torch.testing.assert_close(twin(x), model(x))
    assert wolong_fx.stats(twin).graphs == 1


# ---- lifetimes


def test_an_optimised_model_is_collected_while_its_kernels_are_cached():
    twin = wolong_fx.optimize(mlp())
    twin(torch.randn(4, 5)).sum().backward()
    gone = weakref.ref(twin)
    weight = weakref.ref(twin[0].weight)
    del twin
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
    assert weight() is None


def test_an_output_outlives_its_model():
    twin = wolong_fx.optimize(mlp())
    y = twin(torch.randn(4, 5))
    kept = y.detach().clone()
    del twin
    gc.collect()
    y.sum().backward()
    assert torch.equal(y.detach(), kept)


def test_optimising_twice_or_undoing_and_optimising_again_compiles_as_once():
    model, x = mlp(), torch.randn(4, 5)
    expected = model(x)
    for _ in range(2):
        assert wolong_fx.optimize(wolong_fx.optimize(model)) is model
        torch.testing.assert_close(model(x), expected)
        assert wolong_fx.stats(model).launches == {"forward": 1}
    wolong_fx.deoptimize(model)
    assert torch.equal(model(x), expected)
    torch.testing.assert_close(wolong_fx.optimize(model)(x), expected)


def test_an_optimised_part_works_within_an_optimised_whole():
    torch.manual_seed(1)
    model = nn.Sequential(mlp(), mlp(3))
    twin = copy.deepcopy(model)
    wolong_fx.optimize(twin[0])
    wolong_fx.optimize(twin)
    x = torch.randn(4, 5)
    torch.testing.assert_close(twin(x), model(x))
    torch.testing.assert_close(twin[0](x), model[0](x))


def test_many_shapes_end_in_eager_with_one_line_rather_than_in_a_storm(caplog):
    """Dynamo's limit of recompilations is the guard; every call is right, whoever computes it."""
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
    twin = wolong_fx.optimize(copy.deepcopy(model))
    with torch.no_grad(), caplog.at_level(logging.WARNING, "wolong_fx"):
        for size in range(1, 201):
            x = torch.randn(size, 5)
            torch.testing.assert_close(twin(x), model(x))
    assert 1 <= wolong_fx.stats(twin).graphs <= 16
    assert len(caplog.records) <= 1
