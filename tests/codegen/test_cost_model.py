from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

import wolong_fx
from wolong_fx.codegen.cost_model import (
    HOST_OF_TEAM,
    WORTH_A_TEAM,
    CostModel,
    forecast,
)
from wolong_fx.codegen.cpp.machine import MACHINES
from wolong_fx.codegen.cpp.tiles import Planner
from wolong_fx.codegen.cpp.traffic import touched_bytes
from wolong_fx.codegen.cpp.work import BLOCK_INSTRUCTIONS, op_work
from wolong_fx.ir.expr import Unary
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Loop, OpInst, Program, Stage, Store
from wolong_fx.ir.types import Buffer, BufferKind, DType
from wolong_fx.ledger import LaunchTime
from wolong_fx.options import Options
from wolong_fx.runtime import team_size
from wolong_fx.runtime.machine_costs import keep_costs, usual_costs
from wolong_fx.testing.kernels import with_chosen_tiles
from wolong_fx.testing.programs import ProgramBuilder, add, at, dot, load, operator
from wolong_fx.toolchain import choose_isa

COSTS = usual_costs("avx512", 2, {"l1_bytes": 32 << 10, "l2_bytes": 1 << 20, "l3_bytes": 32 << 20})


def product(rows: int, depth: int, columns: int, dtype: DType = DType.F32, repeats: int = 1) -> Program:
    """`repeats` stages, each out = a @ b."""
    p = ProgramBuilder("product")
    a, b = p.input("a", rows, depth, dtype=dtype), p.input("b", depth, columns, dtype=dtype)
    for number in range(repeats):
        out = p.output(f"out{number}", rows, columns, dtype=dtype)
        i, j, k = Var("i", rows), Var("j", columns), Var("k", depth)
        p.stage(operator("mm", (i, j), Store(at(out, i, j), dot(k, load(a, i, k), load(b, k, j)))))
    return with_chosen_tiles(p.build(), "avx512", 2)


def mapped(points: int, function: str, tile: int) -> OpInst:
    """out = function(x), in blocks."""
    x, out = (Buffer.contiguous(n, DType.F32, (points,), BufferKind.INPUT) for n in ("x", "out"))
    i = Var("i", points)
    return operator("map", (i,), Store(at(out, i), Unary(function, load(x, i))), tile=(tile,))


def only_op(program: Program) -> OpInst:
    (op,) = program.ops()
    return op


def work_of(op: OpInst, isa: str = "avx512"):
    return op_work(Planner(op, MACHINES[isa]))


# ---- work


def test_a_product_is_as_many_multiply_adds_as_it_has():
    assert work_of(only_op(product(24, 256, 64))).multiply_adds == 24 * 256 * 64


def test_float64_is_counted_double():
    single, double = (work_of(only_op(product(24, 256, 64, dtype))) for dtype in (DType.F32, DType.F64))
    assert double.multiply_adds == 2 * single.multiply_adds


def test_idle_lanes_and_ragged_rows_cost_what_full_ones_do():
    full, ragged = work_of(only_op(product(24, 64, 64))), work_of(only_op(product(24, 64, 60)))
    assert ragged.multiply_adds == full.multiply_adds
    assert work_of(only_op(product(23, 64, 64))).multiply_adds == full.multiply_adds


def test_functions_are_counted_by_vectors():
    assert work_of(mapped(1024, "tanh", 1024)).specials == 1024 / 16
    assert work_of(mapped(1024, "tanh", 1024), "avx2").specials == 1024 / 8
    assert work_of(mapped(1024, "neg", 1024)).specials == 0


def test_every_block_costs_the_same_extra():
    whole, halves = work_of(mapped(1024, "neg", 1024)), work_of(mapped(1024, "neg", 512))
    assert halves.cycles - whole.cycles == BLOCK_INSTRUCTIONS


# ---- memory


def test_bytes_are_counted_once_however_often_they_are_read():
    assert touched_bytes(product(16, 32, 48).ops()) == 4 * (16 * 32 + 32 * 48 + 16 * 48)
    twice = product(16, 32, 48, repeats=2)
    assert touched_bytes(twice.ops()) == 4 * (16 * 32 + 32 * 48 + 2 * 16 * 48)


def test_of_what_a_loop_steps_through_a_trip_touches_its_own():
    p = ProgramBuilder("steps")
    x, out = p.input("x", 100, 64), p.output("out", 100, 64)
    t, i = Var("t", 100), Var("i", 64)
    op = operator("step", (i,), Store(at(out, t, i), add(load(x, t, i), load(x, t, i))), tile=(64,))
    assert touched_bytes([op]) == 4 * 2 * 64


def test_a_byte_costs_more_the_more_is_touched_in_between():
    model = CostModel(COSTS, MACHINES["avx512"])
    sizes = [0, *(1 << n for n in range(10, 34))]
    for threads in (1, 2):
        found = [model.seconds_per_byte(size, threads) for size in sizes]
        assert all(a <= b for a, b in pairwise(found))
        assert found[0] == pytest.approx(1 / COSTS.l1_rate)
    assert model.seconds_per_byte(1 << 60, 1) == pytest.approx(1 / COSTS.dram_rate, rel=1e-3)
    assert model.seconds_per_byte(1 << 60, 2) == pytest.approx(2 / COSTS.team_dram_rate, rel=1e-3)


