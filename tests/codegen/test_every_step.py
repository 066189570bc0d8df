"""Every step of code generation: the program before and after it as text, and the same results without it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wolong_fx.codegen import STEP_DOCS, build_programs
from wolong_fx.codegen.cpp import pack_operands
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ir.text import print_program
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.loops.scan import SCAN
from wolong_fx.testing.golden import assert_golden
from wolong_fx.testing.loops import FAMILIES, random_loop
from wolong_fx.testing.tracing import trace_core

GOLDEN = Path(__file__).parent / "golden" / "steps"
ORDER = [*list(STEP_DOCS)[: list(STEP_DOCS).index("fuse-ops")], "split-prepare"]
ORDER += [name for name in STEP_DOCS if name not in ORDER]  # the steps as they come


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 2) for d in op.dims)


def pack(ops, *kept):
    return pack_operands(ops, "avx2", *kept)


def programs(gm, disable, pack=pack):
    return build_programs(gm, Options.of(disable=tuple(disable)), Ledger(), small_tiles, pack)


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) / 4 for shape in shapes]


def unread_carry(x):
    return SCAN(lambda h, n, x: [torch.tanh(x + h), n + h, x.sin()], (x[0] * 0, x[0] * 1), (x,), ())[0]


def cell(x, h, w, u):
    i, f, g, o = (x @ w + h @ u).chunk(4, dim=1)
    return torch.sigmoid(o) * torch.tanh(torch.sigmoid(f) * h + torch.sigmoid(i) * torch.tanh(g))


def shared_layer(x, y, a, b, w):
    """Two branches that share nothing but a layer: gathered, it is one product of 2 rows."""
    return torch.cat([torch.relu(torch.tanh(x @ a) @ w), torch.relu(torch.sigmoid(y @ b) @ w)]) @ w


def of_family(name):
    case = FAMILIES[name](3, torch.float32)
    return case.function, *case.inputs


CASES = {
    "drop-dead-ops": (unread_carry, *tensors((3, 2, 4))),
    "assign-outputs": (lambda x: torch.cat([x.sin(), x.cos()]), *tensors((3, 4))),
    "split-ops": (cell, *tensors((2, 3), (2, 4), (3, 16), (4, 16))),
    "split-prepare": (lambda x, w: x @ w.exp(), *tensors((2, 3), (3, 4))),
    "fuse-ops": (lambda x: torch.softmax(x * 2, 1) + 1, *tensors((3, 4))),
    "rotate-loops": of_family("backward"),
    "join-loops": of_family("two_walks"),
    "batch-ops": (lambda x, w: torch.cat([x[i] @ w for i in range(3)]), *tensors((3, 2, 4), (4, 5))),
    "order-dims": (lambda x: x.t().sin(), *tensors((3, 4))),
    "collapse-dims": (lambda x: x.sin(), *tensors((3, 4))),
    "split-reductions": (
        lambda x, y: x.flip(0).reshape(-1, 4).t() @ y.reshape(-1, 5),
        *tensors((6, 3, 4), (6, 3, 5)),
    ),
    "pack-operands": (lambda x, w: x @ w, *tensors((4, 64), (64, 32))),
}
PARTS = {  # what a step does in a file of its own
    "gather-operands": (
        "batch-ops",
        (shared_layer, *tensors((1, 5), (1, 7), (5, 160), (7, 160), (160, 160))),
    ),
}


def graph_of(step, function, *inputs):
    gm = trace_core(function, *inputs)
    for node in gm.graph.find_nodes(op="placeholder")[1:]:
        node.meta["static"] = step in ("split-prepare", "pack-operands")  # they see to weights
    return gm


def test_every_step_is_shown():
    assert set(CASES) == set(STEP_DOCS)
    assert {file.stem for file in GOLDEN.glob("*.txt")} == {n.replace("-", "_") for n in (*CASES, *PARTS)}


@pytest.mark.parametrize("name", [*CASES, *PARTS])
def test_a_step_does_what_its_golden_file_shows(name, request):
    step, case = PARTS.get(name, (name, CASES.get(name)))
    later = ORDER[ORDER.index(step) + 1 :]
    before, after = (text_of(programs(graph_of(step, *case), off)) for off in ((step, *later), later))
    assert after != before
    text = f"before:\n{before}\nafter:\n{after}"
    assert_golden(text, GOLDEN / f"{name.replace('-', '_')}.txt", request.config.getoption("--accept"))


def text_of(split):
    return "\n".join(map(print_program, (p for p in (split.prepare, split.run) if p)))


# ---- results

EXACT = 0.0
BOUNDS = dict.fromkeys(STEP_DOCS, EXACT)


def results_of(gm, inputs, off):
    """Of the program without some steps; what depends on weights is computed with the rest."""
    return run_program(programs(gm, (*off, "split-prepare")).run, list(inputs), seed=0)


def assert_no_step_matters(case):
    gm, failures = trace_core(case.function, *case.inputs), {}
    whole = results_of(gm, case.inputs, ())
    for name in STEP_DOCS:
        difference = max(map(relative, whole, results_of(gm, case.inputs, (name,))))
        if difference > BOUNDS[name]:
            failures[name] = difference
    assert not failures


def relative(a, b):
    return ((a - b).abs().max() / (1 + b.abs().max())).item() if a.numel() else 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_loops_computes_the_same_without_a_step(family):
    assert_no_step_matters(FAMILIES[family](3, torch.float32))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_random_loops_compute_the_same_without_a_step(seed):
    assert_no_step_matters(random_loop(random.Random(seed)))
