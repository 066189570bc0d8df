"""Calls that do without Dynamo see every change that it would have seen."""

from __future__ import annotations

import copy
import gc
import itertools
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import wolong_fx
from wolong_fx import api
from wolong_fx.runtime.direct_call import DirectCall, why_impossible

pytestmark = pytest.mark.cpu

FACTOR = 2.0


def helper(x):
    return x * FACTOR


class Config:
    shift = 1.0


class Subject(nn.Module):
    """Reads something of every kind that may change between two calls."""

    bias_of_class = 0.5

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.register_buffer("offset", torch.ones(4))
        self.mask = torch.ones(4)
        self.gain, self.sizes, self.table = 3, [1, 2], {"scale": 2.0}
        self.config, self.window = Config(), (1, (2, 3))

    def forward(self, x, power=1, *, flag=True):
        y = helper(self.inner(x)) * self.gain + self.offset * self.mask + self.sizes[0]
        y = y * self.table["scale"] + self.config.shift + self.bias_of_class + self.window[1][0]
        if self.training:
            y = y + 1
        return {"y": y**power if flag else -y, "pair": [y.sum(), 3]}


class Watched:
    """An optimised model whose calls through Dynamo are counted, and its call without either."""

    def __init__(self, model, **options):
        self.model = wolong_fx.optimize(model, **options)
        self.eager = api._find_marker(model).module._call_impl
        self.thin = api._find_marker(model).compilation._thin
        self.slow_calls = 0

    def warm(self, *args, **kwargs):
        """The first calls, after which one like them needs no Dynamo."""
        for _ in range(3):
            self.model(*args, **kwargs)
        compiled = self.thin._compiled

        def counted(*args, **kwargs):
            self.slow_calls += 1
            return compiled(*args, **kwargs)

        self.thin._compiled = counted
        return self

    def check(self, *args, calls=4, **kwargs):
        """Several calls, so that a new situation is remembered too; returns how many went through Dynamo."""
        before = self.slow_calls
        for _ in range(calls):
            torch.testing.assert_close(
                self.model(*args, **kwargs), self.eager(*args, **kwargs), equal_nan=True
            )
        return self.slow_calls - before


@pytest.fixture
def subject():
    with torch.no_grad():
        yield Watched(Subject().eval()).warm(x)


x = torch.linspace(-1, 1, 8).view(2, 4)


# ---- what needs no second look


def test_the_fourth_call_does_without_dynamo(subject):
    assert subject.check(x) == 0
    assert subject.check(torch.rand(2, 4)) == 0
    assert len(subject.model._compiled_call_impl) == 1


def in_place(model):
    model.inner[0].weight.mul_(2)


def through_data(model):
    model.inner[0].bias.data = torch.full((4,), 0.5)


def buffer_in_place(model):
    model.offset.add_(1)


def load(model):
    model.load_state_dict({name: t * 3 for name, t in model.state_dict().items()})


@pytest.mark.parametrize("change", [in_place, through_data, buffer_in_place, load])
def test_values_of_weights_change_freely(subject, change):
    before = subject.model(x)["y"]
    change(subject.model)
    assert subject.check(x) == 0
    assert not torch.equal(subject.model(x)["y"], before)


def test_inputs_lie_anywhere(subject):
    assert subject.check(torch.rand(9)[1:].view(2, 4)) == 0


# ---- changes of the model


def transpose_weight(model):
    model.inner[0].weight.data = torch.rand(4, 4).T


def swap_parameter(model):
    model.inner[0].weight = nn.Parameter(torch.full((4, 4), 0.25))


def swap_module(model):
    model.inner[1] = nn.ReLU()


def append_module(model):
    model.inner.append(nn.Sigmoid())


def remove_module(model):
    del model.inner[1]


def swap_buffer(model):
    model.offset = torch.full((4,), 7.0)


def swap_tensor_attribute(model):
    model.mask = torch.zeros(4)


def change_mode(model):
    model.train()


def change_attribute(model):
    model.gain = 4


def change_list(model):
    model.sizes[0] = 5


def change_tuple(model):
    model.window = (1, (4, 3))


def change_dict(model):
    model.table["scale"] = 0.5


