"""What goes into a model and what comes out: structures, dtypes, layouts, aliases, writes, modes."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wolong_fx
from wolong_fx.testing.versus_eager import (
    assert_near,
    check_inference,
    check_training,
    infer,
    train_step,
)

pytestmark = pytest.mark.cpu


def compiled(function):
    """An optimised function that must have become one kernel when the test asks."""
    return wolong_fx.optimize(function)


def launches(target):
    return wolong_fx.stats(target).launches


# ---- what comes out


class Pair(NamedTuple):
    first: torch.Tensor
    rest: dict


def test_nested_structures_come_back_as_eager_builds_them():
    @compiled
    def f(x, flag=None):
        y = x.exp() + 1
        return {"pair": Pair(y, {"none": flag, "list": [y * 2, (3, 2.5)]}), "same": y}

    x = torch.randn(3)
    got, expected = f(x), f.__wrapped__(x)
    assert isinstance(got["pair"], Pair)
    assert got["pair"].first is got["same"]
    assert got["pair"].rest.pop("none") is expected["pair"].rest.pop("none") is None
    torch.testing.assert_close(got, expected)


def test_an_input_that_is_returned_is_that_very_tensor():
    @compiled
    def f(x, y):
        return x, (x + y).tanh() * 2, y

    x, y = torch.randn(3), torch.randn(3)
    assert f(x, y)[0] is x
    assert f(x, y)[2] is y
    assert launches(f) == {"inference": 1}


def test_views_that_are_returned_share_memory_as_in_eager():
    @compiled
    def f(x):
        y = x.sin() * 2 + 1
        return y, y[1:], y.view(2, 3).T, x[::2]

    x = torch.randn(6)
    y, tail, turned, of_input = f(x)
    torch.testing.assert_close([y, tail, turned, of_input], list(f.__wrapped__(x)))
    y.zero_()
    x.fill_(7.0)
    assert not tail.any() and not turned.any()
    assert (of_input == 7).all()


def test_outputs_of_one_call_survive_the_next():
    @compiled
    def f(x):
        return x * 2 + 1, x.sum(0)

    first = f(torch.ones(4, 3))
    kept = [y.clone() for y in first]
    f(torch.zeros(4, 3))
    assert all(map(torch.equal, first, kept))


def test_booleans_and_integers_are_computed_exactly():
    @compiled
    def f(x, n):
        return (
            x > 0,
            n // 3 * 5 % 7,
            (n << 2) ^ 5,
            x.argmax(1),
            n.to(torch.int32) - 2**31,
            n.bool() & (x[:, 0] < 1),
            n.abs().max(),
        )

    x, n = torch.randn(4, 3), torch.tensor([-7, 0, 5, 2**40])
    for y, e in zip(f(x, n), f.__wrapped__(x, n), strict=True):
        assert y.dtype == e.dtype
        assert torch.equal(y, e)


def test_strides_of_outputs_are_eagers():
    @compiled
    def f(x, y):
        return x.T.exp() + 1, (x.permute(1, 0) * 2).contiguous(), (y * 2).relu(), y.mean(1, keepdim=True) + y

    x, y = torch.randn(3, 4), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert [z.stride() for z in f(x, y)] == [z.stride() for z in f.__wrapped__(x, y)]


def test_a_model_without_an_output_tensor_or_without_work_runs():
    @compiled
    def nothing(x):
        return None

    @compiled
    def constant(x):
        return torch.ones(3) * 2 + 1

    assert nothing(torch.ones(2)) is None
    assert constant(torch.ones(2)).tolist() == [3.0] * 3
    first = constant(torch.ones(2))
    first.zero_()
    assert constant(torch.ones(2)).tolist() == [3.0] * 3


# ---- what goes in


def mlp(width=5):
    return nn.Sequential(nn.Linear(width, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 3), nn.Softmax(-1))


LAYOUTS = {
    "transposed": lambda: torch.randn(5, 4).T,
    "every other": lambda: torch.randn(8, 10)[::2, ::2],
    "expanded": lambda: torch.randn(1, 5).expand(4, 5),
    "offset": lambda: torch.randn(30)[7:27].view(4, 5),
    "unaligned": lambda: torch.randn(21)[1:].view(4, 5),
    "overlapping": lambda: torch.randn(8).unfold(0, 5, 1),
    "scalar rows": lambda: torch.randn(5),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_any_layout_are_read_where_they_lie(layout):
    torch.manual_seed(1)
    assert launches(check_inference(mlp(), [LAYOUTS[layout]()])) == {"inference": 1}


def test_one_compiled_model_serves_layouts_in_turn():
    model = mlp()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for _ in range(2):
        for make in LAYOUTS.values():
            x = make()
            torch.testing.assert_close(infer(twin, [x]), infer(model, [x]))


@pytest.mark.parametrize("size", [(0, 5), (3, 0, 5)])
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(size):
    model, x = mlp()[:4], torch.randn(size)
    twin = wolong_fx.optimize(copy.deepcopy(model))
    ours, eager = train_step(twin, [x]), train_step(model, [x])
    torch.testing.assert_close(ours.outputs, eager.outputs)
    torch.testing.assert_close(dict(ours.gradients), dict(eager.gradients))
    assert wolong_fx.stats(twin).graphs == 2


def test_reductions_of_nothing_are_eagers():
    @compiled
    def f(x):
        return x.sum(0), x.mean(), x.prod(), (x > 0).any(), (x > 0).all(), x.softmax(1), x @ x.T, x.T @ x

    x = torch.zeros(0, 3)
    torch.testing.assert_close(f(x), f.__wrapped__(x), equal_nan=True)


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf], ids=str)
def test_nan_and_infinity_go_where_they_go_in_eager(special):
    torch.manual_seed(1)
    x = torch.randn(4, 5)
    x[1, 2] = special
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3))
    check_training(model, [x])

    @compiled
    def f(x):
        pointwise = (
            x.relu(),
            x.clamp(-1, 1),
            x.sigmoid(),
            x.tanh(),
            x.exp(),
            F.softplus(x),
            x.abs().log1p(),
            x.sign(),
        )
        reductions = x.softmax(1), x.amax(1), x.sum(0), x.argmax(1), x.logsumexp(1), x.std(1), x.prod(0)
        choices = torch.where(x > 0, x, 0.5), torch.maximum(x, x[:1]), x.isnan(), x.sort(1)[0], F.normalize(x)
        return *pointwise, *reductions, *choices

    assert_near(f(x), f.__wrapped__(x), f.__wrapped__(x.double()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_model_of_another_float_type_is_as_exact_as_eager(dtype):
    torch.manual_seed(1)
    model = mlp().to(dtype)
    assert launches(
        check_training(
            model, [torch.randn(4, 5, dtype=dtype)], tolerance=1e-2 if dtype.itemsize == 2 else 1e-12
        )
    ) == {"forward": 1, "backward": 1}


def test_float_types_mix_as_in_eager():
    @compiled
    def f(x, half, double, n):
        return (
            x + half,
            half * 2.5,
            half + n,
            x * double.sum(),
            n / 2,
            n * 0.5,
            half.sum(),
            half.softmax(-1),
            half @ half.T,
            (x > half),
        )

    inputs = torch.randn(3, 3), torch.randn(3, 3).bfloat16(), torch.randn(3).double(), torch.arange(3)
    got, expected = f(*inputs), f.__wrapped__(*inputs)
    assert [y.dtype for y in got] == [y.dtype for y in expected]
    torch.testing.assert_close(got, expected)


def test_the_same_tensor_may_come_in_twice():
    @compiled
    def f(x, y):
        return (x * y).exp() + x, y - x

    x = torch.randn(4)
    torch.testing.assert_close(f(x, x), f.__wrapped__(x, x))
    torch.testing.assert_close(f(x, x.clone()), f.__wrapped__(x, x))
    whole = torch.randn(6)
    torch.testing.assert_close(f(whole[:4], whole[2:]), f.__wrapped__(whole[:4], whole[2:]))


def test_numbers_and_flags_are_arguments_too():
    @compiled
    def f(x, scale, power=2, *, negate=False):
        y = (x * scale).abs() ** power
        return -y if negate else y

    x = torch.randn(4)
    for arguments in [
        {"scale": 2.0},
        {"scale": 2.5},
        {"scale": 3, "power": 3},
        {"scale": 2.0, "negate": True},
        {"scale": torch.tensor(2.0)},
    ]:
        torch.testing.assert_close(f(x, **arguments), f.__wrapped__(x, **arguments))


# ---- writes


def test_writes_to_an_input_reach_the_caller():
    @compiled
    def f(x, y):
        x.add_(1).mul_(y)
        y[1:] = x[:-1].exp()
        return (x + y).sum()

    inputs = torch.randn(4), torch.randn(4)
    copies = [x.clone() for x in inputs]
    torch.testing.assert_close(f(*inputs), f.__wrapped__(*copies))
    torch.testing.assert_close(list(inputs), copies)


def test_writes_to_temporaries_stay_inside():
    @compiled
    def f(x):
        y = torch.zeros(4, 3)
        y[0] = x
        y[1:3] += x * 2
        y[:, 1].fill_(5)
        y.masked_fill_(y > 4, 1.5)
        y[torch.tensor([0, 2])] = x.neg()
        return y.relu_() + 1

    x = torch.randn(3)
    kept = x.clone()
    torch.testing.assert_close(f(x), f.__wrapped__(x))
    assert torch.equal(x, kept)
    assert launches(f) == {"inference": 1}


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("memory", torch.zeros(2, 3))

    def forward(self, x):
        y = self.linear(self.norm(x))
        self.seen += 1
        self.memory.mul_(0.9).add_(y.detach()[:2])
        return y * self.seen + self.memory.sum()


def test_buffers_that_a_model_writes_keep_their_history():
    torch.manual_seed(1)
    model = Counting()
    twin = check_training(model, [torch.randn(4, 5)])
    for step in range(3):
        x = torch.randn(4, 5)
        train_step(model, [x]) if step else (train_step(model, [torch.randn(4, 5)]))
        train_step(twin, [x])
    assert twin.seen == 4
    assert twin.norm.num_batches_tracked == 4
    assert launches(twin) == {"forward": 1, "backward": 1}


def test_batch_norm_in_training_and_evaluation_is_eagers():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for step in range(4):
        x = torch.randn(6, 5)
        for m in (model, twin):
            m.train(step != 2)
        torch.testing.assert_close(twin(x), model(x))
    torch.testing.assert_close(dict(twin.state_dict()), dict(model.state_dict()))


# ---- modes


def test_the_same_model_runs_under_every_mode_of_autograd():
    torch.manual_seed(1)
    model = mlp()
    twin, x = wolong_fx.optimize(copy.deepcopy(model)), torch.randn(4, 5)
    expected = model(x)
    for _ in range(2):
        assert twin(x).requires_grad
        with torch.no_grad():
            y = twin(x)
        assert not y.requires_grad
        with torch.inference_mode():
            z = twin(x)
            made_here = twin(torch.randn(4, 5))
        assert z.is_inference() and made_here.is_inference()
        torch.testing.assert_close([y, z.clone()], [expected.detach()] * 2)


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_chooses_the_types_that_it_chooses_in_eager(grad):
    torch.manual_seed(1)
    model = mlp()
    twin, x = wolong_fx.optimize(copy.deepcopy(model)), torch.randn(4, 5)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                y, e = twin(x), model(x)
            assert y.dtype == e.dtype
            torch.testing.assert_close(y, e, rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(twin(x), model(x))


def test_dropout_draws_what_eager_draws():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    twin = check_training(model, [torch.randn(4, 5)])
    assert launches(twin) == {"forward": 1, "backward": 1}
    x = torch.randn(4, 5)
    torch.manual_seed(5)
    ours = [twin(x), twin(x), torch.rand(1)]
    torch.manual_seed(5)
    torch.testing.assert_close(ours, [model(x), model(x), torch.rand(1)])


def test_shared_weights_are_one_parameter_with_summed_gradients():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return F.cross_entropy(self.head(self.embed(tokens).tanh()), tokens)

    torch.manual_seed(1)
    twin = check_training(Tied(), [torch.randint(0, 7, (6,))])
    assert twin.head.weight is twin.embed.weight
    assert launches(twin) == {"forward": 1, "backward": 1}


def test_batch_sizes_in_turn_keep_their_kernels():
    torch.manual_seed(1)
    model = mlp()
    twin = wolong_fx.optimize(copy.deepcopy(model))
    for _ in range(2):
        for size in (4, 1, 7, 2):
            x = torch.randn(size, 5)
            assert_near(
                infer(twin, [x]), infer(model, [x]), infer(copy.deepcopy(model).double(), [x.double()])
            )
    assert wolong_fx.stats(twin).graphs == 4
