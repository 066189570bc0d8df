"""The three doors, and what an optimised model keeps of the model it was."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import wolong_fx
from wolong_fx.errors import BadOptionValue, CannotOptimize, UnknownOption

pytestmark = pytest.mark.cpu


class Net(nn.Module):
    """Module-level, so that it can be pickled."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 2)
        self.seen: list[int] = []

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.second(torch.tanh(self.first(x)) * scale)


@wolong_fx.optimize
class Decorated(Net):
    pass


@wolong_fx.optimize
def double(x: Tensor) -> Tensor:
    """Doubles."""
    return torch.sin(x) * 2


def eager(model: nn.Module) -> nn.Module:
    """An eager copy that shares nothing."""
    return wolong_fx.deoptimize(copy.deepcopy(model))


def assert_compiled(model, graphs=1):
    assert wolong_fx.stats(model).graphs == graphs


x = torch.linspace(-1, 1, 6).view(2, 3)


# ---- the doors


def test_optimize_returns_the_same_module_and_compiles_it_at_its_first_call():
    model = Net()
    assert wolong_fx.optimize(model) is model
    assert_compiled(model, 0)
    with torch.no_grad():
        torch.testing.assert_close(model(x), eager(model)(x))
        torch.testing.assert_close(model(x, scale=2.0), eager(model)(x, scale=2.0))
    assert_compiled(model, 2)


def test_optimize_decorates_a_class_with_and_without_options():
    model = Decorated()
    assert type(model) is Decorated
    torch.testing.assert_close(model(x), eager(model)(x))
    assert_compiled(model)

    @wolong_fx.optimize(threads=1)
    class Inner(Net):
        pass

    inner = Inner()
    inner(x)
    assert_compiled(inner)
    wolong_fx.deoptimize(Inner)
    assert_compiled(inner, 0)
    assert Inner._compiled_call_impl is None


def test_optimize_decorates_functions_and_methods():
    torch.testing.assert_close(double(x), torch.sin(x) * 2)
    assert_compiled(double)
    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    assert pickle.loads(pickle.dumps(double)) is double
    assert wolong_fx.deoptimize(double)(x).equal(torch.sin(x) * 2)

    class Thing:
        factor = 3

        @wolong_fx.optimize(threads=1)
        def scaled(self, y):
            return torch.exp(y) * self.factor

    torch.testing.assert_close(Thing().scaled(x), torch.exp(x) * 3)
    assert_compiled(Thing.scaled)


def test_optimize_as_a_context_undoes_itself():
    model = Net()
    with wolong_fx.optimize(model) as inside:
        assert inside is model
        model(x)
        assert_compiled(model)
    assert_compiled(model, 0)
    assert model._compiled_call_impl is None
    with wolong_fx.optimize(torch.sin) as sine:
        sine(x)
        assert_compiled(sine)
    assert sine(x).equal(torch.sin(x))


def test_an_exception_within_the_context_leaves_it_undone():
    model = Net()
    with pytest.raises(KeyError), wolong_fx.optimize(model):
        raise KeyError
    assert model._compiled_call_impl is None


def test_deoptimize_gives_back_what_there_was():
    model = Net()
    keys, call = set(vars(model)), model._call_impl
    assert wolong_fx.deoptimize(wolong_fx.optimize(model)) is model
    assert set(vars(model)) - {"_compiled_call_impl"} == keys
    model._compiled_call_impl = call
    assert wolong_fx.deoptimize(wolong_fx.optimize(model))._compiled_call_impl == call
    assert wolong_fx.deoptimize(3) == 3


def test_torch_compile_reaches_the_same_code():
    model = Net()
    before = wolong_fx.stats().graphs
    compiled = torch.compile(model, backend="wolong", options={"threads": 1})
    torch.testing.assert_close(compiled(x), model(x))
    assert wolong_fx.stats().graphs == before + 1
    assert wolong_fx.stats(model).graphs == 0


def test_the_doors_reach_the_same_code_for_training():
    model = Net()
    results = []
    for open_door in (lambda m: m, wolong_fx.optimize, lambda m: torch.compile(m, backend="wolong")):
        twin = copy.deepcopy(model)
        open_door(twin)(x).square().sum().backward()
        results.append([p.grad for p in twin.parameters()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[2], results[1], rtol=0, atol=0)


# ---- what cannot be done is said


def test_an_unknown_option_names_the_nearest_at_every_door():
    with pytest.raises(UnknownOption, match="'threads'"):
        wolong_fx.optimize(Net(), thread=1)
    with pytest.raises(UnknownOption, match="'threads'"):
        wolong_fx.optimize(thread=1)
    with pytest.raises(Exception, match=r"'thread' in torch.compile.*did you mean 'threads'"):
        torch.compile(Net(), backend="wolong", options={"thread": 1})(x)


def test_a_bad_value_is_refused():
    with pytest.raises(BadOptionValue, match="target"):
        wolong_fx.optimize(Net(), target="tpu")


@pytest.mark.parametrize("thing", [3, int, "model"])
def test_only_models_can_be_optimised(thing):
    with pytest.raises(CannotOptimize, match="optimize"):
        wolong_fx.optimize(thing)


def test_a_model_of_which_nothing_compiles_is_warned_about_once_with_the_reason(caplog):
    class Disabled(Net):
        @torch.compiler.disable(reason="too clever")
        def forward(self, y):
            return super().forward(y)

    model = wolong_fx.optimize(Disabled())
    with caplog.at_level(logging.WARNING, "wolong_fx"):
        for _ in range(3):
            model(x)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "wolong_fx"]
    assert "model 'Disabled' runs eagerly" in line
    assert "torch.compiler.disable" in line