def change_object(model):
    model.config.shift = 2.0


def change_class_attribute(model):
    model.bias_of_class = 9.0


def replace_forward(model):
    model.forward = lambda x: {"y": x + 1}


def replace_dict(model):
    model.__dict__ = vars(model) | {"gain": 5}


def replace_class(model):
    model.inner[1].__class__ = nn.ReLU
    model.inner[1].inplace = False


def add_hook(model):
    model.inner.register_forward_hook(lambda module, args, output: output * 2)


def add_pre_hook(model):
    model.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def swap_storage_of_weights(model):
    torch.utils.swap_tensors(model.inner[0].weight, nn.Parameter(torch.rand(4, 4).T))


CHANGES = (
    *(transpose_weight, swap_parameter, swap_module, append_module, remove_module, swap_buffer),
    *(swap_tensor_attribute, change_mode, change_attribute, change_list, change_tuple, change_dict),
    change_object,
    *(change_class_attribute, replace_forward, replace_dict, replace_class, add_hook, add_pre_hook),
    swap_storage_of_weights,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_seen(subject, change):
    before = subject.model(x)["y"]
    change(subject.model)
    assert subject.check(x) > 0
    assert not torch.equal(subject.model(x)["y"], before)


def test_a_mode_that_comes_back_is_remembered_anew(subject):
    subject.model.train()
    assert 0 < subject.check(x) < 4
    subject.model.eval()
    assert 0 < subject.check(x) < 4
    assert subject.check(x) == 0


def test_a_hook_that_goes_leaves_the_thin_path_again(subject):
    handle = subject.model.inner.register_forward_hook(lambda *args: None)
    subject.check(x)
    handle.remove()
    subject.check(x, calls=8)
    assert subject.check(x) == 0


def test_functional_call_sees_its_own_weights(subject):
    weights = {name: t * 5 for name, t in subject.model.named_parameters()}
    got = torch.func.functional_call(subject.model, weights, (x,))
    subject.model.load_state_dict(weights, strict=False)
    torch.testing.assert_close(got, subject.eager(x))


def test_a_weight_that_wants_gradients_is_seen():
    model = Watched(nn.Linear(4, 4).requires_grad_(False)).warm(x)
    assert model.check(x) == 0
    model.model.weight.requires_grad_()
    y = model.model(x)
    y.sum().backward()
    torch.testing.assert_close(model.model.weight.grad, x.sum(0).expand(4, 4))


# ---- changes of the arguments


@pytest.mark.parametrize(
    "args",
    [
        (torch.rand(3, 4),),
        (torch.rand(4, 2).T,),
        (x, 2),
        (x, True),
        (x, 1.0),
        (x.requires_grad_(False).detach().as_subclass(nn.Parameter),),
        (nn.Parameter(torch.rand(2, 4)),),
        (torch.rand(2, 2, 4),),
    ],
    ids=lambda args: "-".join(type(arg).__name__ for arg in args),
)
def test_other_arguments_are_seen(subject, args):
    assert subject.check(*args) > 0


def test_keywords_are_seen(subject):
    assert subject.check(x, flag=False) > 0
    assert subject.check(x=x) > 0
    assert subject.check(x, flag=False) == subject.check(x=x) == subject.check(x) == 0


class Arithmetic(nn.Module):
    def forward(self, pair, factor, **more):
        first, second = pair["two"]
        y = first * 2 + second
        if first is second:
            y = y + 100
        return y * factor, {name: y * v for name, v in more.items()}


def test_structures_and_constants_are_compared_by_type_and_value():
    a, b = torch.ones(3), torch.ones(3) * 2
    model = Watched(Arithmetic()).warm({"two": (a, b)}, 1)
    assert model.check({"two": (b, a)}, 1) == 0
    assert model.check({"two": (a, b)}, True) > 0
    assert model.check({"two": (a, b)}, -1.0) > 0
    assert model.check({"two": [a, b]}, 1) > 0
    assert model.check({"two": (a, a)}, 1) > 0
    assert model.check({"two": (a.double(), b.double())}, 1) > 0
    assert model.check({"two": (a, b)}, 1, k=2, j=3) > 0
    assert list(model.model({"two": (a, b)}, 1, j=2, k=3)[1]) == ["j", "k"]
    assert model.check({"two": (a, b)}, 1) == 0


# ---- changes of what surrounds the call


def test_gradients_flow_when_they_are_asked_for(subject):
    with torch.enable_grad():
        subject.model(x)["y"].sum().backward()
    assert subject.model.inner[0].weight.grad is not None
    assert not subject.model(x)["y"].requires_grad


def test_inference_mode_makes_inference_tensors(subject):
    with torch.inference_mode():
        assert subject.model(x)["y"].is_inference()
    assert not subject.model(x)["y"].is_inference()


def test_autocast_is_seen():
    with torch.no_grad():
        model = Watched(nn.Linear(4, 4)).warm(x)
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(4):
                assert model.model(x).dtype == torch.bfloat16
        assert model.model(x).dtype == torch.float32


def test_modes_of_torch_see_operators_of_the_model(subject):
    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            return 2 * result if func is nn.functional.linear else result

    before = subject.model(x)
    with Doubled():
        assert not torch.allclose(subject.model(x)["y"], before["y"])
    torch.testing.assert_close(subject.model(x), before)


def test_the_default_dtype_is_seen():
    class Fill(nn.Module):
        def forward(self, x):
            return x * 2 + torch.ones(3)

    ones = torch.ones(3)
    model = Watched(Fill()).warm(ones)
    was = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert model.check(ones) > 0
        assert model.model(ones).dtype == torch.float64
    finally:
        torch.set_default_dtype(was)


def test_function_transforms_are_seen(subject):
    def check(transform, *args):
        got, expected = (
            transform(lambda v, f=f: f(v)["y"].sum())(*args) for f in (subject.model, subject.eager)
        )
        torch.testing.assert_close(got, expected)

    check(torch.func.grad, x)
    check(torch.func.vmap, torch.rand(3, 2, 4))
    check(lambda f: lambda v: torch.func.jvp(f, (v,), (v,)), x)


@pytest.mark.parametrize("name, value", [("FACTOR", 5.0), ("helper", lambda x: x - 1)])
def test_globals_are_seen(subject, monkeypatch, name, value):
    monkeypatch.setitem(globals(), name, value)
    assert subject.check(x) > 0


def test_other_globals_do_not_matter(subject, monkeypatch):
    monkeypatch.setitem(globals(), "unrelated", 1)
    assert subject.check(x) == 0


# ---- models that must stay with Dynamo


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.log = 0, []

    def forward(self, x):
        self.calls += 1
        return x * 2 + self.calls


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.state = torch.zeros(4)

    def forward(self, x):
        self.state = self.state * 0.5 + x.sum(0)
        return self.state + 1


class Writes(nn.Module):
    def forward(self, x):
        x.add_(1)
        return x * 2 + 1


class Logs(nn.Module):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x):
        y = x.sin() + 1
        self.log.append(y)
        return y


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = [0, None]

    def forward(self, x):
        self.kept[0] = x.sin() + 1
        return self.kept


