"""How long a program takes on this machine, predicted: plain formulas over `runtime.MachineCosts`.

    operator  max(arithmetic, memory) + virtual blocks * block
        arithmetic  cycles * cycle + multiply-adds / fma_rate + vectors of exp and the like / special_rate
        memory      bytes touched, each at the rate of the cache that holds it
    stage     the slowest thread's virtual blocks, as the emitter cuts them; in a team, its barrier
    loop      trips * body
    program   its body; in a team, a parallel region, and the host's thoughts about it

A scope is the body of a loop, or the whole program. What it touches is touched again in the next trip or
call, so each cache holds as large a share of it as fits. A team has as many first and second caches as
threads, with each thread's part of the scope in its own; the third cache and memory are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from wolong_fx.codegen.cpp.cuts import Cutter
from wolong_fx.codegen.cpp.machine import MACHINES, Machine
from wolong_fx.codegen.cpp.tiles import Planner
from wolong_fx.codegen.cpp.traffic import ops_in, touched_bytes
from wolong_fx.codegen.cpp.work import Work, op_work
from wolong_fx.codegen.signature import (
    Bindings,
    Key,
    outer_variables,
    signature,
)
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage
from wolong_fx.runtime import MachineCosts

HOST_OF_TEAM = 0.4e-6
"""Seconds that runtime/team.py takes a call to see that a team may run, and how long it took."""

WORTH_A_TEAM = 0.8
"""Share of one thread's time that a team may be predicted to take at most: it takes a processor from others,
and what slows one of its threads slows all.
"""


@dataclass(frozen=True)
class Forecast:
    """Predicted seconds of a launch.

    alone, team: on one thread, and on all
    threads: those that are worth it
    """

    alone: float
    team: float
    threads: int

    @property
    def seconds(self) -> float:
        return self.alone if self.threads == 1 else self.team

    def __str__(self) -> str:
        return f"{1e6 * self.alone:.3g} us on one thread, {1e6 * self.team:.3g} us in a team"


def forecast(
    program: Program, isa: str, threads: int, costs: MachineCosts, *, may_choose: bool = True
) -> Forecast:
    """What a program with tiles takes, and whether a team of `threads` is worth its barriers.

    may_choose: otherwise the team is wanted, worth it or not
    """
    model = CostModel(costs, MACHINES[isa])
    alone = model.program_seconds(program, 1)
    team = model.program_seconds(program, threads) if threads > 1 else alone
    is_team = team < WORTH_A_TEAM * alone or not may_choose
    return Forecast(alone, team, threads if is_team else 1)


@dataclass
class CostModel:
    """Predicts seconds from the costs of a machine; operators that are alike are looked at once."""

    costs: MachineCosts
    machine: Machine
    _alike: dict[Key, Work] = field(default_factory=dict)
    _of_op: dict[OpInst, Work] = field(default_factory=dict)
    _cutters: dict[int, Cutter] = field(default_factory=dict)

    def program_seconds(self, program: Program, threads: int) -> float:
        """Of one call on `threads` threads."""
        region = self.costs.region + HOST_OF_TEAM if threads > 1 else 0.0
        return region + self._items_seconds(program.body, threads)

    def stage_seconds(self, stage: Stage, threads: int, scope_bytes: float) -> float:
        """Until the slowest thread is done, and all know it.

        scope_bytes: what is touched before the stage's operands are touched again
        """
        blocks = [max(1, op.virtual_blocks) for op in stage.ops]
        seconds = [self.op_seconds(op, threads, scope_bytes) if op.points else 0.0 for op in stage.ops]
        a_block = [a / b for a, b in zip(seconds, blocks, strict=True)]
        by_thread = self._cutter(threads).parts(stage)
        slowest = max(sum((p.last - p.first) * a_block[p.op] for p in parts) for parts in by_thread)
        return slowest + (self.costs.barrier if stage.barrier and threads > 1 else 0.0)

    def op_seconds(self, op: OpInst, threads: int, scope_bytes: float) -> float:
        """Of all its virtual blocks one after another, on one of `threads` threads that share the caches."""
        work, costs = self._work(op), self.costs
        arithmetic = (
            work.cycles * costs.cycle
            + work.multiply_adds / costs.fma_rate
            + work.specials / costs.special_rate
        )
        memory = touched_bytes([op]) * self.seconds_per_byte(scope_bytes, threads)
        return max(arithmetic, memory) + op.virtual_blocks * costs.block

    def seconds_per_byte(self, scope_bytes: float, threads: int) -> float:
        """Of reading, on one of `threads` threads, what was last touched so many bytes before."""
        costs, total, held = self.costs, 0.0, 0.0
        for size, rate in (
            (costs.l1_bytes * threads, costs.l1_rate),
            (costs.l2_bytes * threads, costs.l2_rate),
            (costs.l3_bytes, min(costs.l3_rate, costs.team_l3_rate / threads)),
            (inf, min(costs.dram_rate, costs.team_dram_rate / threads)),
        ):
            share = min(1.0, size / scope_bytes) if scope_bytes else 1.0
            total += max(0.0, share - held) / rate
            held = max(held, share)
        return total

    def _items_seconds(self, items: Sequence[Item], threads: int) -> float:
        scope_bytes = touched_bytes(ops_in(items))
        return sum(
            item.var.extent * self._items_seconds(item.body, threads)
            if isinstance(item, Loop)
            else self.stage_seconds(item, threads, scope_bytes)
            for item in items
        )

    def _cutter(self, threads: int) -> Cutter:
        return self._cutters.setdefault(threads, Cutter(self.machine, threads))

    def _work(self, op: OpInst) -> Work:
        if op not in self._of_op:
            key = signature(op, Bindings.of(op), outer_variables(op))
            if key not in self._alike:
                self._alike[key] = op_work(Planner(op, self.machine))
            self._of_op[op] = self._alike[key]
        return self._of_op[op]
