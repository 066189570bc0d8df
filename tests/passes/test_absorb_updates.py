"""Models that change their inputs or buffers in place: kernels write where the values are to be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import wolong_fx

STEPS = 3


class State(nn.Module):
    """Buffers that a forward changes in every way that codegen has to keep apart."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        shapes = {"cache": (2, 6, 5), "rows": (6, 5), "old": (7,), "a": (4, 5), "b": (4, 5), "turned": (5, 3)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.randn(shape, generator=generator))
        self.turned = self.turned.t()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("wide", torch.zeros(3, 5, dtype=torch.float64))

    def forward(self, x_5, position):
        before = self.old * 2
        self.cache[:, position] = x_5 + 1
        self.rows[2:4] = x_5 * 2
        self.old.copy_(self.old.flip(0))
        a, b = self.a.clone(), self.b.clone()
        self.a.copy_(b + x_5)
        self.b.copy_(a * 2)
        self.turned.add_(x_5)
        self.count += 1
        self.wide.copy_(x_5)
        return before, self.cache.sum(1) * x_5, self.rows.exp()


@pytest.fixture(scope="module")
def pair():
    model = State()
    return model, wolong_fx.optimize(copy.deepcopy(model))


@torch.no_grad()
def test_results_and_what_is_left_in_memory_are_eagers_step_after_step(pair):
    model, twin = pair
    memory = {name: buffer.data_ptr() for name, buffer in twin.named_buffers()}
    for step in range(STEPS):
        inputs = torch.randn(5), torch.tensor([step])
        for ours, eagers in zip(twin(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(ours, eagers)
        for (name, ours), eagers in zip(twin.named_buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(
                ours, eagers, check_stride=True, msg=lambda text, n=name: f"{n}: {text}"
            )
    assert memory == {name: buffer.data_ptr() for name, buffer in twin.named_buffers()}


def test_all_of_it_is_one_kernel(pair):
    assert "1 kernel launches a call" in str(wolong_fx.stats(pair[1]))


@torch.no_grad()
def test_a_change_is_seen_by_version_counters(pair):
    twin = pair[1]
    for _ in range(2 * STEPS):  # however soon calls do without Dynamo
        versions = [buffer._version for buffer in twin.buffers()]
        twin(torch.randn(5), torch.tensor([0]))
        assert all(b._version > v for b, v in zip(twin.buffers(), versions, strict=True))


class Cache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(64, 64))

    def forward(self, x_64, position):
        self.cache[position] = x_64
        return self.cache @ x_64


@torch.no_grad()
def test_one_row_of_a_cache_is_written_and_the_rest_is_not_copied(tmp_path):
    model = wolong_fx.optimize(Cache(), dump=("program",), dump_dir=str(tmp_path))
    model(torch.randn(64), torch.tensor([3]))
    (program,) = (path.read_text() for path in tmp_path.glob("*.wir"))
    lines = [line.strip() for line in program.splitlines()]
    (name,) = (line.split()[1] for line in lines if line.startswith("state "))
    assert [line for line in lines if line.startswith("store " + name) and "gather" in line]
    assert not [line for line in lines if line.startswith("op ") and "4096" in line]


class Parts(nn.Module):
    """Assigns to slices, alone and several times to one buffer, in other dtypes, shapes and orders."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("rows", "columns", "twice", "chain", "whole"):
            self.register_buffer(name, torch.zeros(8, 5))
        self.register_buffer("turned", torch.zeros(5, 8).t())

    def forward(self, x_5, position):
        self.rows[2:4] = x_5
        self.columns[:, 1:4] = x_5[1:4].double()
        self.twice[2:4] = x_5.cos()
        self.twice[position] = x_5 + 1
        self.chain[0] = x_5
        self.chain[1:3].add_(self.chain[0])
        self.whole[:] = 3
        self.turned[1::2] = x_5
        return self.rows.sum(0), self.twice @ x_5, self.chain.exp()


@torch.no_grad()
def test_parts_that_are_assigned_are_written_by_the_kernel():
    model = Parts()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for step in range(STEPS):
        inputs = torch.randn(5), torch.tensor([step])
        for ours, eagers in zip(twin(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(ours, eagers)
        torch.testing.assert_close(twin.state_dict(), model.state_dict())
    assert not wolong_fx.stats(twin).fallbacks
    assert "1 kernel launches a call" in str(wolong_fx.stats(twin))


class Positions(nn.Module):
    """An operator that codegen leaves to torch reads the state as well."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.arange(6.0))

    def forward(self, x):
        lowest = torch.linalg.svdvals(self.state.view(2, 3))
        self.state.copy_(self.state * x + 1)
        return lowest, self.state + 1


@torch.no_grad()
def test_what_an_operator_of_torchs_reads_stays_with_torch_and_says_why():
    model = Positions()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for x in torch.randn(STEPS, 6):
        for ours, eagers in zip(twin(x), model(x), strict=True):
            torch.testing.assert_close(ours, eagers)
        torch.testing.assert_close(twin.state, model.state)
    assert "more than one kernel looks at what it writes" in str(wolong_fx.stats(twin))


def test_an_index_out_of_range_is_the_error_that_eager_raises():
    model = wolong_fx.optimize(Cache())
    with torch.no_grad(), pytest.raises(IndexError):
        model(torch.randn(64), torch.tensor([64]))