class Aliases(nn.Module):
    def forward(self, x):
        return x, x[0], (x + 1).sin()


class Breaks(nn.Module):
    def forward(self, x):
        y = x.sin() + 1
        torch._dynamo.graph_break()
        return y * 2


@pytest.mark.parametrize("kind", [Counts, Remembers, Writes, Logs, Keeps, Aliases, Breaks])
def test_effects_of_a_model_happen_at_every_call(kind):
    ours, eager = wolong_fx.optimize(kind()), kind()
    for i in range(6):
        mine, theirs = torch.full((2, 4), float(i)), torch.full((2, 4), float(i))
        got, expected = ours(mine), eager(theirs)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(mine, theirs)
        if kind is Aliases:
            assert got[0] is mine and got[1].data_ptr() == mine.data_ptr()
        if kind is Keeps:
            assert got is ours.kept
    assert len(getattr(ours, "log", ())) == len(getattr(eager, "log", ()))


def test_statistics_of_a_batch_are_kept_at_every_call():
    ours, eager = wolong_fx.optimize(nn.BatchNorm1d(4)), nn.BatchNorm1d(4)
    with torch.no_grad():
        for _ in range(6):
            torch.testing.assert_close(ours(x), eager(x))
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())


def test_random_numbers_are_new_at_every_call():
    model = Watched(nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5)))
    with torch.no_grad():
        results = [model.model(x) for _ in range(6)]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(results))


