"""Tile functions that differ in numbers alone: which are shared, and that they stay what they were."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import build_programs
from wolong_fx.codegen.cpp import choose_tile, share_functions
from wolong_fx.codegen.cpp.share_functions import MOST_ARGUMENTS
from wolong_fx.codegen.cpp.share_functions import share_functions as share
from wolong_fx.codegen.cpp.tile_function import TileFunction
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.kernels import build_kernel
from wolong_fx.testing.tracing import trace_core

HEADER = "(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {"


@pytest.fixture
def sharing_all(monkeypatch):
    """From two functions on."""
    monkeypatch.setattr(share_functions, "MANY", 1)


def function(number, body, pointers=1):
    name = f"tile{number}"
    return TileFunction(
        name, 16, f"NOINLINE void {name}{HEADER}\n  {body.replace('tile', name)}\n}}", pointers
    )


def put_back(text, arguments):
    """The text with numbers for its arguments, as if it were its caller's own."""
    text = re.sub(r"  const i64 c\d+ = bind\[\d+\];\n", "", text)
    named = {f"c{n}": argument for n, argument in enumerate(arguments)}
    text = re.sub(r"\((c\d+[^()]*)\)", lambda said: str(eval(said[1], named)), text)
    return re.sub(r"\bc(\d+)\b", lambda m: str(arguments[int(m[1])]), text)


def test_numbers_put_back_give_each_its_own_text(sharing_all):
    bodies = [
        f"for (i64 k0 = 0; k0 < {k}; k0++) f(p0 + k0 * {n} + {3 * n + 1} - {k});"
        for k, n in ((2, 7), (5, 4), (6, 9))
    ]
    given_ones = [function(at, body) for at, body in enumerate(bodies)]
    left, calls = share(given_ones)
    assert len(left) == 1 and all(len(call.arguments) == 2 for call in calls)
    for own, call in zip(given_ones, calls, strict=True):
        assert put_back(left[0].text, call.arguments) == own.text.replace(own.name, "tile0")


@pytest.mark.parametrize(
    "pair",
    [
        ("v = x / 3;", "v = x / 5;"),
        ("v = x % 3;", "v = x % 5;"),
        ("f32 row0[48];", "f32 row0[64];"),
        ("v = x * 2.0f;", "v = x * 3.0f;"),
        ("v = x * 1e+16;", "v = x * 1e+17;"),
        ("v = x + (i32)4;", "v = x + (i32)5;"),
        ("v = x + 4l;", "v = x + 5l;"),
        ("v12 = x;", "v13 = x;"),
    ],
)
def test_divisors_lengths_and_constants_are_nobodys_arguments(pair, sharing_all):
    _, calls = share([function(at, body) for at, body in enumerate(pair)])
    assert [call.function for call in calls] == [0, 1] and not any(call.arguments for call in calls)


def test_few_functions_keep_their_numbers():
    left, calls = share([function(0, "f(4);"), function(1, "f(5);")])
    assert [f.name for f in left] == ["tile0", "tile1"] and not any(call.arguments for call in calls)


def test_functions_that_would_need_too_many_arguments_stay_apart(sharing_all):
    unrelated = MOST_ARGUMENTS + 1
    bodies = [" ".join(f"f({base**k});" for k in range(1, unrelated + 1)) for base in (2, 3, 4)]
    assert len(share([function(at, body) for at, body in enumerate(bodies)])[0]) == 3


def kernels_of(graph, inputs, isa, threads, monkeypatch):
    """The same program as two kernels, with functions of everyone's own and with shared ones."""
    gm = trace_core(graph, *inputs)
    program = build_programs(gm, Options(), Ledger(), lambda op: choose_tile(op, isa, threads)).run
    made = []
    for many in (1 << 30, 1):
        monkeypatch.setattr(share_functions, "MANY", many)
        made.append(build_kernel(program, isa, threads, Options()))
    return made


def experts(tokens, inside):
    """Experts of unequally many tokens, layers of unequal widths, tables of unequally many rows."""

    def graph(positions, *weights):
        tables, ups, downs = (weights[at::3] for at in range(3))
        parts = []
        for at, n in enumerate(tokens):
            x = torch.nn.functional.embedding(positions[at, :n], tables[at])
            parts.append(torch.tanh(torch.relu(x @ ups[at]) @ downs[at]).sum(0) + x.amax())
        return (torch.stack(parts),)

    def inputs(width=6):
        rows = [3 + 2 * n for n in tokens]
        positions = torch.stack([torch.randint(0, n, (max(tokens),)) for n in rows])
        shapes = zip(rows, inside, strict=True)
        weights = [(torch.randn(n, width), torch.randn(width, w), torch.randn(w, 5)) for n, w in shapes]
        return [positions, *(weight for three in weights for weight in three)]

    return graph, inputs()


@pytest.mark.parametrize("special", [0.0, float("nan"), float("inf")])
def test_shared_functions_compute_the_same_bits(isa, special, monkeypatch):
    graph, given_ones = experts((3, 8, 9, 17), (7, 20, 33, 48))
    given_ones[4][:, 2] = special
    own, shared = kernels_of(graph, given_ones, isa, 2, monkeypatch)
    assert own.image.source.count("NOINLINE void tile") > shared.image.source.count("NOINLINE void tile")
    (expected,), (found,) = own.launch(given_ones), shared.launch(given_ones)
    assert torch.equal(expected.view(torch.int32), found.view(torch.int32))
    torch.testing.assert_close(found, graph(*given_ones)[0], rtol=1e-4, atol=1e-4, equal_nan=True)


@settings(max_examples=3, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40)), min_size=2, max_size=4))
@pytest.mark.cpu
def test_random_unequal_siblings_compute_the_same_bits(sizes):
    graph, given_ones = experts(*zip(*sizes, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        own, shared = kernels_of(graph, given_ones, "portable", 1, patch)
    (expected,), (found,) = own.launch(given_ones), shared.launch(given_ones)
    assert torch.equal(expected.view(torch.int32), found.view(torch.int32))


@pytest.mark.cpu
def test_a_position_outside_of_its_own_table_is_refused(monkeypatch):
    """Each sibling is checked against its own rows, not against those of the largest."""
    graph, given_ones = experts((3, 5, 8, 9), (4, 4, 4, 4))
    shared = kernels_of(graph, given_ones, "portable", 1, monkeypatch)[1]
    given_ones[0][0, 0] = 3 + 2 * 3
    with pytest.raises(IndexError):
        shared.launch(given_ones)