def test_exceptions_of_the_model_pass_through_unchanged():
    class Picky(Net):
        def forward(self, y):
            if y.shape[0] == 1:
                raise LookupError("one row is not enough")
            return super().forward(y)

    model = wolong_fx.optimize(Picky())
    for _ in range(2):
        with pytest.raises(LookupError, match=r"^'?one row is not enough'?$"):
            model(x[:1])
    torch.testing.assert_close(model(x), eager(model)(x))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones(2, 7))


def test_the_kill_switch_leaves_every_door_eager():
    script = """
import torch, wolong_fx
model = wolong_fx.optimize(torch.nn.Linear(2, 2))
with wolong_fx.optimize(model): model(torch.ones(1, 2))
double = wolong_fx.optimize(lambda x: x * 2)
double(torch.ones(2))
@wolong_fx.optimize
class Net(torch.nn.Linear): pass
Net(2, 2)(torch.ones(1, 2))
torch.compile(torch.sin, backend="wolong")(torch.ones(2))
print(sum(wolong_fx.stats(m).graphs for m in (None, model, double)), model._compiled_call_impl)
"""
    environment = os.environ | {"WOLONG": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "0 None", done.stderr


# ---- what an optimised model keeps


def test_state_dict_class_and_parameters_stay_what_they_were():
    model = Net()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    wolong_fx.optimize(model)(x)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert type(model) is Net


def test_deep_copies_are_optimised_and_share_nothing():
    model = wolong_fx.optimize(Net(), threads=1)
    model(x)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.first.weight.zero_()
    torch.testing.assert_close(clone(x), eager(clone)(x))
    torch.testing.assert_close(model(x), eager(model)(x))
    assert not clone(x).equal(model(x))
    assert_compiled(clone)
    whole = copy.deepcopy(nn.Sequential(model, nn.ReLU()))
    whole(x)
    assert_compiled(whole)


def test_a_deoptimised_copy_and_a_shallow_copy_are_eager():
    model = wolong_fx.optimize(Net())
    assert wolong_fx.deoptimize(copy.deepcopy(model))._compiled_call_impl is None
    shallow = copy.copy(model)
    assert shallow._compiled_call_impl is None
    assert copy.deepcopy(shallow)._compiled_call_impl is None
    shallow(x)
    assert_compiled(model, 0)


def test_pickles_load_as_plain_modules_without_this_package():
    model = wolong_fx.optimize(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    expected = model(x)
    written = io.BytesIO()
    torch.save(model, written)
    assert b"wolong" not in pickle.dumps(model).replace(b"_wolong_fx", b"")
    written.seek(0)
    kinds = [nn.Sequential, nn.Linear, nn.Tanh]
    with torch.serialization.safe_globals(kinds):
        loaded = torch.load(written, weights_only=True)
    assert loaded._compiled_call_impl is None
    torch.testing.assert_close(loaded(x), expected)
    torch.testing.assert_close(wolong_fx.optimize(loaded)(x), expected)
    assert_compiled(loaded)


def test_instances_of_a_decorated_class_are_optimised_after_unpickling_too():
    model = pickle.loads(pickle.dumps(Decorated()))
    model(x)
    assert_compiled(model)


def test_hooks_fire_once_a_call():
    model, calls = Net(), []
    model.register_forward_pre_hook(lambda m, args: calls.append("before"))
    model.register_forward_hook(lambda m, args, y: calls.append("after"))
    model.first.register_forward_hook(lambda m, args, y: y + 1)
    wolong_fx.optimize(model)
    for _ in range(3):
        torch.testing.assert_close(model(x), model._call_impl(x))
    assert calls == ["before", "after"] * 6
    model.register_forward_hook(lambda m, args, y: y * 3)
    torch.testing.assert_close(model(x), model._call_impl(x))


def test_attributes_that_forward_sets_are_set():
    class Counting(Net):
        def forward(self, y):
            self.seen.append(len(y))
            self.last = super().forward(y)
            return self.last

    model = wolong_fx.optimize(Counting())
    model(x)
    y = model(x)
    assert model.seen == [2, 2]
    assert model.last is y


def test_an_optimised_module_within_another_joins_its_graph():
    inner = wolong_fx.optimize(Net())
    outer = wolong_fx.optimize(nn.Sequential(inner, nn.Tanh()))
    torch.testing.assert_close(outer(x), torch.tanh(eager(inner)(x)))
    assert inner._compiled_call_impl is not None
    assert_compiled(outer)
    assert_compiled(wolong_fx.optimize(lambda y: double(y) + 1), 0)
    torch.testing.assert_close(wolong_fx.optimize(lambda y: double(y) + 1)(x), torch.sin(x) * 2 + 1)


def test_optimizing_again_takes_the_new_options():
    model = wolong_fx.optimize(wolong_fx.optimize(Net()), threads=1)
    torch.testing.assert_close(model(x), eager(model)(x))
    assert_compiled(model)
    assert wolong_fx.deoptimize(model)._compiled_call_impl is None


def test_more_models_than_the_recompile_limit_are_all_compiled():
    with torch.no_grad():
        for _ in range(torch._dynamo.config.recompile_limit + 2):
            model = wolong_fx.optimize(nn.Tanh())
            model(x)
            assert_compiled(model)
