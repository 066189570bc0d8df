"""What code stores is told from the code; code that does anything else is told apart."""

from __future__ import annotations

import pytest

from wolong_fx.capture.stores import Store, find_stores

pytestmark = pytest.mark.cpu


def calls_one(args):
    out = __compiled_fn_0(args[0], scale=2)  # type: ignore[name-defined]  # noqa: F821
    return [out[0], {"y": out[1]}]


def stores_two(function, torch_utils):
    out = __compiled_fn_0(function.x)  # type: ignore[name-defined]  # noqa: F821
    torch_utils.object_setattr_ignore_descriptor(function.__self__, "state", out[1])
    function.__self__._buffers.update({"count": out[2]})
    return out[0]


def stores_as_torch_2_11_does(function, builtins):
    out = __compiled_fn_0(function.x)  # type: ignore[name-defined]  # noqa: F821
    builtins.object.__setattr__(function.__self__, "state", out[1])
    return out[0]


def calls_two(x):
    return __compiled_fn_0(x), __compiled_fn_1(x)  # type: ignore[name-defined]  # noqa: F821


def appends(log):
    out = __compiled_fn_0(log)  # type: ignore[name-defined]  # noqa: F821
    log.append(out[0])
    return out[1]


def stores_a_number(function, utils):
    out = __compiled_fn_0(function)  # type: ignore[name-defined]  # noqa: F821
    utils.object_setattr_ignore_descriptor(function, "calls", 3)
    return out[0]


def branches(x):
    return __compiled_fn_0(x) if x else 0  # type: ignore[name-defined]  # noqa: F821


def assigns(function):
    function.x = __compiled_fn_0(function)  # type: ignore[name-defined]  # noqa: F821


def test_a_call_of_one_graph_stores_nothing():
    assert find_stores(calls_one.__code__) == []


def test_stores_of_outputs_are_found_with_their_places():
    own = "function.__self__"
    assert find_stores(stores_two.__code__) == [Store(own, "state", 1), Store(f"{own}._buffers", "count", 2)]
    assert find_stores(stores_as_torch_2_11_does.__code__) == [Store(own, "state", 1)]


@pytest.mark.parametrize("function", [calls_two, appends, stores_a_number, branches, assigns, len])
def test_code_with_other_effects_is_refused(function):
    code = getattr(function, "__code__", compile("1", "nothing", "eval"))
    assert find_stores(code) is None
