"""Golden kernels compiled for GPUs that are not here: they need few registers, spill nothing, and keep the
order of the barrier's instructions.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import triton
from packaging.version import Version

from wolong_fx.codegen.triton import BARRIERS, choose_tile, emit_program
from wolong_fx.codegen.triton.image import image_of
from wolong_fx.ir.program import OpInst
from wolong_fx.runtime.gpu import ARCHITECTURES, TritonBinary, TritonImage, build_triton
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import TYPICAL

BUDGET = Path(__file__).parent / "budget.json"
"""Registers of a thread and shared bytes of a block that each kernel may need; only ever made smaller. For
each Triton whose ptxas counts otherwise: one that is not in it is held to the last before it.
"""

QUICK = [("recurrence", "sm_90"), ("mlp", "sm_80"), ("softmax", "sm_100")]
ALL = [(name, arch) for name in TYPICAL for arch in ARCHITECTURES]


def image(name: str, architecture: str, barrier: str = "grid_barrier") -> TritonImage:
    def retiled(op: OpInst) -> OpInst:
        return replace(op, tile=choose_tile(op))

    source = emit_program(map_ops(TYPICAL[name](), retiled), barrier=barrier)
    return image_of(source, ARCHITECTURES[architecture])


@cache
def built(name: str, architecture: str) -> TritonBinary:
    return build_triton(image(name, architecture))


def budget_of(kernel: str) -> dict[str, int]:
    budgets = json.loads(BUDGET.read_text())
    version = max((v for v in budgets if Version(v) <= Version(triton.__version__)), key=Version)
    return budgets[version][kernel]


def check_budget(name: str, architecture: str) -> None:
    binary, budget = built(name, architecture), budget_of(f"{name} {architecture}")
    assert binary.code and binary.spill_bytes == 0
    assert binary.registers <= budget["registers"]
    assert binary.shared_bytes <= budget["shared_bytes"]
    assert binary.resident_blocks >= image(name, architecture).blocks


@pytest.mark.parametrize(("name", "architecture"), QUICK)
def test_a_kernel_stays_within_its_budget(name, architecture):
    check_budget(name, architecture)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), [pair for pair in ALL if pair not in QUICK])
def test_every_kernel_stays_within_its_budget(name, architecture):
    check_budget(name, architecture)


@pytest.mark.parametrize("barrier", BARRIERS)
def test_the_barrier_arrives_after_the_block_has_met_and_polls_before_it_meets_again(barrier):
    lines = build_triton(image("recurrence", "sm_90", barrier)).assembly.splitlines()
    kinds = {"bar.sync": "meet", "acq_rel": "arrive", ".acquire.": "poll"}
    order = [kind for line in lines for word, kind in kinds.items() if word in line]
    arrivals = [i for i, kind in enumerate(order) if kind == "arrive"]
    assert len(arrivals) in (2, 3)  # before the loop, and in it: idle blocks may get a copy of it
    for i in arrivals:
        assert order[i - 1] == "meet"
        polls = [kind for kind in order[i:] if kind != "meet"][:2]
        assert polls == ["arrive", "poll"]
        assert "meet" in order[order.index("poll", i) :]