def test_what_fits_the_caches_of_two_threads_but_not_of_one_is_read_faster_by_two():
    model = CostModel(COSTS, MACHINES["avx512"])
    both = 2 * COSTS.l2_bytes
    assert model.seconds_per_byte(both, 2) < 0.9 * model.seconds_per_byte(both, 1)


# ---- operators, stages, loops, programs


def test_an_operator_takes_its_arithmetic_or_its_memory_whichever_is_more():
    model, op = CostModel(COSTS, MACHINES["avx512"]), only_op(product(240, 512, 512))
    arithmetic = work_of(op).multiply_adds / COSTS.fma_rate + work_of(op).cycles * COSTS.cycle
    blocks = op.virtual_blocks * COSTS.block
    assert model.op_seconds(op, 1, 0) == pytest.approx(arithmetic + blocks)
    slow = CostModel(replace(COSTS, l1_rate=1e9), MACHINES["avx512"])
    assert slow.op_seconds(op, 1, 0) == pytest.approx(touched_bytes([op]) / 1e9 + blocks)


def test_two_threads_take_half_of_a_stage_and_a_barrier():
    (stage,) = product(240, 512, 512).stages()
    model = CostModel(COSTS, MACHINES["avx512"])
    alone, team = (model.stage_seconds(stage, threads, 0) for threads in (1, 2))
    assert team - COSTS.barrier == pytest.approx(alone / 2, rel=0.05)
    assert model.stage_seconds(replace(stage, barrier=False), 2, 0) == pytest.approx(team - COSTS.barrier)


def test_a_stage_that_is_only_a_barrier_costs_one():
    model = CostModel(COSTS, MACHINES["avx512"])
    assert model.stage_seconds(Stage(()), 2, 0) == COSTS.barrier
    assert model.stage_seconds(Stage(()), 1, 0) == 0


def test_a_loop_takes_its_trips_times_its_body():
    program = product(24, 64, 64)
    looped = replace(program, body=(Loop(Var("t", 50), program.body),))
    model = CostModel(COSTS, MACHINES["avx512"])
    assert model.program_seconds(looped, 1) == pytest.approx(50 * model.program_seconds(program, 1))


# ---- choices


def test_small_programs_run_alone_and_large_ones_in_a_team():
    sizes = [4, 16, 64, 256, 1024]
    chosen = [forecast(product(n, n, n), "avx512", 2, COSTS).threads for n in sizes]
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (1, 2)


def test_dearer_barriers_and_regions_make_for_fewer_teams():
    program = product(24, 64, 64, repeats=4)
    for cost in ("barrier", "region"):
        figures = [10.0**n for n in range(-9, -3)]
        chosen = [forecast(program, "avx512", 2, replace(COSTS, **{cost: s})).threads for s in figures]
        assert chosen == sorted(chosen, reverse=True)
        assert chosen[-1] == 1


def test_a_team_must_be_worth_it_unless_it_is_asked_for():
    program = product(4, 16, 16)
    assert forecast(program, "avx512", 2, COSTS).threads == 1
    assert forecast(program, "avx512", 2, COSTS, may_choose=False).threads == 2
    for n in (8, 32, 128, 512):
        found = forecast(product(n, n, n), "avx512", 2, COSTS)
        assert (found.threads == 2) == (found.team < WORTH_A_TEAM * found.alone)
        assert found.team > COSTS.region + HOST_OF_TEAM


def test_the_same_costs_give_the_same_forecast():
    assert len({forecast(product(24, 64, 64), "avx512", 2, COSTS) for _ in range(3)}) == 1


# ---- what a user sees


class Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.linear(x))


def compiled_launch(model: torch.nn.Module, x: torch.Tensor) -> LaunchTime:
    with torch.no_grad():
        model(x)
    (launch,) = [launch for ledger in wolong_fx.stats(model).ledgers for launch in ledger.launch_times]
    return launch


@pytest.mark.cpu
def test_a_small_model_runs_on_one_thread_and_stats_show_prediction_beside_measurement(tmp_path):
    model = wolong_fx.optimize(Layer(16), cache_dir=str(tmp_path))
    launch = compiled_launch(model, torch.ones(1, 16))
    assert launch.threads == 1
    assert 1e-9 < launch.predicted < 1e-4
    assert launch.measured is not None and launch.measured > 0
    stats = wolong_fx.stats(model)
    assert str(launch) in str(stats).splitlines()
    assert any(d.step == "forecast" for ledger in stats.ledgers for d in ledger.decisions)


@pytest.mark.cpu
def test_a_calibration_decides_for_the_models_compiled_after_it(tmp_path):
    options, isa, threads = Options(cache_dir=str(tmp_path)), choose_isa("auto"), team_size()
    chosen = []
    for region in (1e-3, 1e-8):
        keep_costs(replace(usual_costs(isa, threads), region=region), options, isa, threads)
        model = wolong_fx.optimize(Layer(128), cache_dir=str(tmp_path))
        chosen.append(compiled_launch(model, torch.ones(64, 128)).threads)
    assert chosen == [1, threads]


@dataclass
class Unused:
    best_seconds: float = float("inf")


def test_a_launch_of_a_kernel_that_is_gone_or_never_ran_is_not_measured():
    unused = Unused()
    for kernel in (lambda: None, lambda: unused):
        launch = LaunchTime("wolong", 2, 1.5e-6, kernel)
        assert launch.measured is None
        assert str(launch) == "wolong on 2 threads: 1.5 us predicted, not measured"
