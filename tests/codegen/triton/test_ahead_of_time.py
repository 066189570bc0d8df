"""Golden kernels and real models compiled for GPUs that are not here: what they need of a GPU may only become
less, and no compiler has moved an instruction of a grid barrier.

`pytest --tighten tests/codegen/triton/test_ahead_of_time.py` writes `budget.json`: for the Triton that runs,
lower figures and those that are missing. Binaries are kept in the cache of the tests.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import triton

from wolong_fx.bench.table import ROWS, Row
from wolong_fx.codegen.triton import BARRIERS, choose_tile, emit_program
from wolong_fx.codegen.triton.fit import fit_program
from wolong_fx.codegen.triton.image import image_of
from wolong_fx.codegen.triton.target import TritonTarget
from wolong_fx.emit import count_stages, trace_model
from wolong_fx.ir.program import OpInst, Program
from wolong_fx.options import Options
from wolong_fx.runtime.gpu import ARCHITECTURES, TritonBinary, TritonImage
from wolong_fx.runtime.gpu.binary_cache import cached_binary
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.machine_code import barrier_events, count_barriers, disassembled
from wolong_fx.testing.programs import TYPICAL
from wolong_fx.testing.ratchet import Ratchet

BUDGET = Ratchet(Path(__file__).parent / "budget.json", triton.__version__)

QUICK = [("recurrence", "sm_90"), ("mlp", "sm_80"), ("softmax", "sm_100")]
"""Kernels of every test run; the others are for `make test-all`."""

ALL = [(name, architecture) for name in TYPICAL for architecture in ARCHITECTURES]

NARROW = ("lstm80-b1-h256", "lstm80-b16-h256", "decode-d256-l6-c128")
MODELS = {(row.name, torch.float32): row for row in ROWS} | {
    (row.name, torch.bfloat16): row for row in ROWS if row.name in NARROW
}
"""The models of the benchmark table, some of them in bfloat16 too."""

QUICK_MODEL = ("lstm80-b1-h256", torch.float32)
ON_ONE = (QUICK_MODEL, ("nas-6x8x8", torch.float32))
"""Models compiled for one architecture alone: the one of every test run, and one that takes a minute."""


@pytest.fixture
def hold(request):
    """Holds a kernel's or model's figures to their budget."""
    return lambda name, figures: BUDGET.hold(name, figures, tighten=request.config.getoption("--tighten"))


def image(name: str, architecture: str, barrier: str = "grid_barrier") -> TritonImage:
    def retiled(op: OpInst) -> OpInst:
        return replace(op, tile=choose_tile(op))

    source = emit_program(map_ops(TYPICAL[name](), retiled), barrier=barrier)
    return image_of(source, ARCHITECTURES[architecture])


def figures(binary: TritonBinary) -> dict[str, int]:
    return {
        "registers": binary.registers,
        "spill_bytes": binary.spill_bytes,
        "shared_bytes": binary.shared_bytes,
    }


def build(image: TritonImage) -> TritonBinary:
    return cached_binary(image, Options.of())


def check_kernel(binary: TritonBinary, blocks: int, name: str, program: Program, hold) -> None:
    """A kernel keeps its budget, its blocks are resident together, and its barriers are in order."""
    hold(f"{name} {binary.architecture.name}", figures(binary))
    assert binary.resident_blocks >= blocks
    # Copies of a barrier, for blocks that take another way to it, may have become one.
    assert count_barriers(barrier_events(disassembled(binary.code))) >= count_stages(program.body)[1]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in ALL],
)
def test_a_kernel_stays_within_its_budget(name, architecture, hold):
    kernel = image(name, architecture)
    binary = build(kernel)
    assert binary.spill_bytes == 0
    check_kernel(binary, kernel.blocks, name, TYPICAL[name](), hold)


@pytest.mark.parametrize(
    ("barrier", "architecture"),
    [
        pytest.param(b, a, marks=() if a == "sm_90" else pytest.mark.slow)
        for b, a in product(BARRIERS, ARCHITECTURES)
    ],
)
def test_the_barrier_arrives_after_the_block_has_met_and_polls_before_it_meets_again(barrier, architecture):
    binary = build(image("recurrence", architecture, barrier))
    assert count_barriers(barrier_events(disassembled(binary.code))) >= 2  # one is in the loop


# ---- real models


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(*key, marks=() if key == QUICK_MODEL else pytest.mark.slow) for key in MODELS],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_a_real_model_stays_within_its_budget(name, dtype, hold):
    row = MODELS[name, dtype]
    model, inputs = of_dtype(row, dtype)
    traced = trace_model(model, inputs, trains=row.is_training)
    assert isinstance(traced.emitter, TritonTarget)
    title = f"{name} {str(dtype).removeprefix('torch.')}"
    stages, barriers = map(sum, zip(*(count_stages(p.body) for p in traced.programs), strict=True))
    hold(
        title,
        {
            "kernels": len(traced.programs),
            "stages": stages,
            "barriers": barriers,
            "fallbacks": len(traced.fallbacks),
        },
    )
    architectures = ["sm_90"] if (name, dtype) in ON_ONE else list(ARCHITECTURES)
    for number, program in enumerate(traced.programs, 1):
        for architecture in map(ARCHITECTURES.__getitem__, architectures):
            source, binary = fit_program(program, traced.emitter.precision, architecture, build)
            blocks = min(source.blocks, architecture.multiprocessors)
            check_kernel(binary, blocks, f"{title} #{number}", program, hold)


def of_dtype(row: Row, dtype: torch.dtype) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    torch.compiler.reset()
    model = row.model().to(dtype).train(row.is_training)
    return model, [x.to(dtype) if x.is_floating_point() else x for x in model.example_inputs(row.batch)]