def test_every_result_is_new(subject):
    first, second = subject.model(x), subject.model(x)
    assert first is not second and first["pair"] is not second["pair"]
    first["y"].zero_()
    first["pair"].append(4)
    assert subject.check(x) == 0


# ---- models that write in place


class Decoder(nn.Module):
    """Writes a row of a cache and counts; both are read again at the next call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(8, 4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x, position):
        self.cache[position] = x.sin()
        self.count.add_(1)
        return (self.cache * x).sum(0) + self.count


def row(i):
    return torch.linspace(-1, 1, 4) + i, torch.tensor([i])


@pytest.fixture
def decoder():
    with torch.no_grad():
        yield Watched(Decoder()).warm(*row(0)), Decoder()


def check_state(ours, eager, calls=4):
    """Calls both as often and compares results and states; returns how many of ours went through Dynamo."""
    eager.load_state_dict(ours.model.state_dict())
    before = ours.slow_calls
    for i in range(calls):
        torch.testing.assert_close(ours.model(*row(i)), eager(*row(i)))
        torch.testing.assert_close(ours.model.state_dict(), eager.state_dict())
    return ours.slow_calls - before


def test_what_a_call_writes_is_what_eager_writes(decoder):
    assert check_state(*decoder) == 0


def test_each_write_moves_the_version_counter_of_what_is_written(decoder):
    model = decoder[0].model
    x, position = row(1)
    before = model.cache._version, model.count._version, x._version, position._version
    model(x, position)
    after = model.cache._version, model.count._version, x._version, position._version
    assert after == (before[0] + 1, before[1] + 1, *before[2:])


def test_a_backward_through_a_value_that_was_overwritten_is_refused_as_in_eager(decoder):
    model, weight = decoder[0].model, torch.ones(8, 4, requires_grad=True)
    with torch.enable_grad():
        total = (weight * model.cache).sum()
    assert check_state(*decoder) == 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_an_argument_in_the_memory_that_is_written_goes_through_dynamo(decoder):
    ours, eager = decoder
    for model in (ours.model, eager):
        model.cache.copy_(torch.rand(8, 4, generator=torch.Generator().manual_seed(0)))
    before = ours.slow_calls
    position = torch.tensor([2])
    torch.testing.assert_close(ours.model(ours.model.cache[2], position), eager(eager.cache[2], position) + 3)
    assert ours.slow_calls > before


def test_a_cache_that_moves_is_written_where_it_is(decoder):
    ours, eager = decoder
    ours.model.cache.data = torch.rand(8, 4)
    assert 0 < check_state(ours, eager) < 4
    assert check_state(ours, eager) == 0


def test_caches_that_come_to_share_memory_go_through_dynamo():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("a", "b"):
                self.register_buffer(name, torch.ones(4))

        def forward(self, x):
            self.a.mul_(x)
            return self.b.sin() + self.a

    with torch.no_grad():
        ours = Watched(Two()).warm(torch.ones(4))
        assert ours.check(torch.ones(4)) == 0
        ours.model.a.data = ours.model.b.data
        before = ours.slow_calls
        ours.model(torch.ones(4))
        assert ours.slow_calls > before


@torch.no_grad()
def test_an_argument_may_be_written():
    ours = Watched(Writes()).warm(torch.ones(3))
    given = torch.zeros(3)
    version = given._version
    assert ours.model(given).tolist() == [3.0] * 3
    assert (given.tolist(), given._version - version, ours.slow_calls) == ([1.0] * 3, 1, 0)


class Tallies(nn.Module):
    """Assigns what it wrote in place: to buffers of its own and of a part, and to an attribute."""

    def __init__(self):
        super().__init__()
        self.inner = nn.BatchNorm1d(4)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.total = torch.zeros(4)

    def forward(self, x):
        self.count += 1
        self.inner.running_mean *= 0.5
        self.total += x.sum(0)
        return self.inner(x) * self.total + self.count


class SwapsParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.ones(4), torch.zeros(4)

    def forward(self, x):
        self.a, self.b = self.b, self.a
        return (x + self.a).sin()


class TalliesElsewhere(nn.Module):
    """What it assigns to is no module: somebody else may assign there too."""

    def __init__(self):
        super().__init__()
        self.config = Config()
        self.config.total = torch.zeros(4)

    def forward(self, x):
        self.config.total += x.sum(0)
        return (x + self.config.total).sin()


@torch.no_grad()
def test_what_is_written_in_place_and_assigned_again_needs_no_dynamo():
    ours, eager = Watched(Tallies().eval()).warm(x), Tallies().eval()
    eager.load_state_dict(ours.model.state_dict())
    eager.total.copy_(ours.model.total)
    state, versions = vars(ours.model).copy(), (ours.model.count._version, ours.model.total._version)
    for _ in range(3):
        torch.testing.assert_close(ours.model(x), eager(x))
        torch.testing.assert_close(ours.model.state_dict(), eager.state_dict())
        torch.testing.assert_close(ours.model.total, eager.total)
    assert ours.slow_calls == 0 and state["total"] is ours.model.total
    assert (ours.model.count._version, ours.model.total._version) == (versions[0] + 3, versions[1] + 3)
    ours.model.total = torch.zeros(4)
    eager.total.zero_()
    for _ in range(3):
        torch.testing.assert_close(ours.model(x), eager(x))
    assert ours.slow_calls > 0


@pytest.mark.parametrize("kind", [SwapsParts, TalliesElsewhere])
@torch.no_grad()
def test_what_is_assigned_elsewhere_is_assigned_at_every_call(kind):
    ours, eager = wolong_fx.optimize(kind()), kind()
    for i in range(8):
        if i == 6 and kind is TalliesElsewhere:
            ours.config.total, eager.config.total = torch.ones(4), torch.ones(4)
        torch.testing.assert_close(ours(x), eager(x))


# ---- models that no kernel serves


def test_a_model_without_a_kernel_is_called_as_it_is_without_dynamo():
    with torch.no_grad():
        ours = Watched(nn.Linear(4, 4)).warm(x)
        assert ours.check(x) == 0
        assert "no kernel comes of it" in str(wolong_fx.stats(ours.model))


def test_other_inputs_and_modes_of_a_model_without_a_kernel_are_seen():
    class Sometimes(nn.Module):
        def forward(self, x):
            return x.relu() if len(x) == 2 else x.sin().cos() * x

    with torch.no_grad():
        ours = Watched(Sometimes()).warm(x)
        assert ours.check(x) == 0
        assert 0 < ours.check(torch.rand(3, 4)) < 4
        assert ours.check(x) == ours.check(torch.rand(3, 4)) == 0
    assert sum(graph.kernels for graph in api._find_marker(ours.model).compilation.record.graphs) == 1
    given = torch.rand(2, 4, requires_grad=True)
    ours.model(given).sum().backward()
    assert given.grad is not None


def test_a_change_of_a_model_without_a_kernel_may_bring_one():
    with torch.no_grad():
        ours = Watched(nn.Sequential(nn.Linear(4, 4))).warm(x)
        assert ours.check(x) == 0
        ours.model.append(nn.Tanh())
        assert ours.check(x) > 0
        assert sum(graph.kernels for graph in api._find_marker(ours.model).compilation.record.graphs) == 1


def test_a_model_that_dynamo_skips_is_called_as_it_is(caplog):
    class Skipped(nn.Module):
        @torch.compiler.disable
        def forward(self, x):
            return x * 2

    with torch.no_grad():
        ours = Watched(Skipped()).warm(x)
        assert ours.check(x) == 0
    assert "runs eagerly" in caplog.text


def test_a_model_of_hundreds_of_tensors_does_without_dynamo():
    with torch.no_grad():
        layers = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(70)]
        ours = Watched(nn.Sequential(*layers, nn.Tanh()).eval()).warm(x)
        assert ours.check(x) == 0


# ---- the promises of a call


def test_an_exception_of_a_kernel_is_raised_and_the_next_call_is_well():
    model = Watched(nn.Sequential(nn.Embedding(5, 3), nn.Tanh()))
    with torch.no_grad():
        model.warm(torch.tensor([1, 2]))
        assert model.check(torch.tensor([0, 4])) == 0
        for _ in range(2):
            with pytest.raises(IndexError):
                model.model(torch.tensor([1, 7]))
        assert model.check(torch.tensor([3, 3])) == 0


def test_calls_may_overlap_in_threads(subject):
    inputs = [torch.rand(2, 4) for _ in range(4)]
    expected = [subject.eager(v)["y"] for v in inputs]
    wrong = []

    def work(v, y):
        with torch.no_grad():
            wrong.extend(i for i in range(200) if not torch.allclose(subject.model(v)["y"], y))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inputs_and_models_are_not_kept_alive():
    with torch.no_grad():
        model, given = Watched(Subject().eval()), torch.rand(2, 4)
        model.warm(given)
        assert model.check(given) == 0
        of_input, of_model = weakref.ref(given), weakref.ref(model.model)
        del given
        gc.collect()
        assert of_input() is None
        del model
        torch._dynamo.reset()  # which keeps what it compiled
        gc.collect()
    assert of_model() is None


def test_a_copy_has_a_path_of_its_own(subject):
    twin = copy.deepcopy(subject.model)
    twin.inner[0].weight.zero_()
    for _ in range(4):
        torch.testing.assert_close(twin(x), api._find_marker(twin).module._call_impl(x))
    assert subject.check(x) == 0


def test_it_joins_the_graph_of_a_model_around_it(subject):
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, v):
            return self.inner(v)["y"].exp() + 1

    outer = wolong_fx.optimize(Outer(subject.model))
    for _ in range(4):
        torch.testing.assert_close(outer(x), subject.eager(x)["y"].exp() + 1)
    assert not wolong_fx.stats(outer).fallbacks
    assert subject.slow_calls == 0


def test_verify_always_asks_dynamo_at_every_call():
    model = wolong_fx.optimize(Subject().eval(), verify="always")
    assert api._find_marker(model).compilation._thin is None
    with torch.no_grad():
        torch.testing.assert_close(model(x), model._call_impl(x))


class Plain(nn.Module):
    def forward(self, x):
        return self.shifted(x).sin()

    def shifted(self, x):
        return x + 1


def test_verify_always_sees_methods_that_were_replaced(monkeypatch):
    trusting, careful = wolong_fx.optimize(Plain()), wolong_fx.optimize(Plain(), verify="always")
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(trusting(x), careful(x))
        before = trusting(x)
        monkeypatch.setattr(Plain, "shifted", lambda self, x: x - 1)
        torch.testing.assert_close(careful(x), (x - 1).sin())
        torch.testing.assert_close(trusting(x), before)  # as the docstring of optimize() says


def test_verify_always_sees_weights_written_behind_their_counters():
    model = wolong_fx.optimize(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), verify="always")
    with torch.no_grad():
        model(x)
        for _ in range(3):
            model[0].weight.data.view(-1)[5] += 1
            torch.testing.assert_close(model(x), model._call_impl(x))


def test_without_the_extension_calls_stay_with_dynamo(monkeypatch):
    monkeypatch.setattr(api, "find_direct_call", lambda options: DirectCall(because="there is no compiler"))
    model = wolong_fx.optimize(Subject().eval())
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(model(x), model._call_impl(x))
    (ledger, *_) = wolong_fx.stats(model).ledgers
    assert "there is no compiler" in [d.because for d in ledger.decisions if d.step == "thin-path"]


def test_a_python_without_version_tags_or_headers_is_told_apart(tmp_path):
    assert "3.13" in why_impossible((3, 13), tmp_path)
    assert "Python.h" in why_impossible((3, 12), tmp_path)
    (tmp_path / "Python.h").touch()
    assert why_impossible((3, 11), tmp_path) == ""


def test_the_interpreter_of_programs_is_called_as_a_kernel_is():
    with torch.no_grad():
        model = Watched(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), target="reference").warm(x)
        assert model.check(x) == 0
